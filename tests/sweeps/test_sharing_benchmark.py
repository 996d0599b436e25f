"""The benchmark of work on many workers: real engines, whose work is known, behind the real pool."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from benchmarks import sharing
from benchmarks.work import network_flops
from sweeps.config import Config
from sweeps.leases import Lease
from sweeps.plan import Plan, Subject, make_plan
from tests.sweeps.conftest import Configure

SPEED = 2e6  # FLOPs a second


@pytest.fixture
def config(configure: Configure) -> Config:
    """Windows of a step each; 2 data sets x 2 windows x 2 layers of 5 trials."""
    return configure("sweep.windows=2", "sweep.steps=2", "sweep.samples=0", "sweep.modes=[mean]", "sweep.images=8")


@pytest.fixture
def plan(config: Config, subject: Subject) -> Plan:
    return make_plan(config, subject)


@pytest.fixture
def leases(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Lease]]:
    """Who ran what."""
    found, run = [], sharing.Worker._run

    def noting(worker: sharing.Worker, lease: Lease) -> Any:
        found.append((worker.index, lease))
        return run(worker, lease)

    monkeypatch.setattr(sharing.Worker, "_run", noting)
    return found


def row_flops(subject: Subject) -> int:
    """Of a whole forward."""
    denoiser, data = subject.denoiser, next(iter(subject.data.values()))
    x, t = torch.zeros(1, *denoiser.sample_shape), torch.tensor([5])
    return network_flops(denoiser.network, lambda: denoiser(x, t, data.condition([0])))


def shared_rows(leases: Iterable[tuple[int, Lease]], subject: Subject) -> tuple[int, int]:
    """Places that workers were at, and rows of the clean passes and means that each computes there, once."""
    been = {(worker, lease.place) for worker, lease in leases}
    return len(been), sum(8 + len(subject.data[place.dataset].reference) for _, place in been)


@pytest.mark.parametrize("in_order", [False, True], ids=["by place", "in order"])
def test_what_is_computed_twice_is_counted(
    config: Config, subject: Subject, plan: Plan, leases: list[tuple[int, Lease]], in_order: bool
) -> None:
    """Nothing but clean passes and means depends on who does what."""
    alone = sharing.swept(config, subject, plan, 1, SPEED).flops
    places, rows_alone = shared_rows(leases, subject)
    assert (places, rows_alone) == (4, 2 * (2 * 8 + 32 + 64))
    leases.clear()
    together = sharing.swept(config, subject, plan, 4, SPEED, in_order=in_order).flops
    passes, rows = shared_rows(leases, subject)
    assert sum(len(lease.trials) for _, lease in leases) == len(plan)
    assert together - alone == (rows - rows_alone) * row_flops(subject)
    assert passes >= 10 if in_order else passes <= 8, passes


def test_the_figures(config: Config, subject: Subject) -> None:
    first, by_place, in_order = sharing.figures(config, subject, [4], 12)
    assert first == {"workers": 1, "handed out": "by place", "work": 1.0, "efficiency": 1.0}
    assert (by_place["handed out"], in_order["handed out"]) == ("by place", "in order")
    assert 1 <= by_place["work"] < in_order["work"]
    assert in_order["efficiency"] < by_place["efficiency"] <= 1
