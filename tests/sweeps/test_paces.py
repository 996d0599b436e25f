"""Fast and slow workers in one pool, by a clock of this test: everybody busy to the end, nobody waited for long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.leases import Lease, LeaseQueue, Task
from sweeps.plan import Plan, make_plan
from sweeps.schedule import pool as pools
from sweeps.schedule.pool import Pool
from tests.sweeps.fake_subject import fake_subject
from tests.sweeps.played_ray import Answer, Clock, PlayedRay
from tests.sweeps.tiny import composed

SECONDS = 3.0  # of a lease
FAST, SLOW = 0.05, 2.0  # seconds that a trial takes a GPU, and a CPU


@dataclass
class Run:
    """A lease as it was run."""

    worker: int
    trials: int
    begun: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.begun


@dataclass
class Worker:
    """Runs its leases one after the other.

    Attributes:
        seconds: that a trial takes it, the first lease aside, which takes ``warming`` longer.
        hangs_at: the lease that it never ends.
        up_at: when it has found a place and loaded its model.
    """

    index: int
    clock: Clock
    seconds: float
    warming: float = 0.0
    hangs_at: int | None = None
    up_at: float = 0.0
    free: float = 0.0
    runs: list[Run] = field(default_factory=list)

    def asked_to_run(self, lease: Lease) -> Answer:
        begun = max(self.clock.now, self.free)
        took = self.seconds * len(lease.trials) + (0.0 if self.runs else self.warming)
        self.free = float("inf") if self.hangs_at == len(self.runs) else begun + took
        self.runs.append(Run(self.index, len(lease.trials), begun, self.free))
        outcome = SimpleNamespace(gains={t.trial_id: 1.0 for t in lease.trials}, seconds=took, last=False)
        return Answer(self.free, outcome)


class Simulation(PlayedRay):
    def __init__(self, monkeypatch: pytest.MonkeyPatch, *workers: dict[str, Any]) -> None:
        super().__init__()
        self.workers = [Worker(index, self.clock, **given) for index, given in enumerate(workers)]
        self._unstarted = list(self.workers)
        self.play(monkeypatch)

    def wanted(self) -> dict[str, int]:
        return {"simulated": len(self.workers)}

    def start(self, kind: str) -> Any:
        worker = self._unstarted.pop(0)
        remote = SimpleNamespace
        return remote(
            index=worker.index,
            ping=remote(remote=lambda: Answer(worker.up_at)),
            run=remote(remote=worker.asked_to_run),
        )

    def run(self, leases: LeaseQueue) -> list[str]:
        """To the end; returns the trials in the order in which they came back."""
        done: list[str] = []
        for _, outcome in Pool(leases, self, timeout=1800.0, stop=threading.Event()).outcomes():
            done += outcome.gains
        return done


Simulate = Callable[..., Simulation]


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Simulate:
    return lambda *workers: Simulation(monkeypatch, *workers)


@pytest.fixture(scope="module")
def plan() -> Plan:
    """4,800 trials: 2 data sets x 5 windows x 2 layers x 48 places x 5 modes; 240 may share a lease."""
    modes = "sweep.modes=[zero,mean,resample,resample_across,identity]"
    found = make_plan(composed(modes, "sweep.levels=[head]"), fake_subject(layers=2, heads=48))
    assert len(found) == 4_800
    return found


def mixed(gpus: int, cpus: int, **more: Any) -> Iterable[dict[str, Any]]:
    return [{"seconds": FAST, **more}] * gpus + [{"seconds": SLOW, **more}] * cpus


def ideal(trials: int, gpus: int, cpus: int) -> float:
    """Seconds, if work were a fluid."""
    return trials / (gpus / FAST + cpus / SLOW)


@pytest.mark.parametrize(("gpus", "cpus"), [(2, 3), (1, 8), (0, 2), (3, 0)])
def test_every_worker_has_leases_of_its_own_size_and_the_slow_ones_are_not_waited_for(
    simulate: Simulate, plan: Plan, gpus: int, cpus: int
) -> None:
    trials = plan.trials[:1200] if gpus == 0 else plan.trials
    found = simulate(*mixed(gpus, cpus, warming=1.0))
    done = found.run(LeaseQueue(map(Task.whole, trials), SECONDS))
    assert sorted(done) == sorted(t.trial_id for t in trials)
    took, least = found.clock.now, ideal(len(trials), gpus, cpus)
    for worker in found.workers:
        settled = [run for run in worker.runs[5:] if run.ended < 0.8 * took]
        assert settled, "it worked to the end"
        assert max(run.seconds for run in settled) <= 5
        small = [run for run in settled if run.seconds < 2]  # what was left of trials that share a layer and a window
        assert len(small) <= (0 if worker.seconds == SLOW else 0.3 * len(settled))
        assert worker.runs[0].trials == 1, "nothing was known of it"
    assert took < least + 1.0 + (SLOW if cpus else SECONDS / 8), "warming up, and the last lease of the slowest"


def test_a_sweep_in_rounds_waits_for_the_slow_ones_at_the_end_of_none(simulate: Simulate, plan: Plan) -> None:
    """A round ends when all of it came back."""
    sizes = [600, 200, 60, 20, 5, 1]
    waiting = [list(map(Task.whole, plan.trials[:size])) for size in sizes]
    found = simulate(*mixed(2, 3))
    queue = LeaseQueue(waiting.pop(0), SECONDS, lambda: waiting.pop(0) if waiting else ())
    assert len(found.run(queue)) == sum(sizes)
    assert found.clock.now < sum(ideal(size, 2, 3) for size in sizes) + SLOW + 0.5 * len(sizes)
    assert {run.trials for worker in found.workers[2:] for run in worker.runs[1:]} <= {1, 2}


def test_without_shares_a_slow_worker_has_the_last_lease(
    simulate: Simulate, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: were everybody given what it asks for, each of those rounds would last as long as a slow trial."""
    monkeypatch.setattr(pools, "fair_shares", lambda tasks, paces, busy: [tasks] * len(paces))
    sizes = [600, 20, 20, 20, 20]
    waiting = [list(map(Task.whole, plan.trials[:size])) for size in sizes]
    found = simulate(*mixed(2, 3))
    found.run(LeaseQueue(waiting.pop(0), SECONDS, lambda: waiting.pop(0) if waiting else ()))
    assert found.clock.now > ideal(600, 2, 3) + 4 * SLOW


