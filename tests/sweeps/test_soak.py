"""Half an hour of random faults on real sweeps (`make soak`), or as long as SOAK_SECONDS says; nothing may be lost."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from sweeps.driver import execute
from sweeps.records import RunDirectory
from tests.sweeps.processes import runners
from tests.sweeps.test_ray_nodes import kill, workers_of
from tests.sweeps.test_resume import parts, started
from tests.sweeps.tiny import assert_same_effects, command, composed, only_run

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("SOAK_SECONDS", "1800"))
SEED = int(os.environ.get("SOAK_SEED", "0"))
MODES = "sweep.modes=[zero,mean,resample]"
STOPPED = ("stats=sequential", "stats.first=4", "stats.batch=2")
MOST_FAULTS = 10  # of a sweep; then it is left to end
MOST_NODES = 3
PATIENCE = 600.0


class Nodes:
    """A Ray cluster of two machines, as far as processes can be machines; nodes die and others join."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.alive: list[Any] = []
        self.join()
        self.join()

    def join(self) -> None:
        self.alive.append(self.cluster.add_node(num_cpus=1, include_dashboard=False))

    def die(self, rng: np.random.Generator) -> None:
        kill(self.alive.pop(int(rng.integers(len(self.alive)))))


@dataclass
class Target:
    """What is disturbed: a driver, its run directory, and the cluster that it uses, if it is not its own."""

    process: subprocess.Popen[str]
    directory: RunDirectory
    rng: np.random.Generator
    nodes: Nodes | None

    def workers(self) -> list[psutil.Process]:
        if self.nodes is not None:
            return [worker for node in self.nodes.alive for worker in workers_of(node)]
        return runners(psutil.Process(self.process.pid))

    def signal_worker(self, number: int) -> None:
        """One of them; inline there is none."""
        chosen = self.workers()
        if chosen:
            os.kill(chosen[int(self.rng.integers(len(chosen)))].pid, number)


def kill_driver(target: Target) -> None:
    target.process.kill()


def kill_worker(target: Target) -> None:
    target.signal_worker(signal.SIGKILL)


def preempt_worker(target: Target) -> None:
    target.signal_worker(signal.SIGTERM)


def kill_node(target: Target) -> None:
    """Another joins a while later: the sweep finds room there."""
    if target.nodes is None:
        return kill_worker(target)
    target.nodes.die(target.rng)
    time.sleep(target.rng.uniform(0, 3))
    target.nodes.join()
    return None


def join_node(target: Target) -> None:
    """Late, and for good: nodes that die later may outnumber those that join."""
    if target.nodes is not None and len(target.nodes.alive) < MOST_NODES:
        target.nodes.join()


def ctrl_c(target: Target) -> None:
    os.killpg(target.process.pid, signal.SIGINT)


def ctrl_c_twice(target: Target) -> None:
    ctrl_c(target)
    time.sleep(target.rng.uniform(0, 0.5))
    if target.process.poll() is None:
        ctrl_c(target)


def preempt_driver(target: Target) -> None:
    target.process.terminate()


def fill_disk(target: Target) -> None:
    """Of the driver and its workers: no file of theirs may grow any more."""
    for pid in (target.process.pid, *(worker.pid for worker in target.workers())):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (16, 16))


def tear_file(target: Target) -> None:
    """While nobody runs: a disk that lost what it had promised, of a part, of the plan or of its profiles."""
    target.process.kill()
    target.process.wait()
    rng, directory = target.rng, target.directory
    chosen = sorted((*directory.records.glob("*.parquet"), directory.trials, directory.units, directory.config))
    chosen = [path for path in chosen if path.exists()]
    if chosen:
        part = chosen[int(rng.integers(len(chosen)))]
        content = bytearray(part.read_bytes())
        content[int(rng.integers(len(content)))] ^= 255
        part.write_bytes(content[: int(rng.integers(1, len(content)))] if rng.random() < 0.5 else content)


Fault = Callable[[Target], None]
FAULTS: tuple[Fault, ...] = (
    kill_driver, kill_worker, kill_worker, preempt_worker, kill_node, join_node, ctrl_c, ctrl_c_twice, preempt_driver,
    fill_disk, tear_file,
)  # fmt: skip


def disturbed_sweep(
    settings: list[str], root: Path, cwd: Path, rng: np.random.Generator, faults: Counter[str]
) -> RunDirectory:
    """Start it again and again, with faults at random moments, until it ends by itself; in the end they run out."""
    kind = str(rng.choice(["inline", "local", "ray"]))
    nodes = Nodes() if kind == "ray" else None
    cluster = ["cluster=inline"] if kind == "inline" else [f"cluster={kind}", "cluster.workers=2"]
    if nodes is not None:
        cluster.append(f"cluster.address={nodes.cluster.address}")
    line = command(*settings, f"run.root={root}", MODES, *STOPPED, "cluster.lease_seconds=0.02", *cluster)
    left = MOST_FAULTS
    try:
        for _ in range(MOST_FAULTS + 2):
            process = started(line, cwd)
            while left and until_more_parts(process, root, int(rng.integers(1, 12))):
                fault = FAULTS[int(rng.integers(len(FAULTS)))]
                faults[f"{fault.__name__} ({kind})"] += 1
                left -= 1
                time.sleep(rng.uniform(0, 0.2))
                with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):  # it ended meanwhile
                    fault(Target(process, only_run(root), rng, nodes))
            out, error = process.communicate(timeout=PATIENCE)
            assert process.returncode in (0, 1, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT), error
            assert "Traceback" not in error, error
            if process.returncode == 0:
                return only_run(root)
    finally:
        if nodes is not None:
            nodes.cluster.shutdown()
    raise AssertionError(f"after the last fault, it ended with {process.returncode}\n{out}\n{error}")


def until_more_parts(process: subprocess.Popen[str], root: Path, count: int) -> bool:
    """Wait until so many more parts are on disk; False where the driver ends before."""
    goal, deadline = parts(root) + count, time.monotonic() + PATIENCE
    while process.poll() is None and parts(root) < goal:
        assert time.monotonic() < deadline, f"{parts(root)} parts after {PATIENCE} s"
        time.sleep(0.01)
    return process.poll() is None


def test_random_faults_lose_nothing(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sweeps.driver.write_report", lambda path: path)
        assert execute(composed(*settings, f"run.root={base}", MODES, *STOPPED)) == 0
    undisturbed = only_run(base)
    expected = undisturbed.measurements()
    rng, faults, sweeps = np.random.default_rng(SEED), Counter[str](), 0
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        root = tmp_path_factory.mktemp("soak")
        found = disturbed_sweep(settings, root / "runs", root, rng, faults)
        sweeps += 1
        measured = found.measurements()
        assert not measured.duplicated(["trial_id", "unit", "metric"]).any()
        missing = set(map(tuple, expected[["trial_id", "unit", "metric"]].to_numpy())) - set(
            map(tuple, measured[["trial_id", "unit", "metric"]].to_numpy())
        )
        assert not missing
        assert not found.failures.exists()
        assert_same_effects(found, undisturbed)
        print(f"{sweeps} sweeps, {sum(faults.values())} faults: {dict(faults)}", file=sys.stderr, flush=True)
    assert sweeps
