"""Two independent samples: Welch against scipy, permutations against exhaustive ones, unequal variances."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import ttest_ind

from circuits.statistics import independent_contrast, two_way_contrast


def test_welch_agrees_with_scipy(rng: np.random.Generator) -> None:
    a, b = rng.standard_normal((5, 13)) + 0.5, 2 * rng.standard_normal((5, 29))
    for alternative in ("two-sided", "greater", "less"):
        result = independent_contrast(a, b, rng, alternative, permutations=9)
        reference = ttest_ind(a, b, axis=1, equal_var=False, alternative=alternative)
        assert result.t == pytest.approx(reference.statistic)
        assert result.p_welch == pytest.approx(reference.pvalue)
        assert result.df == pytest.approx(reference.df)
    interval = ttest_ind(a, b, axis=1, equal_var=False).confidence_interval(0.95)
    result = independent_contrast(a, b, rng, permutations=9)
    assert result.ci_low == pytest.approx(interval.low)
    assert result.ci_high == pytest.approx(interval.high)


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_permutation_p_against_all_permutations(rng: np.random.Generator, alternative) -> None:
    a, b = rng.standard_normal(5) + 1.0, 2 * rng.standard_normal(7)
    pooled = np.concatenate([a, b])

    def welch(chosen: np.ndarray, rest: np.ndarray) -> float:
        t = float(ttest_ind(chosen, rest, equal_var=False).statistic)
        return {"two-sided": abs(t), "greater": t, "less": -t}[alternative]

    every = [
        welch(pooled[list(chosen)], np.delete(pooled, list(chosen))) for chosen in combinations(range(pooled.size), 5)
    ]
    exact = np.mean(np.array(every) >= welch(a, b) - 1e-9)
    p = independent_contrast(a[None], b[None], rng, alternative, permutations=19_999).p[0]
    assert p == pytest.approx(exact, abs=4.75 * np.sqrt(exact * (1 - exact) / 19_999) + 1e-4)


def test_blocks_of_trials_do_not_matter(rng: np.random.Generator) -> None:
    a, b = rng.standard_normal((7, 11)), rng.standard_normal((7, 13))
    whole = independent_contrast(a, b, np.random.default_rng(3), permutations=499).p
    one = [independent_contrast(a[[i]], b[[i]], np.random.default_rng(3), permutations=499).p[0] for i in range(7)]
    assert list(whole) == one


def test_constant_groups_do_not_divide_by_zero(rng: np.random.Generator) -> None:
    result = independent_contrast(np.array([[0.0] * 9, [1.0] * 9]), np.zeros((2, 9)), rng, permutations=999)
    assert result.p[0] == 1.0
    assert result.t[1] == np.inf
    assert 0 < result.p[1] <= 0.01
    assert 0 < result.p_welch[1] < 1e-300


def test_two_way_estimates_by_hand(rng: np.random.Generator) -> None:
    a, b = rng.random((5, 7)) + 2.0, rng.random((5, 11)) + 1.0
    result = two_way_contrast(a, b, rng, draws=199)
    assert result.estimate == pytest.approx(a.mean() - b.mean())
    assert result.ratio == pytest.approx(a.mean() / b.mean())
    assert result.ci_low < result.estimate < result.ci_high
    assert result.p == pytest.approx(2 / 200)
    assert np.isnan(two_way_contrast(a - 10, b, rng, draws=99).ratio)


def test_bad_input_is_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="b: expected 2 trials, got 3"):
        independent_contrast(np.ones((2, 3)), np.ones((3, 3)), rng)
    with pytest.raises(ValueError, match="expected the same heads, at least 2, got 2 and 3"):
        two_way_contrast(np.ones((2, 3)), np.ones((3, 3)), rng)


@pytest.mark.calibration
def test_studentised_permutation_holds_under_unequal_variances(rng: np.random.Generator, band) -> None:
    a, b = 3.0 * rng.standard_normal((2000, 20)), rng.standard_normal((2000, 80))
    result = independent_contrast(a, b, rng, permutations=999)
    low, high = band(2000, 0.05)
    assert low <= (result.p <= 0.05).mean() <= high
    assert low <= (result.p_welch <= 0.05).mean() <= high


@pytest.mark.calibration
def test_must_fail_raw_permutation_under_unequal_variances(rng: np.random.Generator) -> None:
    """Permuting the raw difference of means: the small sample is the variable one, and .05 becomes more than .15."""
    z = np.concatenate([3.0 * rng.standard_normal((600, 20)), rng.standard_normal((600, 80))], axis=1)
    observed = np.abs(z[:, :20].mean(axis=1) - z[:, 20:].mean(axis=1))
    reached = np.zeros(600)
    for _ in range(499):
        order = rng.permutation(100)
        reached += np.abs(z[:, order[:20]].mean(axis=1) - z[:, order[20:]].mean(axis=1)) >= observed
    assert ((1 + reached) / 500 <= 0.05).mean() > 0.15


@pytest.mark.calibration
def test_two_way_bootstrap_covers_over_heads_and_images(rng: np.random.Generator, band) -> None:
    """Head, image and cell effects; resampling images alone would cover far less."""
    covered, images_only = 0, 0
    for _ in range(200):
        heads = rng.standard_normal((24, 1))
        a = 0.5 + heads + rng.standard_normal((1, 48)) + rng.standard_normal((24, 48))
        b = 0.7 * rng.standard_normal((24, 1)) + rng.standard_normal((1, 48)) + rng.standard_normal((24, 48))
        result = two_way_contrast(a, b, rng, draws=399)
        covered += result.ci_low <= 0.5 <= result.ci_high
        image_means = a.mean(axis=0), b.mean(axis=0)
        error = np.sqrt(sum(m.var(ddof=1) / m.size for m in image_means))
        images_only += abs(image_means[0].mean() - image_means[1].mean() - 0.5) <= 1.96 * error
    assert covered / 200 >= band(200, 0.93)[0]
    assert images_only / 200 < 0.9
