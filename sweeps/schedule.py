"""Hand leases to workers: in this process, or to a pool of Ray actors over the ledger of records.

Leases are executed at least once; a worker that dies costs its leases nothing but a second run. A lease that keeps
killing workers is halved until the poison trial is alone, and that one is recorded as failed.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from sweeps.config import ClusterConfig, ConfigError
from sweeps.leases import Lease, LeaseQueue
from sweeps.plan import Subject
from sweeps.records import Failure, GaveOut
from sweeps.run import DEVICE_LOST, LeaseOutcome, Runner, RunnerSpec

IN_FLIGHT = 2
_DEATHS_BEFORE_HALVING = 2
_SILENCE_LIMIT = 5  # pings in a row that a worker may fail to answer
_CONNECT_SECONDS = 10.0
_OBJECT_STORE_BYTES = 128 * 2**20  # only leases and their outcomes travel


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
    while not stop.is_set() and (leases or leases.refill()):
        lease = leases.take()
        outcome = runner.run(lease)
        leases.observe(len(lease.trials), outcome.seconds)
        yield lease, outcome


def worker_count(cluster: ClusterConfig, device: str, cpus: int, gpus: float) -> int:
    """One worker a GPU share, or one a CPU core share."""
    if cluster.workers:
        return cluster.workers
    if device == "cuda":
        return max(1, int(gpus / cluster.gpus_per_worker + 1e-9))
    return max(1, cpus // cluster.cpus_per_worker)


def connect(cluster: ClusterConfig) -> None:
    """Start Ray on this machine, out of reach of any other, or join the named cluster.

    Raises:
        ConfigError: there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    if cluster.name == "local":
        _start_local(cluster, quiet)
        return
    import ray

    address = cluster.address or "auto"
    try:
        if "://" not in address:
            _require_listener(address)
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"cluster.address: no Ray cluster at {address!r} ({reason})") from error


def _require_listener(address: str) -> None:
    """Fail at once where nothing listens: Ray itself asks a cluster that is gone again and again, for minutes.

    Raises:
        OSError: nothing listens there, or ``auto`` finds no cluster.
    """
    from ray._private.services import canonicalize_bootstrap_address

    found = canonicalize_bootstrap_address(address)
    if found is None:
        raise ConnectionError("no cluster was started on this machine, and RAY_ADDRESS is not set")
    host, _, port = found.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS):
        pass


def _start_local(cluster: ClusterConfig, quiet: dict[str, Any]) -> None:
    """A Ray of our own, which listens on the loopback only.

    Ray listens on the address it takes for this machine's, and turns a loopback address that it is given into that one.
    Told that it is not to form clusters (its default on Windows and macOS), it takes the loopback for it.

    Raises:
        ConfigError: a worker is to have more GPUs than there are.
    """
    gpus = torch.cuda.device_count() if resolve_device(cluster.device) == "cuda" else None
    if gpus is not None and cluster.gpus_per_worker > gpus:
        raise ConfigError(f"cluster.gpus_per_worker: this machine has {gpus} GPUs, got {cluster.gpus_per_worker:g}")
    # A secret of this process: the default is a file in the home directory, which Ray leaves readable by all.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray
    import ray._raylet
    from ray._private import ray_constants

    # Ray reads its secret once; a cluster looked for earlier in this process may have made it find another, or none.
    raylet: Any = ray._raylet  # compiled, without types
    raylet.Config.initialize("")
    if hasattr(raylet, "AuthenticationTokenLoader"):
        raylet.AuthenticationTokenLoader.instance().reset_cache()
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for the processes that Ray starts
    try:
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, cluster.workers * cluster.cpus_per_worker),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **quiet,
        )
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        del os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR]


def disconnect() -> None:
    import ray

    ray.shutdown()


