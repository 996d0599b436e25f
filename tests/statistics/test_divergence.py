"""Divergence per timestep: the band, its joint permutations, and what no difference looks like."""

import numpy as np
import pytest
from scipy.stats import ttest_ind

from circuits.statistics import divergence_band


def paths(rng: np.random.Generator, n: int, timesteps: int = 13) -> np.ndarray:
    """Entropies per image and timestep that wander: neighbouring timesteps of an image are correlated."""
    return rng.standard_normal((n, 1)) + 0.3 * np.cumsum(rng.standard_normal((n, timesteps)), axis=1)


def test_t_agrees_with_scipy(rng: np.random.Generator) -> None:
    a, b = paths(rng, 17), paths(rng, 29)
    result = divergence_band(a, b, rng, permutations=199)
    assert result.t == pytest.approx(ttest_ind(a, b, axis=0, equal_var=False).statistic)
    assert result.difference == pytest.approx(a.mean(axis=0) - b.mean(axis=0))
    assert result.p_global == result.p.min()


def test_one_timestep_is_the_plain_contrast(rng: np.random.Generator) -> None:
    a, b = rng.standard_normal((19, 1)) + 0.8, rng.standard_normal((23, 1))
    result = divergence_band(a, b, rng, permutations=9_999)
    assert result.p[0] == pytest.approx(ttest_ind(a, b, equal_var=False).pvalue[0], abs=0.01)


def test_expectation_under_no_difference(rng: np.random.Generator) -> None:
    """The permuted |difference| of normal images is sqrt(2 / pi) sd sqrt(1/n_a + 1/n_b), not 0."""
    a, b = rng.standard_normal((41, 5)), rng.standard_normal((37, 5))
    result = divergence_band(a, b, rng, permutations=4_999)
    pooled = np.concatenate([a, b]).std(axis=0, ddof=1)
    assert result.expected_absolute == pytest.approx(np.sqrt(2 / np.pi) * pooled * np.sqrt(1 / 41 + 1 / 37), rel=0.05)
    assert result.expected_mean_absolute == pytest.approx(result.expected_absolute.mean())


def test_a_real_difference_is_found_where_it_is(rng: np.random.Generator) -> None:
    a, b = 0.3 * rng.standard_normal((64, 13)), 0.3 * rng.standard_normal((64, 13))
    a[:, 5] += 1.0
    result = divergence_band(a, b, rng, permutations=999)
    assert list(np.flatnonzero(result.outside)) == [5]
    assert result.p[5] == pytest.approx(1 / 1000)
    assert result.low[5] < 1.0 < result.high[5]


def test_bad_input_is_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="b: expected 13 timesteps, got 11"):
        divergence_band(paths(rng, 5), paths(rng, 5, 11), rng)
    with pytest.raises(ValueError, match="at least 2 images each, got 1 and 5"):
        divergence_band(paths(rng, 1), paths(rng, 5), rng)


@pytest.mark.calibration
def test_global_error_and_coverage_of_the_band(rng: np.random.Generator, band) -> None:
    """Equal means, unequal sizes and variances, dependent timesteps."""
    false, covered = 0, 0
    for _ in range(600):
        result = divergence_band(1.5 * paths(rng, 40), paths(rng, 60), rng, permutations=199)
        false += result.p_global <= 0.05
        covered += not result.outside.any()
    low, high = band(600, 0.05)
    assert low <= false / 600 <= high
    assert covered / 600 >= band(600, 0.95)[0]
