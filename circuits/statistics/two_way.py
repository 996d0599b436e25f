"""Claims over heads: both the heads and the images are samples."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from circuits.statistics.validation import check_count, check_fraction, check_matrix

DRAW_BLOCK = 256


@dataclass(frozen=True)
class TwoWayContrast:
    """mean(a) - mean(b) over heads and images, with percentile interval, bootstrap standard error and p-value.

    ratio, ratio_low, ratio_high: mean(a) / mean(b) likewise; NaN where a draw has a mean that is not positive.
    """

    estimate: float
    standard_error: float
    ci_low: float
    ci_high: float
    p: float
    ratio: float
    ratio_low: float
    ratio_high: float
    heads: int
    n_a: int
    n_b: int
    draws: int
    level: float


def two_way_contrast(
    a: Float[np.ndarray, "heads n_a"],
    b: Float[np.ndarray, "heads n_b"],
    rng: np.random.Generator,
    draws: int = 4999,
    level: float = 0.95,
) -> TwoWayContrast:
    """Contrast the same heads on two data sets by resampling heads and, independently, each set of images.

    The pigeonhole bootstrap (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1, 2007): heads are
    resampled jointly for both data sets, as they are the same heads. Its variance is never too small to first order
    and somewhat too large when both ways matter: conservative. Few heads (< 10) make any interval over heads crude.
    p is two-sided, (1 + #{draws on the far side of 0}) / (draws + 1) doubled.
    """
    a, b = check_matrix(a, "a").astype(float), check_matrix(b, "b").astype(float)
    if a.shape[0] != b.shape[0] or a.shape[0] < 2:
        raise ValueError(f"a, b: expected the same heads, at least 2, got {a.shape[0]} and {b.shape[0]}")
    check_count(draws, "draws", least=99)
    check_fraction(level, "level")
    means = np.empty((2, draws))
    for start in range(0, draws, DRAW_BLOCK):
        size = min(DRAW_BLOCK, draws - start)
        heads = _weights(a.shape[0], size, rng)
        for index, values in enumerate((a, b)):
            images = _weights(values.shape[1], size, rng)
            means[index, start : start + size] = np.einsum("di,di->d", heads @ values, images)
    difference = means[0] - means[1]
    tails = [(1.0 - level) / 2.0, (1.0 + level) / 2.0]
    low, high = np.quantile(difference, tails)
    side = 1 + min(int(np.count_nonzero(difference <= 0)), int(np.count_nonzero(difference >= 0)))
    ratio_low, ratio_high = np.quantile(means[0] / means[1], tails) if (means > 0).all() else (np.nan, np.nan)
    return TwoWayContrast(
        estimate=float(a.mean() - b.mean()),
        standard_error=float(difference.std(ddof=1)),
        ci_low=float(low),
        ci_high=float(high),
        p=min(1.0, 2.0 * side / (draws + 1.0)),
        ratio=float(a.mean() / b.mean()) if (means > 0).all() else float("nan"),
        ratio_low=float(ratio_low),
        ratio_high=float(ratio_high),
        heads=a.shape[0],
        n_a=a.shape[1],
        n_b=b.shape[1],
        draws=draws,
        level=level,
    )


def _weights(n: int, draws: int, rng: np.random.Generator) -> Float[np.ndarray, "draws n"]:
    """Bootstrap weights that sum to 1: how often each of n units is drawn, over n."""
    return rng.multinomial(n, np.full(n, 1.0 / n), size=draws) / n
