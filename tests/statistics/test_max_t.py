"""Max-T: against enumeration, its adjusted p, blocks, simultaneous intervals, rank intervals."""

import numpy as np
import pytest
from scipy.stats import norm, ttest_1samp

from circuits.statistics import (
    max_t_test,
    rank_intervals,
    screened_rank_intervals,
    signflip_test,
    simultaneous_intervals,
)
from circuits.statistics.max_t import random_signs, upper_quantile
from circuits.statistics.signflip import sign_patterns


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_against_full_enumeration(rng: np.random.Generator, alternative) -> None:
    """12 images, 7 trials: all 4,096 joint flips, t computed by scipy; Monte Carlo error only."""
    g = rng.standard_normal((7, 12)) + 0.6
    sign = {"greater": 1.0, "less": -1.0, "two-sided": 1.0}[alternative]
    flips = ttest_1samp(g[None] * sign_patterns(12)[:, None, :], 0.0, axis=2).statistic * sign
    flips = np.abs(flips) if alternative == "two-sided" else flips
    observed = sign * ttest_1samp(g, 0.0, axis=1).statistic
    observed = np.abs(observed) if alternative == "two-sided" else observed
    adjusted = (flips.max(axis=1)[:, None] >= observed - 1e-9).mean(axis=0)
    result = max_t_test(g, rng, alternative, draws=19_999)
    assert result.t == pytest.approx(ttest_1samp(g, 0.0, axis=1).statistic, rel=1e-5)
    error = 4.75 * np.sqrt(adjusted * (1 - adjusted) / 19_999) + 2e-4
    assert (np.abs(result.p_adjusted - adjusted) <= error).all()
    exact = signflip_test(g, alternative).p
    assert (np.abs(result.p - exact) <= 4.75 * np.sqrt(exact * (1 - exact) / 19_999) + 2e-4).all()


def test_blocks_and_order_do_not_matter(rng: np.random.Generator) -> None:
    g = rng.standard_normal((53, 31)) + 0.3
    order = rng.permutation(53)
    whole = max_t_test(g, np.random.default_rng(5), draws=499)
    blocks = max_t_test(g, np.random.default_rng(5), draws=499, sign_block=17, trial_block=7)
    shuffled = max_t_test(g[order], np.random.default_rng(5), draws=499)
    assert list(blocks.p_adjusted) == list(whole.p_adjusted)
    assert list(blocks.p) == list(whole.p)
    assert list(shuffled.p_adjusted) == list(whole.p_adjusted[order])
    intervals = [simultaneous_intervals(g, np.random.default_rng(5), draws=499, trial_block=b).low for b in (7, 4096)]
    assert intervals[0] == pytest.approx(intervals[1], rel=1e-5)


def test_signs_do_not_depend_on_their_blocks() -> None:
    whole = random_signs(10, 67, np.random.default_rng(1))
    source = np.random.default_rng(1)
    assert np.array_equal(np.concatenate([random_signs(3, 67, source), random_signs(7, 67, source)]), whole)
    assert set(np.unique(whole)) == {-1.0, 1.0}


def test_p_is_never_zero_and_ties_count(rng: np.random.Generator) -> None:
    g = np.concatenate([np.full((1, 64), 3.0), np.zeros((1, 64)), rng.standard_normal((1, 64))])
    result = max_t_test(g, rng, draws=199)
    assert result.p_adjusted[0] == pytest.approx(1 / 200)
    assert (result.p[1], result.p_adjusted[1], result.t[1]) == (1.0, 1.0, 0.0)
    assert result.t[0] == np.inf


def test_one_trial_gives_students_interval(rng: np.random.Generator) -> None:
    g = rng.standard_normal((1, 128)) + 0.2
    result = simultaneous_intervals(g, rng, draws=19_999)
    assert result.critical == pytest.approx(1.979, abs=0.06)
    assert result.low[0] == pytest.approx(g.mean() - result.critical * g.std(ddof=1) / np.sqrt(128))


