import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_comparison import write_fake_comparison
from page_data import column, embedded, table
from page_parts import PageParts

from sweeps.records import RunDirectoryError
from sweeps.report import wording
from sweeps.report.comparison_page import write_comparison_page
from sweeps.report.theme import BIN_NAMES, LIGHT

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&$\\frac{$"


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Path:
    return write_fake_comparison(tmp_path_factory.mktemp("comparison") / "compare-a-b")


@pytest.fixture(scope="module")
def page(comparison) -> Path:
    return write_comparison_page(comparison)


@pytest.fixture(scope="module")
def parts(page) -> PageParts:
    return PageParts(page.read_text(encoding="utf-8"))


def primary(comparison: Path) -> pd.DataFrame:
    return pd.read_parquet(comparison / "comparisons.parquet").query("metric == 'noise_mse'").set_index("trial_a")


def test_files(comparison, page):
    assert page == comparison / "report" / "index.html"
    assert page.stat().st_size < 8_000_000
    stems = {"differences-0-synthetic", "differences-1-natural", "a-against-b", "strongest"}
    figures = {path.name for path in (comparison / "report" / "figures").iterdir()}
    assert figures == {f"{stem}.{kind}" for stem in stems for kind in ("svg", "png")}


def test_the_page_has_the_numbers_of_the_file(comparison, page):
    data, cells = embedded(page), pd.read_parquet(comparison / "comparisons.parquet")
    known = table(data["cells"])
    assert sorted(known["id"]) == sorted(cells["trial_a"])
    for metric, part in cells.groupby("metric"):
        found, expected = table(data["contrasts"][metric]), part.set_index("trial_a")
        ids = known["id"][found["cell"]]
        assert sorted(ids) == sorted(expected.index)
        expected = expected.loc[ids]
        for key in ("estimate", "ci_low", "ci_high", "p", "q", "mean_a", "low_a", "high_a", "mean_b", "n_a", "n_b"):
            np.testing.assert_array_equal(found[key], expected[key])
        assert found["verdict"].tolist() == expected["verdict"].tolist()
        here = known.loc[found["cell"]]
        for ours, theirs in {"dataset": "dataset", "mode": "mode", "layer": "layer_index", "head": "head"}.items():
            assert here[ours].tolist() == expected[theirs].tolist()
        assert (here["paired"] == "paired").tolist() == expected["paired"].tolist()


def test_images_of_both_runs_are_those_of_the_file(comparison, page):
    data = embedded(page)
    expected = pd.read_parquet(comparison / "images.parquet").set_index("trial_a")
    for side in ("a", "b"):
        packed = {name: column(values) for name, values in data["images"][side].items()}
        parts = np.split(packed["codes"], np.cumsum(packed["counts"])[:-1])
        for cell, codes, step in zip(data["cells"]["id"], parts, packed["step"]):
            if cell in expected.index:
                values = expected.at[cell, side]
                np.testing.assert_allclose(codes * float(step), values, atol=abs(values).max() / 65_000 + 1e-7)
            else:
                assert len(codes) == 0  # another metric


def test_certain_differences_come_first_by_size(comparison, page):
    cells = primary(comparison)
    ids = embedded(page)["cells"]["id"][: len(cells)]
    settled = cells.loc[ids, "verdict"].isin(["more", "less"])
    assert settled.iloc[: settled.sum()].all()
    assert cells.loc[ids, "estimate"].abs()[settled.to_numpy()].is_monotonic_decreasing


def test_the_map_on_disk_has_colour_only_where_a_difference_is_certain(comparison, page):
    cells = primary(comparison)
    figures = [path.read_text() for path in (comparison / "report" / "figures").glob("differences*.svg")]
    drawn = re.findall(r'<g id="cell:(\w+)">\s*<path [^>]*style="([^"]*)"', "".join(figures))
    assert sorted(trial for trial, _ in drawn) == sorted(cells.index)
    bins = {LIGHT[name]: name[:3] for name in BIN_NAMES}
    for trial, style in drawn:
        cell, colour = cells.loc[trial], bins.get(re.search(r"fill: ?(#[0-9a-f]{6}|url)", style)[1])
        assert (colour is not None) == (cell["verdict"] in ("more", "less"))
        if colour not in (None, "mid"):
            assert colour == ("deg" if cell["estimate"] > 0 else "imp")


def test_findings_are_made_from_the_numbers(comparison, parts):
    text = " ".join(" ".join(parts.text).split())
    cells = primary(comparison)
    counts = cells["verdict"].value_counts()
    assert (
        f"Of 1,080 cells on noise_mse, {counts['more']} are degraded more in b, {counts['less']} less, "
        f"{counts['same']} the same (within ±5%), and {counts['undecided']} are undecided" in text
    )
    top = cells[cells["verdict"].isin(["more", "less"]) & (cells["dataset"] == "natural")]
    top = top.loc[top["estimate"].abs().idxmax()]
    assert f"in b is {wording.percent(100 * np.expm1(top['estimate']))} against a" in text
    assert "ablated ÷ baseline in b is +2.0% against a (95% CI +1.0% to +3.0%, p = 0.004" in text
    assert "The runs differ in the checkpoint and the images: a difference between them cannot be put down to" in text
    assert "natural (denoise): independent: 64 units in a, 80 others in b" in text
    assert "paired: the same 64 images in both" in text
    assert "43,200 studentised permutations" in text
    assert text.count("2026-03-14 09:21 UTC") == 2


def test_nothing_is_loaded_from_elsewhere_and_references_resolve(page, parts):
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"https?://", text)
    ids = [attributes["id"] for _, attributes in parts.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {name for name in re.findall(r'href="#([^"]+)"', text) if "=" not in name} | set(
        re.findall(r"url\(#([^)]+)\)", text)
    ) <= set(ids)
    assert all(tag.get("role") == "img" and tag.get("aria-label") for tag in parts.named("svg"))
    levels = [int(tag[1]) for tag, _ in parts.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert max(np.diff(levels)) == 1


def test_windows_that_begin_together_are_two_windows(tmp_path):
    path = write_fake_comparison(tmp_path / "compare", layers=1, heads=2, windows=2, modes=("zero",))
    cells = pd.read_parquet(path / "comparisons.parquet")
    cells.assign(t_start=999, t_start_b=999).to_parquet(path / "comparisons.parquet")
    page = write_comparison_page(path)
    known = table(embedded(page)["cells"])
    assert set(zip(known["window"], known["window_text"])) == {(0, "t 999–500"), (1, "t 999–0")}
    assert list((path / "report" / "figures").glob("differences*.svg")), "no two of them share a place of the map"
    assert "a family is a layer in a window (2 here)" in "".join(PageParts(page.read_text(encoding="utf-8")).text)


def test_the_images_that_are_compared_are_counted(tmp_path):
    """Of trials that stop early the first looks only, not all that a data set has."""
    path = write_fake_comparison(tmp_path / "compare", layers=1, heads=2, windows=1, modes=("zero",))
    cells = pd.read_parquet(path / "comparisons.parquet")
    cells["n_a"] = cells["n_a"].where(cells["dataset"] == "natural", 16)
    cells.to_parquet(path / "comparisons.parquet")
    text = "".join(PageParts(write_comparison_page(path).read_text(encoding="utf-8")).text)
    assert "synthetic (denoise) paired: the same 16 of 64 images in both" in text
    assert "natural (denoise) independent: 64 units in a, 80 others in b" in text


def test_no_certain_difference_is_said_plainly(tmp_path):
    path = write_fake_comparison(tmp_path / "compare", layers=1, heads=3, windows=1, modes=("zero",))
    pd.read_parquet(path / "comparisons.parquet").assign(verdict="undecided").to_parquet(path / "comparisons.parquet")
    text = "".join(PageParts(write_comparison_page(path).read_text(encoding="utf-8")).text)
    assert "On natural, no difference is certain." in text
    assert "none of them certain" in text


@pytest.mark.parametrize(
    ("factors", "said"),
    [([], "differ in nothing that a measurement should depend on"), (["the noise"], "differ in the noise only.")],
)
def test_what_a_difference_can_be_put_down_to(tmp_path, factors, said):
    path = write_fake_comparison(tmp_path / "compare", layers=1, heads=2, windows=1, modes=("zero",))
    facts = json.loads((path / "compare.json").read_text()) | {"factors": factors}
    (path / "compare.json").write_text(json.dumps(facts))
    assert said in "".join(PageParts(write_comparison_page(path).read_text(encoding="utf-8")).text)


def hostile(path: Path) -> Path:
    names = (f"a{HOSTILE}", f"b{HOSTILE}")
    return write_fake_comparison(
        path, names=names, modes=(f"mean{HOSTILE}",), datasets=(f"x{HOSTILE}", f"y{HOSTILE}"), layers=2, heads=2,
        windows=1, note=HOSTILE,
    )  # fmt: skip


def test_markup_in_names_stays_text(tmp_path):
    path = hostile(tmp_path / "compare")
    parts = PageParts(write_comparison_page(path).read_text(encoding="utf-8"))
    assert len(parts.named("script")) == 3
    assert not parts.named("img")
    assert not [name for _, attributes in parts.tags for name in attributes if name.startswith("on")]
    assert "".join(parts.text).count("onerror=alert(1)") > 10


def test_a_folder_without_a_comparison(tmp_path):
    with pytest.raises(RunDirectoryError, match="holds no comparison"):
        write_comparison_page(tmp_path)
