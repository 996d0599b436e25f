import shutil
from pathlib import Path

import pytest
from browser import BROWSER, MISSING, chromium
from fake_run import FakeSweep, write_fake_run

from sweeps.report import write_report


@pytest.fixture(scope="session")
def fake_run(tmp_path_factory) -> Path:
    """1,080 denoise trials and as many sample trials: 4 layers of 8 heads, 5 windows, 3 modes, 2 data sets."""
    return write_fake_run(tmp_path_factory.mktemp("runs") / "full")


@pytest.fixture(scope="session")
def report(fake_run) -> Path:
    return write_report(fake_run)


@pytest.fixture(scope="session")
def browser():
    """One browser for all tests of a process; each page has a context of its own."""
    if BROWSER is None:
        pytest.skip(MISSING)
    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def small_run_template(tmp_path_factory) -> Path:
    sweep = FakeSweep(layers=2, heads=3, windows=2, modes=("zero", "mean"), samples=20)
    return write_fake_run(tmp_path_factory.mktemp("runs") / "small", sweep)


@pytest.fixture
def small_run(small_run_template, tmp_path) -> Path:
    """A run of its own, to be changed."""
    return Path(shutil.copytree(small_run_template, tmp_path / "run"))
