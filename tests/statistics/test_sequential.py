"""Early stopping: statistics by hand, batch invariance, resumption, and the rules of stopping."""

import numpy as np
import pytest
from scipy.stats import norm

from circuits.statistics import SequentialTrials, StoppingRule, bh, by, e_bh, verdicts
from circuits.statistics.evidence import BETTING_GRID, SIGN_GRID

CLASSICAL = ((1.0, 1.0),)


def feed(rule: StoppingRule, g: np.ndarray, sizes: list[int]) -> SequentialTrials:
    """All images of all trials in batches of the given sizes (cycled), deciding nothing."""
    trials = SequentialTrials(g.shape[0], rule)
    start, turn = 0, 0
    while start < g.shape[1]:
        batch = g[:, start : start + sizes[turn % len(sizes)]]
        trials.update(np.arange(g.shape[0]), start, batch)
        start, turn = start + batch.shape[1], turn + 1
    return trials


def run(rule: StoppingRule, g: np.ndarray, family: np.ndarray | None = None) -> SequentialTrials:
    """A whole sequential sweep: a batch for every running trial, then a decision."""
    trials = SequentialTrials(g.shape[0], rule, family)
    for start in range(0, rule.n_max, rule.batch):
        rows = np.flatnonzero(trials.active)
        if not rows.size:
            break
        trials.update(rows, start, g[rows, start : start + rule.batch])
        trials.decide()
    return trials


def test_obf_by_hand(rng: np.random.Generator) -> None:
    g = rng.standard_normal((5, 64)) + 0.3
    for horizons in (CLASSICAL, ((0.5, 0.75), (1.0, 0.25))):
        result = feed(StoppingRule(n_max=64, horizons=horizons, margin=0.2, correction="bh"), g, [16]).result()
        for row, p, q in zip(g, result.p_degraded, result.p_negligible):

            def p_value(x: np.ndarray, horizons=horizons) -> float:
                terms = []
                for fraction, share in horizons:
                    h = int(64 * fraction)
                    peak = max(x[:j].sum() / (x[:j].std(ddof=1) * np.sqrt(h)) for j in range(16, h + 1))
                    terms.append(2 * norm.sf(peak) / share)
                return min(1.0, *terms)

            assert p == pytest.approx(p_value(row), rel=1e-9)
            assert q == pytest.approx(max(p_value(0.2 - row), p_value(0.2 + row)), rel=1e-9)


def test_sign_e_process_by_hand(rng: np.random.Generator) -> None:
    x = rng.standard_normal(23) + 0.5
    result = feed(StoppingRule("sign", n_max=23, first=2), x[None], [5]).result()
    rms = np.sqrt(np.cumsum(x**2)[:-1] / np.arange(1, 23))
    factors = 1 + np.tanh(SIGN_GRID[:, None] * (x[1:] / rms)[None])
    wealth = np.cumprod(factors, axis=1).mean(axis=0)
    assert result.p_degraded[0] == pytest.approx(1 / max(1.0, wealth.max()), rel=1e-9)


def test_betting_by_hand() -> None:
    """Every ablated / baseline is 1.5: each wager gains 1 + lambda / 2 per image; "improved" only loses."""
    result = feed(StoppingRule("betting", n_max=10, first=2), np.full((1, 10), np.log(1.5)), [4]).result()
    assert result.p_degraded[0] == pytest.approx(1 / np.mean((1 + BETTING_GRID / 2) ** 10), rel=1e-9)
    assert result.p_improved[0] == 1.0


@pytest.mark.parametrize("statistic", ["obf", "sign", "betting"])
def test_batches_do_not_change_a_bit(rng: np.random.Generator, statistic) -> None:
    g = 0.3 * rng.standard_normal((7, 48)) + 0.05
    rule = StoppingRule(statistic, n_max=48)
    whole, parts = feed(rule, g, [48]).result(), feed(rule, g, [1, 7, 16]).result()
    for name in ("p_degraded", "p_improved", "p_negligible", "n"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))


@pytest.mark.parametrize("statistic", ["obf", "sign", "betting"])
def test_a_resumed_trial_counts_no_image_twice(rng: np.random.Generator, statistic) -> None:
    g = 0.3 * rng.standard_normal((3, 32)) + 0.1
    rule = StoppingRule(statistic, n_max=32)
    once = feed(rule, g, [32]).result()
    again = SequentialTrials(3, rule)
    assert again.update([0, 1, 2], 0, g[:, :16]) == 48
    assert again.update([2, 0], 0, g[[2, 0], :20]) == 8  # retried: only the four new positions count
    assert again.update([0, 1, 2], [20, 16, 20], np.stack([g[0, 20:32], g[1, 16:28], g[2, 20:32]])) == 36
    assert again.update([1], 28, g[[1], 28:]) == 4
    assert np.array_equal(again.result().p_degraded, once.p_degraded)
    assert list(again.n) == [32, 32, 32]


