"""Real processes, killed: the same command goes on, nothing measured is lost, nothing is measured twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from sweeps.config import Config
from sweeps.driver import execute
from sweeps.records import RunDirectory
from tests.sweeps.processes import children
from tests.sweeps.tiny import (
    ROOT,
    assert_same_effects,
    command,
    duplicated_trials,
    environment,
    only_run,
    run_whole,
)

pytestmark = pytest.mark.run

Configure = Callable[..., Config]
MODES = "sweep.modes=[zero,mean,resample]"
SMALL_LEASES = "cluster.lease_seconds=1e-6"
PATIENCE = 600.0


@pytest.fixture(scope="module")
def undisturbed(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run_whole(tmp_path_factory.mktemp("undisturbed"), *settings, MODES)


def started(arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    """In a process group of its own, as from a shell."""
    return subprocess.Popen(arguments, cwd=cwd, env=environment(), stdout=-1, stderr=-1, text=True, process_group=0)


def parts(root: Path) -> int:
    return len(list(root.glob("*/records/*.parquet")))


def until_parts(process: subprocess.Popen[str], root: Path, count: int) -> None:
    """Wait until so many parts are on disk."""
    deadline = time.monotonic() + PATIENCE
    while parts(root) < count:
        if process.poll() is not None:
            out, error = process.communicate()
            raise AssertionError(f"ended with {process.returncode} before it was disturbed\n{out}\n{error}")
        assert time.monotonic() < deadline, f"{parts(root)} parts after {PATIENCE} s"
        time.sleep(0.002)


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.soak)])
def test_killed_at_random_moments_without_ray_or_wandb(
    settings: list[str], undisturbed: RunDirectory, tmp_path: Path, kills: int
) -> None:
    """Ray and W&B cannot even be imported here: in one process neither is needed."""
    blocked = "import sys; sys.modules.update(ray=None, wandb=None); import launch; launch.main()"
    root = tmp_path / "runs"
    line = [sys.executable, "-c", blocked, *settings, f"run.root={root}", MODES, SMALL_LEASES]
    rng, seen = np.random.default_rng(), 0
    for _ in range(kills):
        process = started(line, ROOT)
        seen += int(rng.integers(1, 60 // kills))
        until_parts(process, root, seen)
        time.sleep(rng.uniform(0, 0.2 / kills))
        process.kill()
        process.communicate()
        seen = parts(root)
        assert (only_run(root).path / "lock.json").exists(), "a killed driver leaves its lock, which is taken over"
    recorded = only_run(root).recorded()
    process = started(line, ROOT)
    out, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    assert f"{len(recorded)} of 120 trials are recorded already" in error
    assert "120 trials by noise_mse" in out
    directory = only_run(root)
    assert duplicated_trials(directory) == 0
    assert directory.recorded() == undisturbed.recorded()
    assert_same_effects(directory, undisturbed)
    assert (directory.path / "report" / "index.html").stat().st_size > 1000
    assert not (directory.path / "lock.json").exists()


def test_ctrl_c_and_kill_on_ray(
    settings: list[str], undisturbed: RunDirectory, configure: Configure, tmp_path: Path, no_report: None
) -> None:
    root = tmp_path / "runs"
    line = command(*settings, f"run.root={root}", MODES, SMALL_LEASES, "cluster=local", "cluster.workers=1")

    interrupted = started(line, tmp_path)
    until_parts(interrupted, root, 1)
    os.killpg(interrupted.pid, signal.SIGINT)  # as a terminal does: to Ray's processes too
    _, error = interrupted.communicate(timeout=PATIENCE)
    assert interrupted.returncode == 130, error
    assert "Interrupted; the same command goes on where it stopped: python launch.py " in error
    assert "Traceback" not in error
    seen = parts(root)

    killed = started(line, tmp_path)
    until_parts(killed, root, seen + 1)
    # Its two agents end a minute later; they hold neither a device nor the records.
    family = children(psutil.Process(killed.pid), lambda process: "Agent" not in process.name())
    assert len(family) >= 3, "a worker, the raylet, the head"
    killed.kill()
    killed.communicate()
    _, alive = psutil.wait_procs(family, timeout=PATIENCE)
    assert not alive, "Ray's processes end with their driver"

    recorded = only_run(root).recorded()
    assert recorded < undisturbed.recorded()
    assert execute(configure(MODES)) == 0
    directory = only_run(root)
    assert duplicated_trials(directory) == 0
    assert_same_effects(directory, undisturbed)
