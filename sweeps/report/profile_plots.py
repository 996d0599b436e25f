"""Figures of what heads do: their types, their entropy over timesteps, their attention, and what types hurt."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sweeps.report import wording
from sweeps.report.axes import MARKERS
from sweeps.report.profiled import TYPES, UNASSIGNED
from sweeps.report.theme import LIGHT, bin_name, dataset_colour

# Dark enough for white letters in the light theme, and the other way round in the dark one.
COLOUR = {
    "edge": "degraded", "texture": "data-3", "semantic_part": "data-2", "symmetry": "improved",
    "positional": "accent", "global_context": "data-4", "local_detail": "data-1", "luminance": "deg-7",
    UNASSIGNED: "faint",
}  # fmt: skip
LETTERS = {
    "edge": "E", "texture": "T", "semantic_part": "P", "symmetry": "S", "positional": "pos", "global_context": "G",
    "local_detail": "loc", "luminance": "L", UNASSIGNED: "",
}  # fmt: skip
_DARK_BINS = {"deg-5", "deg-6", "deg-7", "deg-8", "deg-9", "imp-4", "imp-5", "imp-6"}  # on which ink cannot be read


def type_map(types: pd.DataFrame, datasets: tuple[str, ...]) -> Figure:
    """A panel a data set: layers by heads, the type in each cell, fainter where it is less sure."""
    layers, heads = sorted(types["layer_index"].unique()), sorted(types["head"].unique())
    figure = Figure(figsize=(10.9, 0.95 + 0.36 * len(layers)), layout="constrained")
    panels = figure.subplots(1, len(datasets), squeeze=False, sharey=True)[0]
    small = len(heads) > 12
    for axes, dataset in zip(panels, datasets, strict=True):
        for head in types[types["dataset"] == dataset].itertuples():
            x, y = heads.index(head.head), layers.index(head.layer_index)
            axes.add_patch(Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, color=LIGHT[COLOUR[head.type]], linewidth=0))
            axes.text(
                x, y, LETTERS[head.type], ha="center", va="center", fontsize=5 if small else 7.5, color=LIGHT["paper"]
            )
        axes.set_xlim(-0.6, len(heads) - 0.4)
        axes.set_ylim(len(layers) - 0.4, -0.6)
        axes.set_xticks(range(len(heads)), heads)
        axes.set_yticks(range(len(layers)), [f"L{layer}" for layer in layers])
        axes.set_xlabel("head")
        axes.set_title(wording.short(dataset, 40))
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    present = [name for name in (*TYPES, UNASSIGNED) if name in set(types["type"])]
    keys = [Rectangle((0, 0), 1, 1, color=LIGHT[COLOUR[name]], label=name.replace("_", " ")) for name in present]
    figure.legend(handles=keys, loc="outside upper left", ncols=len(keys), handlelength=1, handleheight=1)
    return figure


def entropy_over_time(heads: pd.DataFrame, datasets: tuple[str, ...], bands: dict[str, pd.DataFrame]) -> Figure:
    """Left: mean entropy of heads by timestep, the middle half of them shaded. Right: differences with their bands.

    `bands`: for ``natural / synthetic`` a table as Profiled.divergence gives it.
    """
    figure = Figure(figsize=(10.9, 3.2), layout="constrained")
    left, *rest = figure.subplots(1, 1 + len(bands), squeeze=False)[0]
    for index, dataset in enumerate(datasets):
        by_t = heads[heads["dataset"] == dataset].groupby("t")["entropy_nats"]
        t, colour = np.array(sorted(by_t.groups)), dataset_colour(index)
        left.fill_between(t, by_t.quantile(0.25), by_t.quantile(0.75), color=colour, alpha=0.15, linewidth=0)
        left.plot(t, by_t.mean(), MARKERS[index % 4], linestyle="-", color=colour, markersize=3.5, linewidth=1.2,
                  label=wording.short(dataset))  # fmt: skip
    keys = float(heads["keys"].max())
    left.axhline(np.log(keys), color=LIGHT["hatch"], linewidth=1)
    left.annotate(f"uniform over {keys:g} keys", (0.01, np.log(keys)), xycoords=("axes fraction", "data"),
                  xytext=(0, -3), textcoords="offset points", va="top", fontsize=7.5, color=LIGHT["muted"])  # fmt: skip
    left.set_ylim(0, 1.06 * np.log(keys))
    left.set_ylabel("entropy of attention, nats")
    left.set_title("Mean over heads; shaded: the middle half of them")
    left.legend(loc="lower left", handletextpad=0.3)
    for axes, (pair, band) in zip(rest, bands.items(), strict=True):
        ordered = band.sort_values("t")
        axes.fill_between(ordered["t"], ordered["low"], ordered["high"], color=LIGHT["rule"], linewidth=0)
        axes.plot(ordered["t"], ordered["difference"], "o-", color=LIGHT["ink"], markersize=3.5, linewidth=1.2)
        for sign in (1, -1):
            axes.plot(ordered["t"], sign * ordered["expected"], color=LIGHT["accent"], linewidth=1, linestyle="--")
        axes.axhline(0, color=LIGHT["hatch"], linewidth=1)
        axes.set_title(f"{pair.replace(' / ', ' less ')}; band: 95% at all timesteps at once")
        axes.set_ylabel("difference, nats")
    for axes in (left, *rest):
        axes.set_xlabel("training timestep, noise on the left")
        axes.invert_xaxis()
    return figure


def attention_maps(maps: pd.DataFrame) -> Figure:
    """A row a head; by timestep first where attention goes on the whole, then from one query (the ring)."""
    heads = list(dict.fromkeys(zip(maps["layer_index"], maps["head"], strict=True)))
    times = sorted(maps["t"].unique(), reverse=True)
    columns = 2 * len(times)
    figure = Figure(figsize=(10.9, 0.55 + 10.0 / (columns + 1.4) * len(heads)), layout="constrained")
    panels = figure.subplots(len(heads), columns, squeeze=False)
    rows = {(found.layer_index, found.head, found.t): found for found in maps.itertuples()}
    for y, (layer, head) in enumerate(heads):
        for x in range(columns):
            axes, found = panels[y, x], rows.get((layer, head, times[x % len(times)]))
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if found is None:
                continue
            from_query = x >= len(times)
            _draw_map(axes, found, from_query)
            if y == 0:
                axes.set_title(f"{'from ○, ' if from_query else 'all, '}t {found.t}", fontsize=7.5, loc="center")
            if x == 0:
                label = f"L{layer}H{head}\n{found.type.replace('_', ' ')}"
                axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=7.5, color=LIGHT["ink"])
    return figure


def _draw_map(axes: Axes, found, from_query: bool) -> None:
    """The face in gray, and over it the attention: none leaves the face as it is, the most covers it with orange."""
    share = np.asarray(found.from_query if from_query else found.received).reshape(found.rows, found.columns)
    side = found.size or max(found.rows, found.columns)
    if found.size:
        gray = (np.asarray(found.picture).reshape(side, side).clip(-1, 1) + 1) / 2
    else:
        gray = np.full((side, side), 0.5)
    row, column = (np.arange(side) * count // side for count in (found.rows, found.columns))
    cover = (share / max(share.max(), 1e-12))[np.ix_(row, column)][..., None] * 0.85
    orange = np.array([0.93, 0.45, 0.05])
    axes.imshow((1 - cover) * (0.25 + 0.75 * gray[..., None]) + cover * orange, interpolation="nearest")
    if from_query:
        axes.plot(
            (found.query_column + 0.5) * side / found.columns - 0.5, (found.query_row + 0.5) * side / found.rows - 0.5,
            "o", markersize=5, markerfacecolor="none", markeredgecolor=LIGHT["accent"], markeredgewidth=1.2,
        )  # fmt: skip


def causal_matrix(matrix: pd.DataFrame, own: dict[str, str], datasets: tuple[str, ...], alpha: float) -> Figure:
    """A panel a data set: types by metrics, the percent beyond random heads; coloured where q over images is small.

    `own`: the metric that each type predicts, framed in its row.
    """
    metrics = list(dict.fromkeys(matrix["metric"]))
    here = [name for name in TYPES if name in set(matrix["type"])]
    shown = [name for name in datasets if name in set(matrix["dataset"])]
    figure = Figure(figsize=(10.9, 0.9 + 0.33 * len(here)), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, dataset in zip(panels, shown, strict=True):
        part = matrix[matrix["dataset"] == dataset]
        for cell in part.itertuples():
            x, y = metrics.index(cell.metric), here.index(cell.type)
            percent = 100 * float(np.expm1(cell.estimate))
            sure = cell.q <= alpha or (cell.ci_high < 0)
            name = bin_name(percent) if sure else "mid"
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=LIGHT[name], edgecolor=LIGHT["paper"]))
            colour = LIGHT["paper"] if name in _DARK_BINS else LIGHT["ink"] if sure else LIGHT["muted"]
            axes.text(x, y, wording.percent(percent), ha="center", va="center", fontsize=6.8, color=colour)
            if own.get(cell.type) == cell.metric:
                axes.add_patch(
                    Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, fill=False, edgecolor=LIGHT["accent"], linewidth=1.8)
                )
        assigned = dict(zip(part["type"], part["assigned"], strict=True))
        axes.set_xlim(-0.5, len(metrics) - 0.5)
        axes.set_ylim(len(here) - 0.5, -0.5)
        axes.set_xticks(range(len(metrics)), [name.replace("_", " ") for name in metrics], rotation=30, ha="right")
        labels = [f"{name.replace('_', ' ')}{'' if assigned.get(name, True) else ' *'}" for name in here]
        axes.set_yticks(range(len(here)), labels, color=LIGHT["ink"])
        axes.set_title(wording.short(dataset, 40))
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    return figure
