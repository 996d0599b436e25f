"""Ratios of means: Fieller's set by inversion, its unbounded forms, and the log-delta interval."""

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from circuits.statistics import independent_ratio, paired_ratio


def rejected(a: np.ndarray, b: np.ndarray, rho: float, alpha: float = 0.05) -> bool:
    return bool(ttest_1samp(a - rho * b, 0.0).pvalue < alpha)


def test_fieller_inverts_the_paired_t_test(rng: np.random.Generator) -> None:
    b = 2.0 + 0.5 * rng.standard_normal(29)
    a = 1.3 * b + 0.3 * rng.standard_normal(29)
    result = paired_ratio(a[None], b[None])
    assert result.kind[0] == "bounded"
    assert result.estimate[0] == pytest.approx(a.mean() / b.mean())
    for rho in (result.low[0], result.high[0]):
        assert ttest_1samp(a - rho * b, 0.0).pvalue == pytest.approx(0.05, rel=1e-6)
    assert not rejected(a, b, result.estimate[0])


def test_fieller_outside_an_interval(rng: np.random.Generator) -> None:
    """A clear numerator over a denominator near 0: large ratios of either sign, and only small ones are excluded."""
    a, b = 5.0 + 0.1 * rng.standard_normal(19), rng.standard_normal(19)
    b -= b.mean() - 0.01
    result = paired_ratio(a[None], b[None])
    assert result.kind[0] == "exclusive"
    middle = (result.low[0] + result.high[0]) / 2
    assert rejected(a, b, middle)
    assert not rejected(a, b, result.high[0] + 1.0)
    assert not rejected(a, b, result.low[0] - 1.0)


def test_fieller_unbounded(rng: np.random.Generator) -> None:
    a, b = rng.standard_normal(19), rng.standard_normal(19)
    a, b = a - a.mean() + 0.01, b - b.mean() + 0.01
    result = paired_ratio(a[None], b[None])
    assert (result.kind[0], result.low[0], result.high[0]) == ("unbounded", -np.inf, np.inf)
    assert not any(rejected(a, b, rho) for rho in (-100.0, -1.0, 0.0, 1.0, 100.0))
    nothing = paired_ratio(np.zeros((1, 5)), np.zeros((1, 5)))
    assert nothing.kind[0] == "unbounded"
    assert np.isnan(nothing.estimate[0])


def test_independent_ratio_by_hand(rng: np.random.Generator) -> None:
    a, b = 3.0 + rng.standard_normal(23), 2.0 + 0.5 * rng.standard_normal(31)
    result = independent_ratio(a[None], b[None])
    v_a, v_b = a.var(ddof=1) / 23 / a.mean() ** 2, b.var(ddof=1) / 31 / b.mean() ** 2
    df = (v_a + v_b) ** 2 / (v_a**2 / 22 + v_b**2 / 30)
    half = student.ppf(0.975, df) * np.sqrt(v_a + v_b)
    ratio = a.mean() / b.mean()
    assert [result.low[0], result.high[0], result.df[0]] == pytest.approx(
        [ratio * np.exp(-half), ratio * np.exp(half), df]
    )


def test_a_ratio_of_signed_effects_is_undefined() -> None:
    result = independent_ratio(np.array([[-1.0, -2.0], [1.0, 2.0]]), np.array([[1.0, 2.0], [1.0, 2.0]]))
    assert list(result.kind) == ["undefined", "bounded"]
    assert np.isnan([result.low[0], result.high[0]]).all()


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"denominator: expected shape \(1, 3\), got \(1, 4\)"):
        paired_ratio(np.ones((1, 3)), np.ones((1, 4)))
    with pytest.raises(ValueError, match="b: expected 1 trials, got 2"):
        independent_ratio(np.ones((1, 3)), np.ones((2, 4)))


@pytest.mark.calibration
@pytest.mark.parametrize("n", [32, 256])
def test_coverage_of_fieller(rng: np.random.Generator, band, n: int) -> None:
    b = 1.0 + 0.5 * rng.standard_normal((2000, n))
    a = 1.3 * b + 0.4 * rng.standard_normal((2000, n))
    result = paired_ratio(a, b)
    inside = (result.low <= 1.3) & (result.high >= 1.3)
    covered = np.where(result.kind == "exclusive", ~((result.low < 1.3) & (result.high > 1.3)), inside)
    low, high = band(2000, 0.95)
    assert low <= covered.mean() <= high


@pytest.mark.calibration
def test_coverage_of_the_independent_ratio(rng: np.random.Generator, band) -> None:
    a, b = 2.0 + rng.standard_normal((2000, 64)), 1.0 + 0.2 * rng.standard_normal((2000, 96))
    result = independent_ratio(a, b)
    low, high = band(2000, 0.95)
    assert low <= ((result.low <= 2.0) & (result.high >= 2.0)).mean() <= high