def start_workers(
    cluster: ClusterConfig,
    spec: RunnerSpec,
    kind: type = Runner,
    *arguments: Any,
    spare_cpus: float = 0.0,
    retries: int = 0,
) -> list[Any]:
    """Actors ``kind(spec, *arguments)``, one a GPU share or CPU share, restarted for ever when they die.

    Args:
        spare_cpus: of each worker's share, left for what calls it.
        retries: times Ray itself repeats a call whose worker died.
    """
    import ray

    resources = ray.cluster_resources()
    device = spec.subject.device
    cpus = int(resources.get("CPU", 1))
    count = worker_count(cluster, device, cpus, resources.get("GPU", 0.0))
    # Threads are divided, since workers that each take all cores slow one another down.
    threads = cluster.cpus_per_worker if device == "cuda" else max(1, cpus // count)
    if cluster.name == "local":  # OMP_NUM_THREADS and the like, as torch read them here, hold for the workers too
        threads = min(threads, torch.get_num_threads())
    share = cluster.cpus_per_worker if device == "cuda" else min(cluster.cpus_per_worker, cpus / count)
    share -= spare_cpus
    actor: Any = ray.remote(kind).options(
        num_cpus=share if share < 1 else int(share),  # Ray takes parts of one CPU, or whole ones
        num_gpus=cluster.gpus_per_worker if device == "cuda" else 0,
        max_restarts=-1,
        max_task_retries=retries,
    )
    spec = replace(spec, threads=threads)
    return [actor.remote(spec, *arguments) for _ in range(count)]


def ray_pool(
    leases: LeaseQueue, spec: RunnerSpec, cluster: ClusterConfig, stop: threading.Event
) -> Iterator[tuple[Lease, LeaseOutcome]]:
    """Run the leases on a pool of actors; yields outcomes as they come, in any order."""
    connect(cluster)
    try:
        yield from _Pool(leases, spec, cluster, stop).outcomes()
    finally:
        disconnect()


@dataclass
class _Worker:
    """An actor of the pool. It is handed leases from an answered ping on, until it loses one.

    Attributes:
        flying: leases in the order in which they were handed over, which is the order in which they are run.
        ping: what was asked of a worker that is not known to be up.
        silent: pings in a row that it did not answer.
    """

    handle: Any
    ping: Any
    flying: dict[Any, tuple[Lease, float]] = field(default_factory=dict)
    silent: int = 0

    @property
    def up(self) -> bool:
        return self.ping is None

    def hand(self, lease: Lease) -> None:
        self.flying[self.handle.run.remote(lease)] = (lease, time.monotonic())

    def take_back(self, ref: Any) -> Lease:
        """The lease whose turn is over; the next one's starts now, not when it was handed over."""
        lease, _ = self.flying.pop(ref)
        for other, (held, _) in self.flying.items():
            self.flying[other] = (held, time.monotonic())
        return lease


class _Pool:
    def __init__(self, leases: LeaseQueue, spec: RunnerSpec, cluster: ClusterConfig, stop: threading.Event) -> None:
        import ray

        self._ray = ray
        self._leases = leases
        self._stop = stop
        self._timeout = cluster.lease_timeout
        self._deaths: dict[str, int] = {}
        self._workers = [_Worker(handle, handle.ping.remote()) for handle in start_workers(cluster, spec)]

    def outcomes(self) -> Iterator[tuple[Lease, LeaseOutcome]]:
        while True:
            if not self._stop.is_set():
                self._hand_out()
            # A worker runs its leases in order, so only its first one can come back or have killed it.
            first = {next(iter(worker.flying)): worker for worker in self._workers if worker.flying}
            if not first:
                if self._stop.is_set() or not (self._leases or self._leases.refill()):
                    return
                if not any(worker.up for worker in self._workers):
                    time.sleep(0.1)
                continue
            ready, _ = self._ray.wait(list(first), num_returns=1, timeout=1.0)
            for ref in ready:
                yield from self._collect(first[ref], ref)
            self._end_hung_leases()

    def _hand_out(self) -> None:
        able = [worker for worker in self._workers if self._answered(worker)]
        for _ in range(IN_FLIGHT):
            for worker in able:
                if self._leases and len(worker.flying) < IN_FLIGHT:
                    worker.hand(self._leases.take())

    def _collect(self, worker: _Worker, ref: Any) -> Iterator[tuple[Lease, LeaseOutcome]]:
        lease = worker.take_back(ref)
        try:
            outcome = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            # Trials that raise are handled by the runner, so this is the worker's surroundings: a full disk, say.
            if isinstance(error.cause, GaveOut):
                raise GaveOut(str(error.cause)) from error
            if not isinstance(error.cause, DEVICE_LOST):
                raise
            self._ray.kill(worker.handle, no_restart=False)
            yield from self._lost(worker, lease, error)
        except self._ray.exceptions.RayError as error:
            yield from self._lost(worker, lease, error)
        else:
            self._leases.observe(len(lease.trials), outcome.seconds)
            yield lease, outcome

    def _lost(self, worker: _Worker, lease: Lease, error: Exception) -> Iterator[tuple[Lease, LeaseOutcome]]:
        """The worker died or could not be reached: quarantine it, and hand the lease out again."""
        if not worker.up:  # it waited behind the lease that was lost
            self._leases.give_back(lease)
            return
        worker.ping = worker.handle.ping.remote()
        deaths = self._deaths[lease.lease_id] = self._deaths.get(lease.lease_id, 0) + 1
        alone = len(lease.trials) == 1
        if deaths < _DEATHS_BEFORE_HALVING or (alone and deaths == _DEATHS_BEFORE_HALVING):
            self._leases.give_back(lease)
        elif alone:
            failure = Failure(lease.trials[0].trial_id, f"its worker died {deaths} times: {_reason(error)}", "", deaths)
            yield lease, LeaseOutcome({}, (failure,), 0, 0.0)
        else:
            for half in lease.halves():
                self._deaths[half.lease_id] = _DEATHS_BEFORE_HALVING - 1
                self._leases.give_back(half)

    def _answered(self, worker: _Worker) -> bool:
        """Whether the worker is up.

        Raises:
            GaveOut: none of the workers comes up.
        """
        if worker.up or not self._ray.wait([worker.ping], timeout=0)[0]:
            return worker.up
        try:
            self._ray.get(worker.ping)
        except self._ray.exceptions.RayError as error:
            worker.silent += 1
            if all(w.silent >= _SILENCE_LIMIT for w in self._workers):
                raise GaveOut(f"no worker stays alive: {_reason(error)}") from error
            worker.ping = worker.handle.ping.remote()
            return False
        worker.ping, worker.silent = None, 0
        return True

    def _end_hung_leases(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            ref, (lease, started) = next(iter(worker.flying.items()), (None, (None, now)))
            if lease is not None and now - started > self._timeout:
                worker.flying[ref] = (lease, now)
                self._ray.kill(worker.handle, no_restart=False)


def _reason(error: Exception) -> str:
    """The last line of what Ray says: the cause, after the traceback that leads to it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
