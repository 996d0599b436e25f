"""The W&B runs of a whole sweep: what was measured, and what was found (maps, ranking, tables, report)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from sweeps.seals import json_object, read_parquet
from sweeps.tracking import artifacts
from sweeps.tracking.contents import TABLE_ROWS, Bars, Picture, Rows, RunContent
from sweeps.tracking.maps import maps, strongest_lines, with_axes
from sweeps.tracking.outcomes import Outcomes, cell
from sweeps.tracking.plan import Plan, is_control, timestep, trial_name
from sweeps.tracking.trials import samples_of, thinned

DEGRADED, HIGHEST = "degraded heads", "highest percent"
EFFECTS = "tables/effects"
RANKED = 20
STRONGEST_SAMPLES = 8
TABLE_PICTURES = 200
"""Rows of the effects table that show their sample grid; every trial's own W&B run shows it too."""
WHOLE = "the whole table is in the artifact of effects"
FIRST = ["verdict", "percent", "ci_low", "ci_high", "q", "metric", "dataset", "layer", "head", "window", "ablation"]
REST = ["level", "protocol", "stream", "strength", "layer_index", "window_index", "t_start", "t_end", "model"]


def records_run(plan: Plan, recorded: int) -> RunContent:
    """What was measured, with what, on what: the start of the lineage."""
    facts = _facts(plan)
    uses = [make(plan, facts) for make in (artifacts.model_artifact, artifacts.data_artifact, artifacts.plan_artifact)]
    makes = [artifacts.records_artifact(plan)]
    return RunContent(
        id=plan.run_id("records", None),
        name=f"{plan.name} records"[:128],
        job_type="records",
        content=artifacts.digest([*uses, *makes]),
        trials=0,
        config=_config(plan, facts),
        tags=("records",),
        summary=_counts(plan, recorded) | {f"records/{key}": value for key, value in makes[0].metadata.items()},
        uses=uses,
        makes=makes,
    )


def summary_run(plan: Plan, recorded: int, samples: bool) -> RunContent:
    """What was found."""
    facts = _facts(plan)
    outcomes = Outcomes.read(plan.run_dir, plan.metric)
    effects = with_axes(plan, outcomes.effects) if len(outcomes.effects) else pd.DataFrame()
    primary = effects[effects["metric"] == plan.metric] if len(effects) else effects
    uses = [artifacts.plan_artifact(plan, facts), artifacts.records_artifact(plan)]
    makes = [artifacts.effects_artifact(plan), artifacts.report_artifact(plan)]
    tables, notes = _tables(plan, effects, samples)
    lines = strongest_lines(plan, primary) if len(primary) else None
    pictures = {
        f"figures/{path.stem}": [Picture(path, path.stem)] for path in makes[1].files.values() if path.suffix == ".png"
    }
    if samples and (strongest := _strongest(plan, primary)):
        pictures["samples/strongest"] = strongest
    return RunContent(
        id=plan.summary_id(),
        name=plan.name[:128],
        job_type="summary",
        content=f"{artifacts.digest([*uses, *makes])}-{recorded}",
        trials=0,
        config=_config(plan, facts) | {"settings": dict(plan.config), "run_record": facts},
        tags=("summary",),
        notes="\n".join(notes),
        history=_windows(primary),
        summaries={f"{DEGRADED}/*": "max", f"{HIGHEST}/*": "max"},
        summary=_counts(plan, recorded) | _found(plan, primary),
        pictures=pictures,
        tables=tables,
        bars=_rankings(plan, effects),
        lines={"top/heads over timesteps": lines} if lines else {},
        maps=maps(plan, primary) if len(primary) else {},
        uses=uses,
        makes=[made for made in makes if made.files],
    )


