"""Files that go to workers on other machines, once a machine, and records that come back from them.

Where the machines share a file system nothing travels. Where they do not, the files of the model and of the data sets
are fetched from the driver into a cache, in pieces, by the first worker of a machine; and a worker whose run directory
is not the driver's writes into a folder of its own, whose files come back with each lease, to be published by the
driver. Knows nothing of Ray: ``fetch`` is given the call that reads a piece.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.records import publish_bytes

if TYPE_CHECKING:  # working copies of stores lie beside what travelled; looking at one needs no torch
    from sweeps.run import RunnerSpec, SubjectSpec

PIECE_BYTES = 32 * 2**20
_COMES_BACK = re.compile(r"(records/[0-9a-f]+-[0-9a-f]+\.parquet|samples/[0-9a-f]+\.png)")

Place = tuple[int, int]
"""Where to read on: a file by its number, and a byte in it."""


@dataclass(frozen=True)
class Piece:
    """Some bytes of a file, whose name is relative to the folder that travels; ``""`` where a single file does."""

    name: str
    offset: int
    content: bytes


@dataclass(frozen=True)
class Item:
    """A file or folder that travels. The digest is of names, sizes and times: content is not read for it."""

    path: str
    digest: str

    @classmethod
    def of(cls, path: str) -> Item:
        facts = [(name, file.stat().st_size, file.stat().st_mtime_ns) for name, file in files_of(path)]
        return cls(path, hashlib.sha256(repr((Path(path).name, facts)).encode()).hexdigest()[:32])


@dataclass(frozen=True)
class Luggage:
    """What a worker is given besides its assignment.

    Attributes:
        server: the actor that reads the driver's files; None where no local file is needed.
        lock: what the run directory's lock holds: a worker that sees the same sees the same directory.
    """

    items: tuple[Item, ...]
    server: Any
    lock: str | None

    @classmethod
    def of(cls, spec: RunnerSpec, server: Any) -> Luggage:
        return cls(tuple(map(Item.of, local_paths(spec.subject))), server, _lock_of(spec.run_dir))

    def shares(self, run_dir: str) -> bool:
        """Whether the driver's run directory is there on this machine too."""
        return self.lock is None or _lock_of(run_dir) == self.lock


def _lock_of(run_dir: str) -> str | None:
    try:
        return (Path(run_dir) / "lock.json").read_text()
    except OSError:
        return None


def local_paths(subject: SubjectSpec) -> list[str]:
    """Files and folders of this machine that a worker loads."""
    named = (subject.model_path, *(source.root for source in subject.sources))
    return list(dict.fromkeys(path for path in named if path and Path(path).is_absolute() and Path(path).exists()))


def moved(subject: SubjectSpec, places: Mapping[str, str]) -> SubjectSpec:
    """The same assignment with its files where they lie here."""
    sources = tuple(replace(s, root=places.get(s.root, s.root) if s.root else None) for s in subject.sources)
    return replace(subject, model_path=places.get(subject.model_path, subject.model_path), sources=sources)


def files_of(path: str) -> list[tuple[str, Path]]:
    """Relative names and files of a folder, in order; of a file itself the name is empty."""
    top = Path(path)
    if top.is_file():
        return [("", top)]
    return [(str(file.relative_to(top)), file) for file in sorted(top.rglob("*")) if file.is_file()]


