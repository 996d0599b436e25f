"""The grid: every trial of a sweep, ordered, deduplicated, validated and hashed by content, before any work is done."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from circuits.data.sources import DataSet
from circuits.denoisers import Denoiser
from circuits.engine import Window
from circuits.guidance import Guidance
from circuits.interventions import ALL_HEADS, Intervention, Mode, Site
from circuits.levels import path_of, stream_of
from circuits.metrics import VERSION as METRICS_VERSION
from circuits.naming import nearest
from circuits.references import DONOR_BLOCK
from circuits.sites import AttentionLayer
from circuits.vocabulary import GROUP_LEVELS
from sweeps.config import Config, ConfigError, as_indices, as_list
from sweeps.mode_checks import check_modes
from sweeps.targets import find_targets

_canonical = json.JSONEncoder(sort_keys=True).encode  # made once: a plan hashes a hundred thousand trials

COLUMNS = (
    "trial_id", "model", "dataset", "protocol", "level", "layer", "layer_index", "head", "stream", "mode", "strength",
    "window_index", "t_start", "t_end", "sites", "phase", "images", "draw", "factor",
)  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One cell of the grid. The same trial has the same id anywhere, for ever.

    Attributes:
        layer, layer_index, head: "" and -1 for sets, which may span layers; head is -1 for all heads of a layer too. Of
            a block or stage, its path and its first layer's index.
        t_start, t_end: the window, in training timesteps, t_start >= t_end.
        images: units measured, from ``first_image`` on, at most; samples: images generated to look at.
        phase: ``grid``; or ``search``, measured to be chosen from; or ``confirm``, the chosen again on fresh images;
            or ``control``: random subspaces, and the unablated model once more; or one of ``sweeps.phases``.
    """

    trial_id: str
    model: str
    dataset: str
    protocol: str
    level: str
    layer: str
    layer_index: int
    head: int
    stream: str
    intervention: Intervention
    window_index: int
    window: Window
    images: int
    samples: int
    first_image: int = 0
    phase: str = "grid"

    def row(self) -> dict[str, Any]:
        """The trial as a row of trials.parquet."""
        return {
            "trial_id": self.trial_id, "model": self.model, "dataset": self.dataset, "protocol": self.protocol,
            "level": self.level, "layer": self.layer, "layer_index": self.layer_index, "head": self.head,
            "stream": self.stream, "mode": self.intervention.mode.value, "strength": self.intervention.strength,
            "window_index": self.window_index, "t_start": self.window.t_start, "t_end": self.window.t_end,
            "sites": [f"{site.layer}:{site.head}" for site in self.intervention.sites], "phase": self.phase,
            "images": self.images, "draw": self.intervention.draw,
            "factor": self.intervention.factor if self.intervention.mode is Mode.scale else 1.0,
        }  # fmt: skip

    @property
    def label(self) -> str:
        """Short name for people: ``layer 2 head 3, zero, t 999-800, natural``."""
        if self.level == "set":
            where = " + ".join(f"{s.layer} head {s.head}" for s in self.intervention.sites)
        elif self.level in GROUP_LEVELS:
            where = f"{self.level} {self.layer}"
        else:
            where = f"layer {self.layer_index}" + ("" if self.head == ALL_HEADS else f" head {self.head}")
        mode, strength = self.intervention.mode.value, self.intervention.strength
        mode = f"{mode} x{self.intervention.factor:g}" if self.intervention.mode is Mode.scale else mode
        how = mode if strength == 1 else f"{mode} {strength:g}"
        return f"{where}, {how}, t {self.window.t_start}-{self.window.t_end}, {self.dataset}"


