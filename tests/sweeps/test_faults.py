"""Faults on real sweeps: the effects of the undisturbed one, nothing lost, nothing counted twice, one line of cause."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from circuits.denoisers import Denoiser
from sweeps import schedule
from sweeps.config import Config
from sweeps.driver import execute
from sweeps.records import RunDirectory
from tests.sweeps.faulty import FAULTS, FOLDER, FaultyRunner
from tests.sweeps.test_resume import started, until_parts
from tests.sweeps.tiny import assert_same_effects, command, duplicated_trials, launch, only_run, run_whole

pytestmark = pytest.mark.run

Configure = Callable[..., Config]
SMALL_LEASES = "cluster.lease_seconds=1e-6"
PATIENCE = 600.0


@pytest.fixture(scope="module")
def undisturbed(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run_whole(tmp_path_factory.mktemp("undisturbed"), *settings)


def assert_undisturbed(found: RunDirectory, undisturbed: RunDirectory) -> None:
    assert found.recorded() == undisturbed.recorded()
    assert len(found.measurements()) == len(undisturbed.measurements())
    assert not found.failures.exists()
    assert_same_effects(found, undisturbed)


def test_a_worker_that_hangs_is_killed_is_preempted_and_loses_its_device(
    configure: Configure,
    undisturbed: RunDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_report: None,
) -> None:
    """All in one sweep; the time limit of a lease is a setting."""
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setattr(schedule, "RemoteRunner", FaultyRunner)
    config = configure("cluster=local", "cluster.workers=1", "cluster.lease_timeout=10", SMALL_LEASES)
    assert execute(config) == 0
    assert all((tmp_path / fault).exists() for fault in FAULTS)
    found = only_run(tmp_path / "runs")
    assert duplicated_trials(found) == 0
    assert_undisturbed(found, undisturbed)


def test_memory_that_runs_out_halves_the_rows(
    configure: Configure, undisturbed: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    call = Denoiser.__call__
    refused: list[int] = []

    def small(self: Denoiser, x: torch.Tensor, *rest: object, **named: object) -> object:
        if len(x) > 3:
            refused.append(len(x))
            raise torch.OutOfMemoryError("simulated")
        return call(self, x, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Denoiser, "__call__", small)
    assert execute(configure()) == 0
    assert refused
    found = only_run(tmp_path / "runs")
    assert duplicated_trials(found) == 0
    assert_undisturbed(found, undisturbed)


def test_clocks_that_jump(
    configure: Configure, undisturbed: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    """By years, to and fro, at every look: time limits, rates and ages are taken from clocks that cannot be set."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(time, "time", lambda: float(rng.uniform(0, 4e9)))
    assert execute(configure(SMALL_LEASES, "cluster.lease_timeout=60")) == 0
    found = only_run(tmp_path / "runs")
    assert duplicated_trials(found) == 0
    assert_undisturbed(found, undisturbed)
    assert 0 <= found.read_run()["seconds"] < 600


@pytest.mark.soak
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="files of another process can be limited on Linux only")
def test_a_disk_that_fills_up_a_torn_part_and_a_second_driver(
    settings: list[str], undisturbed: RunDirectory, tmp_path: Path
) -> None:
    """In real processes. The disk is full for one process: no file of it may grow any more."""
    root = tmp_path / "runs"
    line = command(*settings, f"run.root={root}", SMALL_LEASES)
    full = started(line, tmp_path)
    until_parts(full, root, 2)
    resource.prlimit(full.pid, resource.RLIMIT_FSIZE, (16, 16))
    _, error = full.communicate(timeout=PATIENCE)
    assert full.returncode == 1, error
    assert error.count("error: ") == 1
    assert "could not be written (File too large); what is recorded is kept, and the same command goes on" in error
    assert "Traceback" not in error
    directory = only_run(root)
    recorded = len(directory.recorded())
    assert 0 < recorded < 40

    part = next(directory.records.glob("*.parquet"))
    os.truncate(part, part.stat().st_size // 2)
    again = started(line, tmp_path)
    deadline, lock = time.monotonic() + PATIENCE, directory.path / "lock.json"
    while not (lock.exists() and lock.stat().st_size):  # it is there before it is taken
        assert again.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(again.pid, 19)  # SIGSTOP: it holds the run while another one asks for it
    second = launch(*settings, f"run.root={root}", cwd=tmp_path)
    os.kill(again.pid, 18)
    assert second.returncode == 2
    assert f"is in use by process {again.pid} on " in second.stderr
    assert second.stderr.count("\n") == 1
    _, error = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, error
    assert f"damaged part {part.name}: set aside, its trials are measured again" in error
    assert_undisturbed(RunDirectory(directory.path), undisturbed)


def test_a_worker_process_says_nothing_of_its_clock() -> None:
    """No module takes the time of day for a duration: only names and dates of run.json come from it."""
    found = subprocess.run(
        ["grep", "-rnE", r"\btime\.time\(|perf_counter_ns|datetime\.now\(", "circuits", "sweeps", "launch.py"],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert [line.partition(":")[0] for line in found if ".pyc" not in line] == ["sweeps/provenance.py"], sys.argv[0]
