"""How a worker ends when its machine is about to go."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

DRAIN_SECONDS = 20.0
"""From SIGTERM to the end of the process at the latest: what preemption notices of the clouds leave is 30 s or more."""

_ANSWER_SECONDS = 1.0  # for the last answer to leave the process


class Draining(RuntimeError):
    """This worker is about to end and takes no more leases."""


class Drain:
    """After SIGTERM a process finishes the lease it is at, takes no other, and ends within ``DRAIN_SECONDS``.

    Attributes:
        told: whether SIGTERM was received.
    """

    def __init__(self) -> None:
        self.told = False
        self._busy = False
        with contextlib.suppress(ValueError):  # not in the main thread: the process ends as it would have
            signal.signal(signal.SIGTERM, self._handle)

    def __enter__(self) -> None:
        if self.told:
            raise Draining("its machine is about to go")
        self._busy = True

    def __exit__(self, *_: object) -> None:
        self._busy = False
        if self.told:
            _end_in(_ANSWER_SECONDS)

    def _handle(self, *_: object) -> None:
        self.told = True
        # A lease may be on its way to a worker that rests: it is refused, so that nobody blames it for the end.
        _end_in(DRAIN_SECONDS - _ANSWER_SECONDS if self._busy else _ANSWER_SECONDS)


def _end_in(seconds: float) -> None:
    timer = threading.Timer(seconds, os._exit, (0,))
    timer.daemon = True
    timer.start()