def _config(plan: Plan, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that runs of trials have too, so that one filter or column serves all."""
    model = facts.get("model") or {}
    values = {
        "sweep": plan.name,
        "sweep_id": plan.sweep_id,
        "model": model.get("name") or plan.setting("model", "name"),
        "revision": model.get("revision"),
        "plan": facts.get("plan"),
        "metric": plan.metric,
    }
    return {key: value for key, value in values.items() if value is not None}


def _tables(plan: Plan, effects: pd.DataFrame, samples: bool) -> tuple[dict[str, Rows], list[str]]:
    tables: dict[str, Rows] = {}
    notes: list[str] = []
    if len(effects):
        first = [name for name in FIRST if name in effects]
        rest = [name for name in effects if name not in first and name not in REST and name != "trial_id"]
        order = [*first, *rest, *(name for name in REST if name in effects), "trial_id"]
        ranked = effects.sort_values("percent", ascending=False, kind="stable") if "percent" in effects else effects
        # Else a metric that scatters more would fill what is shown of many trials.
        ranked = ranked.sort_values("metric", key=lambda metric: metric != plan.metric, kind="stable")
        tables[EFFECTS] = _rows(ranked[order], plan if samples else None)
        notes.append(thinned("effects", len(effects), WHOLE, TABLE_ROWS))
    for name in ("heads", "comparisons"):
        frame = _frame(plan.run_dir / f"{name}.parquet")
        if len(frame):
            tables[f"tables/{name}"] = _rows(frame)
            notes.append(thinned(name, len(frame), WHOLE, TABLE_ROWS))
    return tables, [note for note in notes if note]


def _rankings(plan: Plan, effects: pd.DataFrame) -> dict[str, Bars]:
    """Per metric, the trials that degrade it most, beyond doubt."""
    if effects.empty:
        return {}
    degraded = effects[effects["verdict"] == "degraded"].sort_values("percent", ascending=False, kind="stable")
    return {
        f"top/{metric}": Bars(
            "trial",
            "percent",
            [
                (trial_name(plan.trials[trial]), float(percent))
                for trial, percent in zip(top["trial_id"], top["percent"])
            ],
        )
        for metric, top in ((metric, found.head(RANKED)) for metric, found in degraded.groupby("metric", sort=False))
    }


def _strongest(plan: Plan, primary: pd.DataFrame) -> list[Picture]:
    if primary.empty:
        return []
    degraded = primary[primary["verdict"] == "degraded"].sort_values("percent", ascending=False, kind="stable")
    pictures = (samples_of(plan, trial) for trial in degraded["trial_id"])
    return list(islice((picture for picture in pictures if picture), STRONGEST_SAMPLES))


def _windows(primary: pd.DataFrame) -> list[dict[str, float]]:
    """Over the diffusion process, by data set and mode: how many heads are degraded, and by how much at most."""
    if primary.empty or primary["window"].nunique() < 2:
        return []
    heads = primary[primary["level"] == "head"]
    history = []
    for (_, _), part in sorted(heads.groupby(["t_start", "t_end"]), key=lambda found: timestep(found[1].iloc[0])):
        row = {"timestep": float(timestep(part.iloc[0]))}
        for (dataset, ablation), found in part.groupby(["dataset", "ablation"], sort=False):
            row[f"{DEGRADED}/{dataset}/{ablation}"] = float((found["verdict"] == "degraded").sum())
            if found["percent"].notna().any():
                row[f"{HIGHEST}/{dataset}/{ablation}"] = float(found["percent"].max())
        history.append(row)
    return history


def _found(plan: Plan, primary: pd.DataFrame) -> dict[str, Any]:
    if primary.empty:
        return {}
    counts = {f"verdicts/{verdict}": int(n) for verdict, n in primary["verdict"].value_counts().items()}
    known = primary[primary["percent"].notna()]
    if known.empty:
        return counts
    top = known.loc[known["percent"].idxmax()]
    found = {name: cell(top[name]) for name in ("verdict", "percent", "ci_low", "ci_high", "q") if name in top}
    return counts | found | {"strongest": trial_name(plan.trials[top["trial_id"]])}


def _counts(plan: Plan, recorded: int) -> dict[str, Any]:
    return {
        "trials/planned": len(plan.trials),
        "trials/controls": sum(is_control(axes) for axes in plan.trials.values()),
        "trials/recorded": recorded,
        "trials/failed": len(_frame(plan.run_dir / "failures.parquet")),
    }


def _frame(path: Path) -> pd.DataFrame:
    return read_parquet(path).to_pandas() if path.is_file() else pd.DataFrame()


def _rows(frame: pd.DataFrame, pictured: Plan | None = None) -> Rows:
    """At most TABLE_ROWS rows, each column of one kind; with the sample grids of the first trials beside them."""
    kept = frame.head(TABLE_ROWS)
    columns = {}
    for name in kept:
        values = [cell(value) for value in kept[name]]
        kinds = {type(value) for value in values if value is not None}
        mixed = len(kinds) > 1 and not kinds <= {int, float}
        columns[str(name)] = [None if value is None else str(value) for value in values] if mixed else values
    if pictured is not None:
        shown = [samples_of(pictured, trial) for trial in kept["trial_id"].head(TABLE_PICTURES)]
        if any(shown):
            columns = {"samples": [*shown, *[None] * (len(kept) - len(shown))], **columns}
    return Rows(list(columns), [list(row) for row in zip(*columns.values())])


def _facts(plan: Plan) -> dict[str, Any]:
    path = plan.run_dir / "run.json"
    return json_object(path.read_bytes()) if path.is_file() else {}
