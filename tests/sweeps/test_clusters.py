"""How many workers a cluster has room for, and what each takes of it; nothing is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from sweeps.config import ClusterConfig, ConfigError
from sweeps.records import GaveOut
from sweeps.run import RunnerSpec, SubjectSpec
from sweeps.schedule import clusters, workers
from sweeps.schedule.workers import Share, WorkerFactory
from tests.sweeps.tiny import composed

NOTHING = SubjectSpec(model_name="", model_path="", dtype="", device="cpu", sources=(), images=0)
GPU_NODE, CPU_NODE, HEAD = {"CPU": 32.0, "GPU": 2.0}, {"CPU": 16.0}, {"memory": 1e9}
Resources = dict[str, float]


class Weightless:
    """A worker that loads nothing."""

    def __init__(self, spec: RunnerSpec) -> None:
        self.spec = spec


def factory_on(
    nodes: Sequence[Resources], monkeypatch: pytest.MonkeyPatch, resolved: str = "cpu", **settings: Any
) -> WorkerFactory:
    """On a cluster of these nodes; what is added to them later joins it.

    Args:
        resolved: what the driver made of ``cluster.device`` on its own machine.
    """

    def found() -> list[dict[str, Any]]:
        dead = {"Alive": False, "NodeID": "dead", "Resources": {"CPU": 99.0, "GPU": 99.0}}
        return [dead, *({"Alive": True, "NodeID": f"n{i}", "Resources": node} for i, node in enumerate(nodes))]

    monkeypatch.setattr("ray.nodes", found)
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    spec = RunnerSpec(subject=replace(NOTHING, device=resolved), rows=0, threads=0, run_dir="", metric="")
    return WorkerFactory(ClusterConfig(**{"name": "ray", **settings}), spec, Weightless)


def counts(factory: WorkerFactory) -> list[int]:
    return [factory.wanted()[share] for share in factory.shares]


def test_a_worker_cannot_have_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"^cluster\.gpus_per_worker: this machine has 1 GPUs, got 2$"):
        clusters.connect(ClusterConfig(name="local", gpus_per_worker=2))


@pytest.mark.parametrize(
    ("settings", "nodes", "wanted", "share"),
    [
        ({}, [{"CPU": 6}, HEAD], 6, Share("cpu", 1, 0.0, 1)),
        ({"cpus_per_worker": 4}, [{"CPU": 6}, {"CPU": 7}], 2, Share("cpu", 4, 0.0, 4)),
        ({}, [GPU_NODE, CPU_NODE], 2, Share("cuda", 1, 1.0, 1)),
        ({"device": "cpu", "cpus_per_worker": 8}, [GPU_NODE, CPU_NODE], 6, Share("cpu", 8, 0.0, 8)),
        ({"device": "cuda", "workers": 16}, [HEAD], 16, Share("cuda", 1, 1.0, 1)),
        ({"device": "cuda"}, [HEAD], 1, Share("cuda", 1, 1.0, 1)),
        ({"gpus_per_worker": 0.5, "cpus_per_worker": 2}, [{"CPU": 8, "GPU": 3}], 4, Share("cuda", 2, 0.5, 2)),
        ({"gpus_per_worker": 0.1}, [{"CPU": 64, "GPU": 1}], 10, Share("cuda", 1, 0.1, 1)),
        ({"gpus_per_worker": 0.4}, [GPU_NODE, GPU_NODE], 8, Share("cuda", 1, 0.4, 1)),
        ({"gpus_per_worker": 2}, [{"CPU": 8, "GPU": 3}, {"CPU": 8, "GPU": 1}], 1, Share("cuda", 1, 2.0, 1)),
        ({"gpus_per_worker": "auto", "workers": 8}, [GPU_NODE], 8, Share("cuda", 1, 0.25, 1)),
        ({"name": "local"}, [{"CPU": 2}], 2, Share("cpu", 1, 0.0, 1)),
        ({"name": "local", "workers": 5}, [{"CPU": 5}], 5, Share("cpu", 1, 0.0, 1)),
        ({"name": "local", "workers": 2}, [{"CPU": 8}], 2, Share("cpu", 1, 0.0, 4)),
        ({"name": "local", "cpus_per_worker": 4}, [{"CPU": 2}], 1, Share("cpu", 2, 0.0, 2)),
        ({"name": "local", "device": "cuda"}, [GPU_NODE], 2, Share("cuda", 1, 1.0, 1)),
    ],
    ids=[
        "CPUs only", "what is left of a node has no worker", "both", "both, on its CPUs", "nodes still to come",
        "one waits, so that a cluster grows", "no worker without its CPUs", "tenths", "no worker on two GPUs' rests",
        "two GPUs each, of one node", "as many as asked for", "this machine", "more than this machine has cores",
        "this machine, cores divided", "more cores than there are", "this machine's GPUs",
    ],
)  # fmt: skip
def test_what_there_is_room_for(
    settings: dict[str, Any], nodes: list[Resources], wanted: int, share: Share, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the driver is, which has no GPU of its own but in the last case."""
    factory = factory_on(nodes, monkeypatch, settings.get("device", "cpu"), **settings)
    assert factory.shares == (share,)
    assert counts(factory) == [wanted]
    told = factory.assignment(share)
    assert (told.subject.device, told.threads) == (share.device, share.threads)


