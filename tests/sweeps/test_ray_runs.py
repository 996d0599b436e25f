"""Whole sweeps on Ray workers: the numbers of a sweep without Ray, also when a worker is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from sweeps import schedule
from sweeps.config import Config
from sweeps.driver import execute
from sweeps.progress import SweepProgress
from sweeps.records import RunDirectory
from tests.sweeps.processes import runners
from tests.sweeps.tiny import assert_same_effects, duplicated_trials, only_run, run_whole

pytestmark = [pytest.mark.run, pytest.mark.usefixtures("no_report")]

Configure = Callable[..., Config]
# Sequential: rounds of images, so that decisions must not depend on which worker came first.
GRID = ("sweep.modes=[zero,mean,resample]", "stats=sequential", "stats.first=4", "stats.batch=2")


@pytest.fixture(scope="module")
def inline(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return run_whole(tmp_path_factory.mktemp("inline"), *settings, *GRID)


def test_one_worker_gives_the_numbers_of_this_process(
    configure: Configure, inline: RunDirectory, tmp_path: Path
) -> None:
    assert execute(configure(*GRID, "cluster=local", "cluster.workers=1", "cluster.lease_seconds=0.5")) == 0
    found = only_run(tmp_path / "runs")
    assert found.path.name == inline.path.name
    assert duplicated_trials(found) == 0
    assert_same_effects(found, inline)
    assert runners(psutil.Process()) == [], "Ray ended with the sweep"


def test_two_workers_give_the_same_though_one_is_killed(
    configure: Configure, inline: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In small leases, so that many are left when the worker dies."""
    killed: list[int] = []
    add = SweepProgress.add

    def kill_one(self: SweepProgress, gains: dict[str, np.ndarray], done: int, failed: int, rows: int) -> None:
        add(self, gains, done, failed, rows)
        alive = runners(psutil.Process())
        if not killed and alive:
            killed.append(alive[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(SweepProgress, "add", kill_one)
    config = configure(*GRID, "cluster=local", "cluster.workers=2", "cluster.lease_seconds=0.05")
    assert execute(config) == 0
    found = only_run(tmp_path / "runs")
    assert killed
    assert found.recorded() == inline.recorded()
    assert not found.failures.exists()
    assert_same_effects(found, inline)


def test_ray_is_not_started_when_all_is_recorded(
    configure: Configure, inline: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(schedule, "connect", never)
    where = (f"run.root={inline.path.parent}", f"run.name={inline.path.name}")
    assert execute(configure(*GRID, "cluster=local", *where)) == 0
