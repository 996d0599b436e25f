"""The sign-flip test against brute force, scipy, closed forms and its invariances."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest, permutation_test, ttest_1samp

import circuits.statistics.signflip as signflip
from circuits.statistics import signflip_test
from circuits.statistics.saddlepoint import saddlepoint_upper_tail


def brute_force(row: np.ndarray, alternative: str) -> float:
    sums = np.array([np.dot(signs, row) for signs in product((1, -1), repeat=row.size)])
    tie = 1e-10 * np.abs(row).sum()
    if alternative == "two-sided":
        return float(np.mean(np.abs(sums) >= abs(row.sum()) - tie))
    sign = -1 if alternative == "less" else 1
    return float(np.mean(sign * sums >= sign * row.sum() - tie))


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
@pytest.mark.parametrize("n", [2, 3, 7, 11])
def test_enumeration_equals_brute_force(rng: np.random.Generator, alternative, n: int) -> None:
    g = np.concatenate(
        [rng.standard_normal((5, n)), rng.integers(-2, 3, (5, n)), np.full((1, n), 0.1), np.zeros((1, n))]
    )
    result = signflip_test(g, alternative)
    assert result.p == pytest.approx([brute_force(row, alternative) for row in g], rel=1e-12)
    assert result.method[-1] == "zero"


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_agrees_with_scipys_exact_permutation_test(rng: np.random.Generator, alternative) -> None:
    g = rng.standard_normal((3, 10)) + 0.4
    for row, p in zip(g, signflip_test(g, alternative).p):
        exact = permutation_test(
            (row,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True, alternative=alternative
        )
        assert p == pytest.approx(exact.pvalue, rel=1e-12)


def test_t_is_students_t(rng: np.random.Generator) -> None:
    g = rng.standard_normal((7, 31)) + 0.2
    for alternative in ("greater", "less", "two-sided"):
        assert signflip_test(g, alternative).t == pytest.approx(ttest_1samp(g, 0.0, axis=1).statistic, rel=1e-9)


def test_equal_magnitudes_are_the_exact_sign_test(rng: np.random.Generator) -> None:
    g = 0.3 * rng.choice([-1.0, 1.0], (5, 40), p=[0.35, 0.65])
    result = signflip_test(g)
    assert set(result.method) == {"binomial"}
    assert result.p == pytest.approx([binomtest(int((row > 0).sum()), 40, alternative="greater").pvalue for row in g])
    assert signflip_test(-np.abs(g)).p == pytest.approx(np.ones(5))


def test_p_is_never_zero_nor_below_its_resolution(rng: np.random.Generator) -> None:
    g = 1.0 + 0.001 * rng.standard_normal((3, 64))
    assert signflip_test(g).p == pytest.approx(np.full(3, 2.0**-64), rel=1e-12)
    assert signflip_test(-g).p == pytest.approx(np.ones(3))
    assert (signflip_test(1.0 + rng.random((2, 3001))).p > 0).all()
    mostly_zero = np.zeros((1, 64))
    mostly_zero[0, :3] = 0.5, 0.7, 0.2
    assert signflip_test(mostly_zero).p[0] == pytest.approx(1 / 8)


def test_tails_are_complementary_and_twosided_doubles(rng: np.random.Generator) -> None:
    g = rng.standard_normal((50, 67))
    up, down = signflip_test(g, "greater"), signflip_test(g, "less")
    assert up.p + down.p == pytest.approx(np.ones(50), rel=1e-9)
    assert signflip_test(g, "two-sided").p == pytest.approx(2 * np.minimum(up.p, down.p), rel=1e-9)
    assert (np.argsort(up.p) == np.argsort(-up.t)).mean() > 0.5  # monotone up to the saddlepoint's small errors


def test_saddlepoint_is_continuous_where_theta_is_zero() -> None:
    """Rows whose sum passes through 0: p passes through 1/2 without a step, and equals 1/2 at 0."""
    base = np.tile(np.array([[1.0, -1.0, 0.5, -0.5]]), (1, 10))
    shifts = np.concatenate([[0.0], np.geomspace(1e-12, 0.2, 400)])
    g = np.repeat(base, shifts.size, axis=0)
    g[:, 0] += shifts
    p = signflip_test(g).p
    assert p[0] == pytest.approx(0.5)
    assert (np.diff(p) <= 1e-12).all()
    assert np.abs(np.diff(p)).max() < 1e-3


def test_saddlepoint_survives_a_nearly_extreme_row() -> None:
    """One tiny negative value among large ones: exactly two patterns reach the sum, and p errs to the safe side."""
    row = np.concatenate([np.linspace(1.0, 2.0, 39), [-1e-5]])[None]
    assert 2.0**-39 <= signflip_test(row).p[0] < 16 * 2.0**-39


@pytest.mark.parametrize("scale", [1e-200, 1e-3, 1e200])
def test_scale_does_not_matter(rng: np.random.Generator, scale: float) -> None:
    g = rng.standard_normal((4, 37)) + 0.3
    assert signflip_test(scale * g).p == pytest.approx(signflip_test(g).p, rel=1e-9)


def test_order_and_blocks_do_not_matter(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    g = rng.standard_normal((101, 29)) + 0.3
    whole = signflip_test(g).p
    order = rng.permutation(101)
    assert signflip_test(g[order]).p == pytest.approx(whole[order], rel=1e-9)
    assert signflip_test(g[:, rng.permutation(29)]).p == pytest.approx(whole, rel=1e-9)
    monkeypatch.setattr(signflip, "BLOCK_VALUES", 29 * 7)
    assert signflip_test(g).p == pytest.approx(whole, rel=1e-9)


def test_float32_records_are_accepted(rng: np.random.Generator) -> None:
    g = (rng.standard_normal((5, 41)) + 0.3).astype(np.float32)
    assert signflip_test(g).p == pytest.approx(signflip_test(g.astype(np.float64)).p, rel=1e-9)


@pytest.mark.parametrize(
    ("g", "message"),
    [
        (np.zeros(5), r"expected shape \[trials, n\], got \(5,\)"),
        (np.zeros((3, 1)), "expected at least 2 images per trial, got 1"),
        (np.array([[1.0, np.nan]]), "got 1 that are NaN or infinite"),
        (np.array([["a", "b"]]), "expected real numbers"),
    ],
)
def test_bad_input_is_refused(g: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        signflip_test(g)


def test_bad_choices_are_refused() -> None:
    g = np.ones((2, 21))
    with pytest.raises(ValueError, match="expected one of greater, less, two-sided, got 'bigger'"):
        signflip_test(g, "bigger")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at most 20 images for method='enumeration', got 21"):
        signflip_test(g, method="enumeration")


def test_no_trials_give_no_results() -> None:
    assert signflip_test(np.zeros((0, 17))).p.shape == (0,)


@pytest.mark.calibration
def test_saddlepoint_against_enumeration_at_16(rng: np.random.Generator) -> None:
    """The far tail of d = .8 has p-values of 2 to 10 patterns out of 65,536, where no smooth formula is exact."""
    for shift, worst in ((0.0, 0.5), (0.3, 0.5), (0.8, 0.75)):
        g = rng.standard_normal((600, 16)) + shift
        exact, saddle = signflip_test(g, method="enumeration"), signflip_test(g, method="saddlepoint")
        error = np.abs(np.log(saddle.p / exact.p))
        assert np.expm1(np.median(error)) < 0.05
        assert error.max() < worst


@pytest.mark.calibration
def test_saddlepoint_far_tail_against_enumeration_at_20(rng: np.random.Generator) -> None:
    d = np.abs(rng.standard_normal((40, 20))) * np.where(rng.random((40, 20)) < 0.9, 1, -1)
    d = d[(d < 0).any(axis=1)]
    d /= np.sqrt((d**2).sum(axis=1, keepdims=True))
    exact = signflip_test(d, method="enumeration").p
    keep = exact > 2.0**-17
    assert np.abs(np.log(saddlepoint_upper_tail(d)[keep] / exact[keep])).max() < 0.5
    assert exact[keep].min() < 1e-4
