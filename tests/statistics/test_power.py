"""Power against closed forms, simulation, and the tests and corrections that it is the power of."""

import math

import numpy as np
import pytest
from scipy.stats import norm, t

from circuits.statistics import hierarchical_fdr, signflip_test
from circuits.statistics.power import (
    MOST_IMAGES,
    boundary_drift,
    images_for_p,
    images_needed,
    images_needed_by_boundary,
    sufficient_level,
    t_power,
)


def test_without_an_effect_the_power_is_alpha() -> None:
    for n, alpha in ((5, 0.05), (40, 0.001)):
        assert t_power(0.0, 1.7, n, alpha) == pytest.approx(alpha, rel=1e-6)


def test_the_power_of_the_t_test_and_of_the_sign_flip_test_by_simulation() -> None:
    rng = np.random.default_rng(0)
    effect, spread, n, alpha = 0.3, 0.7, 40, 0.01
    x = effect + spread * rng.standard_normal((20_000, n))
    found = x.mean(axis=1) / x.std(axis=1, ddof=1) * math.sqrt(n) > t.isf(alpha, n - 1)
    expected = t_power(effect, spread, n, alpha)
    assert found.mean() == pytest.approx(expected, abs=0.01)
    assert (signflip_test(x[:4000], "greater").p <= alpha).mean() == pytest.approx(expected, abs=0.025)


@pytest.mark.parametrize("alpha", [0.05, 1e-3, 4.6e-5])
@pytest.mark.parametrize("effect", [math.log(1.05), math.log(1.25)])
def test_the_fewest_images_are_the_fewest(effect: float, alpha: float) -> None:
    n = images_needed(effect, 0.5, alpha)
    assert t_power(effect, 0.5, n, alpha) >= 0.8 > t_power(effect, 0.5, n - 1, alpha)
    z = norm.isf(alpha)
    normal = ((z + norm.ppf(0.8)) * 0.5 / effect) ** 2
    assert normal < n < normal + z**2 / 2 + 3, "Guenther (1981): z^2 / 2 more than a z test"


def test_a_p_needs_as_many_signs() -> None:
    for n in range(2, 60):
        assert images_for_p(2.0**-n) == n
        assert images_for_p(2.0**-n * 0.99) == n + 1
    assert images_needed(1.0, 1e-3, 2.0**-20) == 20, "no noise to speak of, and yet twenty images"
    assert signflip_test(np.full((1, 20), 1.0) + np.linspace(0, 0.1, 20), "greater").p[0] == pytest.approx(2.0**-20)
    assert images_needed(1e-6, 1.0, 0.05) == MOST_IMAGES


def test_a_drifting_path_reaches_the_boundary_as_often_as_it_should() -> None:
    """4,000 steps instead of a continuous path: the maximum is a little lower."""
    rng = np.random.default_rng(1)
    tail = 0.01
    drift = boundary_drift(tail)
    steps = 4000
    reached = 0
    for _ in range(20):
        path = rng.standard_normal((100, steps)) / math.sqrt(steps) + drift / steps
        reached += int((path.cumsum(axis=1).max(axis=1) >= norm.isf(tail)).sum())
    assert reached / 2000 == pytest.approx(0.8, abs=0.035)
    assert boundary_drift(tail, 0.9) > drift


def test_a_boundary_takes_more_images_than_a_test_at_the_end() -> None:
    effect, spread, alpha = math.log(1.1), 0.4, 1e-3
    fixed = images_needed(effect, spread, alpha)
    assert fixed < images_needed_by_boundary(effect, spread, alpha, 1.0) < 1.15 * fixed
    quarter = images_needed_by_boundary(effect, spread, alpha, 0.25)
    assert images_needed_by_boundary(effect, spread, alpha / 4, 1.0) == quarter, "a share of the error is a smaller one"


@pytest.mark.parametrize("selected", [1, 3, 8])
def test_the_sufficient_level_is_let_pass_and_hardly_more(selected: int) -> None:
    families, size, alpha = 8, 5, 0.05
    level = sufficient_level(alpha, families, size, selected)
    family = np.repeat(np.arange(families), size)

    def passed(p: float) -> int:
        every = np.full(families * size, 0.9)
        every[np.arange(selected) * size] = p
        return int(hierarchical_fdr(every, family, alpha).rejected.sum())

    assert passed(level * 0.999) == selected
    assert passed(level * 1.001) == 0
    assert sufficient_level(alpha, families, size) == alpha / (families * size)


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="selected: expected 1 to 4 families, got 5"):
        sufficient_level(0.05, 4, 3, 5)
    with pytest.raises(ValueError, match="spread"):
        t_power(0.1, 0.0, 10, 0.05)
