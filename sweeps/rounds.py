"""Which images of which trials are measured next: all at once, or in rounds after which decided trials leave.

Rounds are synchronous: decisions are taken when every running trial has the round's images, so they do not depend on
how many workers there are or which was faster, and a resumed sweep takes the same ones from its records.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from circuits.statistics import SequentialResult, SequentialTrials, StoppingRule
from sweeps.config import FAMILIES, Config, StatsConfig, as_list
from sweeps.gains import Gains, aligned, read_gains
from sweeps.leases import Task
from sweeps.outlook import Looks, expected_images
from sweeps.plan import Plan, Trial
from sweeps.records import RunDirectory

GAINS = np.float32
"""Precision of the values that decisions are taken on: what the records hold, so that a resumed sweep sees the same."""


def stopping_rule(stats: StatsConfig, most_images: int) -> StoppingRule | None:
    """The rule that was registered; None where every trial is measured on all of its images.

    Args:
        most_images: of any trial that the rule governs.
    """
    if stats.statistic == "none":
        return None
    return StoppingRule(
        statistic=stats.statistic,  # type: ignore[arg-type]  # checked when the configuration was read
        correction=stats.correction,  # type: ignore[arg-type]
        n_max=most_images,
        first=min(stats.first, most_images),
        batch=stats.batch,
        margin=float(np.log1p(stats.margin)),
        alpha=stats.alpha,
        clear=stats.clear,
        futility=stats.futility,
    )


def governed(trials: pd.DataFrame) -> pd.Series:
    """Which rows of trials.parquet a stopping rule governs: trials of the grid that look at the error of images."""
    return (trials["protocol"] == "denoise") & (trials["phase"] == "grid")


def is_governed(trial: Trial) -> bool:
    """As :func:`governed`, of one trial."""
    return trial.protocol == "denoise" and trial.phase == "grid"


class Stopping:
    """The state of the governed trials, round by round.

    Args:
        families, images: of each trial; at most so many images are measured.
    """

    def __init__(self, families: Sequence[str], images: Sequence[int], rule: StoppingRule) -> None:
        self._rule = rule
        self._state = SequentialTrials(len(images), rule, families, n_max=np.asarray(images))
        self._dropped = np.zeros(len(images), dtype=bool)
        self.looks = Looks()

    def round(self) -> Iterator[tuple[int, range]]:
        """The trials that go on, each with its next images; none when every trial is decided or has all its images."""
        counts, most = self._state.n, self._state.n_max
        for index in np.flatnonzero(self._state.active & ~self._dropped).tolist():
            first = int(counts[index])
            size = self._rule.first if first == 0 else self._rule.batch
            yield index, range(first, min(first + size, int(most[index])))

    def close(self, values: Mapping[int, np.ndarray]) -> None:
        """Count the images of this round and decide. A trial of the round without values has failed, and drops out."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index, units in self.round():
            if index in values:
                groups.setdefault((units.start, len(units)), []).append(index)
            else:
                self._dropped[index] = True
        for (first, _), rows in groups.items():
            self._state.update(rows, first, np.stack([values[row] for row in rows]))
        looked_at = np.array([row for rows in groups.values() for row in rows], dtype=int)
        could_go_on = looked_at[self._state.n[looked_at] < self._state.n_max[looked_at]]
        self._state.decide()
        self.looks = self.looks.and_then(len(could_go_on), int(self._state.active[could_go_on].sum()))

    def images_to_come(self, survival: float) -> float:
        """Images that are expected after this round, if every look leaves such a share of the trials running."""
        counts, most = self._state.n, self._state.n_max
        running = self._state.active & ~self._dropped
        size = np.where(counts == 0, self._rule.first, self._rule.batch)
        left = np.maximum(most - counts - size, 0)[running]
        return float(expected_images(left, self._rule.batch, survival).sum())

    @property
    def finished(self) -> np.ndarray:
        """Trials that are decided or have all their images."""
        return np.flatnonzero(~self._state.active & ~self._dropped)

    def result(self) -> SequentialResult:
        return self._state.result()


def decide(families: Sequence[str], images: Sequence[int], g: np.ndarray, rule: StoppingRule) -> Stopping:
    """Take every decision again, from the values ``[trials, units]`` (NaN where none was measured)."""
    state = Stopping(families, images, rule)
    there = ~np.isnan(g)
    while planned := list(state.round()):
        state.close({i: g[i, u.start : u.stop] for i, u in planned if there[i, u.start : u.stop].all()})
    return state


