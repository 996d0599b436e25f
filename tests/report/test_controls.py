"""Controls are shown as controls, and never as ablations."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_controls import CONTROL_IMAGES, DRAWN, FLOOR, add_controls
from page_parts import PageParts

from sweeps import controls as written
from sweeps.report import controls as read
from sweeps.report import write_report
from sweeps.report.control_plots import against_controls
from sweeps.report.controls import control_sentences, floor_sentence, read_controls
from sweeps.report.reported_run import read_run


@pytest.fixture(scope="module")
def run(small_run_template, tmp_path_factory) -> Path:
    """A run with controls and its page; not to be changed."""
    run = Path(shutil.copytree(small_run_template, tmp_path_factory.mktemp("controlled") / "run"))
    add_controls(run)
    write_report(run)
    return run


@pytest.fixture(scope="module")
def page(run) -> Path:
    return run / "report" / "index.html"


def controls_of(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "trials.parquet").query("phase == 'control'")


def text_of(page) -> str:
    return " ".join(" ".join(PageParts(page.read_text(encoding="utf-8")).text).split())


def compared(run) -> pd.DataFrame:
    """Both claims and the head's own verdict, a row a head trial, by hand."""
    table = pd.read_parquet(run / "comparisons.parquet")
    over_images = table[table["name"] == read.WORSE_ON_IMAGES].set_index("group")
    over_controls = table[table["name"] == read.WORSE_THAN_CONTROLS].set_index("group")
    cells = pd.read_parquet(run / "effects.parquet").query("metric == 'noise_mse'")
    cells = cells.merge(pd.read_parquet(run / "trials.parquet"), on="trial_id")
    rows = []
    for group, claim in over_images.iterrows():
        layer, head, window, dataset = re.fullmatch(
            r"layer (\d+) head (\d+) \| zero \| window (\d+) \| (.*)", group
        ).groups()
        place = (int(layer), int(head), int(window), dataset)
        is_it = [
            found == place
            for found in zip(cells["layer_index"], cells["head"], cells["window_index"], cells["dataset"])
        ]
        (cell,) = cells[np.array(is_it) & (cells["mode"] == "zero")].itertuples()
        p_controls = over_controls.at[group, "p"]
        rows.append({**claim, "p_controls": p_controls, "trial_id": cell.trial_id, "verdict": cell.verdict})
    return pd.DataFrame(rows).set_index("trial_id")


def test_the_names_are_those_that_the_aggregate_writes():
    for name in ("WORSE_ON_IMAGES", "WORSE_THAN_CONTROLS", "NOISE_FLOOR"):
        assert getattr(read, name) == getattr(written, name)


def test_no_control_is_shown_as_an_ablation(small_run, run, page):
    before = PageParts(write_report(small_run).read_text(encoding="utf-8"))
    controls, text = controls_of(run), page.read_text(encoding="utf-8")
    after = PageParts(text)
    for caption in ("Heads: the strongest", "Verdicts by mode", "Percent degradation on every metric"):
        shown, known = after.table(caption), before.table(caption)
        assert [[cell.text for cell in row] for _, row in shown.rows] == [
            [cell.text for cell in row] for _, row in known.rows
        ]
    drawn = set(re.findall(r'data-trial="(\w+)"', text))
    assert not drawn & set(controls["trial_id"])
    found = read_run(run)
    assert set(found.trials["variant"]) == {"zero", "mean"}
    assert len(found.controls) == len(controls) == 2 * 2 * (2 * DRAWN + 1)
    text = " ".join("".join(after.text).split())
    assert "128 trials: 2 layers of 3 heads, 2 windows, 2 modes (zero, mean) and 2 data sets" in text
    assert f"Beside them, {8 * DRAWN} random subspaces as controls." in text
    assert f"128 trials ({len(controls)} of them controls)" in text


def test_data_set_contrasts_are_all_that_is_between_data_sets(run, page):
    names = pd.read_parquet(run / "comparisons.parquet")["name"]
    table = PageParts(page.read_text(encoding="utf-8")).table("All data-set contrasts")
    shown = [row[table.column("name")].text for _, row in table.rows]
    assert len(shown) == names.str.startswith("data set contrast").sum() == 24
    assert set(shown) == {"lfw_faces - synthetic_faces"}


def test_heads_stand_beside_their_controls(small_run):
    """The mean of a control comes back from its halves, of which one has an image more."""
    controls = add_controls(small_run)
    found = read_controls(read_run(small_run))
    expected = compared(small_run)
    heads = found.heads.set_index("trial_id")
    assert set(heads.index) == set(expected.index)
    assert heads["estimate"].is_monotonic_decreasing
    for column in ("estimate", "ci_low", "ci_high", "p", "q", "p_controls"):
        np.testing.assert_allclose(heads[column], expected.loc[heads.index, column])
    assert (heads["n_a"] == CONTROL_IMAGES).all()
    assert (heads["n_b"] == DRAWN).all()
    means = found.drawn.set_index("trial_id")["mean_log_ratio"]
    known = controls.query("strength == 1").set_index("trial_id")["mean"]
    np.testing.assert_allclose(means.loc[known.index], known, atol=1e-12)


