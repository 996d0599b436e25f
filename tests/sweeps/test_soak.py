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
from pathlib import Path

import numpy as np
import psutil
import pytest

from sweeps.driver import execute
from sweeps.records import RunDirectory
from tests.sweeps.test_resume import parts, started
from tests.sweeps.tiny import assert_same_effects, command, composed, only_run

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("SOAK_SECONDS", "1800"))
SEED = int(os.environ.get("SOAK_SEED", "0"))
MODES = "sweep.modes=[zero,mean,resample]"
STOPPED = ("stats=sequential", "stats.first=4", "stats.batch=2")
MOST_FAULTS = 10  # of a sweep; then it is left to end
PATIENCE = 300.0

Process = subprocess.Popen
Fault = Callable[[Process, RunDirectory, np.random.Generator], None]


def kill_driver(process: Process, _: RunDirectory, __: np.random.Generator) -> None:
    process.kill()


def kill_worker(process: Process, _: RunDirectory, rng: np.random.Generator) -> None:
    """Or its raylet, which takes the workers with it; inline there is none."""
    family = psutil.Process(process.pid).children(recursive=True)
    chosen = [p for p in family if any("RemoteRunner" in part for part in p.cmdline())]
    if chosen:
        os.kill(chosen[int(rng.integers(len(chosen)))].pid, signal.SIGKILL)


def preempt_worker(process: Process, _: RunDirectory, rng: np.random.Generator) -> None:
    family = psutil.Process(process.pid).children(recursive=True)
    chosen = [p for p in family if any("RemoteRunner" in part for part in p.cmdline())]
    if chosen:
        os.kill(chosen[int(rng.integers(len(chosen)))].pid, signal.SIGTERM)


def ctrl_c(process: Process, _: RunDirectory, __: np.random.Generator) -> None:
    os.killpg(process.pid, signal.SIGINT)


def ctrl_c_twice(process: Process, _: RunDirectory, rng: np.random.Generator) -> None:
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(rng.uniform(0, 0.5))
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)


def preempt_driver(process: Process, _: RunDirectory, __: np.random.Generator) -> None:
    process.terminate()


def fill_disk(process: Process, _: RunDirectory, __: np.random.Generator) -> None:
    family = [
        process.pid,
        *(p.pid for p in psutil.Process(process.pid).children() if "Runner" in " ".join(p.cmdline())),
    ]
    for pid in family:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (16, 16))


def tear_part(process: Process, directory: RunDirectory, rng: np.random.Generator) -> None:
    """While nobody runs: a disk that lost what it had promised."""
    process.kill()
    process.wait()
    chosen = sorted(directory.records.glob("*.parquet"))
    if chosen:
        part = chosen[int(rng.integers(len(chosen)))]
        content = bytearray(part.read_bytes())
        content[int(rng.integers(len(content)))] ^= 255
        part.write_bytes(content[: int(rng.integers(1, len(content)))] if rng.random() < 0.5 else content)


FAULTS: tuple[Fault, ...] = (
    kill_driver, kill_worker, kill_worker, preempt_worker, ctrl_c, ctrl_c_twice, preempt_driver, fill_disk, tear_part,
)  # fmt: skip


def disturbed_sweep(
    settings: list[str], root: Path, cwd: Path, rng: np.random.Generator, faults: Counter[str]
) -> RunDirectory:
    """Start it again and again, with a fault at a random moment each time, until it ends by itself."""
    cluster = ["cluster=inline"] if rng.random() < 0.5 else ["cluster=local", "cluster.workers=2"]
    line = command(*settings, f"run.root={root}", MODES, *STOPPED, "cluster.lease_seconds=0.02", *cluster)
    for attempt in range(MOST_FAULTS + 1):
        process = started(line, cwd)
        seen, deadline = parts(root), time.monotonic() + PATIENCE
        target = seen + int(rng.integers(0, 12))
        while process.poll() is None and attempt < MOST_FAULTS and parts(root) <= target:
            assert time.monotonic() < deadline, f"{parts(root)} parts after {PATIENCE} s"
            time.sleep(0.01)
        if process.poll() is None and attempt < MOST_FAULTS:
            fault = FAULTS[int(rng.integers(len(FAULTS)))]
            faults[fault.__name__] += 1
            time.sleep(rng.uniform(0, 0.2))
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):  # it ended meanwhile
                fault(process, only_run(root), rng)
        out, error = process.communicate(timeout=PATIENCE)
        assert process.returncode in (0, 1, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT), error
        assert "Traceback" not in error, error
        if process.returncode == 0:
            return only_run(root)
    raise AssertionError(f"undisturbed at last, it ended with {process.returncode}\n{out}\n{error}")


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
