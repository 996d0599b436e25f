"""Hand leases to workers: in this process, or to a pool of Ray actors over the ledger of records. The only module that imports ray.

Leases are executed at least once; a worker that dies costs its leases nothing but a second run. A lease that keeps killing
workers is halved until the poison trial is alone, and that one is recorded as failed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from sweeps.config import ClusterConfig, ConfigError
from sweeps.leases import Lease, LeaseQueue
from sweeps.plan import Subject
from sweeps.records import Failure
from sweeps.run import LeaseOutcome, Runner, RunnerSpec

IN_FLIGHT = 2
_DEATHS_BEFORE_HALVING = 2
_FAST_DEATH_LIMIT = 5


def resolve_device(wanted: str) -> str:
    """``auto`` is the GPU where there is one."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("cluster.device: cuda was asked for, and this machine has no usable GPU; valid: auto, cpu")
    return wanted


def inline(
    leases: LeaseQueue, spec: RunnerSpec, subject: Subject, stop: threading.Event
) -> Iterator[tuple[Lease, LeaseOutcome]]:
    """Run every lease in this process, with the subject that is already loaded."""
    runner = Runner(spec, subject)
    while leases and not stop.is_set():
        lease = leases.take()
        outcome = runner.run(lease)
        leases.observe(len(lease.trials), outcome.seconds)
        yield lease, outcome


@dataclass
class _Worker:
    """An actor of the pool; quarantined from its death until it answers a ping."""

    handle: Any
    flying: dict[Any, tuple[Lease, float]] = field(default_factory=dict)
    ping: Any = None
    deaths: int = 0


