"""What a worker takes of its node, how many there is room for, and starting them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sweeps.config import MIXED, ClusterConfig
from sweeps.records import GaveOut
from sweeps.run import RunnerSpec

COUNT_EVERY = 2.0
"""Seconds between looks at a cluster's size."""

MOST_PER_GPU = 4
"""Workers that share a GPU by ``cluster.gpus_per_worker=auto``, at most: more only wait for one another."""

_GPU_IN_USE = 0.9  # share of a GPU's memory that workers may fill
_ROUNDING = 1e-9


def gpu_share(peak: int, total: int) -> float:
    """Share of a GPU for a worker that needs ``peak`` of ``total`` bytes: as many as fit, ``MOST_PER_GPU`` at most."""
    return 1 / min(MOST_PER_GPU, max(1, int(_GPU_IN_USE * total / max(peak, 1))))


@dataclass(frozen=True)
class Share:
    """What a worker takes of its node.

    Attributes:
        device: that it computes on; ``auto`` is what it finds there.
        beside_gpus: whether it may be on a node that has GPUs.
    """

    device: str
    cpus: float
    gpus: float
    threads: int
    beside_gpus: bool = True

    def places(self, node: Mapping[str, float]) -> int:
        """Workers that a node with these resources has room for."""
        cpus, gpus = node.get("CPU", 0.0), node.get("GPU", 0.0)
        if gpus and not self.beside_gpus:
            return 0
        room = int(cpus / self.cpus + _ROUNDING)
        if not self.gpus:
            return room
        on_gpus = int(gpus) * int(1 / self.gpus + _ROUNDING) if self.gpus < 1 else int(gpus / self.gpus + _ROUNDING)
        return min(room, on_gpus)


