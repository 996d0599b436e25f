"""The application on a comparison's page in a real browser."""

import json
import re
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pandas as pd
import pytest
from browser import DESKTOP, PHONE, fragment, opened
from fake_comparison import write_fake_comparison
from fake_run import sample_grid

from sweeps.report import wording
from sweeps.report.comparison_page import write_comparison_page


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Path:
    """With samples of both runs for its first cell, whose folders compare.json names."""
    root = tmp_path_factory.mktemp("comparison")
    path = write_fake_comparison(root / "compare-a-b")
    facts = json.loads((path / "compare.json").read_text())
    trial = pd.read_parquet(path / "comparisons.parquet").iloc[0]
    for seed, side in enumerate("ab"):
        facts[side]["path"] = str(root / side)
        (root / side / "samples").mkdir(parents=True)
        sample_grid(seed).save(root / side / "samples" / f"{trial[f'trial_{side}']}.png")
    (path / "compare.json").write_text(json.dumps(facts))
    return path


@pytest.fixture(scope="module")
def page(comparison) -> Path:
    return write_comparison_page(comparison)


@pytest.fixture(scope="module")
def cells(comparison) -> pd.DataFrame:
    table = pd.read_parquet(comparison / "comparisons.parquet").query("metric == 'noise_mse'")
    order = table.assign(settled=table["verdict"].isin(["more", "less"]), size=table["estimate"].abs())
    return order.sort_values(["settled", "size"], ascending=False, kind="stable").set_index("trial_a")


def percent(log_ratio: float) -> str:
    return wording.percent(100 * np.expm1(log_ratio))


def test_the_table_shows_the_numbers_of_the_file(browser, page, cells):
    with opened(browser, page) as found:
        shown = found.page.evaluate("""() => Array.from(document.querySelectorAll('#all-trials tbody tr'), (row) => [
          row.dataset.trial, ...Array.from(row.cells, (cell) => cell.textContent)])""")
        assert [row[0] for row in shown] == cells.index[:25].tolist()
        for trial, rank, site, level, mode, _, data, in_a, in_b, difference, interval, p, q, n, verdict in shown:
            cell = cells.loc[trial]
            assert int(rank.replace(",", "")) == cells.index.get_loc(trial) + 1
            head = f"H{cell['head']}" if cell["head"] >= 0 else ""
            assert (site, level) == (f"L{cell.layer_index}{head}", cell.level)
            assert (mode, data, verdict) == (cell["mode"], cell.dataset, cell.verdict)
            assert (in_a, in_b, difference) == (percent(cell.mean_a), percent(cell.mean_b), percent(cell.estimate))
            assert interval == f"{percent(cell.ci_low)} to {percent(cell.ci_high)}"
            assert (p, q) == (wording.probability(cell.p), wording.probability(cell.q))
            assert n == ("64" if cell.paired else "64, 80")
        assert found.page.locator("#application output").text_content() == "1,080 of 1,080"
        assert found.said == []
        assert found.asked == []


def test_a_cell_is_picked_in_the_maps_of_both_runs_and_of_their_difference(browser, page, cells):
    first = cells.iloc[0]
    with opened(browser, page) as found:
        picked = found.page.locator("rect.picked")
        assert picked.count() == 3
        assert {rect.get_attribute("data-cell") for rect in picked.all()} == {cells.index[0]}
        titles = found.page.locator(".map-row h3").all_text_contents()
        assert [title.rsplit(" · ", 1)[1][:2] for title in titles] == ["a:", "b:", "b "]
        assert all(title.startswith(f"{first.dataset} · {first['mode']} · ") for title in titles)
        # Another cell of the third map; all three follow, and the address with them.
        other = cells[(cells["dataset"] == first.dataset) & (cells["mode"] == first["mode"])].index[5]
        found.page.locator(f'.map-row:nth-child(3) rect[data-cell="{other}"]').click()
        assert {rect.get_attribute("data-cell") for rect in picked.all()} == {other}
        assert picked.count() == 3
        assert parse_qs(fragment(found.page))["pick"] == [other]
        # Colour of a and b where the interval of that effect excludes zero, of the difference where it is certain.
        looks = found.page.evaluate("""() => Array.from(document.querySelectorAll('.map-row'), (row) =>
          Object.fromEntries(Array.from(row.querySelectorAll('rect.cell'),
            (rect) => [rect.dataset.cell, rect.classList[1]])))""")
        assert [len(part) for part in looks] == [180, 180, 180]
        called = {"more": "degraded", "less": "improved", "same": "negligible", "undecided": "inconclusive"}
        for trial, look in looks[2].items():
            cell = cells.loc[trial]
            assert look == called[cell.verdict]
            for side, part in zip("ab", looks):
                low, high = cell[f"low_{side}"], cell[f"high_{side}"]
                assert part[trial] == ("degraded" if low > 0 else "improved" if high < 0 else "inconclusive")
        # Down from the last layer of a comes the first of b, up again the last of a.
        found.page.locator(".map-row:nth-child(1) rect[data-cell]").last.focus()
        found.page.keyboard.press("ArrowDown")
        assert found.page.evaluate("document.activeElement.dataset.key").startswith("1/")
        found.page.keyboard.press("ArrowUp")
        assert found.page.evaluate("document.activeElement.dataset.key").startswith("0/")
        found.page.select_option("select[name=mode]", "mean")
        assert found.page.locator(".map-row").count() == 6
        assert found.said == []


