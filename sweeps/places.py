"""Where runs lie: in a folder of this machine, or in a store, by what ``run.root`` says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from circuits.naming import nearest
from sweeps.config import ConfigError
from sweeps.locks import RunLock
from sweeps.records import RunDirectory
from sweeps.stores import Store
from sweeps.uris import Uri, is_uri
from sweeps.working_copies import StoredRun, place_of


@dataclass
class _Visit:
    """The stores and the runs in them that a command came to."""

    stores: dict[Uri, Store] = field(default_factory=dict)
    runs: list[StoredRun] = field(default_factory=list)

    def store(self, root: str, key: str = "run.root") -> Store:
        uri = Uri.parse(root)
        if uri not in self.stores:
            self.stores[uri] = Store.open(uri, key)
        return self.stores[uri]


_VISIT: ContextVar[_Visit] = ContextVar("visit")


@contextmanager
def visiting(root: str) -> Iterator[None]:
    """A command whose runs lie under the root: what it wrote into working copies is in their stores when it ends.

    Raises:
        ConfigError: there is no such store, or it does not let us in.
        GaveOut: the store did not take what was written.
    """
    visit = _Visit()
    token = _VISIT.set(visit)
    try:
        if is_uri(root):
            visit.store(root)
        yield
        for run in visit.runs:
            run.copy.publish(ended=True)
    finally:
        _VISIT.reset(token)


def run_at(root: str, name: str, key: str = "run.root") -> RunDirectory:
    """The directory of a run, which need not exist yet.

    Raises:
        ConfigError: there is no such store; ``key`` named it.
    """
    if not is_uri(root):
        return RunDirectory(Path(root).expanduser() / name)
    visit = _VISIT.get(None) or _Visit()
    run = StoredRun(visit.store(root, key).child(name), place_of(Uri.parse(root)) / name)
    visit.runs.append(run)
    return run


def names_at(root: str, key: str = "run.root") -> list[str]:
    """Names of the runs there are under the root, or of folders that may be some."""
    if is_uri(root):
        return (_VISIT.get(None) or _Visit()).store(root, key).children()
    folder = Path(root).expanduser()
    return sorted(run.parent.name for run in folder.glob("*/trials.parquet")) if folder.is_dir() else []


def fetch(directory: RunDirectory) -> None:
    """Have its files here, as they are in its store."""
    if isinstance(directory, StoredRun):
        directory.fetch()


def existing(directory: RunDirectory, root: str) -> RunDirectory:
    """The same, with its files here.

    Raises:
        ConfigError: it holds no run; others there are under the root.
        RunDirectoryError: a newer version wrote it, or it is damaged.
    """
    fetch(directory)
    if not directory.trials.is_file():
        raise ConfigError(f"run.name: no run {directory.where}{nearest(directory.path.name, names_at(root))}")
    directory.read_run()
    return directory


def check(directory: RunDirectory) -> None:
    """
    Raises:
        GaveOut: its store went away, or another driver took the run over.
    """
    if isinstance(directory, StoredRun):
        directory.check()


@contextmanager
def held(directory: RunDirectory, say: Callable[[str], object]) -> Iterator[None]:
    """Work on a run alone.

    Raises:
        RunDirectoryError: another driver has it.
    """
    directory.create()
    with directory.held(say) if isinstance(directory, StoredRun) else RunLock(directory.path, say):
        yield
