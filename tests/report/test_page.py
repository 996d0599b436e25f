import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from fake_run import FakeSweep, write_fake_run
from page_data import effects as embedded_effects
from page_data import embedded, image_ratios, table
from page_parts import PageParts

from sweeps.report import write_report
from sweeps.report.theme import BIN_NAMES, LIGHT

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&$\\frac{$"


@pytest.fixture(scope="module")
def page(report) -> str:
    return report.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def parts(page) -> PageParts:
    return PageParts(page)


def change(path, **columns):
    pd.read_parquet(path).assign(**columns).to_parquet(path)


def test_the_page_is_where_it_should_be(fake_run, report):
    assert report == fake_run / "report" / "index.html"
    assert report.stat().st_size < 8_000_000
    figures = {path.name for path in (fake_run / "report" / "figures").iterdir()}
    stems = {"heatmap-0-synthetic-faces", "heatmap-1-lfw-faces", "forest", "volcano", "p-values"}
    assert {f"{stem}.{kind}" for stem in stems for kind in ("svg", "png")} <= figures
    assert "contrast-synthetic-faces-lfw-faces.svg" in figures


def test_the_page_has_the_numbers_of_effects_parquet(fake_run, report):
    data = embedded(report)
    effects = pd.read_parquet(fake_run / "effects.parquet")
    assert sorted(data["effects"]) == sorted(effects["metric"].unique())
    for metric, part in effects.groupby("metric"):
        expected, found = part.set_index("trial_id"), embedded_effects(data, metric)
        assert sorted(found.index) == sorted(expected.index)
        for key in ("percent", "ci_low", "ci_high", "p", "q", "n"):
            np.testing.assert_array_equal(found[key], expected.loc[found.index, key])
        for key in ("d_z", "mean_log_ratio"):
            np.testing.assert_allclose(found[key], expected.loc[found.index, key], rtol=1e-6)
        assert found["verdict"].tolist() == expected.loc[found.index, "verdict"].tolist()
        assert found["stopped"].tolist() == expected.loc[found.index, "stopped"].fillna("").tolist()


def test_the_page_says_what_each_trial_is(fake_run, report):
    trials = pd.read_parquet(fake_run / "trials.parquet").set_index("trial_id")
    found = table(embedded(report)["trials"]).set_index("id")
    expected = trials.loc[found.index]
    assert len(found) == 1080
    for ours, theirs in {"layer": "layer_index", "head": "head", "window": "window_index", "dataset": "dataset",
                         "mode": "mode", "t_start": "t_start", "t_end": "t_end", "path": "layer"}.items():  # fmt: skip
        assert found[ours].tolist() == expected[theirs].tolist()
    sites = [f"L{t.layer_index}" + (f"H{t.head}" if t.head >= 0 else "") for t in expected.itertuples()]
    assert found["site"].tolist() == sites


def test_values_of_images_are_those_of_the_records(fake_run, report):
    data = embedded(report)
    records = pd.concat(pd.read_parquet(part) for part in (fake_run / "records").glob("*.parquet"))
    records["g"] = np.log(records["ablated"].astype(float) / records["baseline"])
    for metric in ("noise_mse", "edge"):
        ratios = image_ratios(data, metric)
        wide = records[records["metric"] == metric].pivot(index="trial_id", columns="unit", values="g")
        assert sorted(ratios) == sorted(wide.index)
        for trial, g in wide.iterrows():
            np.testing.assert_allclose(ratios[trial], g, atol=g.abs().max() / 65_000 + 1e-6)


def test_the_top_table_is_the_strongest_heads_in_order(fake_run, parts):
    table = parts.table("Heads: the strongest 30")
    cells = pd.read_parquet(fake_run / "effects.parquet").query("metric == 'noise_mse' and verdict == 'degraded'")
    heads = cells.merge(pd.read_parquet(fake_run / "trials.parquet"), on="trial_id").query("head >= 0")
    expected = heads.sort_values("mean_log_ratio", ascending=False)["trial_id"].head(30)
    assert [row["data-trial"] for row, _ in table.rows] == expected.tolist()


def test_every_cell_of_the_heatmap_on_disk_is_coloured_by_its_verdict(fake_run, report):
    cells = pd.read_parquet(fake_run / "effects.parquet").query("metric == 'noise_mse'").set_index("trial_id")
    figures = [path.read_text() for path in (fake_run / "report" / "figures").glob("heatmap*.svg")]
    drawn = re.findall(r'<g id="cell:([0-9a-f]+)">\s*<path [^>]*style="([^"]*)"', "".join(figures))
    assert sorted(trial for trial, _ in drawn) == sorted(cells.index)
    bins = {LIGHT[name] for name in BIN_NAMES}
    for trial, style in drawn:
        fill = re.search(r"fill: ?(#[0-9a-f]{6}|url)", style)[1]
        assert (fill in bins) == (cells.at[trial, "verdict"] in ("degraded", "improved"))
        assert (fill == "url") == (cells.at[trial, "verdict"] == "inconclusive")


def test_nothing_is_loaded_from_elsewhere(page, parts):
    # Scripts name XML namespaces, and where the chart library is from; what they ask for is tested in a browser.
    page = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"https?://", page)
    for tag, attributes in parts.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            if attributes.get(name):
                assert attributes[name].startswith(("#", "data:")), (tag, attributes)
    assert "@import" not in page
    assert not re.search(r"url\((?!#|&quot;#)", page)
    policy = next(tag["content"] for tag in parts.named("meta") if "http-equiv" in tag)
    assert "default-src 'none'" in policy


