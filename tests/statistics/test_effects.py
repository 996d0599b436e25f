"""Effect sizes, equivalence and verdicts: closed forms, scipy and statsmodels as independent implementations."""

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import nct, ttest_1samp
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from circuits.statistics import MARGIN, effects, equivalence_test, log_ratio, verdicts
from circuits.statistics.effects import d_z_interval


def test_log_ratio_and_percent_by_hand() -> None:
    g = log_ratio(np.array([[2.0, 8.0, 4.0]]), np.array([[1.0, 2.0, 4.0]]))
    assert g == pytest.approx(np.array([[np.log(2), np.log(4), 0.0]]))
    effect = effects(g)
    assert effect.percent == pytest.approx([100.0])  # the geometric mean of 2, 4, 1 is 2
    assert effect.p_degraded == pytest.approx([2 / 3])
    assert effect.d_z == pytest.approx([np.log(2) / np.log(2)])


def test_a_baseline_row_is_shared(rng: np.random.Generator) -> None:
    ablated, baseline = rng.random((3, 5)) + 0.5, rng.random((1, 5)) + 0.5
    assert log_ratio(ablated, baseline) == pytest.approx(log_ratio(ablated, np.repeat(baseline, 3, axis=0)))


def test_the_mean_of_ratios_is_biased_and_ours_is_not(rng: np.random.Generator) -> None:
    """A true geometric ratio of 1.256 with sd .63: the mean of per-image ratios reads 1.53 (statistics.md)."""
    g = np.log(1.256) + 0.63 * rng.standard_normal((400, 64))
    assert np.exp(g).mean() == pytest.approx(1.256 * np.exp(0.63**2 / 2), rel=0.02)
    assert effects(g).percent.mean() == pytest.approx(25.6, abs=1.0)


def test_intervals_agree_with_scipy_and_statsmodels(rng: np.random.Generator) -> None:
    g = 0.3 * rng.standard_normal((7, 23)) + 0.1
    effect = effects(g, level=0.9)
    interval = ttest_1samp(g, 0.0, axis=1).confidence_interval(0.9)
    assert effect.ci_low == pytest.approx(100 * np.expm1(interval.low))
    assert effect.ci_high == pytest.approx(100 * np.expm1(interval.high))
    wilson = proportion_confint((g > 0).sum(axis=1), 23, alpha=0.1, method="wilson")
    assert effect.p_degraded_low == pytest.approx(wilson[0])
    assert effect.p_degraded_high == pytest.approx(wilson[1])


@pytest.mark.parametrize("n", [16, 64, 256])
@pytest.mark.parametrize("d", [0.0, 0.3, 1.0, 3.0])
def test_d_z_interval_against_the_noncentral_t(n: int, d: float) -> None:
    low, high = d_z_interval(np.array([d]), n, 0.95)
    t = d * np.sqrt(n)
    exact_low = brentq(lambda delta: nct.cdf(t, n - 1, delta) - 0.975, t - 30, t + 5) / np.sqrt(n)
    exact_high = brentq(lambda delta: nct.cdf(t, n - 1, delta) - 0.025, t - 5, t + 30) / np.sqrt(n)
    assert [low[0], high[0]] == pytest.approx([exact_low, exact_high], abs=max(0.01, 0.02 * d))


def test_constant_rows_are_certain() -> None:
    effect = effects(np.array([[0.1] * 7, [0.0] * 7, [-0.1] * 7]))
    assert list(effect.d_z) == [np.inf, 0.0, -np.inf]
    assert effect.ci_low == pytest.approx(effect.percent)
    assert not np.isnan(effect.d_z_low).any()
    equivalence = equivalence_test(np.array([[0.1] * 7, [0.01] * 7]))
    assert equivalence.p[0] == 1.0
    assert 0 < equivalence.p[1] < 1e-300


def test_equivalence_agrees_with_statsmodels(rng: np.random.Generator) -> None:
    g = 0.1 * rng.standard_normal((9, 31)) + 0.01
    result = equivalence_test(g, margin=0.05)
    for row, p, lower, upper in zip(g, result.p, result.p_above_lower, result.p_below_upper):
        reference = ttost_paired(row, np.zeros_like(row), -0.05, 0.05)
        assert [p, lower, upper] == pytest.approx([reference[0], reference[1][1], reference[2][1]], rel=1e-9)


def test_the_default_margin_is_five_percent() -> None:
    assert pytest.approx(0.05) == np.expm1(MARGIN)


def test_verdicts_and_their_precedence() -> None:
    verdict = verdicts([0.01, 0.9, 0.9, 0.9, 0.01], [0.9, 0.01, 0.9, 0.9, 0.9], [0.9, 0.9, 0.01, 0.9, 0.01])
    assert list(verdict) == ["degraded", "improved", "negligible", "inconclusive", "negligible"]


def test_order_and_precision_do_not_matter(rng: np.random.Generator) -> None:
    g = rng.standard_normal((13, 17))
    order = rng.permutation(17)
    assert effects(g[:, order]).ci_low == pytest.approx(effects(g).ci_low)
    assert effects(g.astype(np.float32)).percent == pytest.approx(effects(g).percent, rel=1e-5)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="baseline: expected positive values, got 0 at the least"):
        log_ratio(np.ones((1, 2)), np.array([[0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"baseline: expected shape \(2, 3\) or \(1, 3\), got \(3, 3\)"):
        log_ratio(np.ones((2, 3)), np.ones((3, 3)))
    with pytest.raises(ValueError, match="margin: expected a finite number greater than 0"):
        equivalence_test(np.ones((1, 3)), margin=-0.1)
    with pytest.raises(ValueError, match="expected one length, got 1, 1, 2"):
        verdicts([0.1], [0.1], [0.1, 0.2])


@pytest.mark.calibration
def test_coverage_of_the_log_ratio(rng: np.random.Generator, band) -> None:
    g = np.log(1.2) + 0.4 * rng.standard_normal((2000, 32))
    effect = effects(g)
    covered = (effect.ci_low <= 20.0) & (effect.ci_high >= 20.0)
    low, high = band(2000, 0.95)
    assert low <= covered.mean() <= high
    d_z = np.log(1.2) / 0.4
    assert low <= ((effect.d_z_low <= d_z) & (effect.d_z_high >= d_z)).mean() <= high


@pytest.mark.calibration
def test_equivalence_is_conservative_at_the_margin(rng: np.random.Generator, band) -> None:
    g = 0.05 + 0.1 * rng.standard_normal((4000, 64))
    assert (equivalence_test(g, 0.05).p <= 0.05).mean() <= band(4000, 0.05)[1]
