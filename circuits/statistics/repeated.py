"""Intervals for trials that may have stopped early: they cover wherever the trial stopped, and why."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtri

from circuits.statistics.sequential import StoppingRule
from circuits.statistics.validation import check_fraction, check_matrix


@dataclass(frozen=True)
class RepeatedIntervals:
    """Mean of the images counted, and its repeated confidence interval, on the scale of the values."""

    mean: Float[np.ndarray, " trials"]
    low: Float[np.ndarray, " trials"]
    high: Float[np.ndarray, " trials"]


def repeated_intervals(
    g: Float[np.ndarray, "trials n"], rule: StoppingRule, n_max: Int[np.ndarray, " trials"], level: float = 0.95
) -> RepeatedIntervals:
    """Repeated confidence intervals (Jennison & Turnbull, JRSS B 51, 1989) of the mean, after n images of each trial.

    The dual of the O'Brien-Fleming bound: with c = Phi^-1(1 - share (1 - level) / 4), mean +- c s sqrt(h) / n covers at
    all n <= h at once, for each horizon h; the shares sum to 1, so the shortest of them still covers. Wider than t's
    interval: by about a seventh after n_max images under the classical boundary, by two fifths under the default's
    second horizon, and by more the earlier the trial stopped. Finite variance, n_max fixed beforehand; asymptotic.
    Also used where the rule's statistic is an e-process, whose own confidence sequence is wider still.
    """
    g = check_matrix(g, "g").astype(np.float64)
    check_fraction(level, "level")
    n = g.shape[1]
    limits = np.asarray(n_max, dtype=np.int64)
    if limits.shape != (len(g),) or (len(g) and limits.min() < n):
        raise ValueError(f"n_max: expected {len(g)} numbers of at least n = {n}, got {n_max!r}")
    mean, sd = g.mean(axis=1), g.std(axis=1, ddof=1)
    half = np.full(len(g), np.inf)
    for fraction, share in rule.horizons:
        horizon = np.maximum(np.minimum(rule.first, limits), np.rint(fraction * limits))
        quantile = -ndtri(share * (1 - level) / 4)
        half = np.minimum(half, np.where(horizon >= n, quantile * sd * np.sqrt(horizon) / n, np.inf))
    return RepeatedIntervals(mean, mean - half, mean + half)