def test_ids_are_unique_and_every_reference_has_its_target(page, parts):
    ids = [attributes["id"] for _, attributes in parts.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    page = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    wanted = {name for name in re.findall(r'href="#([^"]+)"', page) if "=" not in name} | set(
        re.findall(r"url\(#([^)]+)\)", page)
    )
    assert wanted <= set(ids)


def test_figures_take_their_colours_from_the_theme(page):
    body = page[page.index("<body>") :]
    assert "var(--ink)" in body
    assert not [colour for colour in LIGHT.values() if colour in body]


def test_it_can_be_read_without_eyes(parts):
    assert all(tag.get("alt") for tag in parts.named("img"))
    assert all(tag.get("role") == "img" and tag.get("aria-label") for tag in parts.named("svg"))
    assert all(tag.get("scope") in ("row", "col") for tag in parts.named("th"))
    assert all(table.headings for table in parts.tables)
    levels = [int(tag[1]) for tag, _ in parts.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert max(np.diff(levels)) == 1
    assert parts.named("html")[0]["lang"] == "en"


def test_what_was_run_is_said(parts):
    text = " ".join(" ".join(parts.text).split())
    for said in (
        "2,160 trials: 4 layers of 8 heads, 5 windows, 3 modes (zero, mean, resample) and 2 data sets",
        "5.81 M parameters",
        "python launch.py sweep=full_ablation",
        "2026-03-14 09:21 UTC",
        "0f3a9c1d2b4e5f60718293a4b5c6d7e8f9012345",
        "torch 2.13.0",
        "transformer_blocks.3.attn1",
        "Trained on 80 LFW faces; these 20 were kept apart.",
        "N = 64 a trial",
        "registered before the run, −4.76% to +5%",
        "20 families: trials alike in layer and window",
        "this checkpoint only",
    ):
        assert said in text, said


def test_markup_in_names_stays_text(tmp_path):
    sweep = FakeSweep(
        layers=2, heads=2, windows=2, modes=("zero", f"mean{HOSTILE}"), datasets=(f"a{HOSTILE}", f"b{HOSTILE}"),
        model=f"model{HOSTILE}", layer_name="layer{}" + HOSTILE.replace("{", "{{"), samples=10,
    )  # fmt: skip
    run = write_fake_run(tmp_path / "run", sweep)
    change(run / "comparisons.parquet", name=f"data set contrast: {HOSTILE}", group=HOSTILE)
    about = json.loads((run / "run.json").read_text())
    about |= {"command": HOSTILE, "device": HOSTILE, "git_commit": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    about["data"][f"a{HOSTILE}"]["trained_on"] = HOSTILE
    (run / "run.json").write_text(json.dumps(about))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["stats"]["note"] = HOSTILE
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    report = write_report(run)
    parts = PageParts(report.read_text(encoding="utf-8"))
    assert len(parts.named("script")) == 3  # data, the chart library, ours
    assert all(tag["src"].startswith("data:image/") for tag in parts.named("img"))
    assert not [name for _, attributes in parts.tags for name in attributes if name.startswith("on")]
    assert "".join(parts.text).count("onerror=alert(1)") > 20
    assert {path.resolve().parent for path in (run / "report" / "figures").iterdir()} == {
        (run / "report" / "figures").resolve()
    }


def test_it_works_without_what_is_optional(small_run):
    for name in ("comparisons.parquet", "failures.parquet", "diagnostics.parquet"):
        (small_run / name).unlink()
    for path in (small_run / "samples").iterdir():
        path.unlink()
    (small_run / "samples").rmdir()
    (small_run / "run.json").write_text("{}")
    page = write_report(small_run)
    parts = PageParts(page.read_text(encoding="utf-8"))
    assert not {"samples", "failures"} & {attributes.get("id") for _, attributes in parts.tags}
    assert not parts.named("img")
    assert len(embedded(page)["trials"]["id"]) == 2 * 4 * 2 * 2 * 2
    assert "None" not in "".join(parts.text)


def test_comparisons_may_be_empty(small_run):
    path = small_run / "comparisons.parquet"
    pd.read_parquet(path).iloc[:0].to_parquet(path)
    parts = PageParts(write_report(small_run).read_text(encoding="utf-8"))
    assert not [table for table in parts.tables if table.caption.startswith("Data-set contrasts")]


def test_the_comparisons_are_those_of_the_file(small_run):
    expected = pd.read_parquet(small_run / "comparisons.parquet").set_index("group")
    table = PageParts(write_report(small_run).read_text(encoding="utf-8")).table("All data-set contrasts")
    groups = [cells[table.column("group")].text for _, cells in table.rows]
    assert sorted(groups) == sorted(expected.index)
    for key in ("estimate", "ci_low", "p", "q"):
        shown = [float(cells[table.column(key)].attributes["data-value"]) for _, cells in table.rows]
        np.testing.assert_allclose(shown, expected.loc[groups, key], rtol=1e-5)
    assert expected.loc[groups, "p"].is_monotonic_increasing


def test_a_failure_is_shown_with_its_traceback(parts):
    text = "".join(parts.text)
    assert "RuntimeError: expected 64 tokens, got 63" in text
    assert "RuntimeError: <script>alert(1)</script>" in text


def test_no_effects_yet(small_run):
    path = small_run / "effects.parquet"
    pd.read_parquet(path).iloc[:0].to_parquet(path)
    parts = PageParts(write_report(small_run).read_text(encoding="utf-8"))
    assert "No trial has an effect on noise_mse yet." in "".join(parts.text)
    assert not parts.named("svg")


@pytest.mark.parametrize(
    ("query", "expected"),
    [("head >= 0", "2 layers of 3 heads"), ("head == -1", "2 layers,"), ("dataset == 'lfw_faces'", "1 data set (lfw")],
)
def test_a_part_of_the_grid_is_a_report_too(small_run, query, expected):
    trials = pd.read_parquet(small_run / "trials.parquet").query(query)
    effects = pd.read_parquet(small_run / "effects.parquet")
    trials.to_parquet(small_run / "trials.parquet")
    effects[effects["trial_id"].isin(trials["trial_id"])].to_parquet(small_run / "effects.parquet")
    page = write_report(small_run)
    assert expected in "".join(PageParts(page.read_text(encoding="utf-8")).text)
    assert len(embedded(page)["trials"]["id"]) == (trials["protocol"] == "denoise").sum()


def test_sets_and_streams(small_run):
    trials = pd.read_parquet(small_run / "trials.parquet")
    is_set = (trials["layer_index"] == 1) & (trials["head"] == 2)
    trials["level"] = trials["level"].where(~is_set, "set")
    trials["sites"] = [["L0H1", "L1H2"] if each else None for each in is_set]
    trials["stream"] = np.where(trials["head"] == 1, "text", "image")
    trials.to_parquet(small_run / "trials.parquet")
    sites = set(table(embedded(write_report(small_run))["trials"])["site"])
    assert {"L0H1, L1H2", "L0H1 text", "L0H0 image", "L0 image"} <= sites
    figures = {path.stem for path in (small_run / "report" / "figures").glob("heatmap*.svg")}
    assert figures == {
        f"heatmap-{i}-{name}-{stream}"
        for i, name in enumerate(["synthetic-faces", "lfw-faces"])
        for stream in ("image", "text")
    }


def test_the_same_run_gives_the_same_page(small_run):
    first = write_report(small_run).read_bytes()
    assert write_report(small_run).read_bytes() == first


def test_it_needs_neither_the_sweep_nor_the_model():
    heavy = {"ray", "wandb", "hydra", "omegaconf", "torch", "diffusers", "matplotlib.pyplot"}
    code = f"import sys, sweeps.report; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_matplotlib_is_left_as_it_was(small_run):
    import matplotlib

    before = dict(matplotlib.rcParams)
    write_report(small_run)
    assert dict(matplotlib.rcParams) == before
