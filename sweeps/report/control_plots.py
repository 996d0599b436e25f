"""Heads beside the random subspaces of their layer and window."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sweeps.report import wording
from sweeps.report.axes import key, percent_axis
from sweeps.report.controls import PLACE
from sweeps.report.theme import LIGHT

_NAMED = 6  # heads a panel
_NAME = (0.05, 0.05)  # width and height of a name in a panel: closer than this two would overlap
_LABELS = 32  # layers that have room for their names
_ROOMY = 50  # layers, those of every window counted, up to which marks have their full size


def against_controls(heads: pd.DataFrame, drawn: pd.DataFrame, datasets: tuple[str, ...], alpha: float) -> Figure:
    """A panel a data set, in it the windows side by side, in each the layers; a mark for each control and each head.

    `heads` and `drawn` as in Controls. A head is drawn at its effect on the images of the controls.
    """
    shown = [name for name in datasets if name in set(heads["dataset"])]
    figure = Figure(figsize=(10.9, 0.5 + 2.5 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    places = heads[["window_index", "layer_index"]].drop_duplicates().sort_values(["window_index", "layer_index"])
    gap = max(0.5, 0.07 * places["layer_index"].nunique())  # before a window
    step = 1 + gap * (places["window_index"] != places["window_index"].shift()).to_numpy()
    x = dict(zip(places.itertuples(index=False, name=None), np.cumsum(step), strict=True))
    middle = drawn.groupby(PLACE)["mean_log_ratio"].mean()
    for axes, dataset in zip(panels, shown, strict=True):
        _draw_panel(
            axes,
            _placed(heads[heads["dataset"] == dataset], x).assign(
                at=lambda part: part["estimate"] + middle.reindex(pd.MultiIndex.from_frame(part[PLACE])).to_numpy()
            ),
            _placed(drawn[drawn["dataset"] == dataset], x),
            alpha,
        )
        axes.set_title(wording.short(dataset, 40), pad=14)
        _label_places(axes, heads, x)
    keys = [
        key("o", LIGHT["degraded"], f"head, worse than its controls over images (q ≤ {100 * alpha:g}%)"),
        key("o", LIGHT["muted"], "head, not shown to be worse", filled=False),
        key("_", LIGHT["data-2"], "random subspace; bar: their range"),
    ]
    figure.legend(handles=keys, loc="outside upper left", ncols=3, handletextpad=0.2)
    return figure


def _placed(rows: pd.DataFrame, x: dict[tuple[int, int], float]) -> pd.DataFrame:
    places = list(zip(rows["window_index"], rows["layer_index"], strict=True))
    return rows.assign(x=[x.get(place, np.nan) for place in places]).dropna(subset="x")


def _draw_panel(axes: Axes, heads: pd.DataFrame, drawn: pd.DataFrame, alpha: float) -> None:
    apart = min(0.19, 0.025 * drawn["x"].nunique())  # heads and controls from the middle of their layer
    size = max(0.4, min(1.0, _ROOMY / max(1, drawn["x"].nunique())))
    for place, part in drawn.groupby("x")["mean_log_ratio"]:
        axes.plot([place - apart] * 2, [part.min(), part.max()], color=LIGHT["rule"], linewidth=5 * size, zorder=1)
    axes.plot(
        drawn["x"] - apart, drawn["mean_log_ratio"], "_",
        color=LIGHT["data-2"], markersize=6 * size, markeredgewidth=0.9, zorder=2,
    )  # fmt: skip
    worse = heads["q"] <= alpha
    for part, colour, face in (
        (heads[~worse], LIGHT["muted"], "none"),
        (heads[worse], LIGHT["degraded"], LIGHT["degraded"]),
    ):
        axes.plot(
            part["x"] + apart, part["at"], "o",
            markersize=3.8 * max(0.6, size), markerfacecolor=face, markeredgecolor=colour, markeredgewidth=0.8,
            zorder=3,
        )  # fmt: skip
    axes.margins(y=0.1)
    wide, high = (share * float(np.diff(ends)[0]) for share, ends in zip(_NAME, (axes.get_xlim(), axes.get_ylim())))
    named: list[tuple[float, float]] = []
    for head in heads[worse].nlargest(_NAMED, "estimate").itertuples():
        if all(abs(x - head.x) > wide or abs(at - head.at) > high for x, at in named):
            named.append((head.x, head.at))
            at = (head.x + apart, head.at)
            axes.annotate(wording.site(head), at, (4, -2), textcoords="offset points", fontsize=7.5)
    axes.axhline(0, color=LIGHT["hatch"], linewidth=1, zorder=0)
    percent_axis(axes.yaxis)
    axes.grid(axis="y", color=LIGHT["faint"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_ylabel("percent degradation")


def _label_places(axes: Axes, heads: pd.DataFrame, x: dict[tuple[int, int], float]) -> None:
    every = max(1, -(-len(x) // _LABELS))
    layers = sorted({layer for _, layer in x})
    labelled = {place: at for place, at in x.items() if layers.index(place[1]) % every == 0}
    axes.set_xticks(list(labelled.values()), [f"L{layer}" for _, layer in labelled])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(min(x.values()) - 0.7, max(x.values()) + 0.9)
    for window in heads.drop_duplicates("window_index").itertuples():
        inside = [at for (index, _), at in x.items() if index == window.window_index]
        middle = (inside[0] + inside[-1]) / 2
        axes.annotate(
            wording.window(window), (middle, 1), (0, 3), axes.get_xaxis_transform(), "offset points",
            ha="center", fontsize=8, color=LIGHT["muted"],
        )  # fmt: skip
