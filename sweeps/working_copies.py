"""Runs in a store: a working copy of each on this machine, whose finished files are published one by one.

Driver, workers and readers work in the copy as in any run directory. Only the driver talks to the store.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sweeps.claims import FOLDER, LEAVING_SECONDS, Claim, claims
from sweeps.locks import RunLock, is_locked
from sweeps.records import Failure, GaveOut, RunDirectory, publish, reason
from sweeps.seals import Damaged, read_parquet
from sweeps.stores import Listed, Store, in_parallel
from sweeps.travel import cache_folder
from sweeps.uris import Uri

EVERY = 1.0
"""Seconds between looks for finished files, and at least so many times what a look takes (``_SHARE``)."""

_SHARE = 20
_HERE_ONLY = {"lock.json", "wandb", "tune", FOLDER}  # of this machine, or rebuilt from the records
_AT_THE_END = {"tracking.jsonl"}  # grows line by line
_SELDOM = {"progress.json"}  # says every two seconds how a run is doing
_SELDOM_SECONDS = 10.0
_NEVER_CHANGES = re.compile(r"records/[^/]+\.(parquet|damaged)|samples/[^/]+\.png")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


class WorkingCopy:
    """A run's files here and in its store.

    Of two files of one name the records and samples are alike, since these never change, or one is torn; of the others
    the store has the newer one, unless they were written here since the last look.
    """

    def __init__(self, store: Store, path: Path) -> None:
        self.store = store
        self.path = path
        self._published: dict[str, tuple[int, int]] = {}
        self._at: dict[str, float] = {}
        self._looking = threading.Lock()

    def fetch(self, listed: Mapping[str, Listed], held: bool = False) -> None:
        """Bring what is not here, or may be older here.

        Args:
            listed: what the store holds.
            held: for the driver itself; where another one of this machine began since, nothing is brought.

        Raises:
            GaveOut: the store does not answer, or the disk is full.
        """
        wanted = [name for name in listed if _travels(name) and not name.endswith(".damaged")]
        if not wanted and not self.path.is_dir():
            return
        RunDirectory(self.path).create()
        with _alone(self.path / ".sync"):
            if not held and is_locked(self.path):
                self.trust()
                return
            failures = RunDirectory(self.path).failures  # the only file that goes again
            if wanted and failures.name not in listed:
                failures.unlink(missing_ok=True)  # of trials that were measured elsewhere since
            in_parallel(lambda name: self._bring(name, listed[name]), wanted)

    def _bring(self, name: str, there: Listed) -> None:
        here = self.path / name
        final = _NEVER_CHANGES.fullmatch(name)
        if final and here.is_file():
            if here.stat().st_size == there.size:
                self._published[name] = _state(here)
                return
            if _is_whole_part(here):
                return
        try:
            content = self.store.read(name, there.size)
        except FileNotFoundError:  # deleted since it was listed
            return
        try:
            here.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GaveOut(f"{here.parent} cannot be made ({reason(error)})") from error
        publish(here, lambda temporary: temporary.write_bytes(content), synced=bool(final))
        os.utime(here, ns=(there.written, there.written))  # how old it is, not when it came here
        self._published[name] = _state(here)

    def trust(self) -> None:
        """A driver on this machine publishes what is here: take that for published."""
        self._published = dict(self._files())

    def publish(self, ended: bool = False, waits: tuple[float, ...] | None = None) -> float:
        """Put what is new or changed here into the store; returns the seconds that it took to look for that.

        Raises:
            GaveOut: the store does not take it.
        """
        with self._looking:
            began = time.monotonic()
            changed = {
                name: state
                for name, state in self._files()
                if self._published.get(name) != state and (ended or self._due(name))
            }
            looked = time.monotonic() - began
            in_parallel(lambda name: self._put(name, changed[name], waits), sorted(changed, key=_order))
        return looked

    def _due(self, name: str) -> bool:
        recent = name in _SELDOM and time.monotonic() - self._at.get(name, float("-inf")) < _SELDOM_SECONDS
        return name not in _AT_THE_END and not recent

    def _put(self, name: str, state: tuple[int, int], waits: tuple[float, ...] | None) -> None:
        try:
            content = (self.path / name).read_bytes()
        except FileNotFoundError:  # replaced or set aside meanwhile
            return
        self.store.write(name, content, waits)
        self._published[name] = state
        if name in _SELDOM:
            self._at[name] = time.monotonic()

    def drop(self, name: str) -> None:
        """Take a file that is no longer here out of the store."""
        with self._looking:
            if self._published.pop(name, None) is not None:
                self.store.delete(name)

    def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Relative names and states; a file that never changes is not looked at again."""
        folders = [self.path]
        while folders:
            folder = folders.pop()
            if not folder.is_dir():
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = Path(entry.path).relative_to(self.path).as_posix()
                    if not _travels(name):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    elif name in self._published and _NEVER_CHANGES.fullmatch(name):
                        yield name, self._published[name]
                    else:
                        with contextlib.suppress(FileNotFoundError):
                            yield name, _state(Path(entry.path))


