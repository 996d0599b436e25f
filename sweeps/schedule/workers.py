"""What a worker takes of its node, how many there is room for, and starting them."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from sweeps.config import ClusterConfig
from sweeps.run import RunnerSpec

COUNT_EVERY = 2.0
"""Seconds between looks at a cluster's size."""

MOST_PER_GPU = 4
"""Workers that share a GPU by ``cluster.gpus_per_worker=auto``, at most: more only wait for one another."""

_GPU_IN_USE = 0.9  # share of a GPU's memory that workers may fill


def worker_count(cluster: ClusterConfig, device: str, cpus: int, gpus: float, gpu_share: float = 1.0) -> int:
    """One worker a GPU share, or one a CPU core share. ``gpu_share`` counts where the configuration says auto."""
    if cluster.workers:
        return cluster.workers
    if device == "cuda":
        share = gpu_share if cluster.gpus_per_worker == "auto" else float(cluster.gpus_per_worker)
        return max(1, int(gpus / share + 1e-9))
    return max(1, cpus // cluster.cpus_per_worker)


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
