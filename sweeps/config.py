"""The configuration as typed values. Hydra composes it once; past this module it is plain frozen data.

``hydra`` and ``omegaconf`` are known here and in ``launch.py`` only.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from circuits.data.sources import SOURCES, SourceSpec
from circuits.interventions import Mode
from circuits.naming import nearest
from circuits.training import TrainingSettings

RUN_MODES = ("run", "plan", "track", "aggregate", "report", "train")
PROTOCOLS = ("denoise", "sample")
LEVELS = ("head", "layer")


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line for the user."""


@dataclass
class SearchConfig:
    """Adaptive search over sets of heads (``sweep=search``)."""

    max_heads: int = 3  # largest set of heads intervened on at once
    candidates: int = 24  # sets tried
    strengths: Any = field(default_factory=lambda: [0.5, 1.0])  # shares of the replacement that may be tried
    grace_images: int = 8  # images before a set may be dropped (ASHA)
    reduction: int = 2  # ASHA keeps one in so many at each rung
    confirm: int = 5  # best sets measured again, on images the search never saw


@dataclass
class SweepConfig:
    """The ablation grid."""

    name: str = MISSING
    kind: str = "grid"  # grid: every cell; search: adaptive, on Ray Tune
    protocols: Any = field(default_factory=lambda: ["denoise"])  # denoise, sample
    levels: Any = field(default_factory=lambda: ["head", "layer"])  # head: each alone; layer: all heads at once
    layers: Any = "all"  # all, "0-2", [0,3], or module paths
    heads: Any = "all"  # all, "0-7", [0,3]
    modes: Any = field(default_factory=lambda: ["zero", "mean", "resample"])
    windows: Any = 5  # a count of equal ranges, or a list of [t_start, t_end]
    strength: float = 1.0  # share of the replacement
    images: int = 64  # per trial and data set; one measurement an image
    samples: int = 4  # images generated per trial, to look at
    steps: int = 10  # sampler steps (DDIM); windows are sets of them
    seed: int = 0
    search: SearchConfig = field(default_factory=SearchConfig)


@dataclass
class ModelConfig:
    name: str = MISSING
    path: str = MISSING  # a shipped model, a diffusers folder, or a hub id
    dtype: str = "float32"  # float32, bfloat16, float16
    training: TrainingSettings | None = None  # only the shipped models are trained here


@dataclass
class SourceConfig:
    name: str = MISSING
    source: str = MISSING
    label: int | None = None
    root: str | None = None


@dataclass
class DataConfig:
    name: str = MISSING
    root: str | None = None  # folder or hub id for the sources that need one
    sets: list[SourceConfig] = field(default_factory=list)


@dataclass
class ClusterConfig:
    name: str = MISSING  # inline: this process; local: Ray on this machine; ray: a running cluster
    address: str | None = None  # of a running Ray cluster
    workers: int = 0  # 0: one a GPU share, or one a CPU core
    gpus_per_worker: float = 1.0  # a fraction shares a GPU
    cpus_per_worker: int = 1
    lease_seconds: float = 3.0  # work handed to a worker at once
    lease_timeout: float = 1800.0  # a lease that takes longer is ended and tried again
    device: str = "auto"  # auto, cpu, cuda


@dataclass
class TrackerConfig:
    name: str = MISSING  # wandb or none
    project: str = "circuit-sweep"
    entity: str | None = None
    mode: str = "auto"  # auto: online if logged in or WANDB_MODE says so, else offline
    granularity: str = "auto"  # trial: a run a trial; group: a run per layer and window; auto
    max_trial_runs: int = 2000
    samples: bool = True


@dataclass
class StatsConfig:
    name: str = MISSING
    metric: str = "noise_mse"  # the registered primary metric
    alpha: float = 0.05
    margin: float = 0.05  # effects within this share of 1 are negligible; fixed before the run


@dataclass
class RunConfig:
    root: str = "runs"
    name: str | None = None  # default <sweep>-<model>-<first 8 of the plan's hash>
    rows: int = 0  # rows of a forward; 0: chosen for the device


