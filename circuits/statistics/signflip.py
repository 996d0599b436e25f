"""The studentised sign-flip test of one mean per trial: the default test of "does this ablation degrade?"."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Shaped
from scipy.special import bdtrc

from circuits.statistics.saddlepoint import saddlepoint_upper_tail
from circuits.statistics.validation import ALTERNATIVES, TINY, Alternative, check_choice, check_matrix

Method = Literal["auto", "saddlepoint", "enumeration"]

EXACT_BELOW = 16
"""`auto` enumerates all sign patterns of a trial with fewer non-zero values than this."""

ENUMERATION_LIMIT = 20
"""2^20 patterns per trial is the most that `enumeration` accepts."""

TIE = 1e-12
"""Two flipped sums closer than this, relative to sum |g|, are a tie and count as at least as extreme."""

NEAR_FLOOR = 1024.0
"""A saddlepoint p below this many patterns is checked against the number that certainly reach the sum."""

BLOCK_VALUES = 1 << 17
"""Values of g handled at a time (1 MiB of float64: stays in cache)."""


@dataclass(frozen=True)
class SignFlipTest:
    """One sign-flip test per trial.

    p: in (0, 1], at least 2^-(non-zero values); 1 where every value is 0.
    t: mean(g) / (sd(g) / sqrt(n)), monotone in the flipped sum; +-inf where g is constant, 0 where it is all 0.
    method: "saddlepoint", "enumeration", "binomial" (equal magnitudes: exact) or "zero" per trial.
    """

    p: Float[np.ndarray, " trials"]
    t: Float[np.ndarray, " trials"]
    method: Shaped[np.ndarray, " trials"]
    alternative: str
    n: int


def signflip_test(
    g: Float[np.ndarray, "trials n"], alternative: Alternative = "greater", method: Method = "auto"
) -> SignFlipTest:
    """Test that the mean of every row is 0 against `alternative`, by flipping the signs of its images.

    Unit: the image (or seed); columns must be independent. Exact when g is symmetric about 0 under the null; for
    asymmetric g asymptotically valid because sum(g) at fixed sum(g^2) is monotone in Student's t (Romano 1989;
    Janssen 1999). `auto`: exact enumeration below 16 non-zero values, exact binomial where all magnitudes are equal,
    saddlepoint otherwise (relative error of a few percent, never below the patterns
    that certainly reach the sum, hence never below 2^-N; assumes no large atoms, which holds for
    continuous metrics). The two-sided p is twice the smaller tail, which is exact: the null distribution is symmetric.
    """
    g = check_matrix(g, "g")
    check_choice(alternative, "alternative", ALTERNATIVES)
    check_choice(method, "method", get_args(Method))
    trials, n = g.shape
    if method == "enumeration" and n > ENUMERATION_LIMIT:
        raise ValueError(f"g: expected at most {ENUMERATION_LIMIT} images for method='enumeration', got {n}")
    p, t = np.ones(trials), np.zeros(trials)
    used = np.full(trials, "zero", dtype="<U11")
    step = max(1, BLOCK_VALUES // n)
    for start in range(0, trials, step):
        block = slice(start, start + step)
        rows = g[block].astype(np.float64)
        p[block], t[block], used[block] = _test_block(-rows if alternative == "less" else rows, alternative, method)
    return SignFlipTest(p=p, t=-t if alternative == "less" else t, method=used, alternative=alternative, n=n)


def studentise(total: Float[np.ndarray, "*any"], n: int) -> Float[np.ndarray, "*any"]:
    """Student's t of n values whose sum divided by their root sum of squares is `total` (|total| <= sqrt(n))."""
    room = n - np.square(total)
    constant = room <= 1e-12 * n
    t = total * np.sqrt((n - 1) / np.where(constant, 1.0, room))
    return np.where(constant, np.copysign(np.inf, total), t)


def unit_rows(rows: Float[np.ndarray, "trials n"]) -> Float[np.ndarray, "trials n"]:
    """Rows scaled to unit norm without overflow or underflow; rows of zeros stay zero."""
    peak = np.abs(rows).max(axis=1, keepdims=True)
    rows = rows / np.where(peak > 0, peak, 1.0)
    norm = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    return rows / np.where(norm > 0, norm, 1.0)


