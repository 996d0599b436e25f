"""How a worker ends when its machine is about to go."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

DRAIN_SECONDS = 20.0
"""From SIGTERM to the end of the process at the latest: what preemption notices of the clouds leave is 30 s or more."""

_TO_SPARE = 1.0


class Draining(RuntimeError):
    """This worker is about to end and takes no more leases."""


class Drain:
    """After SIGTERM a process finishes the lease it is at, takes no other, and ends within ``DRAIN_SECONDS``.

    Whoever hands out leases ends it as soon as it has the answer to the last one: only there is it known to have come.

    Attributes:
        told: whether SIGTERM was received.
    """

    def __init__(self) -> None:
        self.told = False
        with contextlib.suppress(ValueError):  # not in the main thread: the process ends as it would have
            signal.signal(signal.SIGTERM, self._handle)

    def admit(self) -> None:
        """A lease may begin.

        Raises:
            Draining: SIGTERM was received. One that is refused is blamed for nothing, unlike one that dies with it.
        """
        if self.told:
            raise Draining("its machine is about to go")

    def _handle(self, *_: object) -> None:
        self.told = True
        timer = threading.Timer(DRAIN_SECONDS - _TO_SPARE, os._exit, (0,))
        timer.daemon = True
        timer.start()
