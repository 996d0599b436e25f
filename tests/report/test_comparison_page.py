import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import BROWSER, MISSING, opened
from fake_comparison import write_fake_comparison
from page_parts import PageParts

from sweeps.records import RunDirectoryError
from sweeps.report import wording
from sweeps.report.comparison_page import write_comparison_page

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&$\\frac{$"
browser = pytest.mark.skipif(BROWSER is None, reason=MISSING)


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


def test_the_table_has_the_numbers_of_the_file(comparison, parts):
    table, cells = parts.table("All cells"), primary(comparison)
    ids = [row["data-trial"] for row, _ in table.rows]
    assert sorted(ids) == sorted(cells.index)
    values = {
        "in_a": cells["mean_a"], "in_b": cells["mean_b"], "difference": cells["estimate"], "ci_low": cells["ci_low"],
    }  # fmt: skip
    for key, log_ratio in values.items():
        shown = [float(row[table.column(key)].attributes["data-value"]) for _, row in table.rows]
        np.testing.assert_allclose(shown, 100 * np.expm1(log_ratio.loc[ids]), rtol=1e-5)
    for key in ("p", "q"):
        shown = [float(row[table.column(key)].attributes["data-value"]) for _, row in table.rows]
        np.testing.assert_allclose(shown, cells.loc[ids, key], rtol=1e-5)
    assert [row[table.column("verdict")].text.strip() for _, row in table.rows] == cells.loc[ids, "verdict"].tolist()
    ns = {row[table.column("n")].text for _, row in table.rows}
    assert ns == {"64", "64, 80"}


def test_certain_differences_come_first_by_size(comparison, parts):
    cells = primary(comparison)
    ids = [row["data-trial"] for row, _ in parts.table("All cells").rows]
    settled = cells.loc[ids, "verdict"].isin(["more", "less"])
    assert settled.iloc[: settled.sum()].all()
    assert cells.loc[ids, "estimate"].abs()[settled.to_numpy()].is_monotonic_decreasing


def test_a_map_has_colour_only_where_a_difference_is_certain(comparison, page):
    cells = primary(comparison)
    text = page.read_text(encoding="utf-8")
    drawn = re.findall(r'<g data-trial="(\w+)">\s*<title>(.*?)</title>\s*<path [^>]*style="([^"]*)"', text, re.DOTALL)
    assert sorted(trial for trial, _, _ in drawn) == sorted(cells.index)
    for trial, title, style in drawn:
        cell = cells.loc[trial]
        colour = re.search(r"fill: ?var\(--(deg|imp|mid)", style)
        assert bool(colour) == (cell["verdict"] in ("more", "less"))
        if colour and colour[1] != "mid":
            assert colour[1] == ("deg" if cell["estimate"] > 0 else "imp")
        assert wording.percent(100 * np.expm1(cell["estimate"])) in title


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


def test_nothing_is_loaded_from_elsewhere_and_references_resolve(page, parts):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?://", text)
    ids = [attributes["id"] for _, attributes in parts.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    assert all(tag.get("role") == "img" and tag.get("aria-label") for tag in parts.named("svg"))
    levels = [int(tag[1]) for tag, _ in parts.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert max(np.diff(levels)) == 1


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
    assert len(parts.named("script")) == 1
    assert not parts.named("img")
    assert not [name for _, attributes in parts.tags for name in attributes if name.startswith("on")]
    assert "".join(parts.text).count("onerror=alert(1)") > 20


@browser
def test_names_cannot_run(tmp_path):
    _, console = opened(write_comparison_page(hostile(tmp_path / "compare")), tmp_path / "profile")
    assert console == []


@browser
@pytest.mark.parametrize("flags", [(), ("--blink-settings=preferredColorScheme=0",)], ids=["light", "dark"])
def test_no_console_message(page, tmp_path, flags):
    document, console = opened(page, tmp_path, *flags)
    assert console == []
    assert '<button type="button">b over a</button>' in document
    assert "1,080 of 1,080" in document  # the filters ran


def test_a_folder_without_a_comparison(tmp_path):
    with pytest.raises(RunDirectoryError, match="holds no comparison"):
        write_comparison_page(tmp_path)