def shares_of(
    cluster: ClusterConfig, device: str, nodes: Sequence[Mapping[str, float]], gpus_of_a_worker: float
) -> tuple[Share, ...]:
    """What workers take of these nodes, by what they run on; those on GPUs first.

    Args:
        device: ``cuda``, ``cpu``, or ``mixed``: the GPUs, and the CPUs of nodes without.
    """
    # OMP_NUM_THREADS and the like, as torch read them here, hold for workers on this machine too.
    most = torch.get_num_threads() if cluster.name == "local" else cluster.cpus_per_worker
    threads = min(cluster.cpus_per_worker, most)
    if device in ("cuda", MIXED):
        found = "cuda" if device == "cuda" else "auto"
        on_gpus = Share(found, cluster.cpus_per_worker, gpus_of_a_worker, threads)
        return (
            (on_gpus,) if device == "cuda" else (on_gpus, Share("cpu", on_gpus.cpus, 0.0, threads, beside_gpus=False))
        )
    if cluster.name == "ray":
        return (Share(device, cluster.cpus_per_worker, 0.0, threads),)
    # Threads are divided, since workers that each take all cores slow one another down.
    cpus = sum(int(node.get("CPU", 0.0)) for node in nodes)
    count = cluster.workers or max(1, cpus // cluster.cpus_per_worker)
    return (Share(device, min(cluster.cpus_per_worker, cpus / count), 0.0, min(max(1, cpus // count), most)),)


def counts_of(
    cluster: ClusterConfig, shares: Sequence[Share], nodes: Sequence[Mapping[str, float]]
) -> dict[Share, int]:
    """Workers that these nodes have room for, or as many as the configuration says; one at the least.

    The number in the configuration is of those on GPUs where there are both.
    """
    wanted = {share: sum(map(share.places, nodes)) for share in shares}
    if cluster.workers:
        wanted[shares[0]] = cluster.workers
    if not any(wanted.values()):
        wanted[shares[0]] = 1
    return wanted


class WorkerFactory:
    """Starts actors ``kind(spec, *arguments)``, restarted for ever when they die.

    Args:
        retries: times Ray itself repeats a call whose worker died.

    Attributes:
        shares: what workers take, by what they run on; those on GPUs first.
    """

    def __init__(
        self,
        cluster: ClusterConfig,
        spec: RunnerSpec,
        kind: type,
        *arguments: Any,
        retries: int = 0,
    ) -> None:
        self._cluster, self._spec, self._kind, self._arguments = cluster, spec, kind, arguments
        self._retries = retries
        self._counted, self._wanted = -COUNT_EVERY, dict[Share, int]()
        self.shares = self._all_shares()

    def wanted(self) -> dict[Share, int]:
        """Workers that the cluster has room for by now; see :func:`counts_of`."""
        if time.monotonic() - self._counted >= COUNT_EVERY:
            self._wanted = counts_of(self._cluster, self.shares, _resources())
            self._counted = time.monotonic()
        return self._wanted

    def assignment(self, share: Share) -> RunnerSpec:
        """What a worker with this share is told."""
        return replace(self._spec, subject=replace(self._spec.subject, device=share.device), threads=share.threads)

    def start(self, share: Share) -> Any:
        """A new worker; it waits for a place where the cluster has none, and a cluster that grows sees it waiting."""
        import ray

        elsewhere = (
            [node["NodeID"] for node in _nodes() if node["Resources"].get("GPU")] if not share.beside_gpus else []
        )
        actor: Any = ray.remote(self._kind).options(
            num_cpus=share.cpus if share.cpus < 1 else int(share.cpus),  # Ray takes parts of one, or whole ones
            num_gpus=share.gpus,
            max_restarts=-1,
            max_task_retries=self._retries,
            label_selector={"ray.io/node-id": f"!in({','.join(elsewhere)})"} if elsewhere else None,
        )
        return actor.remote(self.assignment(share), *self._arguments)

    def _all_shares(self) -> tuple[Share, ...]:
        nodes = _resources()
        gpus, cluster = sum(node.get("GPU", 0.0) for node in nodes), self._cluster
        device = self._spec.subject.device
        if cluster.name == "ray":  # wherever the driver is, workers go where the GPUs are
            device = ("cuda" if gpus else "cpu") if cluster.device == "auto" else cluster.device
        share = self._gpus_of_a_worker(gpus) if device in ("cuda", MIXED) else 0.0
        return shares_of(cluster, device, nodes, share)

    def _gpus_of_a_worker(self, gpus: float) -> float:
        cluster = self._cluster
        if cluster.gpus_per_worker != "auto":
            return float(cluster.gpus_per_worker)
        if cluster.workers:
            return min(1.0, max(1.0, gpus) / cluster.workers)
        return self._measured_share()

    def _measured_share(self) -> float:
        """Load the model on one GPU of the cluster, find its best number of rows, and see what that takes.

        Raises:
            GaveOut: that cannot be done.
        """
        import ray

        (whole,) = shares_of(self._cluster, "cuda", (), 1.0)
        spec = replace(self.assignment(whole), rows=0)
        task: Any = ray.remote(memory_of).options(num_cpus=self._cluster.cpus_per_worker, num_gpus=1, max_retries=3)
        try:
            return gpu_share(*ray.get(task.remote(self._kind, spec, *self._arguments)))
        except ray.exceptions.RayError as error:
            raise GaveOut(f"cluster.gpus_per_worker: auto could not measure the model ({last_line(error)})") from error


def memory_of(kind: type, spec: RunnerSpec, *arguments: Any) -> tuple[int, int]:
    """Bytes that a worker takes of its GPU at the most, and bytes that the GPU has."""
    kind(spec, *arguments)
    return torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory


def last_line(error: Exception) -> str:
    """Of what Ray says: the cause, after the traceback that leads to it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _resources() -> list[Mapping[str, float]]:
    """Of each node."""
    return [node["Resources"] for node in _nodes()]


def start_workers(
    cluster: ClusterConfig,
    spec: RunnerSpec,
    kind: type,
    *arguments: Any,
    retries: int = 0,
) -> list[Any]:
    """As many workers as there is room for now; see :class:`WorkerFactory`."""
    factory = WorkerFactory(cluster, spec, kind, *arguments, retries=retries)
    return [factory.start(share) for share, count in factory.wanted().items() for _ in range(count)]
