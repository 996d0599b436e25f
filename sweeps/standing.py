"""Where a run stands, in progress.json: a small file written whole every few seconds, so that anybody may look."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from sweeps.records import GaveOut, RunDirectory, publish

EVERY_SECONDS = 2.0
EXPLORING, MEASURING, AGGREGATING, REPORTING, TRACKING = (
    "exploring", "measuring", "aggregating", "reporting", "logging to W&B",
)  # fmt: skip
PLANNED, FINISHED, INTERRUPTED, GAVE_OUT = "planned", "finished", "interrupted", "gave out"
WORKING = (EXPLORING, MEASURING, AGGREGATING, REPORTING, TRACKING)
"""What a run does that only a driver does: one that stands here and has no driver was killed."""


@dataclass(frozen=True)
class Strong:
    """A trial that looks strong so far. Provisional: by the images measured so far, corrected for nothing."""

    label: str
    percent: float
    images: int


@dataclass(frozen=True)
class Standing:
    """
    Attributes:
        trials: of the plan; done: finished, by a verdict or with all their images; failed: for good.
        rows: run since this driver began, baselines included; seconds: since it began to measure.
        eta: seconds left; None where nothing is known.
        memory: the most that a worker took of its GPU, in bytes; 0 without one.
        causes: of failures, each with how many trials it struck.
        top: the strongest ablations so far.
        tracking_seconds: that the last logging took. Not in run.json, which is logged itself.
    """

    state: str
    trials: int = 0
    done: int = 0
    failed: int = 0
    rows: int = 0
    seconds: float = 0.0
    trials_per_second: float = 0.0
    rows_per_second: float = 0.0
    eta: float | None = None
    memory: int = 0
    causes: tuple[tuple[str, int], ...] = ()
    top: tuple[Strong, ...] = ()
    tracking_seconds: float = 0.0


class Bulletin:
    """Keeps a run's progress.json; inside its ``with`` an error or a second Ctrl-C is noted before it goes on.

    Args:
        every: seconds between writes, at least; what the run does now is written at once.
    """

    def __init__(
        self, directory: RunDirectory, every: float = EVERY_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._directory, self._every, self._clock = directory, every, clock
        self._standing: Standing | None = None
        self._written = self._entered = float("-inf")

    def __enter__(self) -> Bulletin:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and self._standing is not None:
            self.enter(INTERRUPTED if isinstance(error, KeyboardInterrupt) else GAVE_OUT)

    def enter(self, state: str) -> None:
        """The run does something else from now on; its figures stay."""
        before = self._standing or Standing(state)
        if before.state == TRACKING:
            before = replace(before, tracking_seconds=round(self._clock() - self._entered, 2))
        self._standing, self._entered = replace(before, state=state), self._clock()
        self._write()

    @property
    def due(self) -> bool:
        """Whether it is time to publish again: a standing takes a moment to make."""
        return self._clock() - self._written >= self._every

    def publish(self, standing: Standing) -> None:
        self._standing = standing
        self._write()

    def _write(self) -> None:
        assert self._standing is not None
        self._written = self._clock()
        text = json.dumps(dataclasses.asdict(self._standing)) + "\n"
        with contextlib.suppress(GaveOut):  # a full disk: what matters is not written either, and says so
            publish(self._directory.progress, lambda temporary: temporary.write_text(text), synced=False)


def read_standing(directory: RunDirectory) -> Standing | None:
    """What progress.json says, or None where there is none that can be read."""
    try:
        facts: dict[str, Any] = json.loads(directory.progress.read_text())
        known = {field.name for field in dataclasses.fields(Standing)}
        found = Standing(**{name: value for name, value in facts.items() if name in known})
        numbers = [field.name for field in dataclasses.fields(Standing) if isinstance(field.default, (int, float))]
        if not all(isinstance(getattr(found, name), (int, float)) for name in numbers):
            return None
        return replace(
            found,
            causes=tuple((str(cause), int(count)) for cause, count in found.causes),
            top=tuple(Strong(**row) for row in facts.get("top", ())),
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return None
