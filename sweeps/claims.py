"""One driver at a time on a run in a store, which has neither locks nor renames.

A driver writes a claim of its own, then lists all claims, and works only if no other is there. Of two that start at
once at least one sees the other's (a store lists what was written before), so both never work. A claim is written again
every ``BEAT_SECONDS``; one that nobody writes for ``STALE_SECONDS`` is taken over, by the clock of the one who waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sweeps.config import ConfigError
from sweeps.records import GaveOut, RunDirectoryError
from sweeps.stores import REQUEST_SECONDS, Listed, Store, bounded

BEAT_SECONDS = 20.0
STALE_SECONDS = 90.0
LEAVING_SECONDS = 5.0
"""For what is in flight when somebody wants out at once: what a store that hangs does not take is given up."""

FOLDER = "claims"
_ROUNDS = 20
_PATIENT = 8
"""Looks at claims that are only being made, before they count as held, out of ``_ROUNDS``."""


_OURS: set[str] = set()
"""Names of the claims that this process has not let go of."""


class Claim:
    """A claim on a run; entered when this driver has it alone.

    Attributes:
        files: what the run's folder held when it was claimed, by name.
    """

    def __init__(self, store: Store, say: Callable[[str], object]) -> None:
        self.files: dict[str, Listed] = {}
        self._store = store
        self._say = say
        self._name = f"{FOLDER}/{uuid.uuid4().hex[:12]}.json"
        self._held = False
        self._beats = 0
        self._lost = False
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="claim", daemon=True)

    @property
    def lost(self) -> bool:
        """Whether another driver took it over, since nobody saw this one for so long."""
        return self._lost

    def __enter__(self) -> Claim:
        _OURS.add(self._name)
        try:
            self._write(waits=())
        except GaveOut as error:
            _OURS.discard(self._name)
            raise ConfigError(f"run.root: {error}") from error
        self._beating.start()
        try:
            self.files = self._alone()
            self._held = True
            self._write()
        except BaseException as error:
            self._withdraw(type(error))
            raise
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._withdraw(kind)

    def _withdraw(self, kind: type | None) -> None:
        seconds = LEAVING_SECONDS if kind is KeyboardInterrupt else REQUEST_SECONDS
        self._ended.set()
        self._beating.join(timeout=seconds)
        _OURS.discard(self._name)
        if not self._lost:
            with contextlib.suppress(GaveOut, TimeoutError):  # then it goes stale
                bounded(lambda: self._store.delete(self._name, waits=()), seconds)

    def _write(self, waits: tuple[float, ...] | None = None) -> None:
        self._beats += 1
        own = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "since": _started(os.getpid()),
            "held": self._held,
            "beat": self._beats,
        }
        self._store.write(self._name, json.dumps(own).encode(), waits)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with contextlib.suppress(GaveOut):  # whoever publishes tells that the store is away
                self._lost = self._held and not self._store.exists(self._name, waits=())
                if self._lost:
                    return
                self._write(waits=())

    def _alone(self) -> dict[str, Listed]:
        """The run's files, when no other claim is among them.

        Raises:
            RunDirectoryError: another driver has the run.
        """
        for round_ in range(_ROUNDS):
            files = self._store.listed()
            others = [name for name in claims(files) if name != self._name]
            for name in others:
                self._settle(name, patient=round_ < _PATIENT)
            if not others:
                return files
            time.sleep(0.1 * min(round_, _PATIENT))
        raise RunDirectoryError(f"{self._store.uri} is being claimed by others again and again; try again")

    def _settle(self, name: str, patient: bool) -> None:
        """Delete another's claim if its driver is gone; leave it for now if it will be withdrawn.

        Raises:
            RunDirectoryError: its driver has the run, or comes first.
        """
        content = self._content(name)
        if content is None:
            return
        holder = _plain(content)
        here = bool(holder.get("machine")) and holder.get("machine") == _machine()
        left = holder.get("pid") == os.getpid() and name not in _OURS  # when the store was away
        gone = here and (left or _started(holder.get("pid")) != holder.get("since"))
        if not gone and patient and self._first(name, holder):
            return
        if not gone and (here or not self._abandoned(name, content, holder)):
            raise self._refusal(name, holder)
        self._store.delete(name)

    def _abandoned(self, name: str, content: bytes, holder: dict[str, Any]) -> bool:
        """Whether nobody writes the claim any more; takes ``STALE_SECONDS`` to say yes."""
        self._say(f"{self._store.uri} was left claimed by {holder.get('host')}; seeing whether it still works there")
        waited_from, now = time.monotonic(), content
        while time.monotonic() - waited_from < STALE_SECONDS:
            time.sleep(min(5.0, STALE_SECONDS / 10))
            found = self._content(name)
            if found is None:
                return True
            now = found
            if now != content and not self._first(name, _plain(now)):
                return False
        return now == content

    def _first(self, name: str, holder: dict[str, Any]) -> bool:
        """Whether this one comes first of two that are only being made: the other one will see it, and withdraw."""
        return not holder.get("held", True) and self._name < name

    def _content(self, name: str) -> bytes | None:
        try:
            return self._store.read(name)
        except FileNotFoundError:
            return None

    def _refusal(self, name: str, holder: dict[str, Any]) -> RunDirectoryError:
        who = f"process {holder.get('pid', 'unknown')} on {holder.get('host', 'an unknown host')}"
        return RunDirectoryError(
            f"{self._store.uri} is in use by {who}; wait for it, or delete {self._store.uri}/{name} if that process "
            "is dead"
        )


def claims(names: Iterable[str]) -> list[str]:
    """Those of claims."""
    return [name for name in names if name.startswith(f"{FOLDER}/") and name.endswith(".json")]


def _plain(content: bytes) -> dict[str, Any]:
    try:
        holder = json.loads(content)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _machine() -> str:
    """Names this boot of the machine and the process numbers of this container, as a host's name does not; or empty."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: object) -> str | None:
    """When the process started, in ticks since boot; None where there is none. Numbers of processes come again."""
    if not isinstance(pid, int):
        return None
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