@pytest.mark.parametrize("paired", [True, False], ids=["paired", "independent"])
def test_what_is_known_of_the_picked_cell_in_both_runs(browser, comparison, page, cells, paired):
    trial = cells[cells["paired"] == paired].index[0]
    cell = cells.loc[trial]
    images = pd.read_parquet(comparison / "images.parquet").set_index("trial_a").loc[trial]
    with opened(browser, page, f"#pick={trial}") as found:
        detail = found.page.locator(".detail")
        text = detail.text_content()
        for said in (percent(cell.estimate), percent(cell.mean_a), percent(cell.mean_b), cell.verdict,
                     f"{percent(cell.ci_low)} to {percent(cell.ci_high)}"):  # fmt: skip
            assert said in text
        strips = detail.get_by_role("img", name=re.compile("Change on each image in both runs"))
        assert strips.locator("circle").count() == cell.n_a + cell.n_b
        label = strips.get_attribute("aria-label")
        assert f"a: {cell.n_a} images, mean {percent(cell.mean_a)}" in label
        assert f"b: {cell.n_b} images, mean {percent(cell.mean_b)}" in label
        pairs = detail.get_by_role("img", name=re.compile("The same .* images in a and in b"))
        assert pairs.count() == int(paired)
        if paired:
            assert f"{int((images.b > images.a).sum())} are hurt more in b" in pairs.get_attribute("aria-label")
        assert found.said == []


def test_images_that_are_alike_stay_on_the_strip_of_their_run(browser, tmp_path):
    """One run that nothing harms beside one that is harmed: its dots are all at one place of the axis."""
    path = write_fake_comparison(tmp_path / "compare", layers=1, heads=1, windows=1)
    images = pd.read_parquet(path / "images.parquet")
    images["a"] = [np.linspace(-1e-3, 1e-3, len(a)).astype(np.float32) for a in images["a"]]
    images.to_parquet(path / "images.parquet")
    with opened(browser, write_comparison_page(path)) as found:
        strips = found.page.get_by_role("img", name=re.compile("Change on each image in both runs"))
        dots = strips.evaluate("""(svg) => Array.from(svg.querySelectorAll("circle"), (dot) => {
          const box = dot.getBoundingClientRect(), around = svg.getBoundingClientRect();
          return [dot.getAttribute("fill"), box.top - around.top, box.bottom - around.top];
        })""")
        inside = {"var(--data-1)": (0, 80), "var(--data-2)": (78, 158)}
        assert len(dots) == 128
        for run, top, bottom in dots:
            assert inside[run][0] <= top < bottom <= inside[run][1]


def test_samples_of_both_runs(browser, comparison, page):
    trial = pd.read_parquet(comparison / "comparisons.parquet")["trial_a"].iloc[0]
    with opened(browser, page, f"#pick={trial}") as found:
        shown = found.page.locator(".detail img.samples")
        assert shown.count() == 2
        assert len({image.get_attribute("src") for image in shown.all()}) == 2
        assert "in a: baseline" in shown.first.get_attribute("alt")


@pytest.mark.parametrize(
    ("size", "theme"), [(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light")], ids=["light", "dark", "phone"]
)
def test_it_is_accessible_and_fits(browser, page, size, theme):
    with opened(browser, page, "", size, theme) as found:
        everything = (size, theme) == (DESKTOP, "light")
        assert found.violations("body" if everything else "#explore") == []
        root = "document.documentElement"
        assert found.page.evaluate(f"{root}.scrollWidth - {root}.clientWidth") == 0
        assert found.said == []


def test_names_cannot_run(browser, tmp_path):
    hostile = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script><!--"
    path = write_fake_comparison(
        tmp_path / "compare", names=(f"a{hostile}", f"b{hostile}"), modes=(hostile,), datasets=(f"x{hostile}", "y"),
        layers=2, heads=2, windows=1, note=hostile,
    )  # fmt: skip
    with opened(browser, write_comparison_page(path)) as found:
        assert found.said == []
        assert found.page.title() != "owned"
        assert found.page.locator("img[src=x]").count() == 0
        assert hostile in found.page.locator(".map-row h3").first.text_content()