def test_nobody_waits_for_a_fast_worker_that_hangs(simulate: Simulate, plan: Plan) -> None:
    """A slow worker leaves the last trials to it for as long as it is expected, and not until its time limit."""
    found = simulate({"seconds": FAST, "hangs_at": 6}, {"seconds": SLOW})
    queue = LeaseQueue(map(Task.whole, plan.trials[:500]), SECONDS)
    stopped: list[float] = []
    stop = threading.Event()
    for _ in Pool(queue, found, timeout=1800.0, stop=stop).outcomes():
        if not queue:
            stopped.append(found.clock.now)
            break
    fast, slow = found.workers
    assert fast.runs[-2].ended == float("inf")
    left = 500 - sum(run.trials for run in fast.runs)
    assert sum(run.trials for run in slow.runs) == left
    assert stopped[0] < left * SLOW + 30


def test_a_worker_that_waits_for_a_place_no_longer_does_when_nothing_is_left_for_it(
    simulate: Simulate, plan: Plan
) -> None:
    """An autoscaler would start a machine for it. The one that works keeps its place."""
    found = simulate({"seconds": 100.0}, {"seconds": 1.0, "up_at": float("inf")})
    queue = LeaseQueue(map(Task.whole, plan.trials[:2]), SECONDS)
    pool = Pool(queue, found, timeout=1800.0, stop=threading.Event(), idle=60.0)
    assert len(list(pool.outcomes())) == 2
    ((index, when),) = found.killed
    assert index == 1
    assert 60 < when < 63 < found.clock.now == 200


def test_a_worker_that_comes_late_has_its_share_at_once(simulate: Simulate, plan: Plan) -> None:
    found = simulate({"seconds": 1.0}, {"seconds": 1.0, "up_at": 100.0})
    done = found.run(LeaseQueue(map(Task.whole, plan.trials[:400]), SECONDS))
    assert len(done) == 400
    late = found.workers[1]
    assert 100 <= late.runs[0].begun <= 101
    assert found.clock.now == pytest.approx(250, abs=3), "150 s of both, after 100 of one"