def worker_count(cluster: ClusterConfig, device: str, cpus: int, gpus: float) -> int:
    """One worker a GPU share, or one a CPU core share."""
    if cluster.workers:
        return cluster.workers
    if device == "cuda":
        return max(1, int(gpus / cluster.gpus_per_worker + 1e-9))
    return max(1, cpus // cluster.cpus_per_worker)


def connect(cluster: ClusterConfig) -> None:
    """Start Ray on this machine's loopback, or join the named cluster."""
    import os

    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    if cluster.name == "local":
        cpus = os.cpu_count() or 1
        ray.init(
            address="local",
            num_cpus=max(cpus, cluster.workers * cluster.cpus_per_worker),
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            **quiet,
        )
        return
    try:
        ray.init(address=cluster.address or "auto", **quiet)
    except (ConnectionError, ValueError) as error:
        raise ConfigError(f"cluster.address: no Ray cluster at {cluster.address or 'auto'!r} ({error})") from error


def disconnect() -> None:
    import ray

    ray.shutdown()


def ray_pool(
    leases: LeaseQueue, spec: RunnerSpec, cluster: ClusterConfig, stop: threading.Event
) -> Iterator[tuple[Lease, LeaseOutcome]]:
    """Run the leases on a pool of actors; yields outcomes as they come, in any order."""
    connect(cluster)
    try:
        yield from _Pool(leases, spec, cluster, stop).outcomes()
    finally:
        disconnect()


class _Pool:
    def __init__(self, leases: LeaseQueue, spec: RunnerSpec, cluster: ClusterConfig, stop: threading.Event) -> None:
        import ray

        self._ray = ray
        self._leases = leases
        self._stop = stop
        self._timeout = cluster.lease_timeout
        self._deaths: dict[str, int] = {}
        resources = ray.cluster_resources()
        device = spec.subject.device
        cpus = int(resources.get("CPU", 1))
        count = worker_count(cluster, device, cpus, resources.get("GPU", 0.0))
        # Threads are divided, since workers that each take all cores slow one another down.
        threads = cluster.cpus_per_worker if device == "cuda" else max(1, cpus // count)
        options = {
            "num_cpus": cluster.cpus_per_worker if device == "cuda" else min(cluster.cpus_per_worker, cpus / count),
            "num_gpus": cluster.gpus_per_worker if device == "cuda" else 0,
            "max_restarts": -1,
            "max_task_retries": 0,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)}},
        }
        actor = ray.remote(Runner).options(**options)
        spec = replace(spec, threads=threads)
        self._workers = [_Worker(actor.remote(spec)) for _ in range(count)]

    def outcomes(self) -> Iterator[tuple[Lease, LeaseOutcome]]:
        while True:
            if not self._stop.is_set():
                self._hand_out()
            flying = {ref: worker for worker in self._workers for ref in worker.flying}
            if not flying:
                if self._stop.is_set() or not self._leases:
                    return
                self._await_recovery()
                continue
            ready, _ = self._ray.wait(list(flying), num_returns=1, timeout=1.0)
            for ref in ready:
                yield from self._collect(flying[ref], ref)
            self._end_hung_leases()

    def _hand_out(self) -> None:
        for _ in range(IN_FLIGHT):
            for worker in self._workers:
                if not self._leases:
                    return
                if len(worker.flying) < IN_FLIGHT and self._in_service(worker):
                    lease = self._leases.take()
                    worker.flying[worker.handle.run.remote(lease)] = (lease, time.monotonic())

    def _collect(self, worker: _Worker, ref: Any) -> Iterator[tuple[Lease, LeaseOutcome]]:
        lease, _ = worker.flying.pop(ref)
        errors = self._ray.exceptions
        try:
            outcome = self._ray.get(ref)
        except errors.RayTaskError as error:
            # Trials that raise are handled by the runner, so this is the worker's surroundings: a full disk, say.
            raise RuntimeError(f"a worker could not go on: {error.cause!r}") from error
        except errors.RayError as error:
            yield from self._lost(worker, lease, error)
            return
        worker.deaths = 0
        self._leases.observe(len(lease.trials), outcome.seconds)
        # The next lease of this worker starts now, not when it was handed over.
        for other, (held, _) in worker.flying.items():
            worker.flying[other] = (held, time.monotonic())
        yield lease, outcome

    def _lost(self, worker: _Worker, lease: Lease, error: Exception) -> Iterator[tuple[Lease, LeaseOutcome]]:
        """The worker died or could not be reached: quarantine it, and hand the lease out again."""
        if worker.ping is None:
            worker.deaths += 1
            worker.ping = worker.handle.ping.remote()
        if worker.deaths > _FAST_DEATH_LIMIT and not any(w.ping is None for w in self._workers):
            raise RuntimeError(f"no worker stays alive: {_reason(error)}")
        deaths = self._deaths[lease.lease_id] = self._deaths.get(lease.lease_id, 0) + 1
        if deaths < _DEATHS_BEFORE_HALVING or len(lease.trials) == 1 and deaths <= _DEATHS_BEFORE_HALVING:
            self._leases.give_back(lease)
        elif len(lease.trials) > 1:
            for half in lease.halves():
                self._deaths[half.lease_id] = 1
                self._leases.give_back(half)
        else:
            failure = Failure(lease.trials[0].trial_id, f"its worker died {deaths} times: {_reason(error)}", "", deaths)
            yield lease, LeaseOutcome({}, (failure,), 0, 0.0)

    def _in_service(self, worker: _Worker) -> bool:
        if worker.ping is None:
            return True
        ready, _ = self._ray.wait([worker.ping], timeout=0)
        if not ready:
            return False
        try:
            self._ray.get(ready[0])
        except self._ray.exceptions.RayError:
            worker.deaths += 1
            worker.ping = worker.handle.ping.remote()
            return False
        worker.ping = None
        return True

    def _await_recovery(self) -> None:
        if all(w.deaths > _FAST_DEATH_LIMIT for w in self._workers):
            raise RuntimeError("no worker stays alive; see the logs of Ray for the cause")
        time.sleep(0.2)

    def _end_hung_leases(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            started = [start for _, start in worker.flying.values()]
            if started and now - min(started) > self._timeout and worker.ping is None:
                self._ray.kill(worker.handle, no_restart=False)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
