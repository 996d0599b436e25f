"""Intervals of a ratio of two means, with unbounded sets reported as such."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from scipy.special import stdtrit

from circuits.statistics.validation import check_fraction, check_matrix


@dataclass(frozen=True)
class RatioInterval:
    """A ratio of means per trial with its confidence set.

    kind: "bounded": the set is [low, high];
    "exclusive": the set is everything *outside* (low, high): the denominator is not distinguishable from 0 but the
    ratio excludes some values;
    "unbounded": the data exclude no ratio; low = -inf, high = inf;
    "undefined": the method does not apply (a mean that is not positive, for `independent_ratio`); NaN limits.
    df: degrees of freedom of the t quantile.
    """

    estimate: Float[np.ndarray, " trials"]
    low: Float[np.ndarray, " trials"]
    high: Float[np.ndarray, " trials"]
    kind: Shaped[np.ndarray, " trials"]
    df: Float[np.ndarray, " trials"]
    level: float


def paired_ratio(
    numerator: Float[np.ndarray, "trials n"], denominator: Float[np.ndarray, "trials n"], level: float = 0.95
) -> RatioInterval:
    """mean(numerator) / mean(denominator) over the same images, by Fieller's theorem (JRSS B 16, 1954).

    The set holds every rho for which the paired t test of numerator - rho denominator does not reject. Exact for
    normal values, whatever the correlation. The estimate is a ratio of means, never a mean of ratios.
    """
    a, b = check_matrix(numerator, "numerator").astype(float), check_matrix(denominator, "denominator").astype(float)
    if a.shape != b.shape:
        raise ValueError(f"denominator: expected shape {a.shape}, got {b.shape}")
    check_fraction(level, "level")
    n = a.shape[1]
    mean_a, mean_b = a.mean(axis=1), b.mean(axis=1)
    da, db = a - mean_a[:, None], b - mean_b[:, None]
    scale = stdtrit(n - 1, 0.5 + level / 2) ** 2 / (n * (n - 1))
    # rho is in the set when A rho^2 - 2 B rho + C <= 0.
    quad = mean_b**2 - scale * np.einsum("ij,ij->i", db, db)
    cross = mean_a * mean_b - scale * np.einsum("ij,ij->i", da, db)
    const = mean_a**2 - scale * np.einsum("ij,ij->i", da, da)
    low, high, kind = _solve_quadratic(quad, cross, const)
    return RatioInterval(
        estimate=_divide(mean_a, mean_b),
        low=low,
        high=high,
        kind=kind,
        df=np.full(mean_a.shape, n - 1.0),
        level=level,
    )


def independent_ratio(
    a: Float[np.ndarray, "trials n_a"], b: Float[np.ndarray, "trials n_b"], level: float = 0.95
) -> RatioInterval:
    """mean(a) / mean(b) of two independent samples, by the delta method on the log scale with Welch's df.

    log(mean a / mean b) has variance v_a + v_b, v = s^2 / (n mean^2), and df = (v_a + v_b)^2 /
    (v_a^2 / (n_a - 1) + v_b^2 / (n_b - 1)). Needs two positive means; a pair without them is "undefined", as no
    ratio of signed effects means anything: report the difference instead.
    """
    a, b = check_matrix(a, "a").astype(float), check_matrix(b, "b").astype(float)
    if a.shape[0] != b.shape[0]:
        raise ValueError(f"b: expected {a.shape[0]} trials, got {b.shape[0]}")
    check_fraction(level, "level")
    mean_a, mean_b = a.mean(axis=1), b.mean(axis=1)
    valid = (mean_a > 0) & (mean_b > 0)
    safe_a, safe_b = np.where(valid, mean_a, 1.0), np.where(valid, mean_b, 1.0)
    v_a = a.var(axis=1, ddof=1) / (a.shape[1] * safe_a**2)
    v_b = b.var(axis=1, ddof=1) / (b.shape[1] * safe_b**2)
    df = welch_df(v_a, v_b, a.shape[1], b.shape[1])
    log_estimate = np.log(safe_a) - np.log(safe_b)
    half = stdtrit(df, 0.5 + level / 2) * np.sqrt(v_a + v_b)
    with np.errstate(over="ignore"):
        low, high = np.exp(log_estimate - half), np.exp(log_estimate + half)
    return RatioInterval(
        estimate=_divide(mean_a, mean_b),
        low=np.where(valid, low, np.nan),
        high=np.where(valid, high, np.nan),
        kind=np.where(valid, "bounded", "undefined"),
        df=df,
        level=level,
    )


def welch_df(
    v_a: Float[np.ndarray, "*any"], v_b: Float[np.ndarray, "*any"], n_a: int, n_b: int
) -> Float[np.ndarray, "*any"]:
    """Welch-Satterthwaite degrees of freedom of v_a + v_b; n_a + n_b - 2 where both variances are 0."""
    total = v_a + v_b
    safe = np.where(total > 0, total, 1.0)
    spread = np.square(v_a / safe) / (n_a - 1) + np.square(v_b / safe) / (n_b - 1)
    return np.where(total > 0, 1.0 / np.where(total > 0, spread, 1.0), n_a + n_b - 2.0)


def _solve_quadratic(
    quad: np.ndarray, cross: np.ndarray, const: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where quad rho^2 - 2 cross rho + const <= 0: an interval, the outside of one, or the whole line."""
    root = np.sqrt(np.maximum(cross**2 - quad * const, 0.0))
    unbounded = (quad == 0) | ((quad < 0) & (cross**2 - quad * const <= 0))
    safe = np.where(unbounded, 1.0, quad)
    ends = np.sort(np.stack([(cross - root) / safe, (cross + root) / safe]), axis=0)
    low, high = np.where(unbounded, -np.inf, ends[0]), np.where(unbounded, np.inf, ends[1])
    return low, high, np.where(unbounded, "unbounded", np.where(quad > 0, "bounded", "exclusive"))


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(b != 0, a / np.where(b != 0, b, 1.0), np.nan)
