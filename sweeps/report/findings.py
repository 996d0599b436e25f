"""What the numbers say, in sentences made from them and from nothing else."""

import math
import re
from dataclasses import dataclass

import pandas as pd
from scipy.stats import spearmanr

from sweeps.report import wording
from sweeps.report.controls import control_sentences, read_controls
from sweeps.report.plots import contrast_pairs
from sweeps.report.reported_run import VERDICTS, ReportedRun, Stats
from sweeps.report.resolution import level_under_skew, smallest_detectable, spread_between_images

_LEANS = 1.0  # skewness beyond which a trial's test is no longer close to its level


def key_findings(run: ReportedRun) -> list[str]:
    if run.cells.empty:
        return [f"No trial has an effect on {run.stats.metric} yet."]
    found = [_verdicts(run), _stopping(run), *(_strongest(run, dataset) for dataset in run.datasets), _when(run)]
    if len(run.datasets) > 1:
        found.append(_agreement(run, *run.datasets[:2]))
    if run.cells["variant"].nunique() > 1:
        found.append(_modes(run))
    found += [*control_sentences(read_controls(run)), _resolution(run), _selection(run)]
    return [_unbroken(sentence) for sentence in found if sentence]


def _unbroken(sentence: str) -> str:
    """No line ends inside a window."""
    return re.sub(r"t (\d+)–(\d)", "t\u00a0\\1–\u2060\\2", sentence)


def verdict_counts(cells: pd.DataFrame) -> dict[str, int]:
    counts = cells["verdict"].value_counts()
    return {verdict: int(counts.get(verdict, 0)) for verdict in VERDICTS}


def detectable_percent(cells: pd.DataFrame, stats: Stats) -> float:
    """The degradation that half of these trials find with 80% power at the uncorrected alpha, one-sided.

    With all images that they may use.
    """
    spread = spread_between_images(cells)
    smallest = smallest_detectable(spread, cells.loc[spread.index, "most"], stats.alpha, stats.statistic)
    return 100 * math.expm1(smallest.median())


@dataclass(frozen=True)
class Skewness:
    """Of g over images, for the method section.

    Attributes:
        median, low: over trials; low is the 5% quantile.
        left, degraded_left: trials that lean to the left by more than 1, and those of them called degraded.
        level: what a nominal alpha comes to at `low`, to first order; warn: enough to matter for a claim.
    """

    median: str
    low: str
    left: int
    degraded_left: int
    level: str
    warn: bool


def skewness(run: ReportedRun) -> Skewness | None:
    """None where the run has no diagnostics."""
    cells = run.cells[run.cells["skewness"].notna()]
    if cells.empty:
        return None
    low = float(cells["skewness"].quantile(0.05))
    left = cells["skewness"] < -_LEANS
    degraded = int((left & (cells["verdict"] == "degraded")).sum())
    level = level_under_skew(run.stats.alpha, low, float(cells["n"].median()))
    return Skewness(
        median=wording.decimal(float(cells["skewness"].median())),
        low=wording.decimal(low),
        left=int(left.sum()),
        degraded_left=degraded,
        level=f"{100 * level:.1f}%",
        warn=degraded > 0,
    )


def _verdicts(run: ReportedRun) -> str:
    counts = verdict_counts(run.cells)
    share = 100 * counts["inconclusive"] / len(run.cells)
    return (
        f"Of {wording.count(len(run.cells), 'trial')}, {counts['degraded']:,} degrade {run.stats.metric}, "
        f"{counts['improved']:,} improve it, {counts['negligible']:,} are negligible (within "
        f"±{100 * run.stats.margin:g}%) and {counts['inconclusive']:,} ({share:.0f}%) are inconclusive, "
        f"at a false discovery rate of {100 * run.stats.alpha:g}%."
    )


def _stopping(run: ReportedRun) -> str:
    """What stopping as soon as a verdict is certain saved, of the trials that the sweep is through with."""
    through = run.cells[~run.waiting]
    if not run.stops_early or through.empty:
        return ""
    used, most = through["n"], through["most"]
    ended = int((used < most).sum())
    return (
        f"Stopping early used {used.sum():,} of {most.sum():,} images ({100 * used.sum() / most.sum():.0f}%): a mean "
        f"of {used.mean():.0f} a trial instead of {most.mean():.0f}; {ended:,} of {wording.count(len(used), 'trial')} "
        "ended before their last image."
    )


