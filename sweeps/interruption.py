"""Ctrl-C: once to stop in good order, twice to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from sweeps.progress import say


@contextmanager
def interruptible(console: Console) -> Iterator[threading.Event]:
    """The first Ctrl-C (or SIGTERM) lets what is in flight finish, the second ends at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, _: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        say(console, "Stopping when what is in flight has finished; again to stop at once.")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
