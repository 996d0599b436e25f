"""Reports of a sweep that is not finished: they come, say what they are, leave no results behind, and are replaced."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from sweeps.partial import PartialReports, main, write_partial_report
from sweeps.records import RunDirectory
from sweeps.standing import read_standing
from tests.sweeps.test_resume import started, until_parts
from tests.sweeps.tiny import assert_same_effects, command, run_whole

pytestmark = pytest.mark.run

PATIENCE = 300.0
RESULTS = ("effects", "comparisons", "diagnostics", "heads")


@pytest.fixture(scope="module")
def undisturbed(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run_whole(tmp_path_factory.mktemp("undisturbed"), *settings)


@pytest.fixture
def unfinished(undisturbed: RunDirectory, tmp_path: Path) -> RunDirectory:
    """As a killed driver leaves it: a few parts, no results."""
    directory = RunDirectory(tmp_path / "mine")
    directory.create(directory.records)
    for name in ("config.yaml", "trials.parquet", "units.parquet", "run.json"):
        (directory.path / name).write_bytes((undisturbed.path / name).read_bytes())
    for part in sorted(undisturbed.records.iterdir())[:3]:
        (directory.records / part.name).write_bytes(part.read_bytes())
    return directory


def files(directory: RunDirectory) -> set[str]:
    return {str(path.relative_to(directory.path)) for path in directory.path.rglob("*") if path.is_file()}


def test_a_partial_report_says_so_and_leaves_nothing_but_the_page(unfinished: RunDirectory) -> None:
    before = files(unfinished)
    assert write_partial_report(unfinished)
    assert files(unfinished) == before | {"report/index.html"}
    page = (unfinished.path / "report" / "index.html").read_text()
    measured = set(unfinished.measurements()["trial_id"])
    assert 0 < len(measured) < 40
    assert f"Partial report: {len(measured)} of 40 trials were finished when it was written." in page
    assert page.index("Partial report") < page.index("<main"), "before any result"


def quick_report(path: Path, figures: bool) -> Path:
    (path / "page.html").write_text("<body><h1>found</h1></body>")
    return path / "page.html"


def test_nothing_measured_gives_no_report(unfinished: RunDirectory) -> None:
    for part in unfinished.records.iterdir():
        part.unlink()
    before = files(unfinished)
    assert not write_partial_report(unfinished)
    assert files(unfinished) == before


def test_a_report_that_is_late_is_not_published(unfinished: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its driver was killed; another one may have finished the run, and its report is not to be replaced."""
    monkeypatch.setattr("sweeps.report.write_report", quick_report)
    (unfinished.path / "report").mkdir()
    page = unfinished.path / "report" / "index.html"
    page.write_text("the final one")
    assert not write_partial_report(unfinished, lambda: False)
    assert main(str(unfinished.path), str(os.getpid())) == 0, "this process is not its own parent"
    assert page.read_text() == "the final one"
    assert main(str(unfinished.path), str(os.getppid())) == 0
    assert page.read_text() == "<body><h1>found</h1></body>"


def test_what_goes_wrong_is_said_in_one_line(unfinished: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished.trials.write_bytes(b"damaged")
    assert main(str(unfinished.path), str(os.getppid())) == 1
    said = capsys.readouterr().err
    assert said.startswith("RunDirectoryError: ")
    assert "trials.parquet is damaged" in said
    assert said.count("\n") == 1


def test_a_sweep_reports_while_it_runs(settings: list[str], tmp_path: Path, undisturbed: RunDirectory) -> None:
    root = tmp_path / "runs"
    directory, page = RunDirectory(root / "mine"), root / "mine" / "report" / "index.html"
    slow = [*settings, "cluster.lease_seconds=1e-6", "run.rows=1", f"run.root={root}", "run.name=mine"]
    driver = started(command(*slow, "run.report_every=0.001"), tmp_path)
    try:
        until_parts(driver, root, 1)
        deadline = time.monotonic() + PATIENCE
        while not page.exists():
            assert driver.poll() is None, driver.communicate()
            assert time.monotonic() < deadline
            if child := reporter(driver.pid):
                os.kill(driver.pid, signal.SIGSTOP)  # the sweep waits for the report, whoever is quicker
                while not ended(child):
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                os.kill(driver.pid, signal.SIGCONT)
        assert "Partial report: " in page.read_text()
        assert not any((directory.path / f"{name}.parquet").exists() for name in RESULTS)
        _, error = driver.communicate(timeout=PATIENCE)
    finally:
        driver.kill()
        driver.communicate()
    assert driver.returncode == 0, error
    assert "no report of what is measured so far" not in error
    assert "Partial report" not in page.read_text(), "the final report takes its place"
    standing = read_standing(directory)
    assert standing is not None
    assert (standing.state, standing.done) == ("finished", 40)
    assert_same_effects(directory, undisturbed)


def reporter(driver: int) -> psutil.Process | None:
    """The process that makes a report for a driver."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(driver).children():
            if "sweeps.partial" in child.cmdline():
                return child
    return None


def ended(child: psutil.Process) -> bool:
    """Nobody waits for it while its driver is stopped, so it stays as a zombie."""
    try:
        return child.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_zero_is_never(tmp_path: Path) -> None:
    with PartialReports(RunDirectory(tmp_path), 0.0, pytest.fail) as reports:
        assert not reports._thread.is_alive()
