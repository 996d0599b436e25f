"""Contrasts of two independent samples of images: does an ablation do more on one data set than on another?"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import stdtr, stdtrit

from circuits.statistics.ratios import welch_df
from circuits.statistics.validation import (
    ALTERNATIVES,
    TINY,
    Alternative,
    check_choice,
    check_count,
    check_fraction,
    check_matrix,
)

TIE = 1e-9
"""Relative tolerance under which a permuted |t| counts as at least the observed one."""

PERMUTATION_BLOCK, TRIAL_BLOCK = 1024, 2048


@dataclass(frozen=True)
class Contrast:
    """mean(a) - mean(b) per trial.

    ci_low, ci_high, p_welch: Welch's t with `df` degrees of freedom. p: studentised label permutation,
    (1 + #{permuted t at least as extreme}) / (permutations + 1).
    """

    estimate: Float[np.ndarray, " trials"]
    ci_low: Float[np.ndarray, " trials"]
    ci_high: Float[np.ndarray, " trials"]
    t: Float[np.ndarray, " trials"]
    df: Float[np.ndarray, " trials"]
    p_welch: Float[np.ndarray, " trials"]
    p: Float[np.ndarray, " trials"]
    n_a: int
    n_b: int
    permutations: int
    alternative: str


def independent_contrast(
    a: Float[np.ndarray, "trials n_a"],
    b: Float[np.ndarray, "trials n_b"],
    rng: np.random.Generator,
    alternative: Alternative = "two-sided",
    permutations: int = 9999,
    level: float = 0.95,
) -> Contrast:
    """Welch's t and the studentised permutation of data-set labels, per trial.

    The same permutations serve every trial. Exact when the two samples are exchangeable under the null, and
    asymptotically valid for equal means with unequal variances *because* the statistic is studentised (Janssen 1997;
    Chung & Romano 2013): permuting the raw difference is not (see the must-fail control of the tests).
    Images are the unit; the two data sets share none.
    """
    a, b = check_matrix(a, "a").astype(float), check_matrix(b, "b").astype(float)
    if a.shape[0] != b.shape[0]:
        raise ValueError(f"b: expected {a.shape[0]} trials, got {b.shape[0]}")
    check_choice(alternative, "alternative", ALTERNATIVES)
    check_count(permutations, "permutations")
    check_fraction(level, "level")
    n_a, n_b = a.shape[1], b.shape[1]
    estimate = a.mean(axis=1) - b.mean(axis=1)
    v_a, v_b = a.var(axis=1, ddof=1) / n_a, b.var(axis=1, ddof=1) / n_b
    error, df = np.sqrt(v_a + v_b), welch_df(v_a, v_b, n_a, n_b)
    t = _studentised(estimate, error)
    half = stdtrit(df, 0.5 + level / 2) * error
    return Contrast(
        estimate=estimate,
        ci_low=estimate - half,
        ci_high=estimate + half,
        t=t,
        df=df,
        p_welch=np.maximum(_t_tail(t, df, alternative), TINY),
        p=_permutation_p(np.concatenate([a, b], axis=1), n_a, t, rng, alternative, permutations),
        n_a=n_a,
        n_b=n_b,
        permutations=permutations,
        alternative=alternative,
    )


def label_permutations(n: int, n_a: int, draws: int, rng: np.random.Generator) -> Float[np.ndarray, "draws n"]:
    """Rows of 0 and 1 with n_a ones each: which images are called "a". Blocks change nothing."""
    labels = np.zeros((draws, n))
    for row in labels:
        row[rng.permutation(n)[:n_a]] = 1.0
    return labels


def permuted_t(
    labels: Float[np.ndarray, "draws n"], z: Float[np.ndarray, "trials n"], n_a: int
) -> Float[np.ndarray, "draws trials"]:
    """Welch's t of every relabelling of every trial, from two matrix products. Rows of z should be centred."""
    n = z.shape[1]
    n_b = n - n_a
    squares = z**2
    sum_a, square_a = labels @ z.T, labels @ squares.T
    sum_b, square_b = z.sum(axis=1) - sum_a, squares.sum(axis=1) - square_a
    v_a = np.maximum(square_a - sum_a**2 / n_a, 0.0) / (n_a * (n_a - 1))
    v_b = np.maximum(square_b - sum_b**2 / n_b, 0.0) / (n_b * (n_b - 1))
    # Differences of sums of squares leave rounding where a group is constant: clear it.
    error = np.sqrt(np.where(v_a + v_b <= 1e-14 * squares.sum(axis=1) / n, 0.0, v_a + v_b))
    return _studentised(sum_a / n_a - sum_b / n_b, error)


def _permutation_p(
    pooled: Float[np.ndarray, "trials n"],
    n_a: int,
    t: Float[np.ndarray, " trials"],
    rng: np.random.Generator,
    alternative: str,
    permutations: int,
) -> Float[np.ndarray, " trials"]:
    pooled = pooled - pooled.mean(axis=1, keepdims=True)
    peak = np.abs(pooled).max(axis=1, keepdims=True)
    pooled = pooled / np.where(peak > 0, peak, 1.0)
    reached = np.zeros(t.size, dtype=np.int64)
    observed = orient(t, alternative)
    threshold = np.where(np.isfinite(observed), observed - TIE * np.abs(np.nan_to_num(observed)), observed)
    for start in range(0, permutations, PERMUTATION_BLOCK):
        labels = label_permutations(pooled.shape[1], n_a, min(PERMUTATION_BLOCK, permutations - start), rng)
        for first in range(0, t.size, TRIAL_BLOCK):
            rows = slice(first, first + TRIAL_BLOCK)
            permuted = orient(permuted_t(labels, pooled[rows], n_a), alternative)
            reached[rows] += np.count_nonzero(permuted >= threshold[rows], axis=0)
    return (1.0 + reached) / (permutations + 1.0)


def orient(t: Float[np.ndarray, "*any"], alternative: str) -> Float[np.ndarray, "*any"]:
    """t turned so that larger means further towards the alternative."""
    if alternative == "two-sided":
        return np.abs(t)
    return -t if alternative == "less" else t


def _studentised(difference: np.ndarray, error: np.ndarray) -> np.ndarray:
    constant = np.where(difference == 0, 0.0, np.copysign(np.inf, difference))
    return np.where(error > 0, difference / np.where(error > 0, error, 1.0), constant)


def _t_tail(t: np.ndarray, df: np.ndarray, alternative: str) -> np.ndarray:
    tail = stdtr(df, -orient(t, alternative))
    return 2.0 * tail if alternative == "two-sided" else tail
