"""The one W&B run that sums a sweep up: effects, ranking, comparisons, figures, and the report as an artifact."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from sweeps.tracking.contents import TABLE_ROWS, Picture, Plan, Rows, RunContent, is_control, trial_name

RANKED = 20
AXES = ["model", "dataset", "protocol", "level", "layer", "layer_index", "head", "stream", "mode", "strength"]
AXES += ["window_index", "t_start", "t_end"]


def summary_run(plan: Plan, recorded: int, samples: bool) -> RunContent:
    files = _files(plan.run_dir)
    effects = _frame(files.get("effects.parquet"))
    comparisons = _frame(files.get("comparisons.parquet"))
    tables: dict[str, Rows] = {}
    pictures: dict[str, list[Picture]] = {
        f"figures/{path.stem}": [Picture(path, path.stem)] for path in files.values() if path.suffix == ".png"
    }
    if len(effects):
        tables["effects"] = _rows(_with_axes(effects, plan))
        for metric, ranked in _ranking(effects, plan).items():
            tables[f"ranking/{metric}"] = Rows(list(ranked.columns), _cells(ranked), bar=("where", "percent"))
        if samples and (strongest := _strongest(effects, plan)):
            pictures["samples/strongest"] = strongest
    if len(heads := _frame(files.get("heads.parquet"))):
        tables["heads"] = _rows(heads)
    if len(comparisons):
        tables["comparisons"] = _rows(comparisons)
    return RunContent(
        id=plan.summary_id(),
        name=plan.name[:128],
        job_type="summary",
        content=_digest(files.values()) + f"-{recorded}",
        trials=0,
        config={**plan.config, "run_record": _json(files.get("run.json"))},
        tags=("summary",),
        values=_counts(plan, recorded, effects),
        pictures=pictures,
        tables=tables,
        files=files,
    )


def _files(run_dir: Path) -> dict[str, Path]:
    """What the artifact holds, by name: the report and everything needed to make it again from the measurements."""
    names = ["config.yaml", "trials.parquet", "effects.parquet", "comparisons.parquet", "heads.parquet"]
    paths = [run_dir / name for name in [*names, "failures.parquet", "run.json", "report/index.html"]]
    paths += sorted((run_dir / "report" / "figures").glob("*.png"))
    return {path.relative_to(run_dir).as_posix(): path for path in paths if path.is_file()}


def _with_axes(effects: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """Effects beside the axes of their trial, strongest first; the full table is in the artifact."""
    trials = pd.DataFrame([plan.trials.get(trial, {}) for trial in effects["trial_id"]], index=effects.index)
    axes = trials[[column for column in AXES if column in trials]]
    own = effects.drop(columns=[column for column in axes.columns if column in effects])
    joined = pd.concat([axes, own], axis=1)
    return joined.sort_values("percent", ascending=False) if "percent" in joined else joined


def _ranking(effects: pd.DataFrame, plan: Plan) -> dict[str, pd.DataFrame]:
    """Per metric, the trials that degrade it most, beyond doubt."""
    degraded = effects[effects["verdict"] == "degraded"].sort_values("percent", ascending=False)
    rankings = {}
    for metric, found in degraded.groupby("metric", sort=False):
        top = found.head(RANKED)
        where = [trial_name(plan.trials.get(trial, {})) for trial in top["trial_id"]]
        columns = [c for c in ("percent", "ci_low", "ci_high", "d_z", "q", "trial_id") if c in top]
        table = top[columns].reset_index(drop=True)
        table.insert(0, "where", where)
        table.insert(0, "rank", range(1, len(table) + 1))
        rankings[str(metric)] = table
    return rankings


def _strongest(effects: pd.DataFrame, plan: Plan, limit: int = 8) -> list[Picture]:
    pictures: list[Picture] = []
    degraded = effects[effects["verdict"] == "degraded"].sort_values("percent", ascending=False)
    for trial in dict.fromkeys(degraded["trial_id"]):
        path = plan.run_dir / "samples" / f"{trial}.png"
        if len(pictures) < limit and path.is_file():
            caption = f"{trial_name(plan.trials.get(trial, {}))}: baseline | ablated | difference"
            pictures.append(Picture(path, caption))
    return pictures


def _counts(plan: Plan, recorded: int, effects: pd.DataFrame) -> dict[str, float]:
    failures = plan.run_dir / "failures.parquet"
    counts = {
        "trials/planned": float(len(plan.trials)),
        "trials/controls": float(sum(is_control(axes) for axes in plan.trials.values())),
        "trials/recorded": float(recorded),
        "trials/failed": float(len(_frame(failures if failures.is_file() else None))),
    }
    if "verdict" in effects:
        counts |= {f"effects/{verdict}": float(n) for verdict, n in effects["verdict"].value_counts().items()}
    return counts


def _frame(path: Path | None) -> pd.DataFrame:
    # No partitioning: a run directory called `lr=3` is not a column.
    return pd.DataFrame() if path is None else pq.read_table(path, partitioning=None).to_pandas()


def _rows(frame: pd.DataFrame) -> Rows:
    return Rows(list(frame.columns), _cells(frame.head(TABLE_ROWS)))


def _cells(frame: pd.DataFrame) -> list[list[Any]]:
    return [[_cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]


def _cell(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _json(path: Path | None) -> Mapping[str, Any]:
    return {} if path is None else json.loads(path.read_text(encoding="utf-8"))


def _digest(paths: Any) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
