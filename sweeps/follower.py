"""Logs finished trials to W&B from a thread beside the work, so that no worker ever waits for logging."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

from sweeps.tracking import TrackerSettings, open_tracker

_EVERY = 1.0


class Follower:
    """Follows a run directory while inside its ``with``; ``finish`` logs the rest. Without settings it does nothing."""

    def __init__(self, run_dir: Path, settings: TrackerSettings | None) -> None:
        self._tracker = open_tracker(run_dir, settings) if settings is not None else None
        self._patience = settings.init_timeout if settings is not None else 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="tracker", daemon=True)

    def __enter__(self) -> Follower:
        if self._tracker is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._stop() and self._tracker is not None:
            self._tracker.close()

    def trial_done(self, trial_id: str) -> None:
        """The trial's measurements and samples are on disk."""
        if self._tracker is not None:
            self._tracker.trial_done(trial_id)

    def finish(self) -> str:
        """Log what is left and the summary, once effects and report are there; returns what to tell the user."""
        if self._tracker is None:
            return ""
        if not self._stop():
            return "W&B: still busy with earlier trials; mode=track can log the rest later."
        return self._tracker.finish().message

    def _follow(self) -> None:
        assert self._tracker is not None
        while not self._ended.wait(_EVERY):
            self._tracker.follow_once()

    def _stop(self) -> bool:
        """Whether the thread ended in time; `finish` must not run beside it."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self._patience)
        return not self._thread.is_alive()
