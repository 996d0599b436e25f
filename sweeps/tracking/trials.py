"""A W&B run of a trial, and one of all trials of a layer and window."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from sweeps.tracking.contents import TABLE_ROWS, Picture, Rows, RunContent, finite
from sweeps.tracking.measured import Measured
from sweeps.tracking.outcomes import Outcomes, shown
from sweeps.tracking.plan import (
    GROUP_AXES,
    Axes,
    Key,
    Plan,
    is_control,
    shown_axes,
    shown_tags,
    timestep,
    trial_name,
    where,
    window,
)

GROUPED_SAMPLES = 8


def trial_content(rows: int, outcomes: Outcomes, trials: Sequence[str]) -> str:
    """For the ledger: how much was measured, and what is known of it."""
    digest = outcomes.digest(trials)
    return f"{rows}/{digest}" if digest else str(rows)


def trial_run(plan: Plan, trial: str, measured: Measured, outcomes: Outcomes, samples: bool) -> RunContent:
    """One trial. What the aggregation found of it goes to the run table, so that runs can be sorted by verdict."""
    axes, found = plan.trials[trial], outcomes.of(trial)
    verdict = found.get(outcomes.metric, {}).get("verdict")
    # The charts show what the verdict is about: after the aggregation, the images that it took.
    percents = {f"{metric}/percent": means.percent for metric, means in measured.metrics.items()}
    percents |= {f"{metric}/percent": values["percent"] for metric, values in found.items() if "percent" in values}
    return RunContent(
        id=plan.trial_id(trial),
        name=trial_name(axes),
        job_type="trial",
        content=trial_content(measured.rows, outcomes, [trial]),
        trials=1,
        config=shown_axes(plan, axes),
        tags=shown_tags(
            axes.get("mode"), axes.get("dataset"), axes.get("protocol"), axes.get("level"), where(axes), window(axes),
            verdict,
        ),
        history=[_at(axes) | finite(percents)],
        summary=_means(measured) | shown(found, outcomes.metric),
        pictures={"samples": _samples(plan, [trial])} if samples else {},
    )  # fmt: skip


def group_run(plan: Plan, key: Key, measured: Mapping[str, Measured], outcomes: Outcomes, samples: bool) -> RunContent:
    """All trials of a layer and window as a table, strongest first, with the sample grids of the strongest."""
    axes = dict(zip(GROUP_AXES, key))
    first = plan.trials[next(iter(measured))]
    controls = is_control(first)
    trials = sorted(measured, key=lambda trial: _strength(measured[trial]), reverse=True)
    metrics = sorted({metric for found in measured.values() for metric in found.metrics})
    highest: dict[str, float] = {}
    for metric in metrics:
        percents = [found.metrics[metric].percent for found in measured.values() if metric in found.metrics]
        highest[f"{'control/' if controls else ''}{metric}/percent_max"] = max(
            (p for p in percents if math.isfinite(p)), default=math.nan
        )
    verdicts = [outcomes.primary(trial).get("verdict") for trial in trials]
    counts = {f"verdicts/{verdict}": verdicts.count(verdict) for verdict in dict.fromkeys(verdicts) if verdict}
    rows = sum(found.rows for found in measured.values())
    name = axes["layer"] or "sets of heads"
    return RunContent(
        id=plan.group_id(key),
        name=f"{name} {window(axes)}" + (" controls" if controls else ""),
        job_type="control" if controls else "group",
        content=trial_content(rows, outcomes, [trial for trial in plan.groups[key] if trial in measured]),
        trials=len(trials),
        config=shown_axes(plan, {**axes, "model": first.get("model")}) | {"trials": len(trials)},
        tags=shown_tags("group", "control" if controls else "", where(axes), window(axes)),
        notes=thinned("table", len(trials), "the plan's and the effects' artifacts hold all of them", TABLE_ROWS),
        history=[_at(axes) | finite(highest)],
        summary=counts | outcomes.strongest(trials, lambda trial: trial_name(plan.trials[trial])),
        pictures={"samples": _samples(plan, trials, limit=GROUPED_SAMPLES)} if samples else {},
        tables={"table": _trials_table(plan, trials[:TABLE_ROWS], measured, outcomes, metrics)},
    )


def thinned(what: str, rows: int, rest: str, kept: int) -> str:
    """A note where a table does not show everything."""
    return "" if rows <= kept else f"{what}: the first {kept:,} of {rows:,} rows; {rest}."


def _at(axes: Axes) -> dict[str, float]:
    return {} if axes.get("t_end") is None else {"timestep": timestep(axes)}


def _means(measured: Measured) -> dict[str, float]:
    values = {"units": float(max((means.units for means in measured.metrics.values()), default=0))}
    for metric, means in measured.metrics.items():
        values |= {f"{metric}/baseline": means.baseline, f"{metric}/ablated": means.ablated}
    return finite(values)


def _strength(measured: Measured) -> float:
    percents = [means.percent for means in measured.metrics.values() if not math.isnan(means.percent)]
    return max(percents, default=-math.inf)


def samples_of(plan: Plan, trial: str) -> Picture | None:
    path = plan.run_dir / "samples" / f"{trial}.png"
    caption = f"{trial_name(plan.trials[trial])}: baseline | ablated | difference" if trial in plan.trials else ""
    return Picture(path, caption) if caption and path.is_file() else None


def _samples(plan: Plan, trials: Iterable[str], limit: int = 1) -> list[Picture]:
    pictures: list[Picture] = []
    for trial in trials:
        if len(pictures) < limit and (picture := samples_of(plan, trial)):
            pictures.append(picture)
    return pictures


def _trials_table(
    plan: Plan, trials: Sequence[str], measured: Mapping[str, Measured], outcomes: Outcomes, metrics: Sequence[str]
) -> Rows:
    axes = [key for key in plan.trials[trials[0]] if key != "sites"]
    numbers = [f"{metric}/{name}" for metric in metrics for name in ("percent", "baseline", "ablated")]
    found = [name for name in ("verdict", "percent", "ci_low", "ci_high", "q") if len(outcomes.effects)]
    rows = []
    for trial in trials:
        means = measured[trial].metrics
        values = _means(measured[trial]) | finite({f"{metric}/percent": m.percent for metric, m in means.items()})
        outcome = outcomes.primary(trial)
        rows.append(
            [plan.trials[trial].get(key) for key in axes]
            + [outcome.get(name) for name in found]
            + [values.get(name) for name in numbers]
        )
    return Rows([*axes, *found, *numbers], rows)