class FileServer:
    """Reads files in pieces of ``PIECE_BYTES``: beside the driver, or from the copy that it was sent."""

    def __init__(self) -> None:
        self._copies: dict[str, Path] = {}
        self._coming: dict[str, Path] = {}
        self._listed: dict[str, list[tuple[str, Path]]] = {}

    def read(self, path: str, place: Place) -> tuple[list[Piece], Place | None]:
        """The pieces from a place on, and the place behind them; None at the end."""
        if path not in self._listed:
            self._listed[path] = files_of(str(self._copies.get(path, path)))
        files = self._listed[path]
        number, offset = place
        pieces: list[Piece] = []
        left = PIECE_BYTES
        while number < len(files) and left > 0:
            name, file = files[number]
            with file.open("rb") as handle:
                handle.seek(offset)
                content = handle.read(left)
                ended = handle.tell() >= os.fstat(handle.fileno()).st_size
            pieces.append(Piece(name, offset, content))
            left -= max(len(content), 1)
            number, offset = (number + 1, 0) if ended else (number, offset + len(content))
        return pieces, (number, offset) if number < len(files) else None

    def keeps(self, item: Item) -> bool:
        """Whether a copy of what lies on a machine that cannot be asked is in the cache."""
        if cached(item).exists():
            self._copies[item.path] = cached(item)
        return item.path in self._copies

    def receive(self, item: Item, pieces: list[Piece]) -> None:
        if item.path not in self._coming:
            self._coming[item.path] = _new_folder(item)
        write_pieces(self._coming[item.path] / Path(item.path).name, pieces)

    def keep(self, item: Item) -> None:
        """All of it has been received."""
        cached(item).parent.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # another driver's copy was there first
            self._coming.pop(item.path).rename(cached(item).parent)
        self._copies[item.path] = cached(item)


def all_pieces(path: str, read: Callable[[str, Place], tuple[list[Piece], Place | None]]) -> Iterator[list[Piece]]:
    place: Place | None = (0, 0)
    while place is not None:
        pieces, place = read(path, place)
        yield pieces


def write_pieces(top: Path, pieces: list[Piece]) -> None:
    for piece in pieces:
        target = top / piece.name if piece.name else top
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb" if piece.offset == 0 else "r+b") as handle:
            handle.seek(piece.offset)
            handle.write(piece.content)


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "circuit-sweep"


def fetch(item: Item, read: Callable[[str, Place], tuple[list[Piece], Place | None]]) -> str:
    """The item's path on this machine: where it lies on the driver's if that is the same here, else in the cache.

    The first worker of a machine fetches it, the others wait for that one.
    """
    if Path(item.path).exists() and Item.of(item.path) == item:
        return item.path
    found, folder = cached(item), cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / f"{item.digest}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.exists():
            coming = _new_folder(item)
            try:
                for pieces in all_pieces(item.path, read):
                    write_pieces(coming / found.name, pieces)
                coming.rename(found.parent)
            finally:
                shutil.rmtree(coming, ignore_errors=True)
    return str(found)


def cached(item: Item) -> Path:
    """Where the item lies in the cache of this machine, if it does."""
    return cache_folder() / item.digest / Path(item.path).name


def _new_folder(item: Item) -> Path:
    """Beside the cached items, for one that is coming."""
    folder = cache_folder() / f".{item.digest}-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True, mode=0o700)
    return folder


class Mailbox:
    """What workers of a search send back, until the driver takes it: Tune carries results, and would keep files."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}

    def leave(self, files: Mapping[str, bytes]) -> None:
        self._files |= files

    def take(self) -> dict[str, bytes]:
        taken, self._files = self._files, {}
        return taken


def take_files(run_dir: Path) -> dict[str, bytes]:
    """The records and samples in a worker's own folder, which is empty afterwards."""
    taken: dict[str, bytes] = {}
    for file in sorted((*run_dir.glob("records/*.parquet"), *run_dir.glob("samples/*.png"))):
        taken[file.relative_to(run_dir).as_posix()] = file.read_bytes()
        file.unlink()
    return taken


def deliver(files: Mapping[str, bytes], run_dir: Path) -> None:
    """Publish what came back from a worker.

    Raises:
        ValueError: a name that is no record and no sample.
        GaveOut: it cannot be written.
    """
    for name, content in files.items():
        if not _COMES_BACK.fullmatch(name):
            raise ValueError(f"a worker sent a file that is no record and no sample: {name!r}")
        publish_bytes(run_dir / name, content)
