"""The configuration as typed values, every key with what it means."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from circuits.data.source_spec import SourceSpec
from circuits.training_settings import TrainingSettings
from circuits.vocabulary import ABLATIONS, DENOISE_METRICS, GROUP_LEVELS, PROMPTS, SAMPLE_METRICS
from sweeps.profile_config import PROFILE_MODES, ProfileConfig
from sweeps.search_config import SearchConfig

RUN_MODES = ("run", "plan", "status", "track", "aggregate", "report", "compare", "export", "workspace", "train")
PROTOCOLS = ("denoise", "sample")
LEVELS = ("head", "layer", *GROUP_LEVELS)
METRICS = {"denoise": DENOISE_METRICS, "sample": SAMPLE_METRICS}  # what each protocol tests
CORRECTIONS = {"obf": ("hierarchical", "bh", "by"), "sign": ("by", "e-bh"), "betting": ("by", "e-bh")}
STATISTICS = ("none", *CORRECTIONS)
FAMILIES = {"layer": "layer_index", "window": "window_index", "mode": "mode", "dataset": "dataset"}  # trial columns
MIXED = "mixed"  # cluster.device: workers on GPUs, and on the CPUs of nodes without
NEED_ROOT = ("image_folder", "celeba", PROMPTS)
CHOICES: dict[str, tuple[str, ...]] = {
    "mode": RUN_MODES,
    "format": ("latex", "csv", "parquet"),
    "sweep.kind": ("grid", "search"),
    "sweep.profile.mode": PROFILE_MODES,
    "model.dtype": ("float32", "bfloat16", "float16"),
    "cluster.device": ("auto", "cpu", "cuda", MIXED),
    "tracker.mode": ("auto", "offline", "online", "disabled"),
    "tracker.granularity": ("auto", "trial", "group"),
    "stats.statistic": STATISTICS,
}
"""Keys that take one of a few values, checked and completed."""
LISTS: dict[str, tuple[str, ...]] = {
    "sweep.protocols": PROTOCOLS,
    "sweep.levels": LEVELS,
    "sweep.modes": tuple(mode.value for mode in ABLATIONS),
    "stats.families": tuple(FAMILIES),
}
"""Keys that take several of a few values."""


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line for the user."""


@dataclass
class SweepConfig:
    """What is ablated: a grid of heads, layers and windows, or a search over sets of heads."""

    name: str = MISSING  # of the sweep, in names of runs
    kind: str = "grid"  # grid: every cell; search: adaptive, on Ray Tune
    protocols: Any = field(default_factory=lambda: ["denoise"])  # denoise, sample
    levels: Any = field(default_factory=lambda: ["head", "layer"])  # head: each alone; layer: all heads; block; stage
    layers: Any = "all"  # all, "0-2", [0,3], or module paths
    heads: Any = "all"  # all, "0-7", [0,3]
    modes: Any = field(default_factory=lambda: ["zero", "mean", "resample"])  # what replaces a head's output
    windows: Any = 5  # a count of equal ranges, or a list of [t_start, t_end]
    strength: float = 1.0  # share of the replacement
    scale: float = 2.0  # what mode scale multiplies a head's output by
    images: int | None = None  # per trial and data set, at most; null: stats.n_max, or all that a data set has
    controls: int = 0  # random-subspace ablations per data set, window and layer: is a head worse than a random one?
    control_images: int = 16  # images a control is measured on
    samples: int = 4  # images generated per trial, to look at
    steps: int = 10  # sampler steps (DDIM); windows are sets of them
    seed: int = 0  # of all noise, draws and generated images
    search: SearchConfig = field(default_factory=SearchConfig)  # of kind search
    profile: ProfileConfig = field(default_factory=ProfileConfig)  # what heads attend to, beside a grid


@dataclass
class ModelConfig:
    """The diffusion model."""

    name: str = MISSING  # of the model, in names of runs and tables
    path: str = MISSING  # a shipped model, a diffusers folder, or a hub id
    dtype: str = "float32"  # float32, bfloat16, float16
    size: int | None = None  # height and width of the images in pixels; null: the model's own
    channels_last: bool = False  # memory layout of convolutions; worth a try with U-Nets
    compile: bool = False  # torch.compile of what no intervention reaches; takes minutes, and no gain on a CPU
    guidance: float | None = None  # of generated images: uncond + guidance (cond - uncond); null or 1: none
    training: TrainingSettings | None = None  # only the shipped models are trained here


@dataclass
class SourceConfig:
    """One data set."""

    name: str = MISSING  # of the data set, in tables
    source: str = MISSING  # synthetic_faces, lfw_faces, image_folder, celeba, prompts
    label: int | None = None  # class of its images, for a model that is conditioned on classes
    root: str | None = None  # folder or hub id; null: data.root, where the source needs one


@dataclass
class DataConfig:
    """The images that are measured."""

    name: str = MISSING  # of the choice of data sets
    root: str | None = None  # folder or hub id for the sources that need one; of prompts a text file, one a line
    prompts: Any = None  # for source prompts: a list of them, instead of a file
    sets: list[SourceConfig] = field(default_factory=list)  # name, source, label and root of each


