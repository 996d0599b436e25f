"""What a run of this size can and cannot show: detectable effects, agreement of halves, the cost of skewness."""

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm, spearmanr

from circuits.statistics.power import POWER, boundary_drift

LAST_HORIZON = 0.25  # share of the error that the stopping rule spends on a trial's last image
Sizes = Any  # a number, an array or a series


def spread_between_images(cells: pd.DataFrame) -> pd.Series:
    """Standard deviation of g per trial, mean / d_z; trials without one (d_z of 0 or infinite) are left out."""
    spread = (cells["mean_log_ratio"] / cells["d_z"]).abs()
    return spread[spread.notna() & (spread > 0) & (spread < math.inf)]


def smallest_detectable(spread: Sizes, n: Sizes, alpha: float, statistic: str = "none") -> Sizes:
    """The log ratio that a one-sided test at alpha finds with 80% power from n images, at most n where it may stop.

    Normal approximation: a guide, not a guarantee. NaN for e-processes, whose power has no such formula.
    """
    if statistic == "obf":
        return boundary_drift(alpha * LAST_HORIZON / 2) * spread / np.sqrt(n)
    if statistic != "none":
        return math.nan * spread / np.sqrt(n)
    return (norm.isf(alpha) + norm.ppf(POWER)) * spread / np.sqrt(n)


def corrected_level(cells: pd.DataFrame, alpha: float) -> float:
    """The largest p that the correction over all trials let pass; alpha / trials where it let none."""
    passed = cells.loc[cells["q"] <= alpha, "p"]
    return float(passed.max()) if len(passed) else alpha / max(int(cells["p"].notna().sum()), 1)


def agreement_of_halves(cells: pd.DataFrame) -> float:
    """Rank correlation over trials of the mean g of one half of the images with that of the other."""
    both = cells[["half_a", "half_b"]].dropna()
    if len(both) < 3 or (both.nunique() < 2).any():
        return math.nan
    return float(spearmanr(both["half_a"], both["half_b"]).statistic)


def whole_from_halves(correlation: float) -> float:
    """What all images would agree to with as many others, by the Spearman-Brown formula."""
    return 2 * correlation / (1 + correlation)


def level_under_skew(alpha: float, skewness: float, n: float) -> float:
    """True level of a one-sided t test at a nominal alpha when g has this skewness, to first order in 1 / sqrt(n).

    P(T > z) = alpha - skewness (2 z^2 + 1) phi(z) / (6 sqrt(n)) (Hall, The Bootstrap and Edgeworth Expansion, 1992,
    section 2.6): too many false alarms where g leans to the left. The studentised sign-flip test shares it.
    """
    z = norm.isf(alpha)
    return float(np.clip(alpha - skewness * (2 * z**2 + 1) * norm.pdf(z) / (6 * math.sqrt(n)), 0, 1))
