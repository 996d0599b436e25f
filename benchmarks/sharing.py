"""Work of a sweep on many workers: what each computes again that another has computed already.

    python -m benchmarks.sharing [key=value ...] [--json] [--leases 64] [--workers 8 32]

Every lease is run, by the engine of the worker that the pool hands it to, one after the other in this process. Ray and
the time are played: a lease takes as long as its FLOPs, at a speed at which each worker has about ``--leases`` of them.
So the figures are the same on every machine. For each number of workers, with the pool's choice of places (see
``sweeps.holdings``) and in the order of the plan:

- ``work``: FLOPs inside the networks of all workers, over those of one worker; loading and self-tests aside;
- ``efficiency``: FLOPs of one worker over what so many could have done until the last one was done, at the end of
  whose rounds all wait for one another.

Settings are those of ``launch.py``; by default the grid of ``sweep=full_ablation`` with 64 images at most.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.work import network_flops
from sweeps import driver
from sweeps.config import Config
from sweeps.leases import Lease, LeaseQueue
from sweeps.plan import Plan, Subject, make_plan
from sweeps.records import RunDirectory
from sweeps.rounds import resumed_rounds
from sweeps.run import LeaseOutcome, Runner, RunnerSpec
from sweeps.schedule import pool as pools
from tests.sweeps.played_ray import Answer, PlayedRay
from tests.sweeps.tiny import composed

SETTINGS = ("tracker=none", "cluster=inline", "stats=sequential", "stats.n_max=64", "run.rows=32")
LEASE_SECONDS = 3.0


class Worker:
    """Runs what it is handed at once, and says that it took as long as its FLOPs."""

    def __init__(self, index: int, ray: PlayedRay, spec: RunnerSpec, subject: Subject, flops_per_second: float) -> None:
        self.index = index
        self.flops = 0
        self._ray = ray
        self._runner = Runner(spec, subject)
        assert self._runner._engine.replayable  # the self-test, once a process; asked for, it is done
        self._network = subject.denoiser.network
        self._speed = flops_per_second
        self._free = 0.0
        self.ping = SimpleNamespace(remote=lambda: Answer(0.0, index))
        self.run = SimpleNamespace(remote=self._run)

    def _run(self, lease: Lease) -> Answer:
        found: list[LeaseOutcome] = []
        flops = network_flops(self._network, lambda: found.append(self._runner.run(lease)))
        self.flops += flops
        seconds = flops / self._speed
        self._free = max(self._ray.clock.now, self._free) + seconds
        return Answer(self._free, replace(found[0], seconds=seconds))


class Workers(PlayedRay):
    """So many of them, all up from the beginning."""

    def __init__(self, count: int, spec: RunnerSpec, subject: Subject, flops_per_second: float) -> None:
        super().__init__()
        self.all = [Worker(index, self, spec, subject, flops_per_second) for index in range(count)]
        self._unstarted = list(self.all)

    @property
    def flops(self) -> int:
        return sum(worker.flops for worker in self.all)

    def wanted(self) -> dict[str, int]:
        return {"played": len(self.all)}

    def start(self, _: str) -> Any:
        return self._unstarted.pop(0)


def swept(
    config: Config, subject: Subject, plan: Plan, workers: int, speed: float, *, in_order: bool = False
) -> Workers:
    """The workers, after the whole sweep.

    Args:
        speed: FLOPs a second of each.
        in_order: hand leases out in the order of the plan, whoever asks.

    Raises:
        RuntimeError: a trial failed.
    """
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        directory = RunDirectory(Path(folder))
        directory.create(directory.records)
        directory.create(directory.samples)
        rounds = resumed_rounds(config, plan, directory)
        leases = LeaseQueue(rounds.tasks(), LEASE_SECONDS, rounds.following)
        spec = driver.runner_spec(config, driver.subject_spec(config), directory)
        found = Workers(workers, spec, subject, speed)
        found.play(patch)
        if in_order:
            patch.setattr(pools, "next_place", lambda waiting, **_: next(iter(waiting)))
        for _, outcome in pools.Pool(leases, found, timeout=float("inf"), stop=threading.Event()).outcomes():
            if outcome.failures:
                raise RuntimeError(outcome.failures[0].error)
            rounds.add(outcome.gains)
    return found


def figures(config: Config, subject: Subject, counts: Sequence[int], leases: int) -> list[dict[str, Any]]:
    """A row for each number of workers and each way of handing out; the first is of one worker."""
    plan = make_plan(config, subject)
    # In two steps: how much work there is says how fast workers have to be to have so many leases.
    alone = swept(config, subject, plan, 1, 1e12).flops
    rows = [{"workers": 1, "handed out": "by place", "work": 1.0, "efficiency": 1.0}]
    for count in counts:
        speed = alone / (count * leases * LEASE_SECONDS)
        for name, in_order in (("by place", False), ("in order", True)):
            found = swept(config, subject, plan, count, speed, in_order=in_order)
            efficiency = alone / (speed * count * found.clock.now)
            row = {"workers": count, "handed out": name, "work": found.flops / alone, "efficiency": efficiency}
            rows.append({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--leases", type=int, default=64, help="that a worker has, about")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    config = composed(*SETTINGS, *arguments.overrides)
    subject, _ = driver.load(config)
    found = figures(config, subject, arguments.workers, arguments.leases)
    if arguments.json:
        print(json.dumps({"rows": found}))
        return
    for row in found:
        print("{workers:4d} workers, {handed out}: work {work:.3f}, efficiency {efficiency:.3f}".format(**row))


if __name__ == "__main__":
    main()