class Rounds:
    """The tasks of a sweep, a round at a time, and which trials are done.

    Args:
        rule: None measures every trial whole, in one round.
        sampled: rows that generate a trial's images, beside those that measure it.
        known: values of the registered metric that are recorded already; recorded: ids of trials with any record.
        families: axes in which trials that are corrected together are alike.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        rule: StoppingRule | None,
        known: Gains | None,
        recorded: Collection[str],
        families: Sequence[str] = ("layer", "window"),
        sampled: Callable[[Trial], int] = lambda _: 0,
    ) -> None:
        self._sampled = sampled
        self._trials = [trial for trial in trials if rule is not None and is_governed(trial)]
        whole = [trial for trial in trials if rule is None or not is_governed(trial)]
        self.done = {trial.trial_id for trial in whole if trial.trial_id in recorded}
        self._taken: set[str] = set()
        self._values: dict[int, np.ndarray] = {}
        self._index = {trial.trial_id: index for index, trial in enumerate(self._trials)}
        self._known = aligned(
            known,
            [trial.trial_id for trial in self._trials],
            max((trial.first_image + trial.images for trial in self._trials), default=0),
        )
        self._stopping = None
        if rule is not None and self._trials:
            places = {
                "layer_index": [trial.layer_index for trial in self._trials],
                "window_index": [trial.window_index for trial in self._trials],
                "mode": [trial.intervention.mode.value for trial in self._trials],
                "dataset": [trial.dataset for trial in self._trials],
            }
            labels = family_labels(pd.DataFrame(places), families)
            self._stopping = Stopping(labels, [trial.images for trial in self._trials], rule)
        waiting = [Task.whole(trial) for trial in whole if trial.trial_id not in recorded]
        self._pending = [*waiting, *self._open()]
        self._rows = {task.trial.trial_id: self._rows_of(task) for task in self._pending}
        self._rows_waiting = sum(self._rows.values())

    def tasks(self) -> list[Task]:
        """What is to be measured first."""
        return self._pending

    def add(self, gains: Mapping[str, np.ndarray]) -> None:
        """Values that came back, by trial; of trials that no rule governs, it only matters that they did."""
        for trial_id, values in gains.items():
            self._rows_waiting -= self._rows.pop(trial_id, 0)
            index = self._index.get(trial_id)
            if index is None:
                self.done.add(trial_id)
            else:
                self._values[index] = values.astype(GAINS)

    def take_done(self) -> set[str]:
        """Trials that are done and were not taken yet: at once where no rule governs them, else when a round closes."""
        found = self.done - self._taken
        self._taken |= found
        return found

    def following(self) -> Iterable[Task]:
        """Close the round, and go on to the next one that is not recorded already."""
        if self._stopping is None:
            return ()
        self._close()
        tasks = self._open()
        self._rows = {task.trial.trial_id: self._rows_of(task) for task in tasks}
        self._rows_waiting = sum(self._rows.values())
        return tasks

    def rows_left(self) -> float:
        """Rows to come, baselines not included: those of this round, and as many as are expected after it."""
        if self._stopping is None:
            return self._rows_waiting
        return self._rows_waiting + self._stopping.images_to_come(self.looks.survival)

    def sums(self) -> dict[str, tuple[float, int]]:
        """Sum and number of the log ratios that were recorded before, of governed trials."""
        count = np.count_nonzero(~np.isnan(self._known), axis=1)
        total = np.nan_to_num(self._known).sum(axis=1, dtype=np.float64)
        there = np.flatnonzero(count).tolist()
        return {self._trials[i].trial_id: (float(total[i]), int(count[i])) for i in there}

    @property
    def looks(self) -> Looks:
        """At governed trials, those of earlier runs included."""
        return Looks() if self._stopping is None else self._stopping.looks

    def _rows_of(self, task: Task) -> int:
        trial, begins = task.trial, task.units.start == 0
        return (len(task.units) if trial.protocol == "denoise" else 0) + (self._sampled(trial) if begins else 0)

    def _open(self) -> list[Task]:
        """Tasks of the first round that is not wholly recorded; rounds before it are taken from the records."""
        if self._stopping is None:
            return []
        while planned := list(self._stopping.round()):
            pending = [Task(self._trials[i], units) for i, units in planned if not self._recall(i, units)]
            if pending:
                return pending
            self._close()
        self._settle()
        return []

    def _recall(self, index: int, units: range) -> bool:
        """Whether the records hold these images of a trial; if so they count."""
        first = self._trials[index].first_image
        values = self._known[index, first + units.start : first + units.stop]
        if np.isnan(values).any():
            return False
        self._values[index] = values
        return True

    def _close(self) -> None:
        assert self._stopping is not None
        self._stopping.close(self._values)
        self._values = {}
        self._settle()

    def _settle(self) -> None:
        assert self._stopping is not None
        self.done |= {self._trials[index].trial_id for index in self._stopping.finished.tolist()}


def resumed_rounds(config: Config, plan: Plan, directory: RunDirectory) -> Rounds:
    """What is left to measure of a plan, given the records."""
    metric = config.stats.metric
    trials = [trial for trial in plan.trials if is_governed(trial)]
    rule = stopping_rule(config.stats, max((trial.images for trial in trials), default=2))
    known = None
    if rule is not None:
        known = read_gains(directory, [trial.trial_id for trial in trials], [metric]).get(metric)
    families = as_list(config.stats.families, "stats.families")
    return Rounds(plan.trials, rule, known, directory.recorded(), families, plan.sampled_rows)


def family_labels(trials: pd.DataFrame, axes: Sequence[str]) -> list[str]:
    """The family of each row of trials.parquet: trials that are alike in the registered ``axes``."""
    columns = [trials[FAMILIES[axis]] for axis in axes]
    return ["|".join(map(str, place)) for place in zip(*columns, strict=True)] if columns else [""] * len(trials)
