"""A folder in an object store, or in any other file system that pyarrow opens by a URI.

Files appear there whole or not at all: one PUT in an object store; a temporary name and a rename in a file system that
has renames. Nothing here ever waits without bound: a request that hangs is given up, one that fails is tried again a
few times.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from circuits.naming import nearest
from sweeps.config import ConfigError
from sweeps.records import GaveOut
from sweeps.uris import Uri

T = TypeVar("T")

WAITS: tuple[float, ...] = (1, 2, 4, 8, 15, 30)
"""Seconds between the tries of a request."""

OPENING_SECONDS = 30.0
REQUEST_SECONDS = 60.0
SLOWEST = 1e5
"""Bytes a second: a request with content has so much more time."""

AT_ONCE = 8
_RENAMES = ("local", "hdfs")  # pyarrow's names of file systems where a write is not atomic, but a rename is
_FINAL = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY", "SIGNATURE_DOES_NOT_MATCH")  # trying again is vain


class Listed(NamedTuple):
    """A file in a store: bytes, and nanoseconds since 1970 when it was written, by the store's clock."""

    size: int
    written: int


class Store:
    """A folder of a file system, with names relative to it.

    Args:
        path: the folder, in the file system's own terms.
    """

    def __init__(self, uri: Uri, filesystem: Any, path: str) -> None:
        self.uri = uri
        self._filesystem = filesystem
        self._path = path.rstrip("/")

    @classmethod
    def open(cls, uri: Uri, key: str = "run.root") -> Store:
        """
        Raises:
            ConfigError: there is no such bucket, it does not answer, or it may not be read; ``key`` named it.
        """
        from pyarrow import fs  # its stores take a while to load

        def opened() -> Store:
            options = {}
            if uri.scheme == "s3" and "allow_delayed_open" not in uri.query:
                options["allow_delayed_open"] = "true"  # one request for a small file instead of three
            store = cls(uri, *fs.FileSystem.from_uri(uri.quoted(**options)))
            store._folders()  # whether it answers, and lets us in
            return store

        try:
            return bounded(opened, OPENING_SECONDS)
        except (OSError, ValueError, ImportError) as error:  # ArrowInvalid is a ValueError
            raise ConfigError(cls._unusable(uri, key, error)) from error

    @staticmethod
    def _unusable(uri: Uri, key: str, error: Exception) -> str:
        why, bucket = explained(error), uri.place.partition("/")[0]
        if "NO_SUCH_BUCKET" in str(error) or re.search(r"Bucket '.*' not found", str(error)):
            others = _buckets(uri)
            return f"{key}: no bucket {bucket!r} in this store{nearest(bucket, others) if others else ''}"
        return f"{key}: {uri} cannot be used ({why})"

    def child(self, name: str) -> Store:
        return Store(self.uri.child(name), self._filesystem, f"{self._path}/{name}")

    def children(self) -> list[str]:
        """Names of the folders in it."""
        return self._patiently("listed", self._folders)

    def _folders(self) -> list[str]:
        from pyarrow import fs

        try:
            found = self._filesystem.get_file_info(fs.FileSelector(self._path or "/"))
        except FileNotFoundError:
            return []
        return sorted(info.base_name for info in found if info.type == fs.FileType.Directory)

    def listed(self) -> dict[str, Listed]:
        """Every file below, by relative name. One request a thousand files."""
        from pyarrow import fs

        selector = fs.FileSelector(self._path, recursive=True, allow_not_found=True)
        found = self._patiently("listed", lambda: self._filesystem.get_file_info(selector))
        below = len(self._path) + 1
        return {i.path[below:]: Listed(i.size, i.mtime_ns or 0) for i in found if i.type == fs.FileType.File}

    def read(self, name: str, size: int = 0) -> bytes:
        """
        Raises:
            FileNotFoundError: it is not there (any more).
        """

        def get() -> bytes:
            with self._filesystem.open_input_file(f"{self._path}/{name}") as file:
                return file.readall()

        return self._patiently("read", get, size)

    def exists(self, name: str, waits: Sequence[float] | None = None) -> bool:
        from pyarrow import fs

        info = self._patiently("read", lambda: self._filesystem.get_file_info(f"{self._path}/{name}"), waits=waits)
        return info.type == fs.FileType.File

    def write(self, name: str, content: bytes, waits: Sequence[float] | None = None) -> None:
        """Publish a file: it is there whole or not at all."""
        target = f"{self._path}/{name}"
        self._patiently("written", lambda: self._put(target, content), len(content), waits)

    def _put(self, target: str, content: bytes) -> None:
        if self._filesystem.type_name not in _RENAMES:
            with self._filesystem.open_output_stream(target) as stream:
                stream.write(content)
            return
        folder, _, name = target.rpartition("/")
        temporary = f"{folder}/.{name}-{uuid.uuid4().hex[:8]}.tmp"
        self._filesystem.create_dir(folder)
        try:
            with self._filesystem.open_output_stream(temporary) as stream:
                stream.write(content)
            self._filesystem.move(temporary, target)
        except OSError:
            with contextlib.suppress(OSError):
                self._filesystem.delete_file(temporary)
            raise

    def delete(self, name: str, waits: Sequence[float] | None = None) -> None:
        def gone() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._filesystem.delete_file(f"{self._path}/{name}")

        self._patiently("deleted", gone, waits=waits)

    def _patiently(self, done: str, call: Callable[[], T], size: int = 0, waits: Sequence[float] | None = None) -> T:
        """Try, wait, and try again.

        Raises:
            GaveOut: it fails each time.
            FileNotFoundError: it is not there.
        """
        for wait in (*(WAITS if waits is None else waits), None):
            try:
                return bounded(call, REQUEST_SECONDS + size / SLOWEST)
            except FileNotFoundError:
                raise
            except (OSError, pa.ArrowException) as error:
                if wait is None or isinstance(error, PermissionError) or any(name in str(error) for name in _FINAL):
                    raise GaveOut(f"{self.uri} cannot be {done} ({explained(error)})") from error
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")


def _buckets(uri: Uri) -> list[str]:
    """Names of the buckets there are, if that may be known."""
    from pyarrow import fs

    try:
        filesystem, _ = fs.FileSystem.from_uri(uri.quoted())
        found = bounded(lambda: filesystem.get_file_info(fs.FileSelector("")), OPENING_SECONDS)
    except (OSError, ValueError):
        return []
    return [info.base_name for info in found]


def explained(error: Exception) -> str:
    """What a store's client says, in a line."""
    text = " ".join(str(error).split())
    found = re.search(r"AWS Error (\w+) during \w+ operation: (.*)", text)
    if found:
        what = re.sub(r"(; Details:.*| \(Request ID.*)$", "", found[2])
        text = f"{found[1]}: {what}" if what else found[1]
    return text[:200] or type(error).__name__


def bounded(call: Callable[[], T], seconds: float) -> T:
    """What it returns, if it does in time; a client that hangs is left behind in its thread.

    Raises:
        TimeoutError: it does not.
    """
    outcome: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((call(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=run, name="store request", daemon=True).start()
    try:
        value, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]  # a call that raised nothing returned a T


def in_parallel(call: Callable[[T], object], items: Iterable[T]) -> None:
    """For each of them, a few at a time; ends at the first that raises, and raises that.

    Its threads are daemons, unlike those of concurrent.futures, so that a second Ctrl-C ends the program.
    """
    waiting: queue.SimpleQueue[T] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    errors: list[BaseException] = []

    def work() -> None:
        while not errors:
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                call(item)
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(AT_ONCE, waiting.qsize()))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
