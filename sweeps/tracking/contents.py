"""What a W&B run says: plain data made from the run directory, without wandb."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from sweeps.phases import COMPARED
from sweeps.tracking.measured import Measured

Axes = Mapping[str, Any]
GroupKey = tuple[Any, ...]
GROUP_AXES = ("layer", "layer_index", "window_index", "t_start", "t_end")

TABLE_ROWS = 10_000
"""wandb.Table.MAX_ROWS: what the W&B UI loads at once."""


@dataclass(frozen=True)
class Picture:
    path: Path
    caption: str


@dataclass(frozen=True)
class Rows:
    """A table; `bar` names the columns (label, value) to draw as a bar chart as well."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    bar: tuple[str, str] | None = None


@dataclass(frozen=True)
class RunContent:
    """One W&B run. `content` identifies what it was made of, for the ledger."""

    id: str
    name: str
    job_type: str
    content: str
    trials: int
    config: Mapping[str, Any]
    tags: tuple[str, ...] = ()
    values: Mapping[str, float] = field(default_factory=dict)
    pictures: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    tables: Mapping[str, Rows] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    """Name in the artifact: file."""


@dataclass(frozen=True)
class Plan:
    """The planned trials of a run directory, in order, by id."""

    run_dir: Path
    config: Mapping[str, Any]
    trials: Mapping[str, Axes]

    @classmethod
    def read(cls, run_dir: Path) -> Plan:
        config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8")) or {}
        rows = pq.read_table(run_dir / "trials.parquet", partitioning=None).to_pylist()
        return cls(run_dir, config, {row["trial_id"]: row for row in rows})

    @property
    def name(self) -> str:
        run = self.config.get("run")
        name = run.get("name") if isinstance(run, Mapping) else None
        return str(name or self.run_dir.name)

    @cached_property
    def groups(self) -> dict[GroupKey, list[str]]:
        """Trials per layer and window, and the controls of each apart."""
        groups: dict[GroupKey, list[str]] = {}
        for trial, axes in self.trials.items():
            groups.setdefault(group_of(axes), []).append(trial)
        return groups

    def trial_id(self, trial: str) -> str:
        return self._run_id("trial", trial)

    def group_id(self, key: GroupKey) -> str:
        return self._run_id("group", key)

    def summary_id(self) -> str:
        return self._run_id("summary", None)

    def _run_id(self, kind: str, key: Any) -> str:
        """The same for the same run name and trial, anywhere, for ever: uploading twice overwrites."""
        return f"{kind}-{hashlib.sha256(json.dumps([self.name, kind, key]).encode()).hexdigest()[:16]}"


def group_of(axes: Axes) -> GroupKey:
    """Trials shown together; controls are no ablations, so they stay among themselves."""
    place = tuple(axes.get(key) for key in GROUP_AXES)
    return (*place, "control") if is_control(axes) else place


def is_control(axes: Axes) -> bool:
    """What is measured to be compared: random subspaces, the unablated model once more, sets of heads."""
    return axes.get("phase") in COMPARED


def trial_run(plan: Plan, trial: str, measured: Measured, samples: bool) -> RunContent:
    axes = plan.trials[trial]
    tags = [axes.get(key) for key in ("mode", "dataset", "protocol", "level")]
    return RunContent(
        id=plan.trial_id(trial),
        name=trial_name(axes),
        job_type="trial",
        content=str(measured.rows),
        trials=1,
        config=axes,
        tags=tuple(dict.fromkeys(str(tag)[:64] for tag in tags if tag)),
        values=_timestep(axes) | _values(measured),
        pictures={"samples": _samples(plan, [trial])} if samples else {},
    )


