"""Figures of a comparison: effects in a against effects in b, and the strongest differences."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sweeps.report import wording
from sweeps.report.axes import MARKERS, draw_reference, key, percent_axis
from sweeps.report.compared import SETTLED, VERDICTS
from sweeps.report.theme import LIGHT, dataset_colour

_BARS_OF_ALL = 150  # cells up to which every point has its intervals; of more, those of certain differences only


def effects_of_both(cells: pd.DataFrame, datasets: tuple[str, ...], names: tuple[str, str]) -> Figure:
    """A point a cell with its intervals, a panel a data set; on the diagonal the runs agree."""
    figure = Figure(figsize=(10.9, 4.9 if len(datasets) > 1 else 5.4), layout="constrained")
    panels = figure.subplots(1, max(len(datasets), 2), squeeze=False)[0]
    for axes, dataset in zip(panels, datasets):
        _draw_effects(axes, cells[cells["data"] == dataset], names)
        axes.set_title(wording.short(dataset, 40))
    for axes in panels[len(datasets) :]:
        axes.set_visible(False)
    figure.legend(handles=_verdict_keys(), loc="outside upper left", ncols=4, handletextpad=0.2)
    return figure


def strongest(cells: pd.DataFrame, names: tuple[str, str], margin: float) -> Figure:
    """A row a cell, in the order given: its effect in a and in b, and beside it the difference with its interval."""
    rows = len(cells)
    figure = Figure(figsize=(10.9, 0.8 + 0.235 * max(rows, 4)), layout="constrained")
    both, difference = figure.subplots(1, 2, sharey=True, width_ratios=(1.3, 1))
    several = cells["data"].nunique() > 1
    for row, cell in enumerate(cells.itertuples()):
        ends = (cell.mean_a, cell.mean_b)
        both.plot(ends, [row, row], color=LIGHT["rule"], linewidth=2, zorder=1)
        for side, end in enumerate(ends):
            both.plot(end, row, MARKERS[side], color=dataset_colour(side), markersize=5)
        colour = LIGHT[VERDICTS[cell.verdict]]
        difference.plot([cell.ci_low, cell.ci_high], [row, row], color=colour, linewidth=1.6, solid_capstyle="butt")
        face = colour if cell.verdict in SETTLED else LIGHT["paper"]
        difference.plot(cell.estimate, row, "o", markersize=5, markeredgecolor=colour, markerfacecolor=face)
    labels = [wording.cell(c) + (f" · {wording.short(c.data, 16)}" if several else "") for c in cells.itertuples()]
    both.set_yticks(range(rows), labels, color=LIGHT["ink"])
    both.set_ylim(rows - 0.3, -0.7)
    for axes, label in ((both, "percent degradation"), (difference, "ratio in b over ratio in a, percent")):
        draw_reference(axes.axvline, axes.axvspan, margin)
        percent_axis(axes.xaxis)
        axes.set_xlabel(label)
        axes.grid(axis="x", color=LIGHT["faint"], linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
    difference.tick_params(labelleft=False)
    keys = [
        key(MARKERS[i], dataset_colour(i), f"{side}: {wording.short(n, 40)}")
        for i, (side, n) in enumerate(zip("ab", names))
    ]
    figure.legend(handles=keys, loc="outside upper left", ncols=2, handletextpad=0.3)
    return figure


def _draw_effects(axes: Axes, cells: pd.DataFrame, names: tuple[str, str]) -> None:
    for verdict in reversed(VERDICTS):
        colour = LIGHT[VERDICTS[verdict]]
        those = cells[cells["verdict"] == verdict]
        if len(cells) <= _BARS_OF_ALL or verdict in SETTLED:
            axes.hlines(those["mean_b"], those["low_a"], those["high_a"], color=colour, linewidth=0.6, alpha=0.55)
            axes.vlines(those["mean_a"], those["low_b"], those["high_b"], color=colour, linewidth=0.6, alpha=0.55)
        for marker, level in (("o", those["level"] == "head"), ("s", those["level"] != "head")):
            axes.plot(
                those.loc[level, "mean_a"], those.loc[level, "mean_b"], marker, markersize=4, linestyle="none",
                markeredgecolor=colour, markerfacecolor=colour if verdict in SETTLED else "none", markeredgewidth=0.8,
            )  # fmt: skip
    values = cells[["mean_a", "mean_b"]]
    room = 0.05 * max(values.max().max() - values.min().min(), 0.01)
    ends = (values.min().min() - room, values.max().max() + room)
    axes.plot(ends, ends, color=LIGHT["rule"], linewidth=1, zorder=0)
    axes.set_xlim(ends)
    axes.set_ylim(ends)
    percent_axis(axes.xaxis)
    percent_axis(axes.yaxis)
    axes.set_xlabel(f"percent degradation in a, {wording.short(names[0], 32)}")
    axes.set_ylabel(f"percent degradation in b, {wording.short(names[1], 32)}")


def _verdict_keys() -> list:
    labels = {"more": "more in b", "less": "less in b", "same": "the same", "undecided": "undecided"}
    return [key("o", LIGHT[look], labels[name], name in SETTLED) for name, look in VERDICTS.items()]
