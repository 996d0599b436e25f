"""Forest, volcano, p-value and contrast figures. Effects are drawn on the log-ratio scale and labelled in percent."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import beta

from sweeps.report import wording
from sweeps.report.axes import MARKERS, draw_reference, key, log_ratio, percent_axis
from sweeps.report.reported_run import CALLED, CELL_KEYS, VERDICTS
from sweeps.report.theme import LIGHT, dataset_colour

_SMALLEST_P = 1e-300


def forest(cells: pd.DataFrame, datasets: tuple[str, ...], margin: float) -> Figure:
    """A row a trial, in the order given."""
    rows = len(cells)
    figure = Figure(figsize=(10.9, 0.75 + 0.235 * rows), layout="constrained")
    ranked = cells["rank"].notna().any()
    axes, *ranks = figure.subplots(1, 1 + ranked, squeeze=False, sharey=True, width_ratios=(2.6, 1)[: 1 + ranked])[0]
    for row, trial in enumerate(cells.itertuples()):
        index = datasets.index(trial.dataset)
        colour = dataset_colour(index)
        ends = [log_ratio(trial.ci_low), log_ratio(trial.ci_high)]
        axes.plot(ends, [row, row], color=colour, linewidth=1.6, solid_capstyle="butt")
        axes.plot(trial.mean_log_ratio, row, MARKERS[index % 4], color=colour, markersize=5)
    labels = [wording.cell(trial) for trial in cells.itertuples()]
    axes.set_yticks(range(rows), labels, color=LIGHT["ink"])
    axes.set_ylim(rows - 0.3, -0.7)
    draw_reference(axes.axvline, axes.axvspan, margin)
    percent_axis(axes.xaxis)
    axes.grid(axis="x", color=LIGHT["faint"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("percent degradation, with its interval")
    for panel in ranks:
        _draw_ranks(panel, cells, datasets)
    keys = [key(MARKERS[i % 4], dataset_colour(i), wording.short(name)) for i, name in enumerate(datasets)]
    figure.legend(handles=keys, loc="outside upper left", ncols=len(keys), handletextpad=0.3)
    return figure


def _draw_ranks(axes: Axes, cells: pd.DataFrame, datasets: tuple[str, ...]) -> None:
    """Beside the effects: the rank of each head among those of its data set, 1 on the left."""
    for row, trial in enumerate(cells.itertuples()):
        if trial.rank == trial.rank:
            index = datasets.index(trial.dataset)
            ends = [trial.rank_low, trial.rank_high]
            axes.plot(ends, [row, row], color=dataset_colour(index), linewidth=1.6, solid_capstyle="butt")
            axes.plot(trial.rank, row, MARKERS[index % 4], color=dataset_colour(index), markersize=5)
    axes.tick_params(labelleft=False)
    axes.grid(axis="x", color=LIGHT["faint"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(left=0)
    axes.set_xticks([1, *(tick for tick in axes.get_xticks() if 1 < tick <= axes.get_xlim()[1])])
    axes.set_xlabel("rank, with its interval")


def volcano(cells: pd.DataFrame, datasets: tuple[str, ...], margin: float) -> Figure:
    figure = Figure(figsize=(10.9, 3.8), layout="constrained")
    panels = figure.subplots(1, len(datasets), squeeze=False, sharex=True, sharey=True)[0]
    for axes, dataset in zip(panels, datasets):
        here = cells[cells["dataset"] == dataset]
        for verdict in reversed(VERDICTS):
            for marker, level in (("o", here["level"] == "head"), ("s", here["level"] != "head")):
                those = here[(here["verdict"] == verdict) & level]
                axes.plot(
                    those["mean_log_ratio"], _minus_log10(those["p"]), marker,
                    markersize=3.6, markerfacecolor=LIGHT[verdict] if verdict in CALLED else "none",
                    markeredgecolor=LIGHT[verdict], markeredgewidth=0.7, linestyle="none",
                )  # fmt: skip
        for trial in here[here["verdict"] == "degraded"].drop_duplicates("level").itertuples():
            at = (trial.mean_log_ratio, float(_minus_log10(trial.p)))
            axes.annotate(
                wording.short(wording.site(trial)), at, (-4, 4), textcoords="offset points", fontsize=7.5, ha="right"
            )
        draw_reference(axes.axvline, axes.axvspan, margin)
        percent_axis(axes.xaxis)
        axes.set_title(wording.short(dataset, 40))
        axes.set_xlabel("percent degradation")
    panels[0].set_ylabel("−log10 p, one-sided")
    keys = [key("o", LIGHT[verdict], verdict, verdict in CALLED) for verdict in VERDICTS]
    figure.legend(handles=keys, loc="outside upper left", ncols=4, handletextpad=0.2)
    return figure


def p_values(p: pd.Series) -> Figure:
    """A histogram against the uniform, and quantiles against it on a log scale."""
    values = np.sort(p.dropna().to_numpy(dtype=float).clip(_SMALLEST_P, 1))
    m = len(values)
    figure = Figure(figsize=(10.9, 3.3), layout="constrained")
    bars, quantiles = figure.subplots(1, 2)
    bars.hist(values, bins=np.linspace(0, 1, 21), color=LIGHT["negligible"], edgecolor=LIGHT["paper"], linewidth=0.8)
    bars.axhline(m / 20, color=LIGHT["accent"], linewidth=1.2, linestyle="--")
    bars.text(0.99, m / 20, "if nothing had an effect", ha="right", va="bottom", fontsize=8, color=LIGHT["accent"])
    bars.set_xlabel("p, one-sided")
    bars.set_ylabel("trials")
    bars.set_title("Histogram")
    rank = np.arange(1, m + 1)
    expected = -np.log10((rank - 0.5) / m)
    low, high = (-np.log10(beta.ppf(q, rank, m + 1 - rank)) for q in (0.975, 0.025))
    quantiles.fill_between(expected, low, high, color=LIGHT["faint"], linewidth=0)
    quantiles.plot([0, expected.max()], [0, expected.max()], color=LIGHT["accent"], linewidth=1.2, linestyle="--")
    quantiles.plot(expected, -np.log10(values), "o", markersize=2.6, color=LIGHT["ink"], markeredgewidth=0)
    quantiles.set_xlabel("−log10 p expected if nothing had an effect")
    quantiles.set_ylabel("−log10 p observed")
    quantiles.set_title("Quantiles")
    return figure


def contrast_pairs(cells: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """The cells measured on both data sets, a row a cell; columns of each with the suffixes _a and _b."""
    measured = ["mean_log_ratio", "verdict"]
    a = cells.loc[cells["dataset"] == first, [*CELL_KEYS, "t_start", "t_end", *measured]]
    b = cells.loc[cells["dataset"] == second, [*CELL_KEYS, *measured]]
    return a.merge(b, on=CELL_KEYS, suffixes=("_a", "_b"), validate="one_to_one")


def contrast(pairs: pd.DataFrame, first: str, second: str, margin: float) -> Figure:
    """A point a cell, one data set against the other; beside it the heads with the widest gap.

    Single heads where there are any: whole layers would stretch the axes.
    """
    first, second = wording.short(first), wording.short(second)
    pairs = pairs[pairs["level"] == "head"] if (pairs["level"] == "head").any() else pairs
    figure = Figure(figsize=(10.9, 4.6), layout="constrained")
    scatter, dumbbell = figure.subplots(1, 2, width_ratios=(1, 1.1))
    called = (pairs["verdict_a"] == "degraded").to_numpy(), (pairs["verdict_b"] == "degraded").to_numpy()
    groups = (
        (~called[0] & ~called[1], "inconclusive", "neither"),
        (called[0] & ~called[1], "data-1", f"{first} only"),
        (~called[0] & called[1], "data-2", f"{second} only"),
        (called[0] & called[1], "degraded", "both"),
    )
    for chosen, colour, label in groups:
        those = pairs[chosen]
        scatter.plot(
            those["mean_log_ratio_a"], those["mean_log_ratio_b"], "o",
            markersize=3.6, markerfacecolor="none", markeredgecolor=LIGHT[colour], markeredgewidth=0.9, label=label,
        )  # fmt: skip
    ends = [pairs[["mean_log_ratio_a", "mean_log_ratio_b"]].min().min() - 0.02]
    ends.append(pairs[["mean_log_ratio_a", "mean_log_ratio_b"]].max().max() + 0.02)
    scatter.plot(ends, ends, color=LIGHT["rule"], linewidth=1, zorder=0)
    scatter.set_xlim(ends)
    scatter.set_ylim(ends)
    percent_axis(scatter.xaxis)
    percent_axis(scatter.yaxis)
    scatter.set_xlabel(f"percent degradation, {first}")
    scatter.set_ylabel(f"percent degradation, {second}")
    scatter.legend(loc="upper left", handletextpad=0.1, title="called degraded on", title_fontsize=8)
    _draw_dumbbell(dumbbell, _widest(pairs), first, second, margin)
    return figure


def _widest(pairs: pd.DataFrame, rows: int = 14) -> pd.DataFrame:
    """The heads with the widest gap, each in its widest cell; only cells that were called on one set or the other."""
    heads = pairs[(pairs["verdict_a"] == "degraded") | (pairs["verdict_b"] == "degraded")]
    gap = (heads["mean_log_ratio_a"] - heads["mean_log_ratio_b"]).abs()
    heads = heads.assign(gap=gap).sort_values("gap", ascending=False, kind="stable")
    return heads.drop_duplicates(["layer_index", "head", "stream"]).head(rows)


def _draw_dumbbell(axes: Axes, heads: pd.DataFrame, first: str, second: str, margin: float) -> None:
    for row, cell in enumerate(heads.itertuples()):
        ends = [cell.mean_log_ratio_a, cell.mean_log_ratio_b]
        axes.plot(ends, [row, row], color=LIGHT["rule"], linewidth=2, zorder=1)
        for index, end in enumerate(ends):
            axes.plot(end, row, MARKERS[index], color=dataset_colour(index), markersize=5)
    labels = [wording.cell(cell) for cell in heads.itertuples()]
    axes.set_yticks(range(len(heads)), labels, color=LIGHT["ink"])
    axes.set_ylim(max(len(heads), 1) - 0.3, -0.7)
    draw_reference(axes.axvline, axes.axvspan, margin)
    percent_axis(axes.xaxis)
    axes.set_xlabel("percent degradation")
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=LIGHT["faint"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(
        handles=[key(MARKERS[i], dataset_colour(i), name) for i, name in enumerate((first, second))],
        loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, handletextpad=0.2,
    )  # fmt: skip


def _minus_log10(p: pd.Series) -> np.ndarray:
    return -np.log10(np.clip(np.asarray(p, dtype=float), _SMALLEST_P, 1))
