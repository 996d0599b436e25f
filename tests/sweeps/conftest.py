import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import launch
from sweeps.config import Config
from sweeps.driver import load
from sweeps.plan import Subject
from sweeps.run import load_subject
from tests.sweeps.tiny import composed, save_pictures, save_pipeline

Configure = Callable[..., Config]
Said = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session", autouse=True)
def _loaded_once() -> Iterator[None]:
    """Most sweeps here are of one model; what runs on it leaves it as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sweeps.driver.load_subject", functools.lru_cache(maxsize=4)(load_subject))
        yield


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="session")
def settings(pipeline: Path, pictures: Path) -> list[str]:
    """Overrides of a sweep of 40 trials: 2 layers x (4 heads + 1) x 2 windows x zero x 2 data sets."""
    return [
        "sweep=smoke", "sweep.modes=[zero]", "sweep.images=8", "sweep.steps=4", "sweep.samples=2",
        "model=hub", f"model.path={pipeline}", "data=folder", f"data.root={pictures}", "cluster=inline", "tracker=none",
        "stats=fixed", "run.rows=32",
    ]  # fmt: skip


@pytest.fixture
def configure(settings: list[str], tmp_path: Path) -> Configure:
    """``configure("sweep.images=9")``: the tiny sweep with other settings, its runs in a folder of this test."""
    return lambda *overrides: composed(*settings, f"run.root={tmp_path / 'runs'}", *overrides)


@pytest.fixture(scope="session")
def subject(settings: list[str]) -> Subject:
    """The tiny model and data sets, loaded."""
    return load(composed(*settings))[0]


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report takes longer than the sweep; it has its own tests."""
    monkeypatch.setattr("sweeps.driver.write_report", lambda path: path / "report" / "index.html")


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    """Exit code, standard error and output of a command line, run in this process; Ray cannot start."""

    def no_ray(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    def run(*overrides: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sweeps.schedule.connect", no_ray)
        monkeypatch.setattr(sys, "argv", ["launch.py", *overrides])
        with pytest.raises(SystemExit) as ended:
            launch.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.err, printed.out

    return run