def test_the_table_has_the_heads_that_are_worse_over_images(run, page):
    expected = compared(run).query("q <= 0.05").sort_values("estimate", ascending=False)
    table = PageParts(page.read_text(encoding="utf-8")).table("Heads worse than random subspaces over images")
    assert 0 < len(expected) < 24
    assert table.caption.endswith(f": {len(expected)} of 24 trials")
    assert [row["data-trial"] for row, _ in table.rows] == expected.index.tolist()
    columns = {
        "above": 100 * np.expm1(expected["estimate"]), "ci_low": 100 * np.expm1(expected["ci_low"]),
        "p": expected["p"], "q": expected["q"], "p_controls": expected["p_controls"],
    }  # fmt: skip
    for key, values in columns.items():
        shown = [float(row[table.column(key)].attributes["data-value"]) for _, row in table.rows]
        np.testing.assert_allclose(shown, values, rtol=1e-5)
    assert [row[table.column("verdict")].text.strip() for _, row in table.rows] == expected["verdict"].tolist()
    assert {path.name for path in (page.parent / "figures").glob("random-subspaces.*")} == {
        "random-subspaces.svg", "random-subspaces.png",
    }  # fmt: skip


def test_heads_are_drawn_at_their_effect_on_the_images_of_the_controls(run):
    found = read_controls(read_run(run))
    figure = against_controls(found.heads, found.drawn, ("synthetic_faces", "lfw_faces"), 0.05)
    assert [axes.get_title() for axes in figure.axes] == ["synthetic_faces", "lfw_faces"]
    for axes, dataset in zip(figure.axes, ("synthetic_faces", "lfw_faces")):
        heads = found.heads[found.heads["dataset"] == dataset]
        drawn = found.drawn[found.drawn["dataset"] == dataset]
        dots = [line for line in axes.get_lines() if line.get_marker() == "o"]
        y = np.concatenate([line.get_ydata() for line in dots])
        np.testing.assert_allclose(np.sort(y), np.sort(heads["mean_log_ratio"]))  # the made-up trials had those images
        filled = [len(line.get_ydata()) for line in dots if line.get_markerfacecolor() != "none"]
        assert filled == [(heads["q"] <= 0.05).sum()]
        (marks,) = [line for line in axes.get_lines() if line.get_marker() == "_"]
        np.testing.assert_allclose(np.sort(marks.get_ydata()), np.sort(drawn["mean_log_ratio"]))
        assert len(set(np.round(marks.get_xdata(), 9))) == 4  # 2 windows of 2 layers


def test_the_section_says_what_it_is_and_what_it_cannot_show(run, page):
    degraded = compared(run).query("verdict == 'degraded'")
    worse = degraded.query("q <= 0.05")
    least = int((worse["p_controls"] < 1.01 / (DRAWN + 1)).sum())
    text = text_of(page)
    assert 1 < len(worse) < len(degraded)
    assert (
        f"Of {len(degraded)} trials with a zeroed head that are called degraded, {len(worse)} are also worse than "
        f"removing as much of a random subspace (the average of {DRAWN}, q over images ≤ 5%); {least} of these "
        f"{'is' if least == 1 else 'are'} worse than every one of the {DRAWN}." in text
    )
    assert f"{DRAWN} random subspaces as large as a head" in text
    assert f"on the {CONTROL_IMAGES} images that all of them have" in text
    assert "never below 0.167 and cannot reach 5%, for which at least 19 would be needed" in text
    assert "5 for each data set, window and layer, on 7 images at most" in text
    assert "differed on no image by more than a log ratio of 3e-7" in text


@pytest.mark.parametrize(
    ("floor", "said"),
    [
        (FLOOR, "differed on no image by more than a log ratio of 3e-7; effects of that size are rounding."),
        (0.0, "the unablated model had the same noise_mse on every image, to the last bit."),
        (0.06, "That is more than the margin: no verdict here can be trusted."),
    ],
)
def test_the_noise_floor(small_run, floor, said):
    add_controls(small_run, floor)
    found = read_run(small_run)
    assert said in floor_sentence(read_controls(found), "noise_mse", found.stats.log_margin)


def test_without_controls_nothing_is_said_of_them(small_run):
    assert read_controls(read_run(small_run)) is None
    assert control_sentences(None) == []
    parts = PageParts(write_report(small_run).read_text(encoding="utf-8"))
    assert "controls" not in {attributes.get("id") for _, attributes in parts.tags}
    assert "random subspace" not in "".join(parts.text)


def test_none_worse_is_said_plainly(small_run):
    add_controls(small_run)
    path = small_run / "comparisons.parquet"
    table = pd.read_parquet(path)
    table.assign(q=table["q"].where(~table["name"].str.startswith("worse"), 1.0)).to_parquet(path)
    text = text_of(write_report(small_run))
    assert "0 are also worse than removing as much of a random subspace (the average of 5, q over images ≤ 5%)." in text
    assert "None of 24 trials with a zeroed head is shown to be worse than random subspaces over images." in text


def test_a_control_that_failed_has_a_name(small_run):
    controls = add_controls(small_run)
    chosen = pd.concat([controls.query("draw == 4").head(1), controls.query("strength == 0").head(1)])
    failures = pd.DataFrame({"trial_id": chosen["trial_id"], "error": "E", "traceback": "", "attempts": 3})
    failures.to_parquet(small_run / "failures.parquet")
    text = text_of(write_report(small_run))
    assert "L0H1, random subspace 4, t 999–500, synthetic_faces" in text
    assert "model, unablated, once more, t 999–500, synthetic_faces" in text