def test_upper_quantile_needs_enough_draws() -> None:
    assert upper_quantile(np.arange(1.0, 100.0), 0.95) == 95.0
    with pytest.raises(ValueError, match=r"expected at least 19 for level 0\.95, got 10"):
        upper_quantile(np.arange(10.0), 0.95)


def test_ranks_of_clearly_separated_trials(rng: np.random.Generator) -> None:
    means = np.array([3.0, 1.0, 5.0, 1.0])
    result = rank_intervals(means[:, None] + 0.1 * rng.standard_normal((4, 40)), rng)
    assert list(result.trials[:2]) == [2, 0]
    assert list(zip(result.low, result.high)) == [(1, 1), (2, 2), (3, 4), (3, 4)]
    assert result.n == 40


def test_identical_trials_share_all_ranks(rng: np.random.Generator) -> None:
    row = rng.standard_normal(20)
    result = rank_intervals(np.stack([row, row, row]), rng)
    assert list(result.low) == [1, 1, 1]
    assert list(result.high) == [3, 3, 3]


def test_screening_never_touches_the_ranking(rng: np.random.Generator) -> None:
    g = rng.standard_normal((11, 40)) + np.linspace(0, 2, 11)[:, None]
    screening = np.arange(40) < 16
    result = screened_rank_intervals(g, screening, rng, top=5)
    chosen = set(np.argsort(-g[:, screening].mean(axis=1))[:5])
    assert set(result.trials) == chosen
    assert result.mean == pytest.approx(g[result.trials][:, ~screening].mean(axis=1))
    with pytest.raises(ValueError, match="screening: expected 40 booleans"):
        screened_rank_intervals(g, np.arange(40), rng)


@pytest.mark.calibration
@pytest.mark.parametrize("correlation", [0.0, 0.3])
def test_family_wise_error_under_the_complete_null(rng: np.random.Generator, band, correlation: float) -> None:
    false = 0
    for _ in range(1000):
        common = np.sqrt(correlation) * rng.standard_normal((1, 48))
        g = common + np.sqrt(1 - correlation) * rng.standard_normal((60, 48))
        false += max_t_test(g, rng, draws=199).p_adjusted.min() <= 0.05
    low, high = band(1000, 0.05)
    assert low <= false / 1000 <= high


@pytest.mark.calibration
def test_simultaneous_coverage(rng: np.random.Generator, band) -> None:
    truth = rng.standard_normal(40)
    covered = 0
    for _ in range(500):
        g = truth[:, None] + np.sqrt(0.3) * rng.standard_normal((1, 96)) + rng.standard_normal((40, 96))
        result = simultaneous_intervals(g, rng, draws=399)
        covered += bool(((result.low <= truth) & (result.high >= truth)).all())
    assert covered / 500 >= band(500, 0.95)[0]


@pytest.mark.calibration
def test_rank_intervals_hold_all_at_once(rng: np.random.Generator, band) -> None:
    truth = np.linspace(0, 1, 20)
    true_rank = np.arange(20, 0, -1)
    covered, widths = 0, []
    for _ in range(300):
        result = rank_intervals(truth[:, None] + rng.standard_normal((20, 128)), rng, draws=399)
        rank = true_rank[result.trials]
        covered += bool(((result.low <= rank) & (rank <= result.high)).all())
        widths.append((result.high - result.low).mean())
    assert covered / 300 >= band(300, 0.95)[0]
    assert np.mean(widths) < 14  # informative: of 19 possible


@pytest.mark.calibration
def test_uncorrected_intervals_must_fail_simultaneously(rng: np.random.Generator) -> None:
    g = rng.standard_normal((300, 40, 96))
    t = np.abs(g.mean(axis=2) / (g.std(axis=2, ddof=1) / np.sqrt(96)))
    assert (t.max(axis=1) <= norm.ppf(0.975)).mean() < 0.3