@dataclass(frozen=True)
class Subject:
    """What is swept: the loaded model, its attention layers, the data sets at its size, how what it makes is guided."""

    denoiser: Denoiser
    layers: tuple[AttentionLayer, ...]
    data: Mapping[str, DataSet]
    guidance: Guidance | None = None
    _fingerprints: dict[tuple[str, int, int], str] = field(default_factory=dict, repr=False, compare=False)

    def layer(self, name: str) -> AttentionLayer:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, AttentionLayer]:
        return {layer.name: layer for layer in self.layers}

    def fingerprint(self, dataset: str, first: int, images: int) -> str:
        """Of the pixels that a trial measures; computed once, since thousands of trials share them."""
        key = (dataset, first, images)
        if key not in self._fingerprints:
            chosen = self.data[dataset].measured.take(range(first, first + images))
            self._fingerprints[key] = chosen.fingerprint()
        return self._fingerprints[key]

    def reference_fingerprint(self, dataset: str) -> str:
        """Of the pixels that mean ablation averages over."""
        key = (dataset, -1, -1)
        if key not in self._fingerprints:
            self._fingerprints[key] = self.data[dataset].reference.fingerprint()
        return self._fingerprints[key]


@dataclass(frozen=True)
class Plan:
    """All trials of a sweep, in the order in which they are handed out.

    Attributes:
        branches: rows of a generated image: 2 under guidance.
    """

    trials: tuple[Trial, ...]
    timesteps: tuple[int, ...]
    digest: str
    branches: int = 1

    def __len__(self) -> int:
        return len(self.trials)

    def frame(self) -> pd.DataFrame:
        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        for trial in self.trials:  # a row at a time: a hundred thousand of them at once are 80 MB
            for name, value in trial.row().items():
                columns[name].append(value)
        return pd.DataFrame(columns)

    def rows(self) -> int:
        """Rows (one image through the network once) that the trials and their baselines need."""
        return sum(self.rows_of(t) for t in self.trials) + self.baseline_rows()

    def rows_of(self, trial: Trial) -> int:
        """Rows that a trial needs beside its baseline, at most."""
        return (trial.images if trial.protocol == "denoise" else 0) + self.sampled_rows(trial)

    def sampled_rows(self, trial: Trial) -> int:
        """Of these, rows that generate images: from the first step of the window on, before which all are alike."""
        if not generated(trial):
            return 0
        return generated(trial) * self.branches * sum(t <= trial.window.t_start for t in self.timesteps)

    def baseline_rows(self) -> int:
        steps = len(self.timesteps) * self.branches
        passes = {(t.dataset, t.window, t.first_image, t.images) for t in self.trials if t.protocol == "denoise"}
        trajectories = {(t.dataset, t.first_image, generated(t)) for t in self.trials if generated(t)}
        return sum(n for *_, n in passes) + sum(n * steps for *_, n in trajectories)


def generated(trial: Trial) -> int:
    """Images the trial generates: its units under protocol ``sample``, otherwise the samples to look at."""
    return trial.images if trial.protocol == "sample" else trial.samples


def default_run_name(config: Config, plan: Plan) -> str:
    return f"{config.sweep.name}-{Path(config.model.name).name}-{plan.digest[:8]}"


def make_plan(config: Config, subject: Subject) -> Plan:
    """Expand the grid.

    Raises:
        ConfigError: a layer, head or window that the model or sampler does not have.
    """
    sweep = config.sweep
    timesteps = sampler_steps(config, subject)
    layers = choose_layers(sweep.layers, subject.layers)
    windows = choose_windows(sweep.windows, timesteps, subject.denoiser.train_timesteps)
    modes = [Mode(m) for m in as_list(sweep.modes, "sweep.modes")]
    targets = find_targets(config, subject.layers, layers)
    touched = [layer for layer in subject.layers if layer.name in targets.layers]
    images = min(images_of(config, subject).values())
    check_modes(config, modes, touched, windows, timesteps, subject, images=images)
    trials: dict[str, Trial] = {}
    for dataset in subject.data:
        for protocol in as_list(sweep.protocols, "sweep.protocols"):
            for window_index, window in enumerate(windows):
                for layer in layers:
                    for target in targets.at[layer.name]:
                        for mode in modes:
                            intervention = Intervention(mode, target.sites, sweep.strength)
                            trial = make_trial(
                                config, subject, dataset, protocol, intervention, window, window_index,
                                level=target.level,
                            )  # fmt: skip
                            trials.setdefault(trial.trial_id, trial)
    for trial in controls(config, subject, windows, layers):
        trials.setdefault(trial.trial_id, trial)
    ordered = tuple(trials.values())
    return Plan(ordered, timesteps, plan_digest(config, ordered), 1 if subject.guidance is None else 2)