def test_order_of_trials_does_not_matter(rng: np.random.Generator) -> None:
    g = 0.1 * rng.standard_normal((40, 64)) + rng.choice([0.0, 0.2], 40)[:, None]
    order, family = rng.permutation(40), rng.integers(0, 5, 40)
    rule = StoppingRule(n_max=64)
    straight, shuffled = run(rule, g, family).result(), run(rule, g[order], family[order]).result()
    assert list(shuffled.verdict) == list(straight.verdict[order])
    assert list(shuffled.n) == list(straight.n[order])
    assert list(shuffled.stopped) == list(straight.stopped[order])


def test_a_stopped_p_is_never_below_that_of_the_full_data(rng: np.random.Generator) -> None:
    g = rng.standard_normal((60, 64)) + rng.choice([0.0, 0.5, 1.0], 60)[:, None]
    rule = StoppingRule(n_max=64, margin=0.3)
    stopped, full = run(rule, g).result(), feed(rule, g, [16]).result()
    assert (stopped.n < 64).any()
    assert (stopped.p_degraded >= full.p_degraded).all()
    assert (stopped.p_negligible >= full.p_negligible).all()


def test_a_decided_trial_is_left_alone(rng: np.random.Generator) -> None:
    g = np.concatenate([0.5 + 0.1 * rng.standard_normal((2, 64)), rng.standard_normal((1, 64))])
    trials = SequentialTrials(3, StoppingRule(n_max=64))
    trials.update([0, 1, 2], 0, g[:, :32])
    decided = trials.decide()
    assert list(decided.verdict) == ["degraded", "degraded", "inconclusive"]
    assert list(decided.stopped) == ["decided", "decided", ""]
    assert list(trials.active) == [False, False, True]
    assert trials.update([0, 2], 32, -g[[0, 2], 32:48]) == 16  # images in flight when trial 0 stopped are ignored
    assert trials.result().p_degraded[0] == decided.p_degraded[0]
    assert trials.result().verdict[0] == "degraded"


def test_a_futile_trial_is_not_negligible(rng: np.random.Generator) -> None:
    """One trial clearly below the margin among many that are not: p <= .05 stops it, q > .05 calls it nothing."""
    g = 0.1 * rng.standard_normal((40, 64)) + 0.05
    g[0] -= 0.05
    rule = StoppingRule(n_max=64, margin=0.05, futility=0.05, horizons=CLASSICAL, alpha=0.001, correction="bh")
    trials = run(rule, g)
    result = trials.result()
    assert result.stopped[0] == "futile"
    assert result.n[0] < 64
    assert result.verdict[0] == "inconclusive"
    assert (result.verdict[result.stopped == "futile"] == "inconclusive").all()


def test_a_futile_trial_that_the_others_carry_becomes_decided(rng: np.random.Generator) -> None:
    trials = SequentialTrials(20, StoppingRule(n_max=64, margin=0.3, futility=0.2, horizons=CLASSICAL, correction="bh"))
    x = rng.standard_normal((20, 48))
    x = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
    g = np.where(np.arange(20)[:, None] == 0, x * 0.9, x * 0.05)  # trial 0: .3 x 48 / (.9 x 8) = 2, p about .045
    trials.update([0], 0, g[:1])
    first = trials.decide()
    assert first.stopped[0] == "futile"
    assert first.p_negligible[0] <= 0.05
    trials.update(np.arange(1, 20), 0, g[1:])
    last = trials.decide()
    assert last.q_negligible[0] <= 0.05
    assert last.stopped[0] == "decided"
    assert last.verdict[0] == "negligible"
    assert last.n[0] == 48


def test_corrections(rng: np.random.Generator) -> None:
    g = 0.3 * rng.standard_normal((9, 32)) + 0.1
    result = feed(StoppingRule(correction="bh", n_max=32), g, [32]).result()
    assert result.q_degraded == pytest.approx(bh(result.p_degraded))
    assert list(result.verdict) == list(verdicts(result.q_degraded, result.q_improved, result.q_negligible))
    result = feed(StoppingRule("sign", n_max=32), g, [32]).result()
    assert result.q_degraded == pytest.approx(by(result.p_degraded))
    trials = feed(StoppingRule("betting", "e-bh", n_max=32), g, [32])
    e = np.mean(np.prod(1 + BETTING_GRID[:, None, None] * np.expm1(g), axis=2), axis=0)
    assert trials.result().q_degraded == pytest.approx(e_bh(e))