class StoredRun(RunDirectory):
    """A run in a store; its files are those of the working copy."""

    def __init__(self, store: Store, path: Path) -> None:
        super().__init__(path)
        self.copy = WorkingCopy(store, self.path)
        self._claim = self.path / ".claim.json"
        self.publisher: Publisher | None = None

    @property
    def where(self) -> str:
        return str(self.copy.store.uri)

    @property
    def lock(self) -> Path:
        return super().lock if is_locked(self.path) else self._claim

    def shown(self, file: Path) -> str:
        return f"{self.where}/{file.relative_to(self.path).as_posix()} (here: {file})"

    def fetch(self) -> None:
        """Nothing where a driver works in this very copy."""
        if is_locked(self.path):
            self.copy.trust()
            return
        listed = self.copy.store.listed()
        self.copy.fetch(listed)
        self._fetch_claim(listed)

    def _fetch_claim(self, listed: Mapping[str, Listed]) -> None:
        """Have the claim of the driver elsewhere here, as the lock of one here would be."""
        self._claim.unlink(missing_ok=True)
        for name in claims(listed):
            with contextlib.suppress(FileNotFoundError):  # withdrawn meanwhile
                self._claim.write_bytes(self.copy.store.read(name))
                os.utime(self._claim, ns=(listed[name].written, listed[name].written))

    def clean(self) -> list[Path]:
        damaged = super().clean()
        for part in damaged:
            self.copy.drop(part.relative_to(self.path).as_posix())
        return damaged

    def write_failures(self, failures: Iterable[Failure]) -> None:
        super().write_failures(failures)
        if not self.failures.exists():
            self.copy.drop(self.failures.name)

    def check(self) -> None:
        if self.publisher is not None:
            self.publisher.check()

    @contextmanager
    def held(self, say: Callable[[str], object]) -> Iterator[None]:
        """Work on it alone, here and elsewhere; what is finished is published.

        Raises:
            RunDirectoryError: another driver has it.
            GaveOut: the store went away, and did not take everything.
        """
        with RunLock(self.path, say), Claim(self.copy.store, say) as claim:
            self.copy.fetch(claim.files, held=True)
            with Publisher(self.copy, claim) as self.publisher:
                yield


class Publisher:
    """Publishes the files of a working copy from a thread, as they are finished, so that no worker waits for it."""

    def __init__(self, copy: WorkingCopy, claim: Claim) -> None:
        self._copy = copy
        self._claim = claim
        self._problem: GaveOut | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="publisher", daemon=True)

    def __enter__(self) -> Publisher:
        self._thread.start()
        return self

    def check(self) -> None:
        """
        Raises:
            GaveOut: the store went away, or another driver took the run over.
        """
        if self._problem is not None:
            raise self._problem

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._ended.set()
        at_once = kind is KeyboardInterrupt
        self._thread.join(timeout=LEAVING_SECONDS if at_once else None)
        if kind is None:
            self.check()
            self._publish(ended=True)
        elif self._problem is None and not at_once:
            with contextlib.suppress(GaveOut):  # something else is the matter; what cannot be published stays here
                self._publish(ended=True, waits=())

    def _follow(self) -> None:
        pause = EVERY
        while not self._ended.wait(pause):
            try:
                pause = max(EVERY, _SHARE * self._publish())
            except GaveOut as problem:
                self._problem = problem
                return

    def _publish(self, ended: bool = False, waits: tuple[float, ...] | None = None) -> float:
        if self._claim.lost:
            raise GaveOut(f"{self._copy.store.uri} was taken over by another driver, which saw nothing of this one")
        return self._copy.publish(ended, waits)


def place_of(root: Uri) -> Path:
    """The folder here of the working copies of the runs under a root."""
    endpoint = next((os.environ[name] for name in _ENDPOINTS if root.scheme == "s3" and os.environ.get(name)), "")
    digest = hashlib.sha256(f"{root.quoted()} {endpoint}".encode()).hexdigest()[:12]
    readable = re.sub(r"[^A-Za-z0-9]+", "-", str(root))[:60].strip("-")
    return cache_folder() / "runs" / f"{readable}-{digest}"


def _is_whole_part(file: Path) -> bool:
    try:
        read_parquet(file)
    except (Damaged, OSError):
        return False
    return True


def _travels(name: str) -> bool:
    """Whether the file or folder belongs into a store, or from one into a copy."""
    parts = name.split("/")
    return parts[0] not in _HERE_ONLY and not any(part.startswith(".") or "\\" in part or not part for part in parts)


def _order(name: str) -> tuple[bool, str]:
    """What says what a run is comes first."""
    return "/" in name, name


def _state(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process after the other."""
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
