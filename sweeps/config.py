"""The configuration as typed values. Hydra composes it once; past this module it is plain frozen data.

``hydra`` and ``omegaconf`` are known here and in ``launch.py`` only.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from circuits.data.sources import SOURCES, SourceSpec
from circuits.interventions import ABLATIONS
from circuits.metrics import DENOISE_METRICS, SAMPLE_METRICS
from circuits.naming import nearest
from circuits.training import TrainingSettings

RUN_MODES = ("run", "plan", "track", "aggregate", "report", "compare", "train")
PROTOCOLS = ("denoise", "sample")
LEVELS = ("head", "layer")
METRICS = {"denoise": DENOISE_METRICS, "sample": SAMPLE_METRICS}  # what each protocol tests
CORRECTIONS = {"obf": ("hierarchical", "bh", "by"), "sign": ("by", "e-bh"), "betting": ("by", "e-bh")}
STATISTICS = ("none", *CORRECTIONS)
FAMILIES = {"layer": "layer_index", "window": "window_index", "mode": "mode", "dataset": "dataset"}  # trial columns
_NEEDS = {
    "sweep.images": "a number of images",
    "data.root": "a folder of images",
    "model.path": "a diffusers folder or a hub id (owner/name)",
    "run.a": "a run directory, or its name under run.root",
    "run.b": "a run directory, or its name under run.root",
}
PROMPTS = "prompts"  # the source whose images the model makes itself
_NEED_ROOT = ("image_folder", "celeba", PROMPTS)
_PLAIN_NAME = re.compile(r"[^/\\\x00-\x1f]{1,200}")


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line for the user."""


@dataclass
class SearchConfig:
    """Adaptive search over sets of heads (``sweep=search``)."""

    max_heads: int = 3  # largest set of heads intervened on at once
    candidates: int = 48  # sets tried
    generation: int = 8  # sets proposed at once; the next ones build on the best so far
    strengths: Any = field(default_factory=lambda: [0.5, 1.0])  # shares of the replacement that may be tried
    grace_images: int = 8  # images of the first rung, before a set may be dropped (ASHA)
    reduction: int = 2  # each rung keeps about one set in so many, and has so many times the images
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
    images: int | None = None  # per trial and data set, at most; null: stats.n_max, or all that a data set has
    controls: int = 0  # random-subspace ablations per data set, window and layer: is a head worse than a random one?
    control_images: int = 16  # images a control is measured on
    samples: int = 4  # images generated per trial, to look at
    steps: int = 10  # sampler steps (DDIM); windows are sets of them
    seed: int = 0
    search: SearchConfig = field(default_factory=SearchConfig)


@dataclass
class ModelConfig:
    name: str = MISSING
    path: str = MISSING  # a shipped model, a diffusers folder, or a hub id
    dtype: str = "float32"  # float32, bfloat16, float16
    size: int | None = None  # height and width of the images in pixels; null: the model's own
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
    root: str | None = None  # folder or hub id for the sources that need one; of prompts a text file, one a line
    prompts: Any = None  # for source prompts: a list of them, instead of a file
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
    root: str = "runs"
    name: str | None = None  # default <sweep>-<model>-<first 8 of the plan's hash>
    rows: int = 0  # rows of a forward; 0: chosen for the device
    a: str | None = None  # mode=compare: a run directory, or the name of a run under run.root
    b: str | None = None  # and the one that is compared with it: differences are b - a


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
    known = schema_keys()
    for key in _keys_of(composed):
        if key not in known:
            raise ConfigError(f"unknown key {key!r}{nearest_key(key)}")
    for key in sorted(str(k) for k in OmegaConf.missing_keys(composed)):
        raise _nothing_given(key)
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'settings'!s}: {str(error).strip().splitlines()[0]}") from error
    assert isinstance(config, Config)
    _check(config)
    return config


def _nothing_given(key: str, expected: str | None = None) -> ConfigError:
    return ConfigError(f"{key}: nothing given; expected {expected or _NEEDS.get(key, 'a value')}, {key}=...")


def schema_keys(schema: type = Config, prefix: str = "") -> list[str]:
    """Every key of the configuration, dotted."""
    keys: list[str] = []
    for name, hint in get_type_hints(schema).items():
        keys.append(prefix + name)
        nested = [kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)]
        if nested and get_origin(hint) is not list:
            keys += schema_keys(nested[0], f"{prefix}{name}.")  # type: ignore[arg-type]
    return keys


def nearest_key(key: str) -> str:
    """``"; did you mean 'sweep.images'?"`` where there is a key like it: among its neighbours first, then anywhere."""
    keys = schema_keys()
    parent = key.rpartition(".")[0]
    for candidates in ([k for k in keys if k.rpartition(".")[0] == parent], keys):
        close = nearest(key, candidates).partition(" valid:")[0]
        if close != ";":
            return close
    return f"; valid: {', '.join(k for k in keys if '.' not in k)}"


def _keys_of(node: DictConfig, prefix: str = "") -> Iterable[str]:
    for name in map(str, node):
        yield f"{prefix}{name}"
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not (child._is_none() or child._is_missing() or child._is_interpolation()):
            yield from _keys_of(child, f"{prefix}{name}.")


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
            s.root or (config.root if s.source in _NEED_ROOT else None),
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