def test_e_bh_insists_on_synchronous_rounds(rng: np.random.Generator) -> None:
    trials = SequentialTrials(2, StoppingRule("sign", "e-bh", n_max=32))
    trials.update([0], 0, rng.standard_normal((1, 16)))
    with pytest.raises(ValueError, match=r"synchronous rounds\), got 0 to 16"):
        trials.decide()


def test_constant_differences_are_bounded_by_the_resolution() -> None:
    result = feed(StoppingRule(n_max=64), np.stack([np.full(20, 0.5), np.zeros(20)]), [20]).result()
    assert result.p_degraded == pytest.approx([2.0**-20, 1.0])
    assert result.p_negligible == pytest.approx([1.0, 2.0**-20])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"statistic": "t"}, "expected one of obf, sign, betting, got 't'"),
        ({"correction": "e-bh"}, "expected one of hierarchical, bh, by, got 'e-bh'"),
        ({"statistic": "sign", "correction": "bh"}, "expected one of by, e-bh, got 'bh'"),
        ({"n_max": 8}, "first: expected at most n_max = 8, got 16"),
        ({"horizons": ((0.5, 1.0),)}, "the last fraction 1"),
        ({"horizons": ((0.5, 0.5), (1.0, 0.6))}, "shares that sum to 1"),
        ({"futility": 1.5}, "futility: expected a number strictly between 0 and 1"),
        ({"margin": 0.0}, "margin: expected a finite number greater than 0"),
    ],
)
def test_bad_rules_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StoppingRule(**arguments)


def test_bad_updates_are_refused() -> None:
    trials = SequentialTrials(3, StoppingRule(n_max=32))
    with pytest.raises(ValueError, match="expected at most 0 for trial 1, whose images so far number that many, got 4"):
        trials.update([0, 1], [0, 4], np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"expected positions in \[0, 32\), got 0 to 39"):
        trials.update([0], 0, np.ones((1, 40)))
    with pytest.raises(ValueError, match=r"expected indices in \[0, 3\)"):
        trials.update([3], 0, np.ones((1, 4)))
    with pytest.raises(ValueError, match="expected distinct indices"):
        trials.update([1, 1], 0, np.ones((2, 4)))
    with pytest.raises(ValueError, match="expected one row for each of 1 trials, got 2"):
        trials.update([1], 0, np.ones((2, 4)))


def test_trials_with_fewer_images_equal_a_sweep_of_their_own() -> None:
    rng = np.random.default_rng(5)
    g = rng.normal(0.05, 0.2, size=(11, 64))
    rule = StoppingRule(n_max=64, margin=0.05)
    short = StoppingRule(n_max=32, margin=0.05)
    mixed = SequentialTrials(11, rule, n_max=[64] * 6 + [32] * 5)
    mixed.update(range(6), 0, g[:6])
    mixed.update(range(6, 11), 0, g[6:, :32])
    alone_long, alone_short = SequentialTrials(6, rule), SequentialTrials(5, short)
    alone_long.update(range(6), 0, g[:6])
    alone_short.update(range(5), 0, g[6:, :32])
    expected = np.concatenate([alone_long.result().p_degraded, alone_short.result().p_degraded])
    np.testing.assert_array_equal(mixed.result().p_degraded, expected)
    assert not mixed.active.any()
    with pytest.raises(ValueError, match="positions"):
        mixed.update([7], 32, g[7:8, :1])


def test_a_certain_effect_that_looks_small_goes_on_until_it_is_negligible() -> None:
    """At .6 of the margin, zero is ruled out first and the margin later."""
    g = (0.03 + 0.05 * np.resize([1.0, -1.0], 128))[None]
    hasty, patient = (SequentialTrials(1, StoppingRule(n_max=128, margin=0.05, clear=c)) for c in (0.0, 0.8))
    for trials in (hasty, patient):
        for start in range(0, 128, 16):
            if trials.active.any():
                trials.update([0], start, g[:, start : start + 16])
                trials.decide()
    assert (hasty.result().verdict[0], patient.result().verdict[0]) == ("degraded", "negligible")
    assert hasty.n[0] < patient.n[0]
    with pytest.raises(ValueError, match="clear: expected a share of the margin"):
        StoppingRule(clear=-0.1)