def _test_block(
    rows: Float[np.ndarray, "trials n"], alternative: str, method: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p, t and method of a block, towards "greater" (the caller has negated the rows for "less")."""
    n = rows.shape[1]
    d = unit_rows(rows)
    total = d.sum(axis=1)
    magnitude = np.abs(d)
    count = np.count_nonzero(magnitude, axis=1)
    two_sided = alternative == "two-sided"
    towards = np.where(total < 0, -1.0, 1.0)[:, None] * d if two_sided else d
    used = _choose(magnitude, count, method)
    p = np.ones(rows.shape[0])

    for name, tail in (("enumeration", _enumerate), ("binomial", _binomial), ("saddlepoint", _saddlepoint)):
        chosen = used == name
        if chosen.any():
            p[chosen] = tail(towards[chosen], count[chosen])
    if two_sided:
        p = np.minimum(2.0 * p, 1.0)
    t = np.where(count > 0, studentise(total, n), 0.0)
    return np.maximum(p, TINY), t, used


def _choose(magnitude: Float[np.ndarray, "trials n"], count: np.ndarray, method: str) -> Shaped[np.ndarray, " trials"]:
    used = np.full(count.shape, "saddlepoint" if method == "auto" else method, dtype="<U11")
    if method == "auto":
        peak = magnitude.max(axis=1)
        # Equal magnitudes make the root mean square of the non-zero values equal to the largest.
        equal = peak**2 * count - 1.0 <= 1e-9
        used[equal] = "binomial"
        used[count < EXACT_BELOW] = "enumeration"
    used[count == 0] = "zero"
    return used


def _saddlepoint(d: Float[np.ndarray, "trials n"], count: np.ndarray) -> Float[np.ndarray, " trials"]:
    total = d.sum(axis=1)
    magnitude = np.abs(d)
    floor = np.exp2(-count.astype(np.float64))
    p = floor.copy()
    # All of one sign: only the observed pattern reaches the sum, and the saddlepoint is at infinity.
    inside = np.abs(total) < magnitude.sum(axis=1) * (1.0 - TIE)
    if inside.any():
        positive = np.where(total < 0, -1.0, 1.0)[:, None] * d
        p[inside] = saddlepoint_upper_tail(positive[inside])
    near = inside & (p < NEAR_FLOOR * floor)
    if near.any():
        p[near] = np.maximum(p[near], floor[near] * _patterns_at_least(magnitude[near], np.abs(total[near])))
    return np.where(total < 0, 1.0 - p, p)


def _patterns_at_least(
    magnitude: Float[np.ndarray, "trials n"], total: Float[np.ndarray, " trials"]
) -> Float[np.ndarray, " trials"]:
    """A lower bound on the number of sign patterns that reach `total`, where they are few and the saddlepoint is crude.

    A pattern reaches it when the magnitudes it makes negative sum to at most half of what is missing from the
    largest sum: no flip, any one small enough, or any of the m smallest that fit together.
    """
    n = magnitude.shape[1]
    largest = magnitude.sum(axis=1)
    missing = ((largest - total) / 2.0 + TIE * largest)[:, None]
    ordered = np.sort(magnitude, axis=1)
    zeros = n - np.count_nonzero(magnitude, axis=1)
    singles = np.count_nonzero(ordered <= missing, axis=1) - zeros
    together = np.count_nonzero(np.cumsum(ordered, axis=1) <= missing, axis=1) - zeros
    return np.maximum(1.0 + singles, np.exp2(together.astype(np.float64)))


def _binomial(d: Float[np.ndarray, "trials n"], count: np.ndarray) -> Float[np.ndarray, " trials"]:
    """Equal magnitudes: the sign test, P(Binomial(count, 1/2) >= number of positive values)."""
    positive = np.count_nonzero(d > 0, axis=1)
    return np.where(positive == 0, 1.0, bdtrc(np.maximum(positive - 1, 0).astype(float), count, 0.5))


def _enumerate(d: Float[np.ndarray, "trials n"], count: np.ndarray) -> Float[np.ndarray, " trials"]:
    """Share of all sign patterns whose sum reaches the observed one.

    The sums of all patterns are the outer sums of those of two halves: 2^k additions a trial, not k 2^k.
    """
    k = min(d.shape[1], max(int(count.max()), 2))
    if k < d.shape[1]:  # flipping a zero changes nothing: keep the k columns that hold every non-zero value
        order = np.argpartition(-np.abs(d), k - 1, axis=1)[:, :k]
        d = np.take_along_axis(d, order, axis=1)
    total = d.sum(axis=1)
    threshold = total - TIE * np.abs(d).sum(axis=1)
    left, right = d[:, : k // 2] @ sign_patterns(k // 2).T, d[:, k // 2 :] @ sign_patterns(k - k // 2).T
    reached = np.empty(d.shape[0])
    step = max(1, (1 << 18) >> k)
    for start in range(0, d.shape[0], step):
        rows = slice(start, start + step)
        sums = left[rows, :, None] + right[rows, None, :]
        reached[rows] = np.count_nonzero(sums >= threshold[rows, None, None], axis=(1, 2))
    return reached / 2.0**k


def sign_patterns(n: int) -> Float[np.ndarray, "patterns n"]:
    """All 2^n rows of signs, +1 or -1."""
    bits = (np.arange(1 << n)[:, None] >> np.arange(n)) & 1
    return 1.0 - 2.0 * bits