def images_of(config: Config, subject: Subject) -> dict[str, int]:
    """Images of a trial by data set, at most: as many as asked for, or what the data set has up to ``stats.n_max``."""
    return {name: _images(config, data) for name, data in subject.data.items()}


def _images(config: Config, data: DataSet) -> int:
    return config.sweep.images or min(config.stats.n_max, len(data.measured))


def controls(
    config: Config, subject: Subject, windows: Sequence[Window], layers: Sequence[AttentionLayer]
) -> Iterator[Trial]:
    """Per data set, window and layer random subspaces, each as large as a head and removing as much as it has.

    The heads take turns in lending their norm. Beside them the unablated model is measured a second time, in other
    batches: the noise floor of every metric.
    """
    if not config.sweep.controls or "denoise" not in as_list(config.sweep.protocols, "sweep.protocols"):
        return
    for dataset, most in images_of(config, subject).items():
        images = min(config.sweep.control_images, most)
        for index, window in enumerate(windows):
            again = Intervention(Mode.zero, (Site(layers[0].name, 0),), strength=0.0)
            drawn = [
                Intervention(Mode.subspace, (Site(layer.name, draw % layer.heads),), draw=draw)
                for layer in layers
                for draw in range(config.sweep.controls)
            ]
            for intervention in (again, *drawn):
                yield make_trial(
                    config, subject, dataset, "denoise", intervention, window, index, level="head", images=images,
                    samples=0, phase="control",
                )  # fmt: skip


def sampler_steps(config: Config, subject: Subject) -> tuple[int, ...]:
    """The sampler's training timesteps, the noisiest first."""
    most = subject.denoiser.train_timesteps
    if config.sweep.steps > most:
        raise ConfigError(
            f"sweep.steps: the model has {most} timesteps; expected 1 to {most}, got {config.sweep.steps}"
        )
    return subject.denoiser.timesteps(config.sweep.steps)


def check_labels(subject: Subject) -> None:
    """Refuse a data set that is no class of a class-conditional model."""
    classes = subject.denoiser.classes
    for name, data in subject.data.items():
        if classes and not (data.label is not None and 0 <= data.label < classes):
            raise ConfigError(
                f"data.sets: {name!r} has label {'none' if data.label is None else data.label}, and model="
                f"{subject.denoiser.name} is conditioned on classes; valid: 0 to {classes - 1}"
            )


def plan_digest(config: Config, trials: Sequence[Trial]) -> str:
    """Hash of the trials and of what is registered about their analysis before the run."""
    content: dict[str, Any] = {"trials": sorted(t.trial_id for t in trials), "stats": vars(config.stats)}
    if config.sweep.profile.images:  # what is profiled decides which sets of heads are ablated
        content["profile"] = vars(config.sweep.profile)
    return content_hash(content)


def make_trial(
    config: Config,
    subject: Subject,
    dataset: str,
    protocol: str,
    intervention: Intervention,
    window: Window,
    window_index: int,
    *,
    level: str,
    images: int | None = None,
    samples: int | None = None,
    first_image: int = 0,
    phase: str = "grid",
) -> Trial:
    """A trial with its content hash as id: everything that its numbers depend on, and nothing else.

    The factor of mode ``scale`` is the sweep's. Sites of a block or stage are in execution order.
    """
    sweep, data = config.sweep, subject.data[dataset]
    first = intervention.sites[0]
    layer = subject.layer(first.layer)
    images = _images(config, data) if images is None else images
    samples = sweep.samples if samples is None else samples
    of_set = level == "set"
    together = [subject.layer(site.layer) for site in intervention.sites] if level in GROUP_LEVELS else [layer]
    content = {
        "revision": subject.denoiser.revision, "dtype": config.model.dtype,
        "data": subject.fingerprint(dataset, first_image, images), "label": data.label, "dataset": dataset,
        "protocol": protocol,
        "mode": intervention.mode.value, "strength": intervention.strength, "draw": intervention.draw,
        "sites": sorted((s.layer, s.head) for s in intervention.sites),
        "window": [window.t_start, window.t_end], "sampler": ["ddim", sweep.steps], "seed": sweep.seed,
        "first_image": first_image, "images": images, "samples": samples, "metrics": METRICS_VERSION,
        "replacement": _replacement(intervention.mode, dataset, first_image, images, subject),
    }  # fmt: skip
    if intervention.mode is Mode.scale:
        intervention = replace(intervention, factor=sweep.scale)
        content["factor"] = sweep.scale
    if subject.guidance is not None and (protocol == "sample" or samples):
        content["guidance"] = subject.guidance.scale
    return Trial(
        trial_id=content_hash(content)[:16], model=config.model.name, dataset=dataset, protocol=protocol, level=level,
        layer="" if of_set else path_of(layer, level), layer_index=-1 if of_set else layer.index,
        head=ALL_HEADS if of_set else first.head, stream=stream_of(together),
        intervention=intervention,
        window_index=window_index, window=window, images=images, samples=samples, first_image=first_image, phase=phase,
    )  # fmt: skip


