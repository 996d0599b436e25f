"""A sweep on a cluster of two nodes with machines of their own: nothing of the driver's is where the workers are."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from sweeps import schedule, travel
from sweeps.config import ClusterConfig, Config
from sweeps.driver import execute
from sweeps.leases import Lease
from sweeps.progress import SweepProgress
from sweeps.records import RunDirectory
from sweeps.run import RunnerSpec
from sweeps.schedule import pool as pools
from sweeps.schedule.luggage import packed
from tests.sweeps.processes import children, runners
from tests.sweeps.tiny import assert_same_effects, only_run, run_whole

pytestmark = [pytest.mark.run, pytest.mark.usefixtures("no_report")]

Configure = Callable[..., Config]
PATIENCE = 300.0
GRID = ("stats=sequential", "stats.first=4", "stats.batch=2")
HAS_CLIENT = importlib.util.find_spec("grpc") is not None
TOKEN = "a-secret-of-this-test-and-of-nobody-else"


@pytest.fixture(scope="module")
def inline(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run_whole(tmp_path_factory.mktemp("inline"), *settings, *GRID)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def nodes(cache: Path) -> Iterator[Any]:
    """A head without a place for workers, that asks for a token; nodes are added to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        import ray._raylet
        from ray.cluster_utils import Cluster

        raylet: Any = ray._raylet  # Ray reads its secret once; an earlier test may have made it find another
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        yield cluster
        cluster.shutdown()


def raylet_of(node: Any) -> psutil.Process:
    (info,) = node.all_processes["raylet"]
    return psutil.Process(info.process.pid)


def workers_of(node: Any) -> list[psutil.Process]:
    return runners(raylet_of(node))


def kill(node: Any) -> None:
    """The machine is gone: its raylet, and its workers, which would go on without it for a while."""
    raylet = raylet_of(node)
    for process in (*children(raylet, lambda _: True), raylet):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def elsewhere(cluster: ClusterConfig, spec: RunnerSpec) -> travel.Luggage | None:
    """As workers on other machines would find it: other files under the same paths, and another run directory."""
    luggage = packed(cluster, spec)
    assert luggage is not None
    items = tuple(replace(item, digest=item.digest[::-1]) for item in luggage.items)
    return replace(luggage, items=items, lock='{"host": "elsewhere", "pid": 1}')


