"""A pilot of a sweep: a few of its leases, measured here and thrown away, for what they cost and how noisy they are."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from circuits.vocabulary import DENOISE_METRICS, SAMPLE_METRICS
from sweeps.gains import Gains, read_gains
from sweeps.leases import Lease, share_key
from sweeps.plan import Plan, Subject, Trial, generated
from sweeps.records import RunDirectory
from sweeps.run import LeaseOutcome, Runner, RunnerSpec

BUDGET_SECONDS = 20.0
GROUPS = 8  # leases of the grid that are tried, if the budget allows
_TRIALS = 8  # of each: with fewer, forwards of generated images have fewer rows than those of a sweep
_IMAGES = 16  # of each trial
_CROWD_SIZE = 256  # of the matrices that cores multiply to see whether they slow one another down
_CROWD_PRODUCTS = 400


@dataclass(frozen=True)
class Pilot:
    """Seconds of one worker, undisturbed.

    Attributes:
        image: an ablated image of protocol ``denoise``, its metrics and records included.
        generated_row: a row of a generated image, likewise.
        once: what a worker does once for a data set and a window: reference activations, proofs of replay, the first
            clean pass. Those of later rounds are cheap beside it.
        crowding: how much longer a worker takes where all of them work.
        spreads: by metric, the standard deviation of g between images, the median over trials.
        trials: that were measured.
    """

    image: float
    generated_row: float
    once: float
    crowding: float
    spreads: Mapping[str, float]
    trials: int


def run_pilot(
    subject: Subject, runner: RunnerSpec, plan: Plan, *, row_seconds: float, workers: int, threads: int
) -> Pilot | None:
    """None where a pilot would take long, by the time of a whole forward for one row, or nothing can be measured."""
    groups = chosen(plan)
    per_group = max(1.0, sum(plan.rows_of(trial) for trial in groups[0]) if groups else 1.0)
    affordable = int(BUDGET_SECONDS / (2 * per_group * row_seconds))
    if not groups or not affordable:
        return None
    with tempfile.TemporaryDirectory(prefix="pilot-") as scratch, torch_threads(threads):
        directory = RunDirectory(Path(scratch) / "pilot")
        directory.create(directory.records, directory.samples)
        made = Runner(replace(runner, run_dir=str(directory.path)), subject)
        costs = [_cost_of(made.run, plan, group) for group in groups[:affordable]]
        crowd = crowding(workers) if subject.denoiser.device.type == "cpu" else 1.0
        ids = [trial.trial_id for group in groups for trial in group]
        measured = read_gains(directory, ids, (*DENOISE_METRICS, *SAMPLE_METRICS))
    images, rows = sum(c.images for c in costs), sum(c.rows for c in costs)
    if not images + rows:
        return None
    return Pilot(
        image=sum(c.image_seconds for c in costs) / images if images else 0.0,
        generated_row=sum(c.row_seconds for c in costs) / rows if rows else 0.0,
        once=float(np.mean([c.once for c in costs])),
        crowding=crowd,
        spreads={metric: spread(found) for metric, found in measured.items()},
        trials=sum(len(group) for group in groups[:affordable]),
    )


def chosen(plan: Plan) -> list[list[Trial]]:
    """A few trials of each of a few leases of the grid, drawn from all of it, with as few images as a first look."""
    groups: dict[tuple, list[Trial]] = {}
    for trial in plan.trials:
        if trial.phase == "grid":
            groups.setdefault(share_key(trial), []).append(trial)
    rng, every = np.random.default_rng(0), list(groups.values())
    order = rng.permutation(len(every))[:GROUPS].tolist()
    return [[_small(every[index][place]) for place in _drawn(len(every[index]), rng)] for index in order]


def _drawn(size: int, rng: np.random.Generator) -> list[int]:
    """A few places in a group, so that modes and targets take their turns."""
    return sorted(rng.permutation(size)[:_TRIALS].tolist())


def spread(measured: Gains) -> float:
    """Standard deviation of g between images, the median over trials."""
    return float(np.median([group.std(axis=1, ddof=1).mean() for _, group in measured.groups()] or [np.nan]))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """As many as a worker has."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def crowding(workers: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """How many times longer a core takes for the same work where ``workers`` of them work: they share caches."""
    matrix = torch.ones(_CROWD_SIZE, _CROWD_SIZE)

    def work() -> None:
        for _ in range(_CROWD_PRODUCTS):
            torch.mm(matrix, matrix)

    def timed(count: int) -> float:
        threads = [threading.Thread(target=work) for _ in range(count)]
        began = clock()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return clock() - began

    if workers < 2:
        return 1.0
    work()
    return max(1.0, min(timed(workers) for _ in range(2)) / min(timed(1) for _ in range(2)))


@dataclass(frozen=True)
class _Cost:
    images: int = 0
    image_seconds: float = 0.0
    rows: int = 0
    row_seconds: float = 0.0
    once: float = 0.0


def _cost_of(run: Callable[[Lease], LeaseOutcome], plan: Plan, group: Sequence[Trial]) -> _Cost:
    """Each lease runs twice: the second time, what is done once is there. Trials that fail are left out."""
    cost = _Cost()
    if group[0].protocol == "denoise":
        lease = Lease.of([replace(trial, samples=0) for trial in group])
        cold, warm = run(lease), run(lease)
        cost = _Cost(
            images=sum(map(len, warm.gains.values())),
            image_seconds=warm.seconds,
            once=max(0.0, cold.seconds - warm.seconds),
        )
    if generated(group[0]):
        made = [replace(trial, protocol="sample", images=generated(trial)) for trial in group]
        run(Lease.of(made))
        warm = run(Lease.of(made))
        cost = replace(cost, rows=sum(plan.sampled_rows(trial) for trial in made), row_seconds=warm.seconds)
    return cost


def _small(trial: Trial) -> Trial:
    return replace(trial, images=min(trial.images, _IMAGES))
