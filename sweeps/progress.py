"""Progress of a sweep on the terminal: bar, rate, ETA, failures, running top ten; plain lines without a terminal."""

from __future__ import annotations

import heapq
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sweeps.phases import COMPARED
from sweeps.standing import MEASURING, Bulletin, Standing, Strong

if TYPE_CHECKING:  # mode=status says things as a sweep does, and need not wait for torch
    from sweeps.plan import Trial
    from sweeps.records import Failure

TOP = 10
LINE_PERCENT = 5
"""Percent of the trials after which a line is due where there is no terminal,"""

LINE_SECONDS = 60.0
"""seconds after which one is due in any case,"""

QUIET_SECONDS = 5.0
"""and seconds after a line in which there is none, however quick the sweep is."""

_DRAW_SECONDS = 0.25
_RECENT_SECONDS = 120.0
_CAUSES = 5


def say(console: Console, text: str) -> None:
    """Print a text as it is: the brackets of a command line are no markup, and no line is broken."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


class SweepProgress:
    """Follows a sweep.

    Args:
        trials: all of the plan; done: how many of them were recorded before.
        left: rows to come, as far as that is known; without it the ETA is by trials.
        bulletin: is told where the sweep stands, for those who look from elsewhere.
        known: sum and number of the log ratios of trials' images that were recorded before.
    """

    def __init__(
        self,
        trials: Mapping[str, Trial],
        done: int,
        console: Console | None = None,
        *,
        left: Callable[[], float] | None = None,
        bulletin: Bulletin | None = None,
        known: Mapping[str, tuple[float, int]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trials = trials
        self._console = console or Console(stderr=True)
        self._before = self._done = done
        self._left, self._bulletin, self._clock = left, bulletin, clock
        self._failed = self._rows = self._memory = 0
        self._causes: Counter[str] = Counter()
        self._sums: dict[str, tuple[float, int]] = dict(known or {})
        self._started = clock()
        self._recent = deque([(self._started, 0)])
        self._last_line, self._next_percent = self._started, 100 * done / max(len(trials), 1) + LINE_PERCENT
        self._drawn = float("-inf")
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
        if self._bulletin is not None:
            self._bulletin.publish(self.standing())
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._live.stop()
        if self._bulletin is not None:
            self._bulletin.publish(self.standing())

    def note(self, failures: Iterable[Failure], memory: int) -> None:
        """What else a lease came back with: why trials failed, and the most bytes its worker took of a GPU."""
        self._causes.update(failure.error for failure in failures)
        self._memory = max(self._memory, memory)

    def add(self, gains: Mapping[str, np.ndarray], done: int, failed: int, rows: int) -> None:
        """A lease came back with the log ratios of some trials' images; ``done`` trials are finished in all."""
        for trial_id, values in gains.items():
            total, count = self._sums.get(trial_id, (0.0, 0))
            self._sums[trial_id] = (total + float(values.sum(dtype=np.float64)), count + len(values))
        self._failed += failed
        self._done = done
        self._rows += rows
        now = self._clock()
        self._recent.append((now, self._rows))
        while len(self._recent) > 2 and now - self._recent[1][0] > _RECENT_SECONDS:
            self._recent.popleft()
        if self._console.is_terminal:
            self._draw(now)
        else:
            self._log(now)
        if self._bulletin is not None and self._bulletin.due:
            self._bulletin.publish(self.standing())

    def settle(self, done: int) -> None:
        """The last round was closed, and so many trials are finished in all."""
        self._done = done

    def eta(self) -> float:
        """Seconds left at the rate of the last two minutes; infinite where nothing is known."""
        if self._left is not None:
            left, rate = self._left(), self._rows_per_second()
            return left / rate if rate else float("inf")
        rate = self._trials_per_second()
        return (len(self._trials) - self._ended) / rate if rate else float("inf")

    def rate(self) -> str:
        return f"{self._trials_per_second():.1f} trials/s, {self._rows_per_second():.0f} rows/s"

    def line(self) -> str:
        """One line for logs."""
        (best,) = self.top(1) or (None,)
        top = f"; strongest so far {best.percent:+.0f}% {best.label}" if best else ""
        memory = f", GPU {gib(self._memory)}" if self._memory else ""
        share = 100 * self._ended // max(len(self._trials), 1)
        return (
            f"progress {share}% {self._ended}/{len(self._trials)} trials, {self._failed} failed, "
            f"{self.rate()}{memory}, ETA {clock(self.eta())}{top}"
        )

    def top(self, count: int = TOP) -> tuple[Strong, ...]:
        """The strongest heads so far; ablations of more than a head where there are none."""
        ids = [trial_id for trial_id in self._sums if self._trials[trial_id].phase not in COMPARED]
        heads = [trial_id for trial_id in ids if self._trials[trial_id].head >= 0] or ids
        best = heapq.nlargest(count, heads, key=self._gain)
        return tuple(Strong(self._trials[t].label, self._percent(t), self._sums[t][1]) for t in best)

    def standing(self) -> Standing:
        eta = self.eta()
        return Standing(
            state=MEASURING,
            trials=len(self._trials),
            done=self._done,
            failed=self._failed,
            rows=self._rows,
            seconds=round(self._clock() - self._started, 1),
            trials_per_second=round(self._trials_per_second(), 3),
            rows_per_second=round(self._rows_per_second(), 3),
            eta=round(eta, 1) if eta < float("inf") else None,
            memory=self._memory,
            causes=tuple(self._causes.most_common(_CAUSES)),
            top=self.top(),
        )

    @property
    def _ended(self) -> int:
        """Trials that are finished or failed."""
        return self._done + self._failed

    def _draw(self, now: float) -> None:
        if now - self._drawn < _DRAW_SECONDS and self._ended < len(self._trials):
            return
        self._drawn = now
        self._bar.update(self._task, completed=self._ended, rate=self.rate(), eta=f"ETA {clock(self.eta())}")
        self._live.update(Group(self._bar, self._top()))

    def _log(self, now: float) -> None:
        """A line after every few percent, or after a while; never two in a few seconds."""
        share = 100 * self._ended / max(len(self._trials), 1)
        waited = now - self._last_line
        if waited >= QUIET_SECONDS and (share >= self._next_percent or waited >= LINE_SECONDS):
            self._last_line, self._next_percent = now, share + LINE_PERCENT
            say(self._console, self.line())

    def _trials_per_second(self) -> float:
        return (self._ended - self._before) / max(self._clock() - self._started, 1e-9)

    def _rows_per_second(self) -> float:
        """Of the last two minutes: the first ones of a sweep go into starting workers."""
        then, rows = self._recent[0]
        return (self._rows - rows) / max(self._clock() - then, 1e-9)

    def _gain(self, trial_id: str) -> float:
        """Mean log ratio of the images so far."""
        total, count = self._sums[trial_id]
        return total / count

    def _percent(self, trial_id: str) -> float:
        """Degradation on the images so far."""
        return 100 * float(np.expm1(self._gain(trial_id)))

    def _top(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for strong in self.top():
            table.add_row(f"  {strong.percent:+8.1f}%", f"n={strong.images}", escape(strong.label))
        for cause, count in self._causes.most_common(_CAUSES):
            table.add_row(f"[red]{count} failed", "", escape(cause))
        if self._memory:
            table.add_row("  GPU memory", "", f"{gib(self._memory)}, the most of a worker")
        return table


def gib(count: int) -> str:
    """Bytes in GiB."""
    return f"{count / 2**30:.1f} GiB"


def clock(seconds: float) -> str:
    """``1:02:03`` or ``4:05``; ``-`` where nothing is known."""
    if not seconds < float("inf"):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
