"""Layer x head x window heatmaps: a panel a window, a row of panels a mode."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sweeps.report import wording
from sweeps.report.cell_grid import CellGrid, GridAxes, cell_grid
from sweeps.report.drawing import CELL
from sweeps.report.reported_run import CALLED
from sweeps.report.theme import BIN_EDGES, BIN_NAMES, LIGHT, bin_name

_ALL_GAP = 0.45  # between the heads and the whole layer, in cells


@dataclass(frozen=True)
class Legend:
    """What the colours and the two kinds of grey stand for."""

    scale: str = "percent degradation (fixed bins)"
    negligible: str = "negligible"
    inconclusive: str = "inconclusive"


@dataclass(frozen=True)
class _Layout:
    """Inches. The cells shrink for large models, down to a size that is still a cell."""

    axes: GridAxes
    variants: int
    left: float = 0.5
    gap: float = 0.2
    heading: float = 0.5
    legend: float = 0.78
    below: float = 0.25

    @property
    def columns(self) -> float:
        return len(self.axes.heads) + 1 + (_ALL_GAP if self.axes.heads else 0)

    @property
    def cell(self) -> float:
        panels = len(self.axes.windows)
        room = (11 - self.left - self.gap * (panels - 1)) / panels / self.columns
        return min(0.27, max(room, 0.085))

    @property
    def cell_height(self) -> float:
        return min(self.cell, max(0.1, 3.6 / len(self.axes.layers)))

    @property
    def panel(self) -> tuple[float, float]:
        return self.columns * self.cell, len(self.axes.layers) * self.cell_height

    @property
    def size(self) -> tuple[float, float]:
        panels = len(self.axes.windows)
        width = self.left + panels * self.panel[0] + self.gap * (panels - 1) + 0.05
        height = self.legend + self.variants * (self.heading + self.panel[1] + self.below)
        return max(width, 9.4), height

    def place(self, variant: int, window: int) -> tuple[float, float, float, float]:
        """[left, bottom, width, height] of a panel as fractions of the figure."""
        across, up = self.size
        width, height = self.panel
        x = self.left + window * (width + self.gap)
        y = up - (variant + 1) * (self.heading + height) - variant * self.below
        return x / across, y / up, width / across, height / up


def heatmap(cells: pd.DataFrame, axes: GridAxes, variants: tuple[str, ...], legend: Legend | None = None) -> Figure:
    """The cells of one data set and stream. Colour only where the verdict allows a claim."""
    layout = _Layout(axes, len(variants))
    figure = Figure(figsize=layout.size)
    windows = cells.drop_duplicates("window_index").set_index("window_index")
    for row, variant in enumerate(variants):
        grid = cell_grid(cells[cells["variant"] == variant], axes)
        for column, index in enumerate(axes.windows):
            panel = figure.add_axes(layout.place(row, column))
            _draw_panel(panel, grid, column, layout)
            title = wording.window(windows.loc[index]) if index in windows.index else f"window {index}"
            panel.set_title(title, fontsize=8.5, color=LIGHT["muted"], pad=4)
            panel.set_yticks(
                [layer + 0.5 for layer in range(len(axes.layers))] if column == 0 else [],
                [f"L{layer}" for layer in axes.layers] if column == 0 else [],
            )
        _, bottom, _, height = layout.place(row, 0)
        top = bottom + height + 0.27 / layout.size[1]
        figure.text(
            layout.left / layout.size[0], top, wording.short(variant, 80), fontsize=10.5, fontweight="bold", va="bottom"
        )
    _draw_legend(figure, layout, legend or Legend())
    return figure


def _draw_panel(panel: Axes, grid: CellGrid, window: int, layout: _Layout) -> None:
    layers, columns, _ = grid.axes.shape
    gap = _ALL_GAP if columns > 1 else 0.0
    starts = [float(column) for column in range(columns - 1)] + [columns - 1 + gap]
    for layer in range(layers):
        for column, x in enumerate(starts):
            verdict = grid.verdict[layer, column, window]
            if verdict:
                panel.add_patch(
                    Rectangle(
                        (x, layer),
                        1,
                        1,
                        gid=CELL + str(grid.trial_id[layer, column, window]),
                        clip_on=False,
                        **_look(verdict, grid.percent[layer, column, window]),
                    )
                )
    panel.set_xlim(0, layout.columns)
    panel.set_ylim(layers, 0)
    every = max(1, round(0.16 / layout.cell))
    heads = [(x + 0.5, str(head)) for x, head in zip(starts, grid.axes.heads)][::every]
    panel.set_xticks([x for x, _ in heads] + [starts[-1] + 0.5], [text for _, text in heads] + ["all"])
    panel.tick_params(length=0, pad=2, labelsize=7.5)
    for spine in panel.spines.values():
        spine.set_visible(False)


def _look(verdict: str, percent: float) -> dict[str, Any]:
    edge = {"edgecolor": LIGHT["paper"], "linewidth": 0.8}
    if verdict in CALLED:
        return {"facecolor": LIGHT[bin_name(percent)], **edge}
    hatch = {"hatch": "/////"} if verdict == "inconclusive" else {}
    return {"facecolor": LIGHT["faint"], **hatch, **edge}


def _draw_legend(figure: Figure, layout: _Layout, legend: Legend) -> None:
    width, height = layout.size
    bar = figure.add_axes((layout.left / width, 0.36 / height, 5.1 / width, 0.15 / height))
    for position, name in enumerate(BIN_NAMES):
        bar.add_patch(Rectangle((position, 0), 1, 1, facecolor=LIGHT[name], edgecolor=LIGHT["paper"], linewidth=0.6))
    bar.set_xlim(0, len(BIN_NAMES))
    bar.set_ylim(0, 1)
    bar.set_yticks([])
    edges = [f"{edge:+d}".replace("-", wording.MINUS) for edge in BIN_EDGES]
    bar.set_xticks(range(1, len(BIN_NAMES)), edges)
    bar.tick_params(labelsize=7, length=2, pad=1.5)
    bar.set_title(legend.scale, fontsize=7.5, color=LIGHT["muted"], pad=3)
    for spine in bar.spines.values():
        spine.set_visible(False)
    keys = figure.add_axes(((layout.left + 5.4) / width, 0.36 / height, 2.6 / width, 0.15 / height))
    keys.axis("off")
    keys.set_xlim(0, 2.6)
    keys.set_ylim(0, 0.15)
    for x, verdict, name in ((0.0, "negligible", legend.negligible), (1.1, "inconclusive", legend.inconclusive)):
        keys.add_patch(Rectangle((x, 0), 0.22, 0.15, clip_on=False, **_look(verdict, 0.0)))
        keys.text(x + 0.29, 0.07, name, fontsize=8, color=LIGHT["muted"], va="center")
    keys.text(2.35, 0.07, "blank: not run", fontsize=8, color=LIGHT["muted"], va="center")
