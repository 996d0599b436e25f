"""Files that workers on other machines lack: served by an actor beside the driver, fetched by each worker."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeps.config import ClusterConfig
from sweeps.records import RunDirectory
from sweeps.run import RunnerSpec
from sweeps.schedule.clusters import CLIENT, resolve_device
from sweeps.travel import FileServer, Luggage, all_pieces, fetch, moved


def packed(cluster: ClusterConfig, spec: RunnerSpec) -> Luggage | None:
    """What workers on other machines may lack: the files of model and data, and the run directory."""
    if cluster.name != "ray":
        return None
    import ray

    luggage = Luggage.of(spec, None)
    if not luggage.items:
        return luggage
    server = at_the_driver(FileServer, cluster)
    if _is_outside(cluster):  # the driver's machine cannot be asked: a copy of its files lies with the server
        for item in luggage.items:
            if not ray.get(server.keeps.remote(item)):
                for pieces in all_pieces(item.path, FileServer().read):
                    ray.get(server.receive.remote(item, pieces))
                ray.get(server.keep.remote(item))
    return replace(luggage, server=server)


def at_the_driver(kind: type, cluster: ClusterConfig) -> Any:
    """An actor on the driver's machine; anywhere, where that is no part of the cluster."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote: Any = ray.remote(kind)
    if _is_outside(cluster):
        return remote.options(num_cpus=0).remote()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return remote.options(num_cpus=0, scheduling_strategy=here).remote()


def _is_outside(cluster: ClusterConfig) -> bool:
    return (cluster.address or "").startswith(CLIENT)


def arrived(spec: RunnerSpec, luggage: Luggage | None) -> tuple[RunnerSpec, Path | None]:
    """The assignment as this machine can work on it, and its own run directory where the driver's is not here.

    Args:
        luggage: None on the driver's own machine.
    """
    spec = replace(spec, subject=replace(spec.subject, device=resolve_device(spec.subject.device)))
    if luggage is None:
        return spec, None
    spec = replace(spec, subject=moved(spec.subject, _unpacked(luggage)))
    if luggage.shares(spec.run_dir):
        return spec, None
    own = RunDirectory(Path(tempfile.mkdtemp(prefix="circuit-sweep-")))
    own.create(own.records, own.samples)
    return replace(spec, run_dir=str(own.path)), own.path


def _unpacked(luggage: Luggage) -> dict[str, str]:
    """Where the luggage lies here, by its path on the driver's machine."""
    import ray

    def read(path: str, place: Any) -> Any:
        return ray.get(luggage.server.read.remote(path, place))

    return {item.path: fetch(item, read) for item in luggage.items}
