"""Which trials matter most: confidence intervals of ranks."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from circuits.statistics.max_t import random_signs, upper_quantile
from circuits.statistics.signflip import studentise
from circuits.statistics.validation import check_count, check_fraction, check_matrix

DRAW_BLOCK = 32


@dataclass(frozen=True)
class RankIntervals:
    """Ranks among the selected trials, 1 = largest mean g.

    trials: indices of the selected trials, by falling mean on the images that rank them. rank: their point ranks.
    low, high: intervals that hold all at once with probability `level`. mean: mean g on those images.
    critical: the quantile of the largest |t| over all pairs. n: images that rank (screening images not among them).
    """

    trials: Int[np.ndarray, " top"]
    mean: Float[np.ndarray, " top"]
    rank: Int[np.ndarray, " top"]
    low: Int[np.ndarray, " top"]
    high: Int[np.ndarray, " top"]
    critical: float
    level: float
    n: int


def screened_rank_intervals(
    g: Float[np.ndarray, "trials n"],
    screening: Bool[np.ndarray, " n"],
    rng: np.random.Generator,
    top: int = 200,
    level: float = 0.95,
    draws: int = 1999,
) -> RankIntervals:
    """Choose the `top` trials by mean g on the screening images, rank them on the held-out images.

    The screening images never touch the ranking, so the selection costs the intervals nothing; ranks are among the
    selected trials.
    """
    g = check_matrix(g, "g")
    screening = np.asarray(screening)
    if screening.dtype != np.bool_ or screening.shape != (g.shape[1],):
        raise ValueError(f"screening: expected {g.shape[1]} booleans, got {screening.dtype} {screening.shape}")
    if not screening.any() or np.count_nonzero(~screening) < 2:
        raise ValueError(
            f"screening: expected >= 1 screening and >= 2 held-out images, got {screening.sum()} of {screening.size}"
        )
    check_count(top, "top")
    chosen = np.sort(np.argsort(-g[:, screening].mean(axis=1), kind="stable")[:top])
    return rank_intervals(g[np.ix_(chosen, ~screening)], rng, level, draws, chosen)


def rank_intervals(
    g: Float[np.ndarray, "trials n"],
    rng: np.random.Generator,
    level: float = 0.95,
    draws: int = 1999,
    trials: Int[np.ndarray, " trials"] | None = None,
) -> RankIntervals:
    """Simultaneous rank intervals from all pairwise differences (Mogstad, Romano, Shaikh & Wilhelm, REStud 91, 2024).

    A trial's rank is at least 1 + the number of trials significantly above it, and at most the number of trials less
    those significantly below, where significance is that of a max |t| over all pairs (sign multipliers on centred
    images, shared by all trials: the dependence is kept). Asymptotic in n.
    """
    g = check_matrix(g, "g").astype(np.float64)
    check_fraction(level, "level")
    check_count(draws, "draws")
    count, n = g.shape
    mean = g.mean(axis=1)
    residual = g - mean[:, None]
    norm = _pair_norms(residual)
    critical = _critical(residual, norm, rng, level, draws)
    # t of a pair = difference / (norm / sqrt(n (n - 1))); a pair of identical trials (norm 0) is told apart only by a
    # difference of constants, which is certain.
    bound = critical * norm / np.sqrt(n * (n - 1))
    above = mean[None, :] - mean[:, None] > bound
    low = 1 + above.sum(axis=1)
    high = count - above.sum(axis=0)
    order = np.argsort(-mean, kind="stable")
    names = np.arange(count) if trials is None else np.asarray(trials)
    return RankIntervals(
        trials=names[order],
        mean=mean[order],
        rank=np.arange(1, count + 1),
        low=low[order],
        high=high[order],
        critical=critical,
        level=level,
        n=n,
    )


def _pair_norms(residual: Float[np.ndarray, "trials n"]) -> Float[np.ndarray, "trials trials"]:
    """Root sum of squares of the difference of every pair of rows; rounding noise is cleared to 0."""
    square = np.einsum("ij,ij->i", residual, residual)
    pair = square[:, None] + square[None, :]
    distance = pair - 2.0 * residual @ residual.T
    return np.sqrt(np.where(distance <= 1e-12 * pair, 0.0, distance))


def _critical(
    residual: Float[np.ndarray, "trials n"],
    norm: Float[np.ndarray, "trials trials"],
    rng: np.random.Generator,
    level: float,
    draws: int,
) -> float:
    count, n = residual.shape
    first, second = np.triu_indices(count, k=1)
    scale = norm[first, second]
    first, second, scale = first[scale > 0], second[scale > 0], scale[scale > 0]
    if not scale.size:
        return 0.0
    maxima = np.empty(draws)
    for start in range(0, draws, DRAW_BLOCK):
        sums = random_signs(min(DRAW_BLOCK, draws - start), n, rng).astype(np.float64) @ residual.T
        pairs = np.abs(sums[:, first] - sums[:, second]) / scale
        maxima[start : start + sums.shape[0]] = pairs.max(axis=1)
    return float(studentise(np.array([min(upper_quantile(maxima, level), np.sqrt(n))]), n)[0])
