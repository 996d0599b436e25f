"""Rounds: which images are measured when, whoever measures them and however often the sweep is interrupted."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pandas as pd
import pytest

from circuits.statistics import SequentialTrials, StoppingRule
from sweeps.config import StatsConfig
from sweeps.gains import Gains
from sweeps.leases import LeaseQueue, Pace, Task
from sweeps.plan import Trial, make_plan
from sweeps.rounds import Rounds, decide, family_labels, stopping_rule
from tests.sweeps.fake_subject import fake_subject
from tests.sweeps.tiny import composed

SEQUENTIAL = ["stats=sequential", "stats.n_max=64", "stats.first=16", "stats.batch=16"]
IMAGES = 64


@pytest.fixture(scope="module")
def trials() -> tuple[Trial, ...]:
    """2 data sets x 2 windows x 3 layers of 5 trials, 64 images each."""
    return make_plan(
        composed(*SEQUENTIAL, "sweep.windows=2", "sweep.modes=[zero]"), fake_subject(layers=3, heads=4)
    ).trials


@pytest.fixture(scope="module")
def rule() -> StoppingRule:
    found = stopping_rule(StatsConfig("sequential", statistic="obf", n_max=64), IMAGES)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def g(trials: tuple[Trial, ...]) -> np.ndarray:
    """Strong, hardly noisy, and in between: some trials are decided at each look, some never."""
    rng = np.random.default_rng(5)
    means = np.resize([0.0, 0.3, 0.06, 0.04, 1.0], len(trials))
    sds = np.resize([0.02, 0.3, 0.1, 0.12, 0.3], len(trials))
    return (means[:, None] + sds[:, None] * rng.standard_normal((len(trials), IMAGES))).astype(np.float32)


def labels(trials: Iterable[Trial]) -> list[str]:
    return family_labels(pd.DataFrame([trial.row() for trial in trials]), ["layer", "window"])


def row_of(trials: Iterable[Trial]) -> dict[str, int]:
    return {trial.trial_id: row for row, trial in enumerate(trials)}


def run(rounds: Rounds, g: np.ndarray, trials: tuple[Trial, ...], seed: int = 0, most: int = 10**9) -> list[Task]:
    """Measure as workers would, in an order of their own; at most so many tasks. Returns what was measured."""
    rng, place, measured = np.random.default_rng(seed), row_of(trials), []
    queue, pace = LeaseQueue(rounds.tasks(), 1.0, rounds.following), Pace()
    pace.observe(4, 1.0)
    while queue or queue.refill():
        leases = []
        while queue:
            leases.append(queue.take(pace))
        for index in rng.permutation(len(leases)):
            lease = leases[index]
            for trial in lease.trials:
                if len(measured) == most:
                    return measured
                units = lease.units or range(trial.images)
                rounds.add({trial.trial_id: g[place[trial.trial_id], units.start : units.stop]})
                measured.append(Task(trial, units))
    return measured


def known(tasks: Iterable[Task], trials: tuple[Trial, ...], g: np.ndarray) -> Gains:
    """The records of these tasks."""
    held = np.full_like(g, np.nan)
    for task in tasks:
        row = row_of(trials)[task.trial.trial_id]
        held[row, task.units.start : task.units.stop] = g[row, task.units.start : task.units.stop]
    there = ~np.isnan(held).all(axis=1)
    return Gains(np.array([t.trial_id for t in trials], dtype=object)[there], held[there])


def counts(tasks: Iterable[Task]) -> dict[str, int]:
    found: dict[str, int] = {}
    for task in tasks:
        found[task.trial.trial_id] = found.get(task.trial.trial_id, 0) + len(task.units)
    return found


def test_trials_leave_when_they_are_decided(trials: tuple[Trial, ...], g: np.ndarray, rule: StoppingRule) -> None:
    """Against the stopping rule itself, fed by hand."""
    state = SequentialTrials(len(trials), rule, labels(trials))
    for start in range(0, IMAGES, 16):
        rows = np.flatnonzero(state.active)
        if rows.size:
            state.update(rows, start, g[rows, start : start + 16])
            state.decide()
    expected = state.result()
    rounds = Rounds(trials, rule, None, set())
    measured = run(rounds, g, trials)
    assert [counts(measured)[t.trial_id] for t in trials] == expected.n.tolist()
    assert len(set(expected.n)) == 4, "trials end at every look"
    assert rounds.done == {t.trial_id for t in trials}
    assert all(len(task.units) == 16 for task in measured)
    again = decide(labels(trials), [IMAGES] * len(trials), g, rule).result()
    for name in ("n", "verdict", "stopped", "p_degraded", "q_degraded"):
        assert (getattr(again, name) == getattr(expected, name)).all(), name


def test_the_order_of_the_work_changes_nothing(trials: tuple[Trial, ...], g: np.ndarray, rule: StoppingRule) -> None:
    first, second = (counts(run(Rounds(trials, rule, None, set()), g, trials, seed)) for seed in (1, 2))
    assert first == second


@pytest.mark.parametrize("most", [1, 17, 61, 75, 100, 130])
def test_an_interrupted_sweep_measures_what_is_left(
    most: int, trials: tuple[Trial, ...], g: np.ndarray, rule: StoppingRule
) -> None:
    whole = counts(run(Rounds(trials, rule, None, set()), g, trials))
    before = run(Rounds(trials, rule, None, set()), g, trials, seed=3, most=most)
    resumed = Rounds(trials, rule, known(before, trials, g), set(counts(before)))
    after = run(resumed, g, trials, seed=4)
    assert counts([*before, *after]) == whole
    assert not {(t.trial.trial_id, t.units) for t in before} & {(t.trial.trial_id, t.units) for t in after}
    assert resumed.done == set(whole)
    finished = Rounds(trials, rule, known([*before, *after], trials, g), set(whole))
    assert (finished.tasks(), finished.done) == ([], set(whole))


def test_a_failed_trial_drops_out_and_the_others_go_on(
    trials: tuple[Trial, ...], g: np.ndarray, rule: StoppingRule
) -> None:
    rounds, lost = Rounds(trials, rule, None, set()), trials[2]
    for task in rounds.tasks():
        if task.trial is not lost:
            rounds.add({task.trial.trial_id: g[row_of(trials)[task.trial.trial_id], :16]})
    for start in itertools.count(16, 16):
        tasks = list(rounds.following())
        if not tasks:
            break
        assert lost not in {task.trial for task in tasks}
        for task in tasks:
            rounds.add({task.trial.trial_id: g[row_of(trials)[task.trial.trial_id], start : start + 16]})
    assert rounds.done == {t.trial_id for t in trials} - {lost.trial_id}


def test_images_beyond_a_decision_do_not_change_it(
    trials: tuple[Trial, ...], g: np.ndarray, rule: StoppingRule
) -> None:
    families = labels(trials)
    found = decide(families, [IMAGES] * len(trials), g, rule).result()
    turned = g.copy()
    for row in np.flatnonzero(found.stopped == "decided"):
        turned[row, found.n[row] :] = -5 * turned[row, found.n[row] :]
    other = decide(families, [IMAGES] * len(trials), turned, rule).result()
    assert (other.verdict == found.verdict).all()
    assert (other.n == found.n).all()
    assert (found.stopped == "decided").sum() > 10


def test_without_a_rule_every_trial_is_measured_whole_once(trials: tuple[Trial, ...], g: np.ndarray) -> None:
    recorded = {trials[0].trial_id, trials[7].trial_id}
    rounds = Rounds(trials, None, None, recorded)
    assert rounds.take_done() == recorded
    measured = run(rounds, g, trials)
    assert sorted(counts(measured)) == sorted({t.trial_id for t in trials} - recorded)
    assert all(task == Task.whole(task.trial) for task in measured)
    assert rounds.take_done() == {t.trial_id for t in trials} - recorded
    assert rounds.take_done() == set()


def test_trials_that_no_rule_governs_are_measured_whole_beside_the_others(rule: StoppingRule) -> None:
    config = composed(
        *SEQUENTIAL, "sweep.windows=2", "sweep.modes=[zero]", "sweep.controls=3", "sweep.control_images=8"
    )
    trials = make_plan(config, fake_subject(layers=3, heads=4)).trials
    tasks = Rounds(trials, rule, None, set()).tasks()
    controls = {task.trial.phase: task.units for task in tasks if task.trial.phase == "control"}
    assert controls == {"control": range(8)}
    assert {task.units for task in tasks if task.trial.phase == "grid"} == {range(16)}
    assert len(tasks) == len(trials)


def test_the_rule_is_what_was_registered() -> None:
    stats = StatsConfig(
        "s", statistic="sign", correction="by", margin=0.1, alpha=0.01, n_max=999, batch=8, futility=0.2
    )
    rule = stopping_rule(stats, 40)
    assert rule == StoppingRule(
        statistic="sign", correction="by", margin=float(np.log1p(0.1)), alpha=0.01, n_max=40, batch=8, futility=0.2
    )
    assert stopping_rule(StatsConfig("s", statistic="obf"), 10).first == 10  # type: ignore[union-attr]
    assert stopping_rule(StatsConfig("s"), 40) is None


def test_families_are_the_axes_that_were_registered() -> None:
    trials = pd.DataFrame({"layer_index": [0, 0, 1], "window_index": [2, 3, 3], "mode": list("aba"), "dataset": "d"})
    assert family_labels(trials, ["layer", "window"]) == ["0|2", "0|3", "1|3"]
    assert family_labels(trials, ["mode"]) == ["a", "b", "a"]
    assert family_labels(trials, []) == ["", "", ""]
