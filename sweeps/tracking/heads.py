"""A W&B run of a head over the diffusion process, so that heads, and sweeps, can be laid over one another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweeps.tracking.contents import RunContent, finite
from sweeps.tracking.outcomes import Outcomes
from sweeps.tracking.plan import (
    LINE_AXES,
    Key,
    Plan,
    ablation,
    line_name,
    shown_axes,
    shown_tags,
    timestep,
    trial_name,
    where,
    window,
)  # fmt: skip

PREFIX = "timesteps"
"""Of every metric over the diffusion process, so that its charts show these runs alone."""
INTERVAL = "interval"


def head_runs(plan: Plan, outcomes: Outcomes, limit: int) -> list[RunContent]:
    """A run per head (layer, block, stage), mode and data set with more than one window; above `limit` one per layer.

    Of a layer the mean and the maximum over its heads.
    """
    lines = {key: trials for key, trials in plan.lines.items() if len(trials) > 1}
    if len(lines) <= limit:
        runs = [_head_run(plan, key, trials, outcomes) for key, trials in lines.items()]
    else:
        layers: dict[Key, list[list[str]]] = {}
        for key, trials in lines.items():
            if plan.trials[trials[0]].get("head", -1) >= 0:
                layers.setdefault(_without_head(key), []).append(trials)
        runs = [_layer_run(plan, key, members, outcomes) for key, members in layers.items()]
    return [run for run in runs if run.history]


def _head_run(plan: Plan, key: Key, trials: list[str], outcomes: Outcomes) -> RunContent:
    axes = dict(zip(LINE_AXES, key))
    found = {trial: outcomes.of(trial) for trial in trials}
    history = []
    for trial in trials:
        values = {f"{PREFIX}/{metric}": of["percent"] for metric, of in found[trial].items() if "percent" in of}
        primary = found[trial].get(outcomes.metric, {})
        values |= {
            f"{INTERVAL}/{outcomes.metric}/{end}": primary[end] for end in ("ci_low", "ci_high") if end in primary
        }
        if values:
            history.append({"timestep": timestep(plan.trials[trial])} | values)
    return RunContent(
        id=plan.run_id("head", key, where(axes), ablation(axes), axes["dataset"], axes["protocol"]),
        name=line_name(axes),
        job_type="head",
        content=outcomes.digest(trials),
        trials=0,
        config=shown_axes(plan, axes) | {"windows": len(trials)},
        tags=shown_tags(PREFIX, axes["mode"], axes["dataset"], axes["protocol"], axes["level"], where(axes)),
        history=history,
        summaries={f"{PREFIX}/*": "max,mean", f"{INTERVAL}/*": ""},
        summary=outcomes.strongest(trials, lambda trial: window(plan.trials[trial])),
    )


def _layer_run(plan: Plan, key: Key, members: list[list[str]], outcomes: Outcomes) -> RunContent:
    axes = dict(zip(LINE_AXES, key))
    windows: dict[float, list[Mapping[str, Any]]] = {}
    for trials in members:
        for trial in trials:
            windows.setdefault(timestep(plan.trials[trial]), []).append(outcomes.primary(trial))
    history = []
    for middle, found in sorted(windows.items()):
        percents = [outcome["percent"] for outcome in found if "percent" in outcome]
        if percents:
            values = {
                f"{PREFIX}/{outcomes.metric}": sum(percents) / len(percents),
                f"{PREFIX}/{outcomes.metric}/max": max(percents),
                f"{PREFIX}/degraded": float(sum(outcome.get("verdict") == "degraded" for outcome in found)),
            }
            history.append({"timestep": middle} | finite(values))
    every = [trial for trials in members for trial in trials]
    return RunContent(
        id=plan.run_id("layer", key, where(axes), ablation(axes), axes["dataset"], axes["protocol"]),
        name=f"{line_name(axes)} heads",
        job_type="layer",
        content=outcomes.digest(every),
        trials=0,
        config=shown_axes(plan, axes) | {"windows": len(windows), "heads": len(members)},
        tags=shown_tags(PREFIX, axes["mode"], axes["dataset"], axes["protocol"], where(axes)),
        history=history,
        summaries={f"{PREFIX}/*": "max,mean"},
        summary=outcomes.strongest(every, lambda trial: trial_name(plan.trials[trial])),
    )


def _without_head(key: Key) -> Key:
    return tuple(-1 if axis == "head" else value for axis, value in zip(LINE_AXES, key))
