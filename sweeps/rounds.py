"""Which images of which trials are measured next: all at once, or in rounds after which decided trials leave.

Rounds are synchronous: decisions are taken when every running trial has the round's images, so they do not depend on how many
workers there are or which was faster, and a resumed sweep takes the same ones from its records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from circuits.statistics import SequentialResult, SequentialTrials, StoppingRule
from sweeps.plan import Trial


@dataclass(frozen=True)
class Task:
    """Images of a trial to measure: ``units`` counts from 0 within the trial's own images."""

    trial: Trial
    units: range


class FixedRounds:
    """One round: every trial on all of its images."""

    def __init__(self, trials: Iterable[Trial]) -> None:
        self._tasks = [Task(trial, range(trial.images)) for trial in trials]

    def tasks(self) -> list[Task]:
        """What this round measures; empty when the sweep is done."""
        return self._tasks

    def close(self, gains: Mapping[str, np.ndarray]) -> None:
        """End the round. ``gains``: per trial the log ratios of its task's images; trials without any have failed."""
        self._tasks = []


class SequentialRounds:
    """Rounds of images for the trials that a stopping rule governs; the others are measured whole in the first one."""

    def __init__(self, trials: Sequence[Trial], rule: StoppingRule) -> None:
        self.governed = [trial for trial in trials if is_governed(trial)]
        self._whole = [Task(trial, range(trial.images)) for trial in trials if not is_governed(trial)]
        self._index = {trial.trial_id: i for i, trial in enumerate(self.governed)}
        self._failed = np.zeros(len(self.governed), dtype=bool)
        self._rule = rule
        self._state = start(self.governed, rule) if self.governed else None

    def tasks(self) -> list[Task]:
        """What this round measures; empty when every trial is decided, failed, or has all its images."""
        found = list(self._whole)
        if self._state is not None:
            counts = self._state.n
            for i in np.flatnonzero(self._state.active & ~self._failed):
                trial, counted = self.governed[i], int(counts[i])
                size = self._rule.first if counted == 0 else self._rule.batch
                found.append(Task(trial, range(counted, min(counted + size, trial.images))))
        return found

    def close(self, gains: Mapping[str, np.ndarray]) -> None:
        """End the round. ``gains``: per trial the log ratios of its task's images; trials without any have failed."""
        groups: dict[tuple[int, int], list[int]] = {}
        for task in self.tasks():
            index = self._index.get(task.trial.trial_id)
            if index is None:
                continue
            if task.trial.trial_id in gains:
                groups.setdefault((task.units.start, len(task.units)), []).append(index)
            else:
                self._failed[index] = True
        self._whole = []
        if self._state is None:
            return
        for (first, _), rows in groups.items():
            stacked = np.stack([gains[self.governed[i].trial_id] for i in rows])
            self._state.update(rows, first, stacked)
        self._state.decide()

    def result(self) -> tuple[list[Trial], SequentialResult] | None:
        """The governed trials and their verdicts so far; None where no trial is governed."""
        return None if self._state is None else (self.governed, self._state.result())


def is_governed(trial: Trial) -> bool:
    """Whether the stopping rule governs a trial: it looks at the error of real images, in trials of the grid."""
    return trial.protocol == "denoise" and trial.phase == "grid"


def start(trials: Sequence[Trial], rule: StoppingRule) -> SequentialTrials:
    """The state before the first image; families are layer x window, as in the analysis of a fixed number of images."""
    family = [f"{trial.layer_index}|{trial.window_index}" for trial in trials]
    return SequentialTrials(len(trials), rule, family, n_max=[trial.images for trial in trials])
