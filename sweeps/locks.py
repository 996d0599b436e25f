"""One driver at a time on a run directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sweeps.records import RunDirectoryError, reason

BEAT_SECONDS = 10.0
STALE_SECONDS = 90.0


def is_locked(directory: Path) -> bool:
    """Whether a driver on this machine works on the run directory now."""
    try:
        with (directory / "lock.json").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


class RunLock:
    """Only one driver works on a run directory. The kernel drops the lock with its process, however that ends.

    Of a process on another host the kernel here may know nothing. So a holder touches its lock every ``BEAT_SECONDS``,
    and one that nobody touched for ``STALE_SECONDS`` is taken over: the machine was preempted, say. Only whether the
    file's time changes counts, by the clock of the one who waits, so the clocks of two machines need not agree.

    Args:
        say: tells the user, in one line, that this is waited for.
    """

    def __init__(self, directory: Path, say: Callable[[str], object] = lambda _: None) -> None:
        self._path = directory / "lock.json"
        self._handle: int | None = None
        self._say = say
        self._ended = threading.Event()

    def __enter__(self) -> RunLock:
        while self._handle is None:
            try:
                handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise RunDirectoryError(f"{self._path} cannot be written ({reason(error)})") from error
            try:
                self._handle = handle if self._taken(handle) else None
            finally:
                if self._handle is None:
                    os.close(handle)
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, json.dumps(_own()).encode(), 0)
        threading.Thread(target=self._beat, name="lock", daemon=True).start()
        return self

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # a file system that is away for a while
                os.utime(self._path)

    def _taken(self, handle: int) -> bool:
        """Whether the lock is ours; False where its holder deleted the file meanwhile, and it must be opened again.

        Raises:
            RunDirectoryError: another driver has it.
        """
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._refusal(handle) from error
        except OSError:
            pass  # a file system without locks: two drivers would do some work twice, and break nothing
        try:
            if not os.path.samestat(os.fstat(handle), os.stat(self._path)):
                return False
        except FileNotFoundError:
            return False
        host = self._holder(handle).get("host", socket.gethostname())
        if host != socket.gethostname() and not self._abandoned(str(host)):
            raise self._refusal(handle)
        return True

    def _abandoned(self, host: str) -> bool:
        """Whether nobody touches the lock any more; takes ``STALE_SECONDS`` to say yes."""
        before = os.stat(self._path).st_mtime_ns
        self._say(f"{self._path.parent} was left locked by {host}; seeing whether it still works there")
        waited_from = time.monotonic()
        while time.monotonic() - waited_from < STALE_SECONDS:
            time.sleep(min(1.0, STALE_SECONDS / 10))
            try:
                with self._path.open("rb") as file:  # opened again: network file systems keep what they know a while
                    now = os.fstat(file.fileno()).st_mtime_ns
            except FileNotFoundError:
                return True
            if now != before:
                return False
        return True

    def _holder(self, handle: int) -> dict[str, Any]:
        try:
            holder = json.loads(os.pread(handle, 4096, 0))
        except ValueError:  # its holder is just writing it, or died doing so
            return {}
        return holder if isinstance(holder, dict) else {}

    def _refusal(self, handle: int) -> RunDirectoryError:
        holder = self._holder(handle)
        who = f"process {holder.get('pid', 'unknown')} on {holder.get('host', socket.gethostname())}"
        return RunDirectoryError(
            f"{self._path.parent} is in use by {who}; wait for it, or delete {self._path} if that process is dead"
        )

    def __exit__(self, *_: object) -> None:
        assert self._handle is not None
        self._ended.set()
        if self._holder(self._handle) == _own():  # and not of whoever took it over while this machine was asleep
            self._path.unlink(missing_ok=True)
        os.close(self._handle)
        self._handle = None


def _own() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}
