"""What was fixed before the run, in words: outcome, error rate, margin, families, stopping rule."""

import math
from dataclasses import dataclass

from sweeps.report import wording
from sweeps.report.reported_run import ReportedRun, mapping

TESTS = {
    "none": "studentised sign-flip test on g, one-sided for degradation.",
    "obf": "one-sided for degradation: the largest value that the standardised sum of g reached at any image from the "
    "first look on, against the bound that a Brownian path would stay below (O’Brien–Fleming). Half of a trial’s "
    "images is a horizon of its own, with three quarters of the error, so that clear trials stop sooner. p holds "
    "wherever a trial stopped and whatever stopped it; like a t test it is asymptotic.",
    "sign": "one-sided for degradation: 1 over the largest value of an e-process that bets on the sign and size of "
    "each g, measured in the spread of the images before it. Exact for symmetric g, wherever a trial stopped and "
    "whatever stopped it.",
    "betting": "one-sided for degradation: 1 over the largest value of an e-process that bets on ablated ÷ baseline "
    "being above 1. Exact for any distribution, wherever a trial stopped and whatever stopped it. The claim is about "
    "the mean of the ratio, not of its logarithm.",
}
_AXES = {"layer": "layer", "window": "window", "mode": "mode", "dataset": "data set"}
STATISTICS = {"obf": "O’Brien–Fleming boundary", "sign": "sign e-process", "betting": "betting e-process"}
CORRECTIONS = {
    "hierarchical": "adjusted for the false discovery rate in two steps, families first: Simes’ p for each family, "
    "Benjamini–Hochberg over families, and again inside the families that pass.",
    "bh": "Benjamini–Hochberg over all trials.",
    "by": "Benjamini–Yekutieli over all trials, which needs no assumption about how they depend on one another.",
    "e-bh": "Benjamini–Hochberg on e-values over all trials, all at the same image.",
}


@dataclass(frozen=True)
class Registration:
    """
    Attributes:
        facts: name and value of each thing that was registered, for a list.
        test, correction: in words. statistic, corrected: their names in config.yaml, the correction's never empty.
        families: see :func:`families`; planned: whether the digest of the plan is among the facts.
    """

    facts: list[tuple[str, str]]
    test: str
    correction: str
    statistic: str
    corrected: str
    families: str
    planned: bool


def registration(run: ReportedRun) -> Registration:
    stats = run.stats
    corrected = _corrected(run)
    facts = {
        "Outcome": f"{stats.metric}, one number an image",
        "Error rate": f"false discovery rate of {100 * stats.alpha:g}% for each of degraded, improved and negligible",
        "Margin of negligible": f"{margin(run)} of the baseline",
        "Families": families(run) if corrected == "hierarchical" else "",
        "Stopping rule": _rule(run),
        "Giving up": _futility(run),
        "Random subspaces": _drawn(run),
        "Plan": str(run.run.get("plan") or ""),
        "Settings": wording.plain(mapping(run.config.get("stats"))),
    }
    return Registration(
        facts=[(name, text) for name, text in facts.items() if text and text != "–"],
        test=TESTS[stats.statistic],
        correction=CORRECTIONS[corrected],
        statistic=stats.statistic,
        corrected=corrected,
        families=families(run),
        planned=bool(facts["Plan"]),
    )


def families(run: ReportedRun) -> str:
    """How many there are, and in what trials of one are alike."""
    from sweeps.config import FAMILIES, as_list  # late: a report needs no omegaconf

    axes = as_list(mapping(run.config.get("stats")).get("families", ["layer", "window"]), "stats.families")
    confirmed = "phase" in run.trials and (run.trials["phase"] == "confirm").any()  # one family, whatever the axes
    one = confirmed or not axes
    count = 1 if one else len(run.cells.drop_duplicates([FAMILIES[axis] for axis in axes]))
    alike = f": trials alike in {wording.listing(_AXES[axis] for axis in axes)}" if not one else ""
    return f"{count:,} families{alike}" if count > 1 else "one family"


def margin(run: ReportedRun) -> str:
    low = f"{100 * math.expm1(-run.stats.log_margin):.3g}".replace("-", wording.MINUS)
    return f"{low}% to +{100 * run.stats.margin:g}%"


def most_images(run: ReportedRun) -> str:
    """``256``; where data sets differ ``256 (synthetic) and 64 (natural)``."""
    most = {name: int(run.cells.loc[run.cells["dataset"] == name, "most"].max()) for name in run.datasets}
    if len(set(most.values())) == 1:
        return f"{next(iter(most.values())):,}"
    return wording.listing(f"{images:,} ({name})" for name, images in most.items())


def _corrected(run: ReportedRun) -> str:
    if not run.stops_early:
        return "hierarchical"
    return run.stats.correction or ("hierarchical" if run.stats.statistic == "obf" else "by")


def _rule(run: ReportedRun) -> str:
    if run.cells.empty:
        return ""
    if not run.stops_early:
        return f"none: every trial is measured on all of its images, {wording.between(run.cells['n'])}"
    stats = run.stats
    return (
        f"{STATISTICS[stats.statistic]}: a trial ends once its verdict is certain among all trials; looks after "
        f"{stats.first} images and every {stats.batch} more, at most {most_images(run)}; an effect that is certain "
        f"ends its trial only if it looks larger than {100 * stats.clear:g}% of the margin, because a smaller one may "
        "be negligible"
    )


def _futility(run: ReportedRun) -> str:
    if not run.stops_early:
        return ""
    if run.stats.futility is None:
        return "never: no trial ends without a verdict before its last image"
    return (
        f"a trial whose unadjusted p of lying below the margin falls to {run.stats.futility:g} ends without a verdict"
    )


def _drawn(run: ReportedRun) -> str:
    sweep = mapping(run.config.get("sweep"))
    if run.controls.empty or not sweep.get("controls"):
        return ""
    images = f", on {sweep['control_images']} images at most" if sweep.get("control_images") else ""
    return f"{sweep['controls']} for each data set, window and layer{images}"