@dataclass
class ClusterConfig:
    """Where the sweep runs."""

    name: str = MISSING  # inline: this process; local: Ray on this machine; ray: a running cluster
    address: str | None = None  # of a running Ray cluster
    workers: int = 0  # 0: one a GPU share, or one a CPU core
    gpus_per_worker: Any = 1.0  # a fraction shares a GPU; auto: as many workers a GPU as its memory has room for
    cpus_per_worker: int = 1  # CPU cores that a worker takes
    lease_seconds: float = 3.0  # work handed to a worker at once
    lease_timeout: float = 1800.0  # a lease that takes longer is ended and tried again
    device: str = "auto"  # auto, cpu, cuda, mixed; of a running cluster auto is its GPUs, or its CPUs if it has none
    price_per_hour: float | None = None  # of a worker, in any currency: mode=plan says what the sweep costs
    ship_code: bool = True  # to the workers of a running cluster; false where its machines have this version installed


@dataclass
class TrackerConfig:
    """Where the sweep is logged."""

    name: str = MISSING  # wandb or none
    project: str = "circuit-sweep"  # W&B's project
    entity: str | None = None  # W&B's team or user; null: your default
    mode: str = "auto"  # auto, offline, online, disabled; auto: online if logged in or WANDB_MODE says so, else offline
    granularity: str = "auto"  # trial: a run a trial; group: a run per layer and window; auto
    max_trial_runs: int = 2000  # more trials than this, and auto makes a run per layer and window
    samples: bool = True  # log the generated images too


@dataclass
class StatsConfig:
    """How effects are tested; registered before the run."""

    name: str = MISSING  # of the choice of statistics
    metric: str = "noise_mse"  # the registered primary metric
    alpha: float = 0.05  # false discovery rate of each kind of claim; intervals are of 95%
    margin: float = 0.05  # effects within this share of 1 are negligible; fixed before the run
    families: Any = field(default_factory=lambda: ["layer", "window"])  # trials alike in these are corrected together
    statistic: str = "none"  # none: all images; obf, sign, betting: a trial ends when its verdict is certain
    correction: str | None = None  # of the stopping rule's p-values: hierarchical, bh, by, e-bh; null: its default
    n_max: int = 64  # images of a trial where sweep.images does not say; a data set with fewer gives all it has
    first: int = 16  # images before the first look
    batch: int = 16  # images between looks
    clear: float = 0.8  # an effect ends its trial only beyond this share of the margin; a smaller one may be negligible
    futility: float | None = None  # a trial at least this surely below the margin is given up; null: never


@dataclass
class RunConfig:
    """The run directory."""

    root: str = "runs"  # folder that run directories lie in
    name: str | None = None  # of the run directory; null: <sweep>-<model>-<first 8 of the plan's hash>
    rows: int = 0  # rows of a forward; 0: chosen for the device
    report_every: float = 5.0  # minutes between reports of what is measured so far, while the sweep runs; 0: none
    as_json: bool = False  # mode=status: print JSON
    a: str | None = None  # mode=compare: a run directory, or the name of a run under run.root
    b: str | None = None  # and the one that is compared with it: differences are b - a


@dataclass
class Config:
    """Everything that can be set."""

    mode: str = "run"  # what to do; all but run, plan and train read a finished or unfinished run
    format: str = "latex"  # mode=export: of the tables; latex, csv, parquet
    sweep: SweepConfig = field(default_factory=SweepConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    stats: StatsConfig = field(default_factory=StatsConfig)
    run: RunConfig = field(default_factory=RunConfig)


def as_plain(config: Config) -> dict[str, Any]:
    """For config.yaml: nested dictionaries of plain values."""
    return dataclasses.asdict(config)


def source_specs(config: DataConfig) -> list[SourceSpec]:
    """The data sets, with ``data.root`` filled in where a source has no root of its own."""
    given = config.prompts if isinstance(config.prompts, (list, tuple)) else [config.prompts] if config.prompts else []
    return [
        SourceSpec(
            s.name,
            s.source,
            s.label,
            s.root or (config.root if s.source in NEED_ROOT else None),
            tuple(map(str, given)) if s.source == PROMPTS else (),
        )
        for s in config.sets
    ]


def as_list(value: Any, key: str) -> list[Any]:
    """A list as users write it: ``[a,b]``, ``"a,b"``, or a single value."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, str):
        return [part.strip() for part in value.strip("[] ").split(",") if part.strip()]
    if value is None:
        raise ConfigError(f"{key}: expected a list, got nothing")
    return [value]


def as_indices(value: Any, size: int, key: str) -> list[int]:
    """Indices below ``size`` as users write them: ``all``, ``3``, ``"0-7"``, ``[0,3]``, ``"0,2-4"``."""
    if value == "all":
        return list(range(size))
    chosen: set[int] = set()
    for part in as_list(value, key):
        text = str(part).strip()
        found = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", text)
        low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if low > high:
            raise ConfigError(f"{key}: {text!r} is no index or range; valid: all, 0-{size - 1}, or a list of them")
        if high >= size:
            raise ConfigError(f"{key}: there is no {high}; did you mean {size - 1}? valid: 0 to {size - 1}")
        chosen.update(range(low, high + 1))
    if not chosen:
        raise ConfigError(f"{key}: nothing chosen; valid: all, 0-{size - 1}, or a list of them")
    return sorted(chosen)
