"""Progress of a sweep on the terminal: bar, rate, ETA, failures and the running top; plain lines without a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from circuits.statistics import percent
from sweeps.phases import COMPARED
from sweeps.plan import Trial

TOP = 5
_LINE_EVERY = 15.0


def say(console: Console, text: str) -> None:
    """Print a text as it is: the brackets of a command line are no markup, and no line is broken."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


class SweepProgress:
    """Follows a sweep of ``total`` trials of which ``done`` were recorded before."""

    def __init__(self, trials: Mapping[str, Trial], done: int, console: Console | None = None) -> None:
        self._trials = trials
        self._console = console or Console(stderr=True)
        self._before = self._done = done
        self._failed = 0
        self._rows = 0
        self._sums: dict[str, tuple[float, int]] = {}
        self._started = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("[bold]sweep"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[eta]}"),
            console=self._console,
        )
        self._task = self._bar.add_task("sweep", total=len(trials), completed=done, rate="", eta="")
        self._live = Live(self._bar, console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> SweepProgress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def add(self, gains: Mapping[str, np.ndarray], done: int, failed: int, rows: int) -> None:
        """A lease came back with the log ratios of some trials' images; ``done`` trials are finished in all."""
        for trial_id, values in gains.items():
            total, count = self._sums.get(trial_id, (0.0, 0))
            self._sums[trial_id] = (total + float(values.sum(dtype=np.float64)), count + len(values))
        self._failed += failed
        self._done = done + self._failed
        self._rows += rows
        if self._console.is_terminal:
            self._bar.update(self._task, completed=self._done, rate=self.rate(), eta=f"ETA {clock(self.eta())}")
            self._live.update(Group(self._bar, self._top()))
        elif time.monotonic() - self._last_line > _LINE_EVERY:
            self._last_line = time.monotonic()
            say(self._console, self.line())

    def eta(self) -> float:
        """Seconds left at the rate so far."""
        measured = self._done - self._before
        elapsed = time.monotonic() - self._started
        return (len(self._trials) - self._done) * elapsed / measured if measured else float("inf")

    def rate(self) -> str:
        elapsed = max(time.monotonic() - self._started, 1e-9)
        return f"{(self._done - self._before) / elapsed:.1f} trials/s, {self._rows / elapsed:.0f} rows/s"

    def line(self) -> str:
        """One line for logs."""
        best = max(self._ablations(), key=self._gain, default=None)
        top = f"; strongest so far {self._percent(best):+.0f}% {self._trials[best].label}" if best else ""
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{self._done}/{len(self._trials)} trials{failed}, {self.rate()}, ETA {clock(self.eta())}{top}"

    def _ablations(self) -> list[str]:
        """Measured so far, without the controls."""
        return [trial_id for trial_id in self._sums if self._trials[trial_id].phase not in COMPARED]

    def _gain(self, trial_id: str) -> float:
        """Mean log ratio of the images so far."""
        total, count = self._sums[trial_id]
        return total / count

    def _percent(self, trial_id: str) -> float:
        """Degradation on the images so far."""
        return float(percent(np.array([self._gain(trial_id)]))[0])

    def _top(self) -> Table:
        table = Table.grid(padding=(0, 2))
        heads = [t for t in self._ablations() if self._trials[t].head >= 0]
        for trial_id in sorted(heads, key=self._gain, reverse=True)[:TOP]:
            table.add_row(f"  {self._percent(trial_id):+8.1f}%", escape(self._trials[trial_id].label))
        if self._failed:
            table.add_row("", f"[red]{self._failed} failed")
        return table


def clock(seconds: float) -> str:
    """``1:02:03`` or ``4:05``; ``-`` where nothing is known."""
    if not seconds < float("inf"):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
