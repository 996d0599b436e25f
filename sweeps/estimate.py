"""What a sweep will take, part by part: from a pilot of this machine, or from an earlier run like it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sweeps.config import as_list
from sweeps.outlook import SURVIVAL, expected_images
from sweeps.pilot import Pilot
from sweeps.plan import Plan, Trial
from sweeps.records import RunDirectory, RunDirectoryError
from sweeps.rounds import is_governed
from sweeps.standing import read_standing

IMPORTS = 5.0
"""Seconds until a command line has imported all it needs. This and the following, where no earlier run says better, are
those of the default sweep on two idle cores of an AMD EPYC: 1,080 trials and 970 controls."""

RAY = 8.0
"""Seconds for Ray to start on this machine."""

ROWS_PROBE = 2.0
"""Seconds in which a worker finds its number of rows."""

AGGREGATING = 0.0009
"""Seconds a trial."""

REPORTING = (3.0, 0.0025)
"""Seconds of a report, and a trial more."""

TRACKED_RUN = 0.016
"""Seconds of a processor for a W&B run, while others measure."""

TRACKING = (2.0, 0.023)
"""Seconds of logging at the end, and a W&B run more, which is written again with its verdict."""

ROUND = 0.5
"""Seconds at the end of a round in which some workers wait for the last one."""


@dataclass(frozen=True)
class Work:
    """What there is to measure, in images and rows.

    Attributes:
        images, most_images: of ablations by protocol ``denoise``, expected and at most; controls not among them.
        control_images: of random subspaces.
        generated_rows: rows of generated images.
        clean: pairs of data set and window that are measured; rounds: of the stopping rule, expected.
        clean_rows: of the unablated model, at most.
    """

    images: float
    most_images: int
    control_images: int
    generated_rows: int
    clean: int
    rounds: float
    most_rounds: int
    clean_rows: int

    @property
    def rows(self) -> float:
        """Expected."""
        share = self.rounds / max(self.most_rounds, 1)
        return self.images + self.control_images + self.generated_rows + share * self.clean_rows

    @property
    def most_rows(self) -> int:
        return self.most_images + self.control_images + self.generated_rows + self.clean_rows


@dataclass(frozen=True)
class Part:
    """A part of a run, in seconds: expected, and at most."""

    name: str
    expected: float
    most: float


@dataclass(frozen=True)
class Pace:
    """How fast this machine is, and what it was told by.

    Attributes:
        image, generated_row, once: as in :class:`Pilot`, of one worker where all of them work.
        survival: share of trials that a look leaves running.
        starting: seconds from the start of measuring to the first lease.
        aggregating, reporting, tracking: seconds of the whole.
        source: in words.
    """

    image: float
    generated_row: float
    once: float
    survival: float
    starting: float
    aggregating: float
    reporting: float
    tracking: float
    source: str
    spreads: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What a sweep runs in.

    Attributes:
        cores: of this machine; workers and threads: as the cluster's settings give them.
        loading: seconds that model and data took to load here.
        runs: that W&B will have; 0 without it.
        elsewhere: the workers are on other machines, which may be faster or slower.
    """

    workers: int
    threads: int
    cores: int
    loading: float
    runs: int
    ray: bool
    elsewhere: bool = False


@dataclass(frozen=True)
class Estimate:
    parts: tuple[Part, ...]
    workers: int

    @property
    def expected(self) -> float:
        return sum(part.expected for part in self.parts)

    @property
    def most(self) -> float:
        return sum(part.most for part in self.parts)

    def cost(self, price_per_hour: float) -> tuple[float, float]:
        """Expected and at most, in whatever the price is in: workers are paid for from the start to the end."""
        return tuple(seconds / 3600 * self.workers * price_per_hour for seconds in (self.expected, self.most))  # type: ignore[return-value]