def _check(config: Config) -> None:
    sweep, cluster, stats = config.sweep, config.cluster, config.stats
    one_of("mode", config.mode, RUN_MODES)
    one_of("sweep.kind", sweep.kind, ("grid", "search"))
    for key, given in (("run.a", config.run.a), ("run.b", config.run.b)):
        if config.mode == "compare" and not given:
            raise _nothing_given(key)
    for key, values, valid in (
        ("sweep.protocols", sweep.protocols, PROTOCOLS),
        ("sweep.levels", sweep.levels, LEVELS),
        ("sweep.modes", sweep.modes, [m.value for m in ABLATIONS]),
    ):
        chosen = as_list(values, key)
        if not chosen:
            raise ConfigError(f"{key}: nothing chosen{nearest('', valid)}")
        for value in chosen:
            one_of(key, value, valid)
    if sweep.kind == "search" and sweep.images is None:
        raise _nothing_given("sweep.images")
    _check_stopping(stats)
    one_of("cluster", cluster.name, ("inline", "local", "ray"))
    one_of("cluster.device", cluster.device, ("auto", "cpu", "cuda"))
    one_of("tracker", config.tracker.name, ("wandb", "none"))
    one_of("tracker.mode", config.tracker.mode, ("auto", "offline", "online", "disabled"))
    one_of("tracker.granularity", config.tracker.granularity, ("auto", "trial", "group"))
    one_of("model.dtype", config.model.dtype, ("float32", "bfloat16", "float16"))
    tested = [metric for protocol in as_list(sweep.protocols, "sweep.protocols") for metric in METRICS[protocol]]
    if stats.metric not in tested:
        raise ConfigError(
            f"stats.metric: {stats.metric!r} is not measured by sweep.protocols={sweep.protocols}"
            f"{nearest(stats.metric, tested)}"
        )
    if not config.model.path:
        raise _nothing_given("model.path")
    _check_sources(config.data)
    for name, number, least in (
        ("sweep.images", sweep.images if sweep.images is not None else 2, 2),
        ("model.size", config.model.size if config.model.size is not None else 1, 1),
        ("sweep.controls", sweep.controls, 0),
        ("sweep.control_images", sweep.control_images, 2),
        ("stats.n_max", stats.n_max, 2),
        ("stats.first", stats.first, 2),
        ("stats.batch", stats.batch, 1),
        ("sweep.samples", sweep.samples, 0),
        ("sweep.steps", sweep.steps, 1),
        ("sweep.seed", sweep.seed, 0),
        ("run.rows", config.run.rows, 0),
        ("cluster.workers", cluster.workers, 0),
        ("cluster.cpus_per_worker", cluster.cpus_per_worker, 1),
        ("tracker.max_trial_runs", config.tracker.max_trial_runs, 0),
        ("sweep.search.max_heads", sweep.search.max_heads, 1),
        ("sweep.search.candidates", sweep.search.candidates, 1),
        ("sweep.search.generation", sweep.search.generation, 1),
        ("sweep.search.grace_images", sweep.search.grace_images, 2),
        ("sweep.search.reduction", sweep.search.reduction, 2),
        ("sweep.search.confirm", sweep.search.confirm, 0),
    ):
        if number < least:
            raise ConfigError(f"{name}: expected at least {least}, got {number}")
    strengths = [("sweep.search.strengths", s) for s in as_list(sweep.search.strengths, "sweep.search.strengths")]
    for name, share in (("sweep.strength", sweep.strength), ("stats.margin", stats.margin), *strengths):
        if not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise ConfigError(f"{name}: expected a number above 0 and at most 1, got {share}")
    if not 0 < stats.alpha < 1:
        raise ConfigError(f"stats.alpha: expected a number between 0 and 1, both excluded, got {stats.alpha}")
    for name, amount in (
        ("cluster.gpus_per_worker", cluster.gpus_per_worker),
        ("cluster.lease_seconds", cluster.lease_seconds),
        ("cluster.lease_timeout", cluster.lease_timeout),
    ):
        if not 0 < amount < float("inf"):
            raise ConfigError(f"{name}: expected a number above 0, got {amount}")
    if "://" in config.run.root:
        raise ConfigError(
            f"run.root: expected a local folder, got {config.run.root!r}; object stores are not supported"
        )
    plain_name("sweep.name", sweep.name)
    if config.run.name is not None:
        plain_name("run.name", config.run.name)


def _check_stopping(stats: StatsConfig) -> None:
    one_of("stats.statistic", stats.statistic, STATISTICS)
    for axis in as_list(stats.families, "stats.families"):
        one_of("stats.families", axis, FAMILIES)
    if stats.correction is not None and stats.statistic != "none":
        one_of("stats.correction", stats.correction, CORRECTIONS[stats.statistic])
    if not 0 <= stats.clear < float("inf"):
        raise ConfigError(f"stats.clear: expected a share of the margin, 0 or more, got {stats.clear}")
    if stats.futility is not None and not 0 < stats.futility < 1:
        raise ConfigError(f"stats.futility: expected null or a number between 0 and 1, got {stats.futility}")


def _check_sources(data: DataConfig) -> None:
    for spec in data.sets:
        one_of(f"data.sets.{spec.name}.source", spec.source, (*SOURCES, PROMPTS))
    names = [s.name for s in data.sets]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"data.sets: expected data sets with different names, got {names}")
    for found in source_specs(data):
        if found.source in _NEED_ROOT and not (found.root or found.prompts):
            expected = "a text file of prompts, or data.prompts=[...]" if found.source == PROMPTS else None
            raise _nothing_given("data.root", expected)


def plain_name(key: str, name: str) -> None:
    """A folder name that cannot lead out of ``run.root``."""
    if not _PLAIN_NAME.fullmatch(name) or name in {".", ".."}:
        raise ConfigError(f"{key}: expected a plain folder name, got {name!r}; choose where runs lie with run.root")


def one_of(key: str, value: Any, valid: Any) -> None:
    if value not in list(valid):
        raise ConfigError(f"{key}: unknown {value!r}{nearest(value, valid)}")