@dataclass
class Config:
    mode: str = "run"
    sweep: SweepConfig = field(default_factory=SweepConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    stats: StatsConfig = field(default_factory=StatsConfig)
    run: RunConfig = field(default_factory=RunConfig)


def register() -> None:
    """Give Hydra the schema, so that a mistyped key or value is refused when the configuration is composed."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)


def config_folder() -> Path:
    """conf/ beside launch.py in a checkout, inside the ``sweeps`` package in an installed copy."""
    here = Path(__file__).resolve().parent
    checkout = here.parent / "conf"
    return checkout if (checkout / "config.yaml").is_file() else here / "conf"


def typed(composed: DictConfig) -> Config:
    """The composed configuration as dataclasses, checked as far as it can be without loading anything.

    Raises:
        ConfigError: one line that names what was expected and the nearest valid choice.
    """
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).strip().splitlines()[0]) from error
    assert isinstance(config, Config)
    _check(config)
    return config


def as_plain(config: Config) -> dict[str, Any]:
    """For config.yaml: nested dictionaries of plain values."""
    return dataclasses.asdict(config)


def source_specs(config: DataConfig) -> list[SourceSpec]:
    """The data sets, with ``data.root`` filled in where a source has no root of its own."""
    needs_root = {"image_folder", "celeba"}
    return [
        SourceSpec(s.name, s.source, s.label, s.root or (config.root if s.source in needs_root else None))
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
    chosen: list[int] = []
    for part in as_list(value, key):
        text = str(part).strip()
        low, dash, high = text.partition("-") if not text.startswith("-") else (text, "", "")
        if not low.isdigit() or (dash and not high.isdigit()):
            raise ConfigError(f"{key}: {text!r} is no index or range; valid: all, 0-{size - 1}, or a list of them")
        chosen.extend(range(int(low), int(high if dash else low) + 1))
    wrong = [i for i in chosen if i >= size]
    if wrong:
        raise ConfigError(f"{key}: there is no {wrong[0]}; did you mean {size - 1}? valid: 0 to {size - 1}")
    if not chosen:
        raise ConfigError(f"{key}: nothing chosen; valid: all, 0-{size - 1}, or a list of them")
    return sorted(set(chosen))


def _check(config: Config) -> None:
    sweep = config.sweep
    one_of("mode", config.mode, RUN_MODES)
    one_of("sweep.kind", sweep.kind, ("grid", "search"))
    for key, values, valid in (
        ("sweep.protocols", sweep.protocols, PROTOCOLS),
        ("sweep.levels", sweep.levels, LEVELS),
        ("sweep.modes", sweep.modes, [m.value for m in Mode]),
    ):
        chosen = as_list(values, key)
        if not chosen:
            raise ConfigError(f"{key}: nothing chosen{nearest('', valid)}")
        for value in chosen:
            one_of(key, value, valid)
    one_of("cluster", config.cluster.name, ("inline", "local", "ray"))
    one_of("cluster.device", config.cluster.device, ("auto", "cpu", "cuda"))
    one_of("tracker", config.tracker.name, ("wandb", "none"))
    one_of("tracker.mode", config.tracker.mode, ("auto", "offline", "online", "disabled"))
    one_of("tracker.granularity", config.tracker.granularity, ("auto", "trial", "group"))
    one_of("model.dtype", config.model.dtype, ("float32", "bfloat16", "float16"))
    for spec in config.data.sets:
        one_of(f"data.sets.{spec.name}.source", spec.source, SOURCES)
    names = [s.name for s in config.data.sets]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"data.sets: expected data sets with different names, got {names}")
    _at_least("sweep.images", sweep.images, 2)
    _at_least("sweep.samples", sweep.samples, 0)
    _at_least("sweep.steps", sweep.steps, 1)
    _at_least("sweep.seed", sweep.seed, 0)
    _at_least("run.rows", config.run.rows, 0)
    _at_least("cluster.workers", config.cluster.workers, 0)
    _at_least("cluster.cpus_per_worker", config.cluster.cpus_per_worker, 1)
    _between("sweep.strength", sweep.strength, 0, 1)
    _between("stats.alpha", config.stats.alpha, 0, 1)
    _between("stats.margin", config.stats.margin, 0, 1)
    name = config.run.name
    if name is not None and (not name or Path(name).name != name or name in {".", ".."}):
        raise ConfigError(f"run.name: expected a plain folder name, got {name!r}; choose where it lies with run.root")


def one_of(key: str, value: Any, valid: Any) -> None:
    if value not in list(valid):
        raise ConfigError(f"{key}: unknown {value!r}{nearest(value, valid)}")


def _at_least(key: str, value: float, least: float) -> None:
    if value < least:
        raise ConfigError(f"{key}: expected at least {least}, got {value}")


def _between(key: str, value: float, low: float, high: float) -> None:
    if not low < value <= high:
        raise ConfigError(f"{key}: expected a number above {low} and at most {high}, got {value}")
