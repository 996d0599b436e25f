"""Ray on this machine or on a cluster: connecting, what a worker takes of it, and starting workers."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sweeps.config import ClusterConfig, ConfigError
from sweeps.run import RunnerSpec
from sweeps.travel import FileServer, Luggage, all_pieces

COUNT_EVERY = 2.0
"""Seconds between looks at a cluster's size."""

MOST_PER_GPU = 4
"""Workers that share a GPU by ``cluster.gpus_per_worker=auto``, at most: more only wait for one another."""

_CONNECT_SECONDS = 10.0
_OBJECT_STORE_BYTES = 128 * 2**20  # only leases and their outcomes travel
_GPU_IN_USE = 0.9  # share of a GPU's memory that workers may fill
_CLIENT = "ray://"


def resolve_device(wanted: str, *, elsewhere: bool = False) -> str:
    """``auto`` is the GPU where there is one.

    Args:
        elsewhere: the workers run on other machines; this one takes its GPU if it has one, and the CPU if not.
    """
    if wanted == "auto" or (elsewhere and wanted == "cuda"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("cluster.device: cuda was asked for, and this machine has no usable GPU; valid: auto, cpu")
    return wanted


def worker_count(cluster: ClusterConfig, device: str, cpus: int, gpus: float, gpu_share: float = 1.0) -> int:
    """One worker a GPU share, or one a CPU core share. ``gpu_share`` counts where the configuration says auto."""
    if cluster.workers:
        return cluster.workers
    if device == "cuda":
        share = gpu_share if cluster.gpus_per_worker == "auto" else float(cluster.gpus_per_worker)
        return max(1, int(gpus / share + 1e-9))
    return max(1, cpus // cluster.cpus_per_worker)


def connect(cluster: ClusterConfig) -> None:
    """Start Ray on this machine, out of reach of any other, or join the named cluster.

    Raises:
        ConfigError: there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    with _own_signals():
        if cluster.name == "local":
            _start_local(cluster, quiet)
        else:
            _join(cluster, quiet)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's handlers: Ray's own, which it installs when it starts, abort a driver that gets SIGTERM."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # one that was not installed from Python cannot be named
                    signal.signal(number, handler)


def _join(cluster: ClusterConfig, quiet: dict[str, Any]) -> None:
    import ray

    address = cluster.address or "auto"
    try:
        _require_listener(address)
        ray.init(address=address, runtime_env=_code() if cluster.ship_code else None, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"cluster.address: no Ray cluster at {address!r} ({reason})") from error


def _code() -> dict[str, Any]:
    """This checkout's packages, for workers on machines that have others or none; weights travel by another way.

    The configuration goes along as values: only the driver reads conf/.
    """
    here = Path(__file__).resolve().parents[1]
    return {"py_modules": [str(here / package) for package in ("circuits", "sweeps")], "excludes": ["__pycache__"]}


def _require_listener(address: str) -> None:
    """Fail at once where nothing listens: Ray itself asks a cluster that is gone again and again, for minutes.

    Raises:
        OSError: nothing listens there, or ``auto`` finds no cluster.
    """
    from ray._private.services import canonicalize_bootstrap_address

    client = address.startswith(_CLIENT)
    if "://" in address and not client:
        raise ValueError(f"expected auto, host:port or {_CLIENT}host:port")
    found = address.removeprefix(_CLIENT) if client else canonicalize_bootstrap_address(address)
    if found is None:
        raise ConnectionError("no cluster was started on this machine, and RAY_ADDRESS is not set")
    host, _, port = found.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"expected auto, host:port or {_CLIENT}host:port")
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
    if gpus is not None and cluster.gpus_per_worker != "auto" and float(cluster.gpus_per_worker) > gpus:
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


def gpu_share(peak: int, total: int) -> float:
    """Share of a GPU for a worker that needs ``peak`` of ``total`` bytes: as many as fit, ``MOST_PER_GPU`` at most."""
    return 1 / min(MOST_PER_GPU, max(1, int(_GPU_IN_USE * total / max(peak, 1))))


@dataclass(frozen=True)
class Share:
    """What a worker takes of its node."""

    cpus: float
    gpus: float
    threads: int


class WorkerFactory:
    """Starts actors ``kind(spec, *arguments)``, restarted for ever when they die.

    Args:
        spare_cpus: of each worker's share, left for what calls it.
        retries: times Ray itself repeats a call whose worker died.
    """

    def __init__(
        self,
        cluster: ClusterConfig,
        spec: RunnerSpec,
        kind: type,
        *arguments: Any,
        spare_cpus: float = 0.0,
        retries: int = 0,
    ) -> None:
        self._cluster, self._kind, self._arguments = cluster, kind, arguments
        self._retries = retries
        self._counted, self._wanted = -COUNT_EVERY, 0
        resources = self._resources()
        # Of a cluster with GPUs somewhere the workers are there, wherever the driver is.
        device = spec.subject.device
        if cluster.name == "ray" and cluster.device == "auto":
            device = "cuda" if resources.get("GPU", 0) else "cpu"
        elif cluster.name == "ray":
            device = cluster.device
        self._device = device
        self._gpu_share = 1.0
        spec = replace(spec, subject=replace(spec.subject, device=device))
        if device == "cuda" and cluster.gpus_per_worker == "auto" and not cluster.workers:
            self._gpu_share = self._measured_share(spec)
        elif device == "cuda" and cluster.gpus_per_worker == "auto":
            self._gpu_share = min(1.0, max(1.0, resources.get("GPU", 1.0)) / cluster.workers)
        self.share = self._taken(resources, spare_cpus)
        self.spec = replace(spec, threads=self.share.threads)

    def wanted(self) -> int:
        """Workers that the cluster has room for by now, or as many as the configuration says."""
        if time.monotonic() - self._counted >= COUNT_EVERY:
            found = self._resources()
            self._wanted = worker_count(
                self._cluster, self._device, int(found.get("CPU", 1)), found.get("GPU", 0.0), self._gpu_share
            )
            self._counted = time.monotonic()
        return self._wanted

    def start(self) -> Any:
        """A new worker; it waits for a place where the cluster has none, and a cluster that grows sees it waiting."""
        import ray

        actor: Any = ray.remote(self._kind).options(
            num_cpus=self.share.cpus,
            num_gpus=self.share.gpus,
            max_restarts=-1,
            max_task_retries=self._retries,
        )
        return actor.remote(self.spec, *self._arguments)

    def _resources(self) -> dict[str, float]:
        import ray

        return ray.cluster_resources()

    def _taken(self, resources: dict[str, float], spare_cpus: float) -> Share:
        cluster, count, cpus = self._cluster, self.wanted(), int(resources.get("CPU", 1))
        gpu = self._gpu_share if cluster.gpus_per_worker == "auto" else float(cluster.gpus_per_worker)
        if self._device == "cuda" or cluster.name == "ray":
            share, threads = float(cluster.cpus_per_worker), cluster.cpus_per_worker
        else:
            # Threads are divided, since workers that each take all cores slow one another down.
            share, threads = min(cluster.cpus_per_worker, cpus / count), max(1, cpus // count)
        if cluster.name == "local":  # OMP_NUM_THREADS and the like, as torch read them here, hold for the workers too
            threads = min(threads, torch.get_num_threads())
        share -= spare_cpus
        # Ray takes parts of one CPU, or whole ones.
        return Share(share if share < 1 else int(share), gpu if self._device == "cuda" else 0.0, threads)

    def _measured_share(self, spec: RunnerSpec) -> float:
        """Load the model on one GPU of the cluster, find its best number of rows, and see what that takes."""
        import ray

        task: Any = ray.remote(memory_of).options(num_cpus=self._cluster.cpus_per_worker, num_gpus=1, max_retries=3)
        return gpu_share(*ray.get(task.remote(self._kind, spec, *self._arguments)))


def memory_of(kind: type, spec: RunnerSpec, *arguments: Any) -> tuple[int, int]:
    """Bytes that a worker takes of its GPU at the most, and bytes that the GPU has."""
    kind(spec, *arguments)
    return torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory


def packed(cluster: ClusterConfig, spec: RunnerSpec) -> Luggage | None:
    """What workers on other machines may lack: the files of model and data, and the run directory."""
    if cluster.name != "ray":
        return None
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    luggage = Luggage.of(spec, None)
    if not luggage.items:
        return luggage
    remote: Any = ray.remote(FileServer)
    if (cluster.address or "").startswith(_CLIENT):
        # The driver is outside of the cluster, and cannot be asked: a copy of its files lies with the server.
        server = remote.options(num_cpus=0).remote()
        for item in luggage.items:
            if not ray.get(server.keeps.remote(item)):
                for pieces in all_pieces(item.path, FileServer().read):
                    ray.get(server.receive.remote(item, pieces))
                ray.get(server.keep.remote(item))
        return replace(luggage, server=server)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return replace(luggage, server=remote.options(num_cpus=0, scheduling_strategy=here).remote())


def start_workers(
    cluster: ClusterConfig,
    spec: RunnerSpec,
    kind: type,
    *arguments: Any,
    spare_cpus: float = 0.0,
    retries: int = 0,
) -> list[Any]:
    """As many workers as there is room for now; see :class:`WorkerFactory`."""
    factory = WorkerFactory(cluster, spec, kind, *arguments, spare_cpus=spare_cpus, retries=retries)
    return [factory.start() for _ in range(factory.wanted())]