def work_of(plan: Plan, stopped: bool, first: int, batch: int, survival: float = SURVIVAL) -> Work:
    """Count what a plan asks for; ``stopped`` where a rule ends trials early."""
    ablations = [t for t in plan.trials if t.protocol == "denoise" and t.phase != "control"]
    governed = np.array([t.images for t in ablations if stopped and is_governed(t)], dtype=np.int64)
    whole = sum(t.images for t in ablations if not (stopped and is_governed(t)))
    begins = np.minimum(governed, first)
    expected = float(begins.sum() + expected_images(governed - begins, batch, survival).sum()) if governed.size else 0.0
    clean = {(t.dataset, t.window) for t in plan.trials if t.protocol == "denoise"}
    most_rounds = 1 + math.ceil((int(governed.max()) - int(begins.max())) / batch) if governed.size else 1
    return Work(
        images=whole + expected,
        most_images=whole + int(governed.sum()),
        control_images=sum(t.images for t in plan.trials if t.protocol == "denoise" and t.phase == "control"),
        generated_rows=sum(plan.sampled_rows(t) for t in plan.trials),
        clean=len(clean),
        rounds=expected_rounds(governed, first, batch, survival),
        most_rounds=most_rounds,
        clean_rows=plan.baseline_rows(),
    )


def expected_rounds(images: np.ndarray, first: int, batch: int, survival: float) -> float:
    """Until the last trial is decided or has all its images, if each look leaves a share of them running."""
    if not images.size:
        return 1.0
    rounds, look = 1.0, 1
    while (left := images > first + (look - 1) * batch).any():
        rounds += 1 - (1 - min(survival, 1.0) ** look) ** int(left.sum())
        look += 1
    return rounds


def estimated(work: Work, pace: Pace, setting: Setting, profile_seconds: float = 0.0) -> Estimate:
    """Workers share the measuring; W&B is logged beside it, and costs time where every core has a worker."""
    each = 1 / setting.workers
    beside = setting.workers * setting.threads >= setting.cores and not setting.elsewhere
    logging = TRACKED_RUN * setting.runs / setting.cores if beside else 0.0

    def shared(name: str, expected: float, most: float | None = None) -> Part:
        return Part(name, expected * each, (expected if most is None else most) * each)

    # Workers go where the others are not (`sweeps.holdings`), and come together toward the end of a round: played pools
    # of 1 to 64 workers on 10 places made 1 to 1.6 times so many.
    everywhere = work.clean * setting.workers
    passes = min(everywhere, work.clean + setting.workers - 1)
    most_passes = min(everywhere, 2 * passes)
    waiting = ROUND * (setting.workers > 1)
    parts = [
        Part("starting", *[IMPORTS + setting.loading + pace.starting] * 2),
        Part("profiles", profile_seconds, profile_seconds),
        shared("ablations", pace.image * work.images, pace.image * work.most_images),
        shared("controls", pace.image * work.control_images),
        shared("samples to look at", pace.generated_row * work.generated_rows),
        shared("first passes", pace.once * passes, pace.once * most_passes),
        Part("rounds", waiting * work.rounds, waiting * work.most_rounds),
        Part("W&B beside it", logging, logging),
        Part("aggregation", pace.aggregating, pace.aggregating),
        Part("report", pace.reporting, pace.reporting),
        Part("W&B at the end", *[pace.tracking if setting.runs else 0.0] * 2),
    ]
    return Estimate(tuple(part for part in parts if part.most > 0), setting.workers)


def pace_of_pilot(pilot: Pilot, setting: Setting, trials: int) -> Pace:
    """Besides what a pilot measures, what the reference machine took."""
    crowd = pilot.crowding
    return replace(
        usual(setting, trials),
        image=pilot.image * crowd,
        generated_row=pilot.generated_row * crowd,
        once=pilot.once * crowd,
        source=f"a pilot of {pilot.trials} trials here",
        spreads=dict(pilot.spreads),
    )


def pace_of_forward(row_seconds: float, setting: Setting, trials: int) -> Pace:
    """Where a pilot would take long: every row as a whole forward, which is too much, since replay begins half-way."""
    return replace(
        usual(setting, trials),
        image=row_seconds,
        generated_row=row_seconds,
        source="one forward here; without replay, so too much",
    )