def group_run(plan: Plan, key: GroupKey, measured: Mapping[str, Measured], samples: bool) -> RunContent:
    """All trials of a layer and window as a table, strongest first, with the sample grids of the strongest."""
    axes = dict(zip(GROUP_AXES, key))
    controls = is_control(plan.trials[next(iter(measured))])
    trials = sorted(measured, key=lambda trial: _strength(measured[trial]), reverse=True)
    metrics = sorted({metric for found in measured.values() for metric in found.metrics})
    values = _timestep(axes) | {"trials": float(len(trials))}
    for metric in metrics:
        percents = [found.metrics[metric].percent for found in measured.values() if metric in found.metrics]
        values |= _finite({f"{metric}/percent_max": max((p for p in percents if math.isfinite(p)), default=math.nan)})
    return RunContent(
        id=plan.group_id(key),
        name=f"{axes['layer']} {_window(axes)}" + (" controls" if controls else ""),
        job_type="control" if controls else "group",
        content=str(sum(found.rows for found in measured.values())),
        trials=len(trials),
        config={**axes, "model": plan.trials[trials[0]].get("model"), "trials": len(trials)},
        tags=("group", "control") if controls else ("group",),
        values=values,
        pictures={"samples": _samples(plan, trials, limit=8)} if samples else {},
        tables={"table": _trials_table(plan, trials[:TABLE_ROWS], measured, metrics)},
    )


def trial_name(axes: Axes) -> str:
    """For people: `mid.attn h3 zero t800-600 lfw_faces denoise`; of a control `mid.attn subspace 5 t800-600 ...`."""
    where = axes.get("layer") or "+".join(map(str, axes.get("sites") or [])) or str(axes.get("level"))
    head = axes.get("head")
    mode = f"scale x{axes.get('factor'):g}" if axes.get("mode") == "scale" else axes.get("mode")
    parts = [str(where), f"h{head}" if head is not None and head >= 0 else "", mode, _window(axes)]
    if axes.get("phase") == "control":
        parts[:3] = [str(where), f"subspace {axes.get('draw')}"] if axes.get("strength") else ["unablated again"]
    parts += [axes.get("dataset"), axes.get("protocol")]
    return " ".join(str(part) for part in parts if part)[:128]


def _window(axes: Axes) -> str:
    return f"t{axes.get('t_start')}-{axes.get('t_end')}"


def _timestep(axes: Axes) -> dict[str, float]:
    """The middle of the window: the x axis on which trials of the same head line up, window after window."""
    start, end = axes.get("t_start"), axes.get("t_end")
    return {} if start is None or end is None else {"timestep": (start + end) / 2}


def _values(measured: Measured) -> dict[str, float]:
    values: dict[str, float] = {}
    for metric, means in measured.metrics.items():
        numbers = {
            "percent": means.percent,
            "baseline": means.baseline,
            "ablated": means.ablated,
            "log_ratio": means.log_ratio,
            "units": means.units,
        }
        values |= {f"{metric}/{name}": value for name, value in numbers.items()}
    return _finite(values)


def _strength(measured: Measured) -> float:
    percents = [means.percent for means in measured.metrics.values() if not math.isnan(means.percent)]
    return max(percents, default=-math.inf)


def _samples(plan: Plan, trials: Iterable[str], limit: int = 1) -> list[Picture]:
    pictures: list[Picture] = []
    for trial in trials:
        path = plan.run_dir / "samples" / f"{trial}.png"
        if len(pictures) < limit and path.is_file():
            pictures.append(Picture(path, f"{trial_name(plan.trials[trial])}: baseline | ablated | difference"))
    return pictures


def _trials_table(plan: Plan, trials: Sequence[str], measured: Mapping[str, Measured], metrics: Sequence[str]) -> Rows:
    axes = [key for key in next(iter(plan.trials.values())) if key != "sites"]
    numbers = [f"{metric}/{name}" for metric in metrics for name in ("percent", "baseline", "ablated", "log_ratio")]
    rows = []
    for trial in trials:
        values = _values(measured[trial])
        rows.append([plan.trials[trial].get(key) for key in axes] + [values.get(name) for name in numbers])
    return Rows([*axes, *numbers], rows)


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}
