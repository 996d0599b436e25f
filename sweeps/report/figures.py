"""The figures of a report, in the order in which the page shows them."""

import math
from collections.abc import Callable
from typing import ParamSpec

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from sweeps.report import wording
from sweeps.report.cell_grid import grid_axes
from sweeps.report.control_plots import against_controls
from sweeps.report.controls import Controls
from sweeps.report.drawing import Drawing
from sweeps.report.findings import detectable_percent
from sweeps.report.heatmap import heatmap
from sweeps.report.plots import contrast, contrast_pairs, forest, p_values, volcano
from sweeps.report.reported_run import CALLED, ReportedRun
from sweeps.report.resolution import agreement_of_halves, corrected_level, spread_between_images, whole_from_halves
from sweeps.report.resolution_plots import images_used, minimum_detectable, split_half
from sweeps.report.theme import FIGURE_STYLE

P = ParamSpec("P")

_FOREST_ROWS = 20


def draw_heatmaps(run: ReportedRun) -> list[Drawing]:
    """One for each data set and stream; the modes below one another."""
    grid_cells = run.cells[run.cells["level"].isin(["head", "layer"])]
    if grid_cells.empty:
        return []
    axes = grid_axes(grid_cells)
    variants = tuple(run.trials["variant"].drop_duplicates()[lambda names: names.isin(grid_cells["variant"])])
    streams = sorted(grid_cells["stream"].unique())
    tooltips = wording.tooltips(grid_cells)
    drawings = []
    for position, dataset in enumerate(run.datasets):
        for stream in streams:
            part = grid_cells[(grid_cells["dataset"] == dataset) & (grid_cells["stream"] == stream)]
            if part.empty:
                continue
            title = dataset if len(streams) == 1 else f"{dataset}, {stream or 'one'} stream"
            called = int(part["verdict"].isin(CALLED).sum())
            drawings.append(
                Drawing(
                    name=wording.slug("heatmap", position, dataset, *([stream] if len(streams) > 1 else [])),
                    figure=_styled(heatmap, part, axes, variants),
                    title=title,
                    alt=f"Heatmap for {title}: layers by heads, a panel for each window, for "
                    f"{wording.listing(variants)}. {called} of {len(part)} cells are coloured. "
                    "The table of all trials has the same numbers.",
                    caption="",
                    tooltips=tooltips,
                )
            )
    return drawings


def draw_forest(run: ReportedRun) -> list[Drawing]:
    top = run.cells[run.cells["level"] == "head"].head(_FOREST_ROWS)
    top = top if len(top) else run.cells.head(_FOREST_ROWS)
    if top.empty:
        return []
    first = next(top.itertuples())
    noun = "head trials" if first.level == "head" else "trials"
    return [
        Drawing(
            name="forest",
            figure=_styled(forest, top, run.datasets, run.stats.log_margin),
            title=f"The {len(top)} strongest {noun}",
            alt=f"Forest plot of the {len(top)} strongest {noun}. First: {wording.site(first)} on "
            f"{first.dataset}, {wording.effect(first)}.",
            caption=f"Point: percent degradation; line: its {wording.CONFIDENCE} interval"
            f"{', which holds wherever the trial stopped' if run.stops_early else ''}, not adjusted for the "
            "selection: the top of a ranking is partly luck, so confirm it on fresh images. Grey band: the margin of "
            f"negligible effects.{_ranks_caption(run, top)}",
        )
    ]


def _ranks_caption(run: ReportedRun, top: pd.DataFrame) -> str:
    if not top["rank"].notna().any():
        return ""
    first = next(top[top["rank"].notna()].itertuples())
    ranked, images = int(first.ranked), int(first.rank_images)
    heads = run.cells[(run.cells["level"] == "head") & (run.cells["dataset"] == first.dataset)]
    screened = " that lead on the other images" if ranked < len(heads) else ""
    shared = " that all of them have" if run.stops_early else ""
    return (
        f" Right: the rank of a trial among the {ranked:,} head trials of its data set{screened}, with intervals that "
        f"hold all at once, from {images:,} images{shared}; empty where a trial is not among them."
    )


def draw_evidence(run: ReportedRun) -> list[Drawing]:
    cells = run.cells
    if cells["p"].notna().sum() < 2:
        return []
    below = int((cells["p"] < 0.05).sum())
    return [
        Drawing(
            name="volcano",
            figure=_styled(volcano, cells, run.datasets, run.stats.log_margin),
            title="Effect against evidence",
            alt=f"Volcano plot: percent degradation against minus log ten p for {len(cells)} trials.",
            caption="Every trial; squares are whole layers and more. Large and certain effects are to the upper right; "
            f"the grey band is the margin. The test is one-sided: improvements lie at the bottom left.{_top_row(run)}",
        ),
        Drawing(
            name="p-values",
            figure=_styled(p_values, cells["p"]),
            title="All p-values together",
            alt=f"Histogram and quantile plot of {len(cells)} p-values; {below} are below 0.05.",
            caption="Dashed: what no effect anywhere would give. The band is pointwise 95% for independent trials; "
            f"these share images and a network, so it is a guide only.{_cautious(run)}",
        ),
    ]


