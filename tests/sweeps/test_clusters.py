"""How many workers a cluster has room for, and what each takes of it; nothing is started."""

from __future__ import annotations

from typing import Any

import pytest

from sweeps.config import ClusterConfig, ConfigError
from sweeps.run import RunnerSpec, SubjectSpec
from sweeps.schedule import clusters, workers


def test_a_worker_cannot_have_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"^cluster\.gpus_per_worker: this machine has 1 GPUs, got 2$"):
        clusters.connect(ClusterConfig(name="local", gpus_per_worker=2))


@pytest.mark.parametrize(
    ("settings", "device", "cpus", "gpus", "count"),
    [
        ({}, "cpu", 2, 0, 2),
        ({"workers": 5}, "cpu", 2, 0, 5),
        ({"cpus_per_worker": 4}, "cpu", 16, 0, 4),
        ({"cpus_per_worker": 4}, "cpu", 2, 0, 1),
        ({}, "cuda", 16, 2, 2),
        ({"gpus_per_worker": 0.25}, "cuda", 16, 2, 8),
        ({"gpus_per_worker": 0.1}, "cuda", 16, 1, 10),
        ({"gpus_per_worker": 2}, "cuda", 16, 5, 2),
    ],
)
def test_worker_count(settings: dict[str, Any], device: str, cpus: int, gpus: float, count: int) -> None:
    assert workers.worker_count(ClusterConfig(name="local", **settings), device, cpus, gpus) == count


@pytest.mark.parametrize(
    ("peak", "share"), [(1, 1 / 4), (0, 1 / 4), (225, 1 / 4), (226, 1 / 3), (450, 1 / 2), (451, 1), (2000, 1)]
)
def test_as_many_workers_as_a_gpu_has_memory_for_but_no_crowd(peak: int, share: float) -> None:
    """Of 1,000 bytes 900 may be filled, by four workers at most."""
    assert workers.gpu_share(peak, 1000) == share
    auto = ClusterConfig(name="ray", gpus_per_worker="auto")
    assert workers.worker_count(auto, "cuda", 64, 2, workers.gpu_share(peak, 1000)) == round(2 / share)


@pytest.mark.parametrize(
    ("settings", "resources", "device", "wanted", "share"),
    [
        ({}, {"CPU": 64, "GPU": 2}, "cuda", 2, workers.Share(1, 1.0, 1)),
        ({"device": "cpu", "cpus_per_worker": 8}, {"CPU": 64, "GPU": 2}, "cpu", 8, workers.Share(8, 0.0, 8)),
        ({}, {"CPU": 6}, "cpu", 6, workers.Share(1, 0.0, 1)),
        ({"device": "cuda", "workers": 16}, {"CPU": 4}, "cuda", 16, workers.Share(1, 1.0, 1)),
        ({"gpus_per_worker": 0.5, "cpus_per_worker": 2}, {"CPU": 8, "GPU": 3}, "cuda", 6, workers.Share(2, 0.5, 2)),
        ({"gpus_per_worker": "auto", "workers": 8}, {"CPU": 8, "GPU": 2}, "cuda", 8, workers.Share(1, 0.25, 1)),
    ],
    ids=["mixed", "mixed, on its CPUs", "CPUs only", "nodes that are still to come", "halves", "as many as asked for"],
)
def test_what_a_worker_takes_of_a_cluster(
    settings: dict[str, Any],
    resources: dict[str, float],
    device: str,
    wanted: int,
    share: workers.Share,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever the driver is, which has no GPU here."""
    monkeypatch.setattr("ray.cluster_resources", lambda: resources)
    nothing = SubjectSpec(model_name="", model_path="", dtype="", device="cpu", sources=(), images=0)
    spec = RunnerSpec(subject=nothing, rows=0, threads=0, run_dir="", metric="")
    factory = workers.WorkerFactory(ClusterConfig(name="ray", **settings), spec, object)
    assert factory.wanted() == wanted
    assert factory.share == share
    assert factory.spec.subject.device == device
    assert factory.spec.threads == share.threads
    resources.update({name: 2 * amount for name, amount in resources.items()})
    assert factory.wanted() == wanted, "looked at a moment ago"
    monkeypatch.setattr(workers, "COUNT_EVERY", 0.0)
    assert factory.wanted() == (wanted if "workers" in settings else 2 * wanted), "the cluster has grown"


def test_a_driver_without_a_gpu_can_ask_for_those_of_a_cluster() -> None:
    assert clusters.resolve_device("cuda", elsewhere=True) == "cpu"
    with pytest.raises(ConfigError, match=r"^cluster\.device: cuda was asked for"):
        clusters.resolve_device("cuda")