def usual(setting: Setting, trials: int) -> Pace:
    """Parts that no pilot measures."""
    return Pace(
        image=0.0,
        generated_row=0.0,
        once=0.0,
        survival=SURVIVAL,
        starting=(RAY + setting.loading if setting.ray else 0.0) + ROWS_PROBE,
        aggregating=AGGREGATING * trials,
        reporting=REPORTING[0] + REPORTING[1] * trials,
        tracking=TRACKING[0] + TRACKING[1] * setting.runs,
        source="the reference machine",
    )


LOADED = ("dtype", "size", "channels_last", "compile", "guidance")
"""Settings of a model that change what a row of it takes."""


@dataclass(frozen=True)
class Likeness:
    """What an earlier run must share for its pace to hold: model, machine, and what a row is.

    Attributes:
        loaded: the settings named in ``LOADED``.
    """

    revision: str
    machine: str
    device: str
    loaded: Mapping[str, Any]
    protocols: Sequence[str]
    samples: int
    cluster: str
    workers: int


def earlier_pace(root: Path, alike: Likeness, trials: int) -> Pace | None:
    """From the run under ``root`` that ended last, of those like this one; None without any."""
    if not root.is_dir():
        return None
    found: list[tuple[str, RunDirectory, dict[str, Any]]] = []
    for path in root.iterdir():
        directory = RunDirectory(path)
        about = _like(directory, alike)
        if about is not None:
            found.append((str(about.get("finished", "")), directory, about))
    if not found:
        return None
    _, directory, about = max(found, key=lambda run: run[0])
    work, timings, counts = about["work"], about["timings"], about["counts"]
    row = work["worker_seconds"] / work["rows"]
    share = trials / max(counts["trials"], 1)
    told = read_standing(directory)
    return Pace(
        image=row,
        generated_row=row,
        once=0.0,
        survival=float(work["survival"]),
        starting=float(timings["starting"]),
        aggregating=float(timings["aggregating"]) * share,
        reporting=float(timings["reporting"]) * share,
        tracking=(told.tracking_seconds if told else 0.0) * share,
        source=f"the run {directory.path.name}: {1 / row:.0f} rows/s a worker",
        spreads=earlier_spreads(directory),
    )


def _like(directory: RunDirectory, alike: Likeness) -> dict[str, Any] | None:
    """run.json of a finished run like this one."""
    try:
        about, config = directory.read_run(), directory.read_config()
        same = (
            about["model"]["revision"] == alike.revision
            and about["machine"] == alike.machine
            and about["device"] == alike.device
            and {name: config["model"][name] for name in LOADED} == alike.loaded
            and as_list(config["sweep"]["protocols"], "sweep.protocols") == list(alike.protocols)
            and config["sweep"]["samples"] == alike.samples
            and config["cluster"]["name"] == alike.cluster
            and about["work"]["workers"] == alike.workers
            and about["work"]["rows"] > 0
            and {"starting", "aggregating", "reporting"} <= set(about["timings"])
        )
    except (RunDirectoryError, KeyError, TypeError, json.JSONDecodeError):
        return None
    return about if same else None


def earlier_spreads(directory: RunDirectory) -> dict[str, float]:
    """By metric, the standard deviation of g between images, the median over trials: mean / d_z."""
    try:
        effects = directory.read_frame(directory.effects)
    except RunDirectoryError:
        return {}
    found = (effects["mean_log_ratio"] / effects["d_z"]).abs().replace([0.0, np.inf], np.nan)
    return {str(metric): float(value) for metric, value in found.groupby(effects["metric"]).median().dropna().items()}


def wandb_runs(trials: Sequence[Trial], granularity: str, most: int) -> int:
    """Runs that W&B gets: one a trial, or one per layer and window; controls are always together."""
    ablations = [t for t in trials if t.phase != "control"]
    groups = {(t.dataset, t.layer_index, t.window_index) for t in trials if t.phase == "control"}
    if granularity == "group" or (granularity == "auto" and len(ablations) > most):
        return len({(t.layer_index, t.window_index) for t in trials}) + 1
    return len(ablations) + len({(layer, window) for _, layer, window in groups}) + 1
