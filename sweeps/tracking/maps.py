"""Layer x head maps of a sweep as Plotly figures (plain JSON: plotly itself is not needed), and lines of its heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from sweeps.tracking.contents import Lines
from sweeps.tracking.plan import Plan, ablation, line_name, timestep, window

CELLS = 40_000
"""Of one figure; beyond them only each cell's strongest window is in it."""
HEADS_OF_LINES = 8
SCALE = [[0.0, "#2166ac"], [0.5, "#f7f7f7"], [1.0, "#b2182b"]]
STRONGEST = "strongest window"


def maps(plan: Plan, primary: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """A figure per data set, protocol and mode: percent degradation by layer (rows) and head (columns), "all" last.

    Args:
        primary: effects of the registered metric beside the axes of their trials.
    """
    cells = primary[primary["level"].isin(["head", "layer"]) & primary["percent"].notna()]
    figures = {}
    for (dataset, protocol, mode), part in cells.groupby(["dataset", "protocol", "ablation"], sort=False):
        figures[map_key(dataset, protocol, mode)] = _figure(part, f"{dataset}, {protocol}, {mode}", plan.metric)
    return figures


def map_key(dataset: Any, protocol: Any, mode: Any) -> str:
    return f"map/{dataset}/{protocol}/{mode}"


def _figure(cells: pd.DataFrame, title: str, metric: str) -> dict[str, Any]:
    layers = cells[["layer_index", "layer"]].drop_duplicates().sort_values("layer_index")
    rows = {index: line for line, index in enumerate(layers["layer_index"])}
    heads = sorted(head for head in cells["head"].unique() if head >= 0)
    columns = {head: column for column, head in enumerate([*heads, *([-1] if (cells["head"] < 0).any() else [])])}
    strongest = cells.sort_values("percent").drop_duplicates(["layer_index", "head"], keep="last")
    windows = cells.sort_values("t_start", ascending=False)["window"].unique()
    parts = {STRONGEST: strongest} | {name: cells[cells["window"] == name] for name in windows}
    if len(parts) == 2 or len(rows) * len(columns) * len(parts) > CELLS:
        parts = {STRONGEST: strongest}
    # A whole layer may do ten times what a head does: on one scale all heads would look alike.
    scaled = cells[cells["head"] >= 0] if heads else cells
    limit = float(np.ceil(max(1.0, scaled["percent"].abs().max())))
    note = "* degraded, by its verdict" + ("; colours end at the strongest head" if -1 in columns and heads else "")
    names = [f"head {head}" if head >= 0 else "all" for head in columns]
    data = [
        _trace(part, rows, columns, name == STRONGEST)
        | {"name": name, "x": names, "y": list(layers["layer"]), "zmin": -limit, "zmax": limit}
        for name, part in parts.items()
    ]
    buttons = [
        {"label": name, "method": "update", "args": [{"visible": [other == name for other in parts]}]} for name in parts
    ]
    layout: dict[str, Any] = {
        "title": {"text": f"{title}: percent degradation of {metric}<br><sub>{note}</sub>"},
        "xaxis": {"type": "category", "side": "bottom"},
        "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
        "margin": {"l": 40, "r": 20, "t": 90, "b": 40},
    }
    if len(buttons) > 1:
        layout["updatemenus"] = [{"buttons": buttons, "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}]
    return {"data": data, "layout": layout}


def _trace(cells: pd.DataFrame, rows: Mapping[int, int], columns: Mapping[int, int], visible: bool) -> dict[str, Any]:
    z: list[list[float | None]] = [[None] * len(columns) for _ in rows]
    text = [[""] * len(columns) for _ in rows]
    hover = [[""] * len(columns) for _ in rows]
    for cell in cells.itertuples():
        row, column = rows[cell.layer_index], columns[cell.head]
        z[row][column] = round(float(cell.percent), 4)
        text[row][column] = "*" if cell.verdict == "degraded" else ""
        hover[row][column] = (
            f"{cell.percent:+.1f}% ({cell.ci_low:+.1f} to {cell.ci_high:+.1f}), q {cell.q:.3g}<br>"
            f"{cell.verdict}, {cell.window}"
        )
    return {
        "type": "heatmap", "z": z, "text": text, "texttemplate": "%{text}", "hovertext": hover,
        "hovertemplate": "%{y}, %{x}<br>%{hovertext}<extra></extra>", "colorscale": SCALE, "zmid": 0,
        "colorbar": {"title": {"text": "%"}}, "visible": visible, "xgap": 1, "ygap": 1,
    }  # fmt: skip


def strongest_lines(plan: Plan, primary: pd.DataFrame) -> Lines | None:
    """The heads that degrade most in some window, over the diffusion process."""
    percents = dict(zip(primary["trial_id"], primary["percent"]))
    lines = {
        line_name(plan.trials[trials[0]]): [
            (timestep(plan.trials[trial]), float(percents[trial]))
            for trial in trials
            if np.isfinite(percents.get(trial, np.nan))
        ]
        for trials in plan.lines.values()
        if plan.trials[trials[0]].get("head", -1) >= 0
    }
    drawn = {name: points for name, points in lines.items() if len(points) > 1}
    order = sorted(drawn, key=lambda name: max(y for _, y in drawn[name]), reverse=True)[:HEADS_OF_LINES]
    return Lines("timestep", {name: drawn[name] for name in order}) if order else None


def with_axes(plan: Plan, effects: pd.DataFrame) -> pd.DataFrame:
    """Effects beside the axes of their trials."""
    known = effects[effects["trial_id"].isin(plan.trials.keys())].reset_index(drop=True)
    trials = pd.DataFrame(
        [
            {**axes, "window": window(axes), "ablation": ablation(axes)}
            for axes in (plan.trials[trial] for trial in known["trial_id"].unique())
        ]
    ).set_index("trial_id")
    axes = trials.drop(columns=["sites", *(name for name in trials if name in known)], errors="ignore")
    return pd.concat([axes.loc[known["trial_id"]].reset_index(drop=True), known], axis=1)
