"""Difference of two data sets along the timesteps: a max-T band over all of them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from circuits.statistics.contrasts import TIE, label_permutations, permuted_t
from circuits.statistics.max_t import upper_quantile
from circuits.statistics.validation import check_count, check_fraction, check_matrix

DRAW_BLOCK = 1024


@dataclass(frozen=True)
class DivergenceBand:
    """Per timestep: mean(a) - mean(b).

    low, high: a band that holds at all timesteps at once with probability `level`. p: adjusted for all timesteps.
    p_global: "no difference at any timestep", the smallest p. outside: where the band excludes 0.
    expected_absolute: mean |difference| under permuted labels: what a "divergence" |mean(a) - mean(b)| reads when the
    data sets do not differ. `mean_absolute` and `expected_mean_absolute` are the same two for its mean over timesteps.
    """

    difference: Float[np.ndarray, " timesteps"]
    low: Float[np.ndarray, " timesteps"]
    high: Float[np.ndarray, " timesteps"]
    t: Float[np.ndarray, " timesteps"]
    p: Float[np.ndarray, " timesteps"]
    p_global: float
    outside: Bool[np.ndarray, " timesteps"]
    expected_absolute: Float[np.ndarray, " timesteps"]
    mean_absolute: float
    expected_mean_absolute: float
    critical: float
    level: float
    permutations: int


def divergence_band(
    a: Float[np.ndarray, "n_a timesteps"],
    b: Float[np.ndarray, "n_b timesteps"],
    rng: np.random.Generator,
    level: float = 0.95,
    permutations: int = 9999,
) -> DivergenceBand:
    """Compare one value per image and timestep (an entropy, say) of two data sets at every timestep.

    Labels of whole images are permuted, jointly over timesteps: the timesteps of an image are dependent and stay so.
    p-values: max |Welch t| over timesteps under permuted labels (exact under exchangeability, asymptotic for equal
    means, as `independent_contrast`). Band: the same maximum on images centred within their own data set, so that a
    real difference does not widen it. Images are the unit; the two data sets share none.
    """
    a, b = check_matrix(a, "a", columns=1).astype(float), check_matrix(b, "b", columns=1).astype(float)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"b: expected {a.shape[1]} timesteps, got {b.shape[1]}")
    n_a, n_b = a.shape[0], b.shape[0]
    if min(n_a, n_b) < 2:
        raise ValueError(f"a, b: expected at least 2 images each, got {n_a} and {n_b}")
    check_fraction(level, "level")
    check_count(permutations, "permutations")
    pooled = np.concatenate([a, b]).T  # [timesteps, n]
    pooled = pooled - pooled.mean(axis=1, keepdims=True)
    centred = np.concatenate([a - a.mean(axis=0), b - b.mean(axis=0)]).T
    observed = np.zeros((1, n_a + n_b))
    observed[0, :n_a] = 1.0
    t = permuted_t(observed, pooled, n_a)[0]
    difference = a.mean(axis=0) - b.mean(axis=0)
    error = np.sqrt(a.var(axis=0, ddof=1) / n_a + b.var(axis=0, ddof=1) / n_b)

    maxima, band_maxima = np.empty(permutations), np.empty(permutations)
    absolute = np.zeros(t.size)
    for start in range(0, permutations, DRAW_BLOCK):
        labels = label_permutations(n_a + n_b, n_a, min(DRAW_BLOCK, permutations - start), rng)
        draws = slice(start, start + labels.shape[0])
        maxima[draws] = np.abs(permuted_t(labels, pooled, n_a)).max(axis=1)
        band_maxima[draws] = np.abs(permuted_t(labels, centred, n_a)).max(axis=1)
        absolute += np.abs(labels @ pooled.T).sum(axis=0) * (1.0 / n_a + 1.0 / n_b)
    threshold = np.where(np.isinf(t), np.inf, np.abs(np.nan_to_num(t)) * (1.0 - TIE))
    p = (1.0 + (maxima[None, :] >= threshold[:, None]).sum(axis=1)) / (permutations + 1.0)
    critical = upper_quantile(band_maxima, level)
    half = np.where(error > 0, critical * error, 0.0)
    low, high = difference - half, difference + half
    expected = absolute / permutations
    return DivergenceBand(
        difference=difference,
        low=low,
        high=high,
        t=t,
        p=p,
        p_global=float(p.min()),
        outside=(low > 0) | (high < 0),
        expected_absolute=expected,
        mean_absolute=float(np.abs(difference).mean()),
        expected_mean_absolute=float(expected.mean()),
        critical=critical,
        level=level,
        permutations=permutations,
    )