def test_a_node_comes_late_another_dies_and_nothing_is_shared(
    configure: Configure,
    inline: RunDirectory,
    nodes: Any,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = nodes.add_node(num_cpus=1)
    late: list[Any] = []
    left: list[int] = []
    add = SweepProgress.add

    def disturb(self: SweepProgress, gains: dict[str, np.ndarray], done: int, failed: int, rows: int) -> None:
        """One node works; another joins, where the worker that waited starts, and then the first one dies."""
        add(self, gains, done, failed, rows)
        if late:
            return
        late.append(nodes.add_node(num_cpus=1))
        deadline = time.monotonic() + PATIENCE
        while not workers_of(late[0]):
            assert time.monotonic() < deadline, "no worker started on the late node"
            time.sleep(0.1)
        left.append(40 - done)
        kill(first)

    monkeypatch.setattr(SweepProgress, "add", disturb)
    monkeypatch.setattr(schedule, "packed", elsewhere)
    config = configure(*GRID, "cluster=ray", f"cluster.address={nodes.address}", "cluster.workers=2")
    config = replace(config, cluster=replace(config.cluster, lease_seconds=0.02))
    assert execute(config) == 0
    assert left[0] > 10, "most of it was done by the late node"
    found = only_run(tmp_path / "runs")
    assert found.recorded() == inline.recorded()
    assert not found.failures.exists()
    assert_same_effects(found, inline)
    assert len(list(found.samples.glob("*.png"))) == len(list(inline.samples.glob("*.png"))) > 0
    cached = sorted(path.name for path in (cache / "circuit-sweep").iterdir() if path.is_dir())
    assert len(cached) == 2, "model and pictures came once, though three workers loaded them"
    nodes.remove_node(late[0])


def test_gpus_and_the_cpus_of_other_nodes_in_one_sweep(
    configure: Configure, inline: RunDirectory, nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is Ray's word only, so its worker computes on what it finds there, as the setting says."""
    both = nodes.add_node(num_cpus=1, num_gpus=1), nodes.add_node(num_cpus=1)
    handed: list[tuple[str, float]] = []
    places: list[list[psutil.Process]] = []
    hand, hand_out = pools._Worker.hand, pools.Pool._hand_out

    def watched(self: pools._Worker, lease: Lease) -> None:
        handed.append((self.kind.device, self.kind.gpus))
        hand(self, lease)

    def when_all_are_up(self: pools.Pool) -> None:
        deadline = time.monotonic() + PATIENCE
        while not places and self.answered() < len(both):  # a machine that died before may still count as one
            assert time.monotonic() < deadline, "a worker has no place"
            time.sleep(0.1)
        places.append([process for node in both for process in workers_of(node)])
        hand_out(self)

    monkeypatch.setattr(pools._Worker, "hand", watched)
    monkeypatch.setattr(pools.Pool, "_hand_out", when_all_are_up)
    config = configure(*GRID, "cluster=ray", f"cluster.address={nodes.address}", "cluster.device=mixed")
    assert execute(replace(config, cluster=replace(config.cluster, lease_seconds=0.02))) == 0
    assert len(places[0]) == 2, "one on each node"
    assert set(handed) == {("auto", 1.0), ("cpu", 0.0)}
    found = only_run(tmp_path / "runs")
    assert not found.failures.exists()
    assert_same_effects(found, inline)
    for node in both:
        nodes.remove_node(node)


def test_a_search_on_a_machine_of_its_own(
    configure: Configure, settings: list[str], nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured there is in the driver's ledger, as in a search of this process."""
    search = (
        "sweep=search", "sweep.windows=2", "sweep.search.grace_images=4", "sweep.search.candidates=4",
        "sweep.search.generation=2", "sweep.search.max_heads=2", "sweep.search.confirm=2",
    )  # fmt: skip
    here = run_whole(tmp_path / "inline", *settings, *search)
    node = nodes.add_node(num_cpus=1)
    monkeypatch.setattr(schedule, "packed", elsewhere)
    monkeypatch.setattr("sweeps.search.packed", elsewhere)
    assert execute(configure(*search, "cluster=ray", f"cluster.address={nodes.address}", "cluster.workers=1")) == 0
    found = only_run(tmp_path / "runs")
    assert found.recorded() == here.recorded()
    assert len(found.recorded()) > 4, "rungs and confirmations"
    assert_same_effects(found, here)
    assert sorted(s.name for s in found.samples.glob("*.png")) == sorted(s.name for s in here.samples.glob("*.png"))
    nodes.remove_node(node)


@pytest.mark.soak
@pytest.mark.skipif(not HAS_CLIENT, reason="ray[client] is not installed")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Ray leaves two log files open
@pytest.mark.usefixtures("nodes")
def test_a_driver_outside_of_the_cluster(
    configure: Configure, inline: RunDirectory, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through ray://, with nothing in common with the cluster but that port."""
    from ray.cluster_utils import Cluster

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    head = {"num_cpus": 1, "include_dashboard": False, "ray_client_server_port": port}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    monkeypatch.setattr(schedule, "packed", elsewhere)
    address = ("cluster=ray", f"cluster.address=ray://127.0.0.1:{port}", "cluster.workers=1")
    try:
        assert execute(configure(*GRID, *address)) == 0
    finally:
        cluster.shutdown()
    found = only_run(tmp_path / "runs")
    assert found.recorded() == inline.recorded()
    assert_same_effects(found, inline)
    assert len(list((cache / "circuit-sweep").glob("*/*"))) >= 2, "model and pictures were sent"


@pytest.mark.soak
def test_clients_without_the_token_are_refused(nodes: Any, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    code = f"import ray; ray.init(address={nodes.address!r}, log_to_driver=False); print(ray.cluster_resources())"
    clients = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment | {"HOME": str(tmp_path)} | given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for given in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-wrong-token"})
    ]
    for client in clients:
        out, error = client.communicate(timeout=120)
        assert client.returncode != 0
        assert "node:" not in out
        assert "uthentic" in error
