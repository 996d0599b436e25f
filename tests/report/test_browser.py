"""The page in a real browser: no console message, scripts work, names cannot run."""

import re
from pathlib import Path

import pytest
from browser import BROWSER, MISSING, opened
from fake_run import FakeSweep, write_fake_run

from sweeps.report import write_report

pytestmark = pytest.mark.skipif(BROWSER is None, reason=MISSING)


def with_script(page: Path, target: Path, script: str) -> Path:
    """A copy of the page that also runs a script; its policy would forbid that, so the copy has none."""
    text = re.sub(r"<meta http-equiv=.*?>", "", page.read_text(encoding="utf-8"))
    target.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return target


@pytest.mark.parametrize("flags", [(), ("--blink-settings=preferredColorScheme=0",)], ids=["light", "dark"])
def test_no_console_message(report, tmp_path, flags):
    document, console = opened(report, tmp_path, *flags)
    assert console == []
    assert "<h1>tiny_faces</h1>" in document
    assert '<button type="button">Degradation</button>' in document


def test_names_cannot_run(tmp_path):
    hostile = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    sweep = FakeSweep(layers=1, heads=2, windows=1, modes=(hostile,), datasets=(hostile,), model=hostile)
    document, console = opened(write_report(write_fake_run(tmp_path / "run", sweep)), tmp_path / "profile")
    assert console == []
    assert "<title>owned" not in document


def test_sorting_filtering_and_picking(report, tmp_path):
    script = """
    const table = document.getElementById("all-trials");
    const keys = Array.from(table.tHead.rows[0].cells, (cell) => cell.dataset.key);
    const column = (key) => Array.from(table.tBodies[0].rows, (row) => row.cells[keys.indexOf(key)]);
    const numbers = (key) => column(key).map((cell) => Number(cell.dataset.value));
    const click = (key) => table.tHead.rows[0].cells[keys.indexOf(key)].querySelector("button").click();
    const results = {};
    click("q");
    results.ascending = numbers("q").every((q, i, all) => i === 0 || all[i - 1] <= q);
    click("percent"); click("percent");
    results.descending = numbers("percent").every((p, i, all) => i === 0 || all[i - 1] >= p);
    results.aria = table.querySelectorAll("[aria-sort=descending]").length;
    const form = document.querySelector("form.filters");
    const verdicts = Array.from(form.querySelectorAll("select")).pop();
    verdicts.value = "degraded";
    verdicts.dispatchEvent(new Event("input", { bubbles: true }));
    const shown = Array.from(table.tBodies[0].rows).filter((row) => !row.hidden);
    results.filtered = shown.length;
    results.pure = shown.every((row) => row.textContent.includes("degraded"));
    const cell = document.querySelector("svg [data-trial]");
    cell.dispatchEvent(new MouseEvent("click", { bubbles: true }));
    results.picked = document.querySelector("tr.picked").dataset.trial === cell.dataset.trial;
    results.opened = document.getElementById("all").open;
    document.title = "results " + JSON.stringify(results);
    """
    document, console = opened(with_script(report, tmp_path / "page.html", script), tmp_path / "profile")
    assert console == []
    degraded = int(
        re.search(r"<strong>([\d,]+)</strong>\s*<span class=\"verdict degraded\">", document)[1].replace(",", "")
    )
    assert (
        f'results {{"ascending":true,"descending":true,"aria":1,"filtered":{degraded},"pure":true,"picked":true,'
        '"opened":true}' in document
    )


def test_a_phone_never_scrolls_sideways(report, tmp_path):
    """Wide figures and tables scroll inside their own boxes."""
    measure = """
    const root = document.documentElement;
    parent.postMessage(`over by ${root.scrollWidth - root.clientWidth} of ${innerWidth}`, "*");
    """
    inner = with_script(report, tmp_path / "inner.html", measure)
    outer = tmp_path / "outer.html"
    outer.write_text(
        "<title></title><script>addEventListener('message', (event) => { document.title = event.data; });</script>"
        f'<iframe src="file://{inner}" style="border: 0; width: 390px; height: 800px"></iframe>'
    )
    document, _ = opened(outer, tmp_path / "profile")
    assert "<title>over by 0 of 390</title>" in document
