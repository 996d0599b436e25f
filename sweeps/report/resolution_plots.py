"""Figures of what a run of this size can show: detectable effects, agreement of halves, images used."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from sweeps.report import wording
from sweeps.report.axes import key, percent_axis
from sweeps.report.reported_run import CALLED, VERDICTS, Stats
from sweeps.report.resolution import smallest_detectable, spread_between_images
from sweeps.report.theme import LIGHT

_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_REASONS = (
    ("decided", "degraded", "stopped: decided"),
    ("futile", "improved", "stopped: futile"),
    ("", "negligible", "not stopped"),
)
_NAMED_SIZES = 20  # numbers of images that have room for a tick each
_NOTE: dict[str, Any] = {"fontsize": 8, "color": LIGHT["muted"]}
_Level = tuple[float, str, str, str]  # alpha, colour, line, label
_FURTHER = 4  # times the images of this run that the right panel looks ahead


def minimum_detectable(cells: pd.DataFrame, stats: Stats, corrected: float) -> Figure:
    """Left: the smallest effect each trial could have found. Right: what the middle trial finds with more images.

    At alpha for one trial alone, and at the level that the correction over all trials came to.
    """
    alpha, margin = stats.alpha, 100 * stats.margin
    spread = spread_between_images(cells)
    figure = Figure(figsize=(10.9, 3.5), layout="constrained")
    shares, sizes = figure.subplots(1, 2)
    levels = (
        (alpha, "data-2", "-", f"one trial, p ≤ {alpha:g}"),
        (corrected, "data-1", "--", f"among all trials, p ≤ {wording.probability(corrected)}"),
    )
    _draw_shares(shares, spread, cells.loc[spread.index, "most"], levels, stats.statistic)
    _draw_sizes(sizes, spread, int(cells["most"].max()), levels, stats.statistic)
    shares.axvline(margin, color=LIGHT["hatch"], linewidth=1.2)
    sizes.axhline(margin, color=LIGHT["hatch"], linewidth=1.2)
    sizes.annotate("margin", (0, margin), (2, 2), sizes.get_yaxis_transform(), "offset points", **_NOTE)
    figure.legend(*shares.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def _draw_shares(axes: Axes, spread: pd.Series, images: pd.Series, levels: tuple[_Level, ...], statistic: str) -> None:
    share = np.arange(1, len(spread) + 1) / len(spread)
    for level, colour, line, label in levels:
        smallest = np.sort(100 * np.expm1(smallest_detectable(spread, images, level, statistic)))
        axes.step(smallest, share, where="post", color=LIGHT[colour], linestyle=line, linewidth=1.6, label=label)
    axes.set_xscale("log")
    _percent_ticks(axes.xaxis)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("smallest degradation found with 80% power")
    axes.set_ylabel("share of trials")
    axes.set_title("Each trial, with all the images it may use")


def _draw_sizes(axes: Axes, spread: pd.Series, most: int, levels: tuple[_Level, ...], statistic: str) -> None:
    n = np.geomspace(min(8, most), _FURTHER * most, 60)
    for level, colour, line, _ in levels:
        low, middle, high = (
            100 * np.expm1(smallest_detectable(spread.quantile(q), n, level, statistic)) for q in (0.1, 0.5, 0.9)
        )
        axes.plot(n, middle, color=LIGHT[colour], linestyle=line, linewidth=1.6)
        if level == levels[0][0]:
            axes.fill_between(n, low, high, color=LIGHT["faint"], linewidth=0)
    axes.axvline(most, color=LIGHT["ink"], linewidth=1, linestyle=":")
    axes.annotate("this run", (most, 1), (3, -9), axes.get_xaxis_transform(), "offset points", **_NOTE)
    axes.set_xscale("log")
    axes.set_yscale("log")
    shown = [size for size in _SIZES if n[0] <= size <= n[-1]]
    axes.set_xticks(shown, [f"{size:,}" for size in shown])
    axes.set_xticks([], minor=True)
    _percent_ticks(axes.yaxis)
    axes.set_xlabel("images a trial")
    axes.set_ylabel("found with 80% power")
    axes.set_title("The middle trial, with other numbers of images")


def split_half(cells: pd.DataFrame) -> Figure:
    """A point a trial: its effect on one half of its images against the other half."""
    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for verdict in reversed(VERDICTS):
        those = cells[cells["verdict"] == verdict]
        axes.plot(
            those["half_a"], those["half_b"], "o", markersize=3.6, linestyle="none", markeredgecolor=LIGHT[verdict],
            markerfacecolor=LIGHT[verdict] if verdict in CALLED else "none", markeredgewidth=0.7,
        )  # fmt: skip
    halves = cells[["half_a", "half_b"]]
    ends = (halves.min().min() - 0.01, halves.max().max() + 0.01)
    axes.plot(ends, ends, color=LIGHT["rule"], linewidth=1, zorder=0)
    axes.set_xlim(ends)
    axes.set_ylim(ends)
    percent_axis(axes.xaxis)
    percent_axis(axes.yaxis)
    axes.set_xlabel("percent degradation, every other image")
    axes.set_ylabel("percent degradation, the images between")
    keys = [key("o", LIGHT[verdict], verdict, verdict in CALLED) for verdict in VERDICTS]
    axes.legend(handles=keys, loc="upper left", handletextpad=0.1)
    return figure


def images_used(cells: pd.DataFrame) -> Figure:
    """How many trials used how many images, and why they stopped."""
    reason = cells["stopped"].astype(object).where(cells["stopped"].notna(), "")
    sizes = np.sort(cells["n"].unique())
    figure = Figure(figsize=(10.9, 2.9), layout="constrained")
    axes = figure.add_subplot()
    bottom = np.zeros(len(sizes))
    width = 0.8 * np.diff(sizes).min(initial=float(sizes.max()))
    for name, colour, label in _REASONS:
        counts = cells.loc[reason == name, "n"].value_counts().reindex(sizes, fill_value=0).to_numpy()
        if counts.any():
            axes.bar(sizes, counts, width, bottom, color=LIGHT[colour], edgecolor=LIGHT["paper"], label=label)
            bottom = bottom + counts
    mean = float(cells["n"].mean())
    axes.axvline(mean, color=LIGHT["ink"], linewidth=1, linestyle=":")
    axes.annotate(f"mean {mean:.0f}", (mean, 1), (3, -9), axes.get_xaxis_transform(), "offset points", **_NOTE)
    if len(sizes) <= _NAMED_SIZES:
        axes.set_xticks(sizes)
    axes.set_xlabel("images used")
    axes.set_ylabel("trials")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure


def _percent_ticks(axis: Axis) -> None:
    """Ticks of an axis whose values are percentages on a log scale."""
    low, high = axis.get_data_interval()
    inside = [tick for tick in _TICKS if 0.8 * low <= tick <= 1.25 * high]
    axis.set_ticks(inside, [f"{tick:g}%" for tick in inside])
    axis.set_ticks([], minor=True)
