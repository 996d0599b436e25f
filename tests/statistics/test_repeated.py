"""Repeated confidence intervals: closed form, and coverage wherever the rule stops a trial."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from circuits.statistics import SequentialTrials, StoppingRule, effects, repeated_intervals


def test_closed_form_of_the_classical_boundary() -> None:
    g = np.random.default_rng(0).normal(0.3, 1.7, (5, 40))
    rule = StoppingRule(n_max=100, horizons=((1.0, 1.0),))
    found = repeated_intervals(g, rule, np.full(5, 100), level=0.9)
    half = norm.ppf(1 - 0.1 / 4) * g.std(axis=1, ddof=1) * 10 / 40
    np.testing.assert_allclose(found.mean, g.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.high - found.mean, half, rtol=1e-12)
    np.testing.assert_allclose(found.mean - found.low, half, rtol=1e-12)


def test_the_nearer_horizon_helps_until_it_is_past() -> None:
    g = np.random.default_rng(1).normal(0, 1, (1, 128))
    default, one = StoppingRule(n_max=128), StoppingRule(n_max=128, horizons=((1.0, 1.0),))
    limit = np.array([128])

    def width(rule: StoppingRule, n: int) -> float:
        found = repeated_intervals(g[:, :n], rule, limit)
        return float(found.high[0] - found.low[0])

    assert width(default, 64) < width(one, 64)
    assert width(default, 128) > width(one, 128) > effects(g).log_high[0] - effects(g).log_low[0]


@pytest.mark.calibration
@pytest.mark.parametrize("d", [0.0, 0.3, 1.0])
def test_coverage_wherever_the_rule_stops(d: float) -> None:
    """At least .95 of 4,000 trials, with a binomial band of 1e-6; a t interval at the stop covers less."""
    trials, rule = 4_000, StoppingRule(n_max=128, margin=0.3, correction="bh")
    g = np.random.default_rng(int(10 * d)).normal(d, 1, (trials, 128))
    state = SequentialTrials(trials, rule)
    for start in range(0, 128, 16):
        rows = np.flatnonzero(state.active)
        if rows.size:
            state.update(rows, start, g[rows, start : start + 16])
            state.decide()
    covered = plain = 0
    for n in np.unique(state.n):
        rows = np.flatnonzero(state.n == n)
        found, naive = repeated_intervals(g[rows, :n], rule, np.full(rows.size, 128)), effects(g[rows, :n])
        covered += int(((found.low <= d) & (d <= found.high)).sum())
        plain += int(((naive.log_low <= d) & (d <= naive.log_high)).sum())
    assert len(np.unique(state.n)) > 1
    assert covered >= binom.ppf(1e-6, trials, 0.95)
    if d == 0.3:
        assert plain < covered


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 2 numbers of at least n = 9"):
        repeated_intervals(np.zeros((2, 9)), StoppingRule(n_max=64), np.array([64, 8]))
