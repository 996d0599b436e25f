"""Figures of what a notebook has measured: matplotlib objects that belong to the caller; nothing global is touched.

They are drawn without pyplot. A notebook shows them after ``%matplotlib inline``; anywhere, ``figure.savefig`` writes
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from circuits.interventions import ALL_HEADS
from circuits.naming import nearest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from circuits.profiles import HeadProfiles

EDGES = (-50, -20, -10, -5, -2, -1, 1, 2, 5, 10, 20, 50, 100)
"""Of the bins of colour, in percent: the same effect has the same colour in every figure."""

COLOURS = {"degraded": "#c2571d", "improved": "#2268ac", "negligible": "#8a949e", "inconclusive": "#c5cbd1"}
NO_CLAIM = "#eaedf0"
_MOST_ROWS = 40
_NARROWEST, _LOWEST = 4.6, 3.0  # inches that a heatmap of few cells needs for its texts and colours


def plot_heatmap(effects: pd.DataFrame, metric: str = "noise_mse") -> Figure:
    """Layer x head, a panel a window; a row of panels for each data set, mode and strength.

    Colour is percent degradation, and only where the verdict is ``degraded`` or ``improved``; cells without a claim are
    gray (hatched where inconclusive), cells that were not measured are empty. Sets of heads have no cell.
    """
    from matplotlib.figure import Figure

    chosen = _of_metric(effects, metric)
    cells = chosen[chosen["sites"].str.len() == 1]
    if cells.empty:
        raise ValueError("expected effects of single heads or whole layers, got sets of heads only: see plot_effects")
    cells = cells.assign(mode=[_mode(row) for row in cells.itertuples()])
    rows = list(cells.groupby(["dataset", "mode"], sort=False).groups)
    windows = sorted(set(zip(cells["t_start"], cells["t_end"])), reverse=True)
    heads = sorted(set(cells["head"]) - {ALL_HEADS}) + ([ALL_HEADS] if ALL_HEADS in set(cells["head"]) else [])
    layers = sorted(set(cells["layer_index"]))
    width = 1.6 + len(windows) * max(1.6, 0.3 * len(heads))
    height = len(rows) * (0.9 + 0.3 * len(layers)) + 0.3
    figure = Figure(figsize=(max(width, _NARROWEST), max(height, _LOWEST)), layout="constrained")
    panels = figure.subplots(len(rows), len(windows), squeeze=False, sharex=True, sharey=True)
    bins, colours = _bins()
    for line, (dataset, mode) in zip(panels, rows):
        for panel, window in zip(line, windows):
            here = cells[(cells["dataset"] == dataset) & (cells["mode"] == mode)]
            here = here[(here["t_start"] == window[0]) & (here["t_end"] == window[1])]
            _draw_cells(panel, here, layers, heads, bins, colours)
            panel.set_title(f"{dataset}, {mode}\nt {window[0]} to {window[1]}", fontsize=8, loc="left")
        line[0].set_ylabel("layer", fontsize=8)
    for panel in panels[-1]:
        panel.set_xlabel("head", fontsize=8)
    figure.supxlabel("gray: negligible; hatched: inconclusive; empty: not measured", fontsize=7.5, color="#56606b")
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(bins, colours), ax=panels, extend="both", ticks=EDGES, aspect=30)
    bar.ax.tick_params(labelsize=7)
    bar.set_label(f"percent degradation of {metric}", fontsize=8)
    return figure


def _draw_cells(panel: Axes, cells: pd.DataFrame, layers: list[int], heads: list[int], bins: Any, colours: Any) -> None:
    from matplotlib.patches import Rectangle

    for cell in cells.itertuples():
        claimed = cell.verdict in ("degraded", "improved")
        panel.add_patch(
            Rectangle(
                (heads.index(cell.head), layers.index(cell.layer_index)),
                1,
                1,
                facecolor=colours(bins(cell.percent)) if claimed else NO_CLAIM,
                edgecolor="white" if claimed or cell.verdict == "negligible" else COLOURS["inconclusive"],
                hatch="////" if cell.verdict == "inconclusive" else None,
                linewidth=0.8,
            )
        )
    panel.set(xlim=(0, len(heads)), ylim=(len(layers), 0))
    panel.set_xticks(np.arange(len(heads)) + 0.5, ["all" if head == ALL_HEADS else str(head) for head in heads])
    panel.set_yticks(np.arange(len(layers)) + 0.5, [str(layer) for layer in layers])
    panel.tick_params(length=0, labelsize=7)
    panel.spines[:].set_visible(False)


def _bins() -> tuple[Any, Any]:
    """Percent -> bin -> colour; the bin around 0 is white."""
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap

    worse, better = sum(edge > 0 for edge in EDGES), sum(edge < 0 for edge in EDGES)
    shades = [*np.linspace(0.02, 0.42, better), 0.5, *np.linspace(0.58, 0.98, worse)]
    return BoundaryNorm(EDGES, len(EDGES) + 1, extend="both"), ListedColormap(colormaps["RdBu_r"](shades))


def plot_effects(effects: pd.DataFrame, metric: str = "noise_mse", most: int = _MOST_ROWS) -> Figure:
    """Percent degradation with its interval, the largest first, coloured by verdict; ``most`` rows at most."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    chosen = _of_metric(effects, metric)
    shown = chosen.reindex(chosen["percent"].abs().sort_values(ascending=False, kind="stable").index).head(most)
    figure = Figure(figsize=(7, 0.9 + 0.24 * len(shown)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(shown))
    for place, row in zip(places, shown.itertuples()):
        axes.plot([row.ci_low, row.ci_high], [place, place], color=COLOURS[row.verdict], linewidth=1.6)
        axes.plot(row.percent, place, "o", color=COLOURS[row.verdict], markersize=4.5)
    axes.axvline(0, color="#56606b", linewidth=0.8)
    axes.set_yticks(places, [_label(row) for row in shown.itertuples()])
    axes.invert_yaxis()
    axes.set_xlabel(f"percent degradation of {metric}, with 95% interval", fontsize=8)
    axes.tick_params(labelsize=7.5)
    axes.spines[["top", "right"]].set_visible(False)
    there = [verdict for verdict in COLOURS if verdict in set(shown["verdict"])]
    keys = [Line2D([], [], color=COLOURS[verdict], marker="o", label=verdict) for verdict in there]
    axes.legend(handles=keys, fontsize=7.5, frameon=False, loc="best")
    return figure


def plot_profile(profiles: HeadProfiles, measure: str = "entropy_nats") -> Figure:
    """Heads x timesteps, a panel a data set: any measure or probe of ``profiles.frame()``."""
    from matplotlib.figure import Figure

    table = profiles.frame()
    if measure not in table or not pd.api.types.is_numeric_dtype(table[measure]):
        raise ValueError(f"measure: unknown {measure!r}{nearest(measure, table.columns[5:])}")
    datasets = list(dict.fromkeys(table["dataset"]))
    names = [f"{layer.index}.{head}" for layer, head in profiles.heads]
    size = (1.4 + 3.2 * len(datasets), 1.1 + 0.16 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(datasets), squeeze=False, sharey=True)[0]
    low, high = np.nanmin(table[measure]), np.nanmax(table[measure])
    for panel, dataset in zip(panels, datasets):
        values = table.loc[table["dataset"] == dataset, measure].to_numpy().reshape(len(profiles.timesteps), -1)
        picture = panel.imshow(values.T, aspect="auto", vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
        panel.set_title(dataset, fontsize=8.5, loc="left")
        panel.set_xlabel("timestep", fontsize=8)
        panel.set_xticks(range(len(profiles.timesteps)), [str(t) for t in profiles.timesteps], rotation=90)
        panel.set_yticks(range(len(names)), names)
        panel.tick_params(length=0, labelsize=6.5)
    panels[0].set_ylabel("layer.head", fontsize=8)
    bar = figure.colorbar(picture, ax=list(panels))
    bar.set_label(measure.replace("_", " "), fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _of_metric(effects: pd.DataFrame, metric: str) -> pd.DataFrame:
    chosen = effects[effects["metric"] == metric]
    if chosen.empty:
        raise ValueError(f"no effects of metric {metric!r}{nearest(metric, effects['metric'].unique())}")
    return chosen


def _label(row: Any) -> str:
    if len(row.sites) > 1:
        where = f"{len(row.sites)} sites" + (f" of layer {row.layer_index}" if row.layer_index >= 0 else "")
    else:
        where = f"layer {row.layer_index}" + ("" if row.head == ALL_HEADS else f" head {row.head}")
    return f"{where}, {_mode(row)}, t {row.t_start} to {row.t_end}, {row.dataset}"


def _mode(row: Any) -> str:
    return row.mode if row.strength == 1 else f"{row.mode} {row.strength:g}"