def test_a_cluster_that_grows_is_looked_at_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [CPU_NODE]
    free, fixed = factory_on(nodes, monkeypatch), factory_on(nodes, monkeypatch, workers=3)
    assert (counts(free), counts(fixed)) == ([16], [3])
    nodes.append(CPU_NODE)
    assert counts(free) == [16], "looked at a moment ago"
    monkeypatch.setattr(workers, "COUNT_EVERY", 0.0)
    assert (counts(free), counts(fixed)) == ([32], [3])


# GPUs and CPUs at once


@pytest.mark.parametrize(
    ("settings", "nodes", "wanted"),
    [
        ({}, [HEAD, GPU_NODE, CPU_NODE, CPU_NODE], [2, 32]),
        ({"cpus_per_worker": 8, "gpus_per_worker": 0.5}, [GPU_NODE, CPU_NODE], [4, 2]),
        ({"workers": 5}, [HEAD, CPU_NODE], [5, 16]),
        ({}, [CPU_NODE], [0, 16]),
        ({}, [HEAD], [1, 0]),
    ],
    ids=["all", "shares", "GPUs still to come", "no GPU", "nothing yet"],
)
def test_mixed_has_workers_on_gpus_and_on_the_cpus_of_the_other_nodes(
    settings: dict[str, Any], nodes: list[Resources], wanted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = factory_on(nodes, monkeypatch, device="mixed", **settings)
    assert counts(factory) == wanted
    assert [factory.assignment(share).subject.device for share in factory.shares] == ["auto", "cpu"]
    assert [share.gpus for share in factory.shares] == [settings.get("gpus_per_worker", 1.0), 0.0]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["cluster=local"], "cluster: cluster.device=mixed expected ray, got local; "),
        (["cluster=ray", "model.dtype=bfloat16"], "model.dtype: cluster.device=mixed expected float32, got bfloat16; "),
        (["cluster=ray", "sweep=search"], "sweep.kind: cluster.device=mixed expected grid, got search; "),
    ],
)
def test_mixed_is_refused_where_devices_would_disagree_or_pace_does_not_count(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        composed(*overrides, "cluster.device=mixed")
    assert str(refused.value) == f"{line}or take auto, cpu or cuda"
    assert composed("cluster=ray", "cluster.device=mixed").cluster.device == "mixed"


def test_a_search_is_refused_from_outside_of_a_cluster() -> None:
    line = r"^cluster\.address: sweep=search expected auto or host:port, got ray://h:1$"
    with pytest.raises(ConfigError, match=line):
        composed("cluster=ray", "cluster.address=ray://h:1", "sweep=search")
    assert composed("cluster=ray", "cluster.address=h:1", "sweep=search").cluster.address == "h:1"
    assert composed("cluster=ray", "cluster.address=ray://h:1").sweep.kind == "grid"


def test_a_mixed_worker_on_cpus_keeps_off_nodes_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def options(**given: Any) -> SimpleNamespace:
        asked.append(given)
        return SimpleNamespace(remote=lambda *_: None)

    monkeypatch.setattr("ray.remote", lambda _: SimpleNamespace(options=options))
    factory = factory_on([GPU_NODE, CPU_NODE, GPU_NODE], monkeypatch, device="mixed")
    for share in factory.shares:
        factory.start(share)
    assert [given["label_selector"] for given in asked] == [None, {"ray.io/node-id": "!in(n0,n2)"}]
    assert [(given["num_cpus"], given["num_gpus"]) for given in asked] == [(1, 1.0), (1, 0.0)]


def test_a_device_is_what_the_machine_at_hand_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted, elsewhere, found in (
        ("cuda", True, "cpu"), ("mixed", True, "cpu"), ("auto", False, "cpu"), ("cpu", False, "cpu"),
    ):  # fmt: skip
        assert clusters.resolve_device(wanted, elsewhere=elsewhere) == found
    with pytest.raises(ConfigError, match=r"^cluster\.device: cuda was asked for"):
        clusters.resolve_device("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert {clusters.resolve_device(wanted) for wanted in ("auto", "mixed", "cuda")} == {"cuda"}
    assert clusters.resolve_device("cpu") == "cpu"


# GPU shares from measured memory


@pytest.mark.parametrize(
    ("peak", "share"), [(1, 1 / 4), (0, 1 / 4), (225, 1 / 4), (226, 1 / 3), (450, 1 / 2), (451, 1), (2000, 1)]
)
def test_as_many_workers_as_a_gpu_has_memory_for_but_no_crowd(
    peak: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1,000 bytes 900 may be filled, by four workers at most; a task on a GPU of the cluster measures them."""
    asked: list[dict[str, Any]] = []
    called: list[tuple[Any, ...]] = []

    def remote(function: Any) -> SimpleNamespace:
        def options(**given: Any) -> SimpleNamespace:
            asked.append(given)
            return SimpleNamespace(remote=lambda *arguments: called.append(arguments) or function(*arguments))

        return SimpleNamespace(options=options)

    monkeypatch.setattr("ray.remote", remote)
    monkeypatch.setattr("ray.get", lambda found: found)
    monkeypatch.setattr("torch.cuda.max_memory_reserved", lambda: peak)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(total_memory=1000))
    factory = factory_on([GPU_NODE, GPU_NODE], monkeypatch, gpus_per_worker="auto")
    assert factory.shares == (Share("cuda", 1, share, 1),)
    assert counts(factory) == [round(4 / share)]
    assert asked == [{"num_cpus": 1, "num_gpus": 1, "max_retries": 3}]
    ((_, spec),) = called
    assert (spec.subject.device, spec.rows) == ("cuda", 0), "on the GPU, with the rows that are best there"


def test_a_model_that_cannot_be_measured_ends_the_sweep_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refuse(_: Any) -> None:
        raise ray.exceptions.RayError("Traceback ...\n  File ...\nOutOfMemoryError: it does not fit")

    task = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: None))
    monkeypatch.setattr("ray.remote", lambda _: task)
    monkeypatch.setattr("ray.get", refuse)
    with pytest.raises(GaveOut, match=r"^cluster\.gpus_per_worker: .*\(OutOfMemoryError: it does not fit\)$"):
        factory_on([GPU_NODE], monkeypatch, gpus_per_worker="auto")


def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the soak on a machine that was busy tenfold."""
    import ray

    def never(**_: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because some of the raylet\nx")

    monkeypatch.setattr(ray, "init", never)
    with pytest.raises(
        GaveOut, match=r"^Ray does not start on this machine \(The current node timed out during startup\)$"
    ):
        clusters.connect(composed("cluster=local").cluster)
