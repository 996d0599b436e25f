"""Hand leases to workers: in this process, or to a pool of Ray actors over the ledger of records.

Only this package and `sweeps.search` know of Ray. Leases are executed at least once; a worker that dies costs its
leases nothing but a second run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from sweeps.config import ClusterConfig
from sweeps.leases import Lease, LeaseQueue, Pace
from sweeps.plan import Subject
from sweeps.run import LeaseOutcome, Runner, RunnerSpec
from sweeps.schedule.clusters import connect, disconnect
from sweeps.schedule.luggage import packed
from sweeps.schedule.pool import IDLE_SECONDS, Pool
from sweeps.schedule.remote import RemoteRunner
from sweeps.schedule.workers import WorkerFactory
from sweeps.travel import deliver


def inline(
    leases: LeaseQueue, spec: RunnerSpec, subject: Subject, stop: threading.Event
) -> Iterator[tuple[Lease, LeaseOutcome]]:
    """Run every lease in this process, with the subject that is already loaded."""
    runner, pace = Runner(spec, subject), Pace()
    while not stop.is_set() and (leases or leases.refill()):
        lease = leases.take(pace)
        outcome = runner.run(lease)
        pace.observe(len(lease.trials), outcome.seconds)
        yield lease, outcome


def ray_pool(
    leases: LeaseQueue,
    spec: RunnerSpec,
    cluster: ClusterConfig,
    stop: threading.Event,
    say: Callable[[str], object] = lambda _: None,
) -> Iterator[tuple[Lease, LeaseOutcome]]:
    """Run the leases on a pool of actors; yields outcomes as they come, in any order.

    Args:
        say: tells the user, in one line, why nothing happens.
    """
    connect(cluster)
    try:
        factory = WorkerFactory(cluster, spec, RemoteRunner, packed(cluster, spec))
        idle = IDLE_SECONDS if cluster.name == "ray" else float("inf")
        for lease, outcome in Pool(leases, factory, cluster.lease_timeout, stop, idle, say).outcomes():
            deliver(outcome.files, Path(spec.run_dir))
            yield lease, outcome
    finally:
        disconnect()
