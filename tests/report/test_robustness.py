"""Whatever a run's tables hold: a page comes of it, and its scripts say nothing."""

import numpy as np
import pandas as pd
import pytest
from browser import opened
from fake_comparison import write_fake_comparison
from fake_profiles import add_profiles
from fake_run import FakeSweep, write_fake_run
from page_data import embedded

from sweeps.report import write_report
from sweeps.report.attempts import Attempts
from sweeps.report.comparison_page import write_comparison_page
from sweeps.report.printable import all_printable
from sweeps.report.reported_run import tidied

STRANGE = "a\x00b\x01</script>\x9f|]]>\U0001f600"
NUMBERS = (np.nan, np.inf, -np.inf, 0.0, -100.0, 1e308, -1e308)


def change(path, **columns) -> None:
    pd.read_parquet(path).assign(**columns).to_parquet(path)


def left_out(page) -> str:
    text = page.read_text(encoding="utf-8")
    return text.partition("Left out, because")[2].partition("</div>")[0]


def test_nothing_is_left_out_of_a_sound_run(report):
    assert left_out(report) == ""


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_out_of_range(browser, small_run, number):
    """In half of the rows of every float column of every table."""
    for name in ("effects", "diagnostics", "comparisons"):
        path = small_run / f"{name}.parquet"
        table = pd.read_parquet(path)
        floats = table.select_dtypes("float").columns
        half = np.arange(len(table)) % 2 == 0
        table.assign(**{c: np.where(half, number, table[c]) for c in floats}).to_parquet(path)
    with opened(browser, write_report(small_run, figures=False)) as found:
        page = found.page
        assert page.locator("rect.cell").count() == 2 * 4 * 2 * 2 * 2
        rects = page.locator("rect.cell")
        for place in (0, 1):
            rects.nth(place).click()
            assert page.locator(".detail .big").count() == 1
        assert found.said == []


def test_names_with_control_characters(browser, tmp_path):
    sweep = FakeSweep(
        layers=2, heads=2, windows=2, modes=("zero", f"mean{STRANGE}"), datasets=(f"x{STRANGE}", f"y{STRANGE}"),
        model=STRANGE, layer_name="layer{}" + STRANGE, samples=4,
    )  # fmt: skip
    page = write_report(write_fake_run(tmp_path / "run", sweep))
    assert left_out(page) == ""
    with opened(browser, page) as found:
        assert "a�b�</script>�|]]>\U0001f600" in found.page.locator(".detail .where").first.text_content()
        assert found.said == []


@pytest.mark.parametrize(
    "sweep",
    [
        FakeSweep(layers=1, heads=1, windows=1, modes=("zero",), datasets=("one",), protocols=("denoise",), samples=0),
        FakeSweep(layers=1, heads=0, windows=3, modes=("zero",), datasets=("one",), protocols=("denoise",), samples=0),
        FakeSweep(
            layers=2_000, heads=1, windows=1, modes=("zero",), datasets=("one",), protocols=("denoise",), samples=0,
            metrics=("noise_mse",),
        ),
    ],
    ids=["one cell", "no heads", "2,000 layers"],
)  # fmt: skip
def test_grids_of_any_size(browser, tmp_path, sweep):
    page = write_report(write_fake_run(tmp_path / "run", sweep), figures=False)
    trials = sweep.layers * (sweep.heads + 1) * sweep.windows
    with opened(browser, page) as found:
        assert found.page.locator("#application output").text_content() == f"{trials:,} of {trials:,}"
        layers = min(48, sweep.layers)
        assert found.page.locator("rect.cell").count() == layers * (sweep.heads + 1) * sweep.windows
        if sweep.layers > 48:
            last = pd.read_parquet(tmp_path / "run" / "trials.parquet").iloc[-1]
            found.page.goto(f"{page.as_uri()}#pick={last.trial_id}")
            assert found.page.locator("rect.picked").get_attribute("data-cell") == last.trial_id
            assert "L1968 to L1999" in found.page.locator(".maps .pager option:checked").text_content()
            found.page.locator(".maps .pager select").select_option("0")
            assert found.page.locator("svg text.map-label", has_text="L47").count() == 1
        assert found.said == []


def test_tables_that_do_not_hold_what_they_should_cost_their_section(small_run):
    add_profiles(small_run)
    change(small_run / "comparisons.parquet", group="?")
    page = write_report(small_run, figures=False)
    assert "paper (" in left_out(page)
    assert len(embedded(page)["trials"]["id"]) == 64


def test_a_comparison_of_strange_numbers_and_names(browser, tmp_path):
    path = write_fake_comparison(
        tmp_path / "compare", names=(f"a{STRANGE}", "b"), modes=("zero", STRANGE), datasets=(STRANGE, "y"), layers=2,
        heads=2, windows=2,
    )  # fmt: skip
    table = pd.read_parquet(path / "comparisons.parquet")
    for place, number in enumerate(NUMBERS):
        rows = np.arange(len(table)) % 10 == place
        for name in ("estimate", "ci_low", "ci_high", "p", "q", "mean_a", "low_b"):
            table[name] = table[name].where(~rows, number)
    table.to_parquet(path / "comparisons.parquet")
    page = write_comparison_page(path)
    assert len(embedded(page)["cells"]["id"]) == len(table)
    with opened(browser, page) as found:
        for row in found.page.locator("#all-trials tbody tr").all()[:12]:
            row.locator("td").last.click()
        assert found.said == []


def test_an_attempt_tells_a_misfit_from_a_bug():
    attempts = Attempts()
    assert attempts.make("sum", 0, lambda: 1 + 1) == 2
    assert attempts.make("ratio", -1, lambda: 1 // 0) == -1
    assert attempts.lost == ["ratio (ZeroDivisionError: integer division or modulo by zero)"]
    with pytest.raises(AssertionError):
        attempts.make("check", 0, _fails)


def _fails() -> int:
    raise AssertionError


def test_printable():
    assert all_printable({"a\x00": ["b\x1f", 1, None, "c\n\té"]}) == {"a�": ["b�", 1, None, "c\n\té"]}
    table = pd.DataFrame({"text": ["x\x00", None], "number": [1.0, np.inf], "list": [["y"], None]})
    found = tidied(table.copy())
    assert found["text"].tolist()[0] == "x�"
    assert np.isnan(found["number"][1])
    assert found["list"].tolist() == [["y"], None]
    assert table["text"].tolist()[0] == "x\x00"