def choose_layers(value: Any, layers: Sequence[AttentionLayer]) -> list[AttentionLayer]:
    """Layers by index, range, or module path."""
    names = {layer.name: layer for layer in layers}
    parts = [str(p) for p in as_list(value, "sweep.layers")]
    if value != "all" and any(not re.fullmatch("[-0-9]+", p) for p in parts):
        for part in parts:
            if part not in names:
                raise ConfigError(f"sweep.layers: the model has no layer {part!r}{nearest(part, names)}")
        return [layer for layer in layers if layer.name in parts]
    return [layers[i] for i in as_indices(value, len(layers), "sweep.layers")]


def choose_windows(value: Any, timesteps: Sequence[int], train_timesteps: int) -> list[Window]:
    """Equal ranges of training timesteps by count, or explicit [t_start, t_end] pairs; each holds a sampler step."""
    if re.fullmatch("[0-9]{1,9}", str(value)):
        count = int(value)
        if not 1 <= count <= len(timesteps):
            raise ConfigError(f"sweep.windows: expected a count from 1 to {len(timesteps)} (sweep.steps), got {count}")
        edges = [round(train_timesteps * i / count) for i in range(count + 1)]
        windows = [Window(high - 1, low) for low, high in itertools.pairwise(edges)][::-1]
    else:
        windows = [_pair(item, train_timesteps) for item in as_list(value, "sweep.windows")]
    if not windows:
        raise ConfigError("sweep.windows: nothing chosen; expected a count or a list of [t_start, t_end]")
    for window in windows:
        if not window.select(timesteps):
            middle = (window.t_start + window.t_end) / 2
            near = min(timesteps, key=lambda t: abs(t - middle))
            every = [str(t) for t in timesteps]
            shown = every if len(every) <= 12 else [*every[:5], "...", *every[-5:]]
            raise ConfigError(
                f"sweep.windows: [{window.t_start}, {window.t_end}] holds no sampler step; the nearest is t={near} "
                f"(sweep.steps={len(timesteps)} gives {', '.join(shown)})"
            )
    return windows


def _pair(item: Any, train_timesteps: int) -> Window:
    if not isinstance(item, (list, tuple)) or len(item) != 2 or not all(type(t) is int for t in item):
        raise ConfigError(
            f"sweep.windows: expected a count or a list of [t_start, t_end] such as "
            f"[[{train_timesteps - 1},{train_timesteps // 2}]], got {item!r}"
        )
    t_start, t_end = item
    if not train_timesteps > t_start >= t_end >= 0:
        raise ConfigError(f"sweep.windows: expected {train_timesteps - 1} >= t_start >= t_end >= 0, got {list(item)}")
    return Window(t_start, t_end)


def _replacement(mode: Mode, dataset: str, first: int, images: int, subject: Subject) -> Any:
    """What the replacement is computed from, where that is not the measured images themselves."""
    if mode is Mode.resample:
        return DONOR_BLOCK
    if mode in (Mode.mean, Mode.noise):
        return subject.reference_fingerprint(dataset)
    if mode is Mode.resample_across:
        names = list(subject.data)
        other = names[(names.index(dataset) + 1) % len(names)]
        return [DONOR_BLOCK, other, subject.data[other].label, subject.fingerprint(other, first, images)]
    return None


def content_hash(content: Any) -> str:
    return hashlib.sha256(_canonical(content).encode()).hexdigest()
