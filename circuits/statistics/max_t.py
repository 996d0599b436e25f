"""Studentised max-T over all trials at once: family-wise error control and simultaneous intervals.

With rows scaled to unit norm the flipped sum is monotone in Student's t (see `studentise`), so all flips of all trials
are one matrix product, done in blocks of which only counts and the running maximum over trials are kept.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int

from circuits.statistics.effects import moments
from circuits.statistics.signflip import studentise, unit_rows
from circuits.statistics.validation import (
    ALTERNATIVES,
    Alternative,
    check_choice,
    check_count,
    check_fraction,
    check_matrix,
)

SIGN_BLOCK, TRIAL_BLOCK = 1024, 4096
"""A block of products is 1,024 x 4,096 float32: 17 MB."""

TIE = 2e-5
"""Sums (of unit scale, in float32) closer than this are ties and count as at least as extreme: conservative."""


@dataclass(frozen=True)
class MaxT:
    """p: per-trial Monte Carlo sign-flip, (1 + #{t* >= t}) / (draws + 1). p_adjusted: the same count over the maximum
    of all trials, so that P(any false rejection at p_adjusted <= alpha) <= alpha. t: Student's t per trial.
    maxima: the largest t of every draw (of |t| if two-sided).
    """

    t: Float[np.ndarray, " trials"]
    p: Float[np.ndarray, " trials"]
    p_adjusted: Float[np.ndarray, " trials"]
    maxima: Float[np.ndarray, " draws"]
    draws: int
    alternative: str


@dataclass(frozen=True)
class SimultaneousIntervals:
    """Intervals of every trial's mean g that hold all at once with probability `level`: mean +- critical sd / sqrt(n).

    low, high: on the log scale. critical: the quantile of max |t|.
    """

    mean: Float[np.ndarray, " trials"]
    low: Float[np.ndarray, " trials"]
    high: Float[np.ndarray, " trials"]
    critical: float
    level: float
    draws: int


def max_t_test(
    g: Float[np.ndarray, "trials n"],
    rng: np.random.Generator,
    alternative: Alternative = "greater",
    draws: int = 9999,
    sign_block: int = SIGN_BLOCK,
    trial_block: int = TRIAL_BLOCK,
) -> MaxT:
    """Single-step max-T (Westfall & Young 1993) by joint sign flips: one sign per image, the same for all trials.

    Flipping an image in all trials keeps their dependence, so nothing is assumed about it. Exact when the vector of
    trials is symmetric about 0 over images under the complete null; controls the family-wise error strongly because
    trials whose null is true keep their joint distribution (subset pivotality). Block sizes do not change the result.
    """
    g = check_matrix(g, "g")
    check_choice(alternative, "alternative", ALTERNATIVES)
    check_count(draws, "draws")
    rows = _unit_float32(g, centred=False)
    total = _total(rows)
    oriented = {"greater": total, "less": -total, "two-sided": np.abs(total)}[alternative]
    if alternative == "less":
        np.negative(rows, out=rows)
    counts, maxima = flip_counts(rows, oriented, rng, draws, alternative == "two-sided", sign_block, trial_block)
    reached = draws - np.searchsorted(np.sort(maxima), oriented - TIE, side="left")
    return MaxT(
        t=np.where(total == 0, 0.0, studentise(total, g.shape[1])),
        p=(1.0 + counts) / (draws + 1.0),
        p_adjusted=(1.0 + reached) / (draws + 1.0),
        maxima=studentise(maxima, g.shape[1]),
        draws=draws,
        alternative=alternative,
    )


def simultaneous_intervals(
    g: Float[np.ndarray, "trials n"],
    rng: np.random.Generator,
    level: float = 0.95,
    draws: int = 4999,
    sign_block: int = SIGN_BLOCK,
    trial_block: int = TRIAL_BLOCK,
) -> SimultaneousIntervals:
    """Simultaneous intervals from the distribution of max |t|, by sign multipliers on the centred images.

    Multiplier bootstrap of a maximum (Chernozhukov, Chetverikov & Kato, Annals of Statistics 41, 2013), studentised
    within every draw; asymptotic in n, allowing trials >> n and any dependence between trials.
    """
    g = check_matrix(g, "g")
    check_fraction(level, "level")
    check_count(draws, "draws")
    m = moments(g)
    rows = _unit_float32(g, centred=True)
    _, maxima = flip_counts(rows, None, rng, draws, True, sign_block, trial_block)
    critical = float(studentise(np.array([upper_quantile(maxima, level)]), m.n)[0])
    half = critical * m.sd / np.sqrt(m.n)
    return SimultaneousIntervals(
        mean=m.mean, low=m.mean - half, high=m.mean + half, critical=critical, level=level, draws=draws
    )


def flip_counts(
    rows: Float32[np.ndarray, "trials n"],
    observed: Float[np.ndarray, " trials"] | None,
    rng: np.random.Generator,
    draws: int,
    absolute: bool,
    sign_block: int = SIGN_BLOCK,
    trial_block: int = TRIAL_BLOCK,
) -> tuple[Int[np.ndarray, " trials"], Float[np.ndarray, " draws"]]:
    """Per trial the draws whose flipped sum reaches `observed` (less the tie), and per draw the largest flipped sum."""
    trials, n = rows.shape
    check_count(sign_block, "sign_block")
    check_count(trial_block, "trial_block")
    threshold = None if observed is None else (observed - TIE).astype(np.float32)
    counts = np.zeros(trials, dtype=np.int64)
    maxima = np.full(draws, -np.inf, dtype=np.float32)
    for start in range(0, draws, sign_block):
        signs = random_signs(min(sign_block, draws - start), n, rng)
        highest = maxima[start : start + signs.shape[0]]
        for first in range(0, trials, trial_block):
            block = slice(first, first + trial_block)
            sums = rows[block] @ signs.T
            if absolute:
                np.abs(sums, out=sums)
            np.maximum(highest, sums.max(axis=0), out=highest)
            if threshold is not None:
                counts[block] += np.count_nonzero(sums >= threshold[block, None], axis=1)
    return counts, maxima.astype(np.float64)


def random_signs(draws: int, n: int, rng: np.random.Generator) -> Float32[np.ndarray, "draws n"]:
    """Rows of +1 and -1. Each row consumes whole words of the generator: how draws are blocked changes none."""
    words = rng.integers(0, 1 << 64, size=(draws, -(-n // 64)), dtype=np.uint64)
    bits = np.unpackbits(words.view(np.uint8), axis=1, count=n)
    return np.float32(1.0) - np.float32(2.0) * bits.astype(np.float32)


def upper_quantile(maxima: Float[np.ndarray, " draws"], level: float) -> float:
    """The ceil(level (draws + 1))-th smallest value: never below the Monte Carlo quantile it estimates."""
    rank = int(np.ceil(level * (maxima.size + 1)))
    if rank > maxima.size:
        raise ValueError(
            f"draws: expected at least {int(np.ceil(level / (1 - level)))} for level {level}, got {maxima.size}"
        )
    return float(np.partition(maxima, rank - 1)[rank - 1])


def _unit_float32(g: Float[np.ndarray, "trials n"], centred: bool) -> Float32[np.ndarray, "trials n"]:
    unit = np.empty(g.shape, dtype=np.float32)
    for start in range(0, g.shape[0], TRIAL_BLOCK):
        block = slice(start, start + TRIAL_BLOCK)
        rows = g[block].astype(np.float64)
        if centred:
            spread = np.abs(rows).max(axis=1, keepdims=True)
            rows = rows - rows.mean(axis=1, keepdims=True)
            rows[np.abs(rows).max(axis=1) <= 1e-12 * spread[:, 0]] = 0.0  # a constant row has no spread to flip
        unit[block] = unit_rows(rows)
    return unit


def _total(rows: Float32[np.ndarray, "trials n"]) -> Float[np.ndarray, " trials"]:
    return rows.sum(axis=1, dtype=np.float64)