def _top_row(run: ReportedRun) -> str:
    if not run.stops_early:
        return " p cannot fall below 2⁻ᴺ, which is where the top row stops."
    return " A trial that stopped early was stopped as soon as p was small enough, so only its effect says how large."


def _cautious(run: ReportedRun) -> str:
    if not run.stops_early:
        return ""
    return (
        " p-values that hold wherever a trial stops are cautious: without any effect they would lie below the dashed "
        "line, many of them at 1."
    )


def draw_resolution(run: ReportedRun) -> list[Drawing]:
    """What this many images can show: detectable effects, agreement of halves, and images used where they vary."""
    cells, stats = run.cells, run.stats
    drawings = []
    if len(spread_between_images(cells)) > 1 and stats.statistic in ("none", "obf"):
        corrected = corrected_level(cells, stats.alpha)
        smallest = detectable_percent(cells, stats)
        drawings.append(
            Drawing(
                name="minimum-detectable",
                figure=_styled(minimum_detectable, cells, stats, corrected),
                title="What could have been found",
                alt=f"Smallest detectable degradation of {len(cells)} trials, {wording.percent(smallest)} for the "
                "middle one, and how it falls with the number of images.",
                caption="Solid: one trial tested alone. Dashed: at the largest p that the correction over all trials "
                "let pass. Grey band: 80% of the trials. Normal approximation from the spread between images"
                f"{', by the stopping boundary of the last image' if run.stops_early else ''}.",
            )
        )
    halves = cells[cells["level"] == "head"] if (cells["level"] == "head").any() else cells
    agreement = agreement_of_halves(halves)
    if math.isfinite(agreement):
        noun = "head trial" if (cells["level"] == "head").any() else "trial"
        drawings.append(
            Drawing(
                name="split-half",
                figure=_styled(split_half, halves),
                title="One half of the images against the other",
                alt=f"Scatter of {wording.count(len(halves), noun)}: effect on every other image against the images "
                f"between; rank correlation {wording.decimal(agreement)}.",
                caption=f"Rank correlation of the halves {wording.decimal(agreement)} over "
                f"{wording.count(len(halves), noun)}; of all images with as many others, by Spearman and Brown, "
                f"{wording.decimal(whole_from_halves(agreement))}. Where most trials do nothing, their order is noise "
                "and the correlation is low for that reason.",
            )
        )
    if cells["n"].nunique() > 1:
        drawings.append(
            Drawing(
                name="images-used",
                figure=_styled(images_used, cells),
                title="Images used",
                alt=f"Bars: how many of {len(cells)} trials used how many images; {cells['n'].mean():.0f} on average.",
                caption="A trial that stopped early keeps the verdict of its stop; its estimate leans away from zero.",
            )
        )
    return drawings


def draw_controls(run: ReportedRun, controls: Controls | None) -> list[Drawing]:
    """Every zeroed head beside the random subspaces of its layer and window."""
    if controls is None or controls.heads.empty or controls.drawn["mean_log_ratio"].isna().all():
        return []
    heads, drawn = controls.heads, controls.drawn
    return [
        Drawing(
            name="random-subspaces",
            figure=_styled(against_controls, heads, drawn, run.datasets, controls.alpha),
            title="Each head beside random subspaces of its layer",
            alt=f"Effects of {wording.count(len(heads), 'trial')} with a zeroed head beside those of "
            f"{wording.count(len(drawn), 'random subspace')}, by layer and window; {len(controls.worse)} of the head "
            "trials are worse than their controls over images.",
            caption=f"Both from the same {controls.images} images, so a head may stand elsewhere than in the ranking, "
            "which uses all that its trial took.",
        )
    ]


def draw_contrasts(run: ReportedRun) -> list[Drawing]:
    """The first data set against each of the others."""
    drawings = []
    for other in run.datasets[1:]:
        first = run.datasets[0]
        pairs = contrast_pairs(run.cells, first, other)
        if len(pairs) < 2:
            continue
        drawings.append(
            Drawing(
                name=wording.slug("contrast", first, other),
                figure=_styled(contrast, pairs, first, other, run.stats.log_margin),
                title=f"{first} against {other}",
                alt=f"Scatter of {len(pairs)} cells, {first} against {other}, and the heads with the widest gaps.",
                caption="Left: each cell on both data sets; on the diagonal both are hurt alike. Right: the heads with "
                "the widest gap, each in its widest cell, chosen because it is wide: see the table for tests."
                f"{' Each effect is that of its own stop.' if run.stops_early else ''}",
            )
        )
    return drawings


def _styled(draw: Callable[P, Figure], *inputs: P.args, **options: P.kwargs) -> Figure:
    """Draw in the style of the report and leave the caller's matplotlib as it was."""
    with matplotlib.rc_context(FIGURE_STYLE):
        return draw(*inputs, **options)