def _strongest(run: ReportedRun, dataset: str) -> str:
    here = run.cells[run.cells["dataset"] == dataset]
    degraded = here[here["verdict"] == "degraded"]
    if degraded.empty:
        return f"On {dataset}, no trial is called degraded."
    sentences = []
    head = ["layer_index", "head", "stream"]
    for level, noun in (("head", "head"), ("layer", "whole layer"), ("block", "block"), ("stage", "stage")):
        top = next(degraded[degraded["level"] == level].itertuples(), None)
        if top is None:
            continue
        distinct, tested = (len(cells[cells["level"] == level].drop_duplicates(head)) for cells in (degraded, here))
        sentences.append(
            f"ablating {distinct:,} of {wording.count(tested, noun)} degrades it in some window, most of all "
            f"{wording.site(top)} ({top.variant}, {wording.window(top)}), by "
            f"{wording.effect(top)}"
        )
    return f"On {dataset}, {'; '.join(sentences)}." if sentences else ""


def _when(run: ReportedRun) -> str:
    heads = run.cells[run.cells["level"] == "head"]
    if heads["window_index"].nunique() < 2 or not (heads["verdict"] == "degraded").any():
        return ""
    share = (heads["verdict"] == "degraded").groupby(heads["window_index"]).agg(["sum", "size"])
    index = (share["sum"] / share["size"]).idxmax()
    window = wording.window(next(heads[heads["window_index"] == index].itertuples()))
    return (
        f"Heads matter most often at {window}: {int(share.loc[index, 'sum']):,} of "
        f"{int(share.loc[index, 'size']):,} head trials in that window are degraded."
    )


def _agreement(run: ReportedRun, first: str, second: str) -> str:
    pairs = contrast_pairs(run.cells, first, second)
    pairs = pairs[pairs["level"] == "head"]
    if len(pairs) < 3:
        return ""
    rho = spearmanr(pairs["mean_log_ratio_a"], pairs["mean_log_ratio_b"]).statistic
    both = ((pairs["verdict_a"] == "degraded") & (pairs["verdict_b"] == "degraded")).sum()
    either = ((pairs["verdict_a"] == "degraded") | (pairs["verdict_b"] == "degraded")).sum()
    return (
        f"Head effects on {first} and {second} have a rank correlation of {wording.decimal(rho)} over "
        f"{wording.count(len(pairs), 'cell')}; {both:,} of the {either:,} cells degraded on either are degraded on "
        "both (descriptive)."
    )


def _modes(run: ReportedRun) -> str:
    """Zero alone may only show that the network was pushed off its distribution; several modes together say more."""
    heads = run.cells[run.cells["level"] == "head"]
    site = ["dataset", "layer_index", "head", "stream"]
    modes = heads[heads["verdict"] == "degraded"].groupby(site)["variant"].nunique()
    if modes.empty:
        return ""
    variants = heads["variant"].drop_duplicates().tolist()
    return (
        f"Of {wording.count(len(modes), 'head')} degraded on a data set by some mode, "
        f"{(modes == len(variants)).sum():,} are degraded by each of {wording.listing(sorted(variants))}; "
        f"{(modes == 1).sum():,} by one mode only."
    )


def _selection(run: ReportedRun) -> str:
    """What a reader must know of a search: its trials were chosen, and are not judged by what they were chosen by."""
    phases = run.trials["phase"] if "phase" in run.trials else pd.Series(dtype=object)
    confirmed, searched = (int((phases == name).sum()) for name in ("confirm", "search"))
    if not confirmed:
        return ""
    return (
        f"A search chose {wording.count(confirmed, 'set')} of heads from {searched:,} that it tried; every effect here "
        "was measured afterwards, on images and noise that the search never saw. The numbers that they were chosen by "
        "are exploratory, and in effects.parquet only."
    )


def _resolution(run: ReportedRun) -> str:
    smallest = detectable_percent(run.cells, run.stats)
    images = ", if they used all of their images" if run.stops_early else ""
    return (
        f"Inconclusive does not mean no effect: before correction for the number of trials, half of these trials could "
        f"find a degradation of {wording.percent(smallest)} with 80% power{images}."
        if math.isfinite(smallest)
        else ""
    )
