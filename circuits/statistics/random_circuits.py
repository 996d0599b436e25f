"""Is a circuit better than random ones of the same size and the same layers and windows?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from scipy.special import betaincinv

from circuits.statistics.ratios import RatioInterval, paired_ratio
from circuits.statistics.validation import check_count, check_fraction, check_labels, check_vector


@dataclass(frozen=True)
class RandomCircuitTest:
    """p = (1 + #{T_r >= T_c}) / (R + 1), at least 1 / (R + 1) = `resolution`.

    percentile: share of random circuits below the circuit, in percent, with its Clopper-Pearson interval.
    """

    statistic: float
    p: float
    percentile: float
    ci_low: float
    ci_high: float
    random_mean: float
    draws: int
    resolution: float


def random_circuit_test(circuit: float, random: Sequence[float] | np.ndarray, level: float = 0.95) -> RandomCircuitTest:
    """Compare a circuit's statistic (larger is better: faithfulness, say) with that of R matched random circuits.

    Everything is measured on the same images, and the circuit was found on other ones: a circuit tested on the images
    that chose it beats random circuits by construction. Draw the circuits with `matched_random_circuits`; exact if the
    circuit were one of them. Sufficiency and necessity are two statistics, each to be tested under two ablation modes.
    """
    drawn = check_vector(random, "random")
    if not np.isfinite(circuit):
        raise ValueError(f"circuit: expected a finite statistic, got {circuit}")
    check_fraction(level, "level")
    below = int(np.count_nonzero(drawn < circuit))
    low, high = clopper_pearson(below, drawn.size, level)
    return RandomCircuitTest(
        statistic=float(circuit),
        p=(1.0 + drawn.size - below) / (drawn.size + 1.0),
        percentile=100.0 * below / drawn.size,
        ci_low=100.0 * low,
        ci_high=100.0 * high,
        random_mean=float(drawn.mean()),
        draws=drawn.size,
        resolution=1.0 / (drawn.size + 1.0),
    )


def matched_random_circuits(
    member: Bool[np.ndarray, " sites"],
    stratum: Sequence[object] | np.ndarray,
    rng: np.random.Generator,
    draws: int = 999,
) -> Bool[np.ndarray, "draws sites"]:
    """Random circuits with as many sites in every stratum (layer and window) as the circuit `member` has."""
    member = np.asarray(member)
    if member.dtype != np.bool_ or member.ndim != 1:
        raise ValueError(f"member: expected a vector of booleans, got {member.dtype} {member.shape}")
    codes = check_labels(stratum, "stratum", member.size)
    check_count(draws, "draws")
    circuits = np.zeros((draws, member.size), dtype=bool)
    for code in np.unique(codes[member]):
        sites = np.flatnonzero(codes == code)
        size = int(np.count_nonzero(member[sites]))
        chosen = rng.permuted(np.tile(sites, (draws, 1)), axis=1)[:, :size]
        np.put_along_axis(circuits, chosen, True, axis=1)
    return circuits


def faithfulness(
    circuit: Sequence[float] | np.ndarray,
    empty: Sequence[float] | np.ndarray,
    model: Sequence[float] | np.ndarray,
    level: float = 0.95,
) -> RatioInterval:
    """(F(C) - F(empty)) / (F(model) - F(empty)), means over the same images, with Fieller's set (one trial).

    circuit, empty, model: F per image of the circuit alone, of everything ablated, and of the whole model.
    """
    values = [check_vector(v, name, 2) for v, name in ((circuit, "circuit"), (empty, "empty"), (model, "model"))]
    if len({v.size for v in values}) != 1:
        raise ValueError(f"circuit, empty, model: expected the same images, got {[v.size for v in values]} of them")
    return paired_ratio((values[0] - values[1])[None], (values[2] - values[1])[None], level)


def clopper_pearson(successes: int, n: int, level: float) -> tuple[float, float]:
    """Exact interval of a proportion (Biometrika 26, 1934); agrees with statsmodels' method="beta"."""
    tail = (1.0 - level) / 2.0
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1.0 - tail))
    return low, high
