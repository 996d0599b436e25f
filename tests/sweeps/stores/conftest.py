"""Stores to sweep into, machines to sweep from, and what was measured there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyarrow import fs

from sweeps.config import Config
from sweeps.records import RunDirectory
from sweeps.run import Runner
from sweeps.stores import Store
from sweeps.uris import Uri
from tests.sweeps.stores.s3_server import LOGIN, S3Server, contents, s3_server
from tests.sweeps.tiny import composed, run_whole

BUCKET = "bucket"
TRIALS = 40


def silent(_: str) -> None:
    pass


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """For one run, in a folder."""
    return Store.open(Uri.parse(f"file://{tmp_path / 'store'}")).child("mine")


@pytest.fixture(scope="module")
def login() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in LOGIN.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def server(login: None) -> Iterator[S3Server]:
    with s3_server(BUCKET) as running:
        yield running


@dataclass
class Place:
    """A root of runs in a store, and a look into it that does not use our code."""

    root: str
    files: Callable[[], dict[str, bytes]]

    def run(self) -> tuple[str, dict[str, bytes]]:
        """The name and the files of the only run."""
        files = self.files()
        (name,) = {path.partition("/")[0] for path in files}
        return name, {path.partition("/")[2]: content for path, content in files.items()}


@pytest.fixture(params=["s3", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "file":
        folder = tmp_path / "store"
        return Place(f"file://{folder}", lambda: contents(fs.LocalFileSystem(), str(folder)))
    server: S3Server = request.getfixturevalue("server")
    folder = f"{BUCKET}/{request.node.name.split('[')[0]}"
    server.requests.clear()
    return Place(server.uri(folder), lambda: server.files(folder))


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """``machine("b")``: from here on this is another machine, with an empty cache; returns the cache's folder."""

    def be(name: str) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return tmp_path / name

    be("a")
    return be


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the trials that are measured from here on, each as often as it is."""
    seen: list[str] = []
    run = Runner.run

    def noted(self: Runner, lease: object) -> object:
        seen.extend(trial.trial_id for trial in lease.trials)  # type: ignore[attr-defined]
        return run(self, lease)  # type: ignore[arg-type]

    monkeypatch.setattr(Runner, "run", noted)
    return seen


@pytest.fixture(scope="module")
def undisturbed(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run_whole(tmp_path_factory.mktemp("undisturbed"), *settings)


@pytest.fixture
def sweep(settings: list[str], place: Place) -> Callable[..., Config]:
    return lambda *overrides: composed(*settings, f"run.root='{place.root}'", *overrides)


def copy_in(cache: Path) -> RunDirectory:
    (folder,) = cache.glob("circuit-sweep/runs/*/*")
    return RunDirectory(folder)


def a_page(run: Path) -> Path:
    page = run / "report" / "index.html"
    page.parent.mkdir(exist_ok=True)
    page.write_text(f"a page about {run.name}")
    return page


@pytest.fixture(autouse=True)
def _quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report takes longer than the sweep; it has its own tests."""
    monkeypatch.setattr("sweeps.driver.write_report", a_page)
