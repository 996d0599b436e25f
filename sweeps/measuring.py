"""The measuring of a sweep: leases out, outcomes in, until every trial is recorded or failed, or somebody stops it."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import closing
from typing import Any

import torch
from rich.console import Console

from sweeps import schedule
from sweeps.config import Config
from sweeps.exit_codes import FAILED_TRIALS, INTERRUPTED, OK
from sweeps.follower import Follower
from sweeps.interruption import interruptible
from sweeps.leases import Lease, LeaseQueue
from sweeps.places import check
from sweeps.plan import Plan, Subject
from sweeps.progress import SweepProgress, say
from sweeps.provenance import now
from sweeps.records import Failure, RunDirectory
from sweeps.rounds import Rounds, resumed_rounds
from sweeps.run import LeaseOutcome, RunnerSpec
from sweeps.schedule.workers import counts_of, shares_of
from sweeps.standing import MEASURING, Bulletin
from sweeps.timings import STARTING, Timings


class Tally:
    """What came back so far, summed up for run.json."""

    def __init__(self) -> None:
        self.failures: list[Failure] = []
        self.rows = self.memory = 0
        self.worker_seconds = 0.0
        self.first_lease: float | None = None
        self._began = time.monotonic()

    def add(self, outcome: LeaseOutcome) -> None:
        if self.first_lease is None:
            self.first_lease = max(0.0, self.elapsed - outcome.seconds)
        self.failures += outcome.failures
        self.rows += outcome.rows
        self.memory = max(self.memory, outcome.peak_memory)
        self.worker_seconds += outcome.seconds

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began


def measure(
    config: Config,
    subject: Subject,
    runner: RunnerSpec,
    plan: Plan,
    directory: RunDirectory,
    console: Console,
    follower: Follower,
    bulletin: Bulletin,
) -> int:
    """Run every trial of the plan that is not recorded; returns the exit code."""
    rounds = resumed_rounds(config, plan, directory)
    follow(rounds, follower)
    if rounds.done:
        say(console, f"{len(rounds.done)} of {len(plan)} trials are recorded already")
    tally = Tally()
    leases = LeaseQueue(rounds.tasks(), config.cluster.lease_seconds, rounds.following)
    trials = {t.trial_id: t for t in plan.trials}
    with (
        interruptible(console) as stop,
        SweepProgress(
            trials, len(rounds.done), console, left=rounds.rows_left, bulletin=bulletin, known=rounds.sums()
        ) as progress,
        closing(outcomes_of(config, leases, runner, subject, stop, console)) as outcomes,
    ):
        for _, outcome in outcomes:
            tally.add(outcome)
            rounds.add(outcome.gains)
            follow(rounds, follower)
            progress.note(outcome.failures, outcome.peak_memory)
            progress.add(outcome.gains, len(rounds.done), len(outcome.failures), outcome.rows)
            check(directory)
        progress.settle(len(rounds.done))
        interrupted = stop.is_set()
    follow(rounds, follower)
    failures = still_failed(directory, tally.failures, {t.trial_id for t in plan.trials} - rounds.done)
    directory.write_failures(failures)
    about = facts(directory.read_run(), tally, rounds, len(plan), len(failures))
    about["work"]["workers"] = workers_of(config, subject.denoiser.device.type)
    directory.write_run(about)
    timings = Timings()
    timings.add(STARTING, tally.first_lease or 0.0)
    timings.add(MEASURING, tally.elapsed - (tally.first_lease or 0.0))
    timings.merge_into(directory)
    if interrupted:
        return INTERRUPTED
    return OK if len(rounds.done) == len(plan) else FAILED_TRIALS


def facts(before: Mapping[str, Any], tally: Tally, rounds: Rounds, trials: int, failed: int) -> dict[str, Any]:
    """For run.json. ``work`` is what was measured by all drivers so far, and how long workers took for it."""
    counts, work = before.get("counts", {}), before.get("work", {})
    rows, seconds = work.get("rows", 0) + tally.rows, work.get("worker_seconds", 0.0) + tally.worker_seconds
    return {
        "finished": now(),
        "seconds": round(before.get("seconds", 0) + tally.elapsed, 1),
        "peak_memory_bytes": max(before.get("peak_memory_bytes", 0), tally.memory),
        "counts": {
            "trials": trials,
            "recorded": len(rounds.done),
            "failed": failed,
            "rows": counts.get("rows", 0) + tally.rows,
        },
        "work": {"rows": rows, "worker_seconds": round(seconds, 2), "survival": round(rounds.looks.survival, 3)},
    }


def workers_of(config: Config, device: str) -> int:
    """Workers that a sweep has on this machine; of a cluster elsewhere, those asked for, or one to begin with."""
    cluster = config.cluster
    if cluster.name == "inline":
        return 1
    if cluster.name == "ray":
        return cluster.workers or 1
    share = 1.0 if cluster.gpus_per_worker == "auto" else float(cluster.gpus_per_worker)
    cpus = max(os.cpu_count() or 1, cluster.workers * cluster.cpus_per_worker)
    here = [{"CPU": cpus, "GPU": torch.cuda.device_count()}]
    return sum(counts_of(cluster, shares_of(cluster, device, here, share), here).values())


def follow(rounds: Rounds, follower: Follower) -> None:
    """Tell the tracker which trials are done."""
    for trial_id in rounds.take_done():
        follower.trial_done(trial_id)


def outcomes_of(
    config: Config, leases: LeaseQueue, runner: RunnerSpec, subject: Subject, stop: threading.Event, console: Console
) -> Generator[tuple[Lease, LeaseOutcome], None, None]:
    """The outcomes of all leases, from this process or from Ray; Ray is started only if there is work."""
    if not leases:
        return
    if config.cluster.name == "inline":
        yield from schedule.inline(leases, runner, subject, stop)
    else:
        yield from schedule.ray_pool(leases, runner, config.cluster, stop, functools.partial(say, console))


def still_failed(directory: RunDirectory, failures: list[Failure], unrecorded: set[str]) -> list[Failure]:
    """Failures of this run, and those of earlier runs that it did not come to try again."""
    known = {f.trial_id: f for f in (*directory.read_failures(), *failures)}
    return [f for trial_id, f in known.items() if trial_id in unrecorded]
