"""Circuits against random circuits, faithfulness, and ablations against norm-matched controls."""

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from circuits.statistics import (
    control_contrast,
    faithfulness,
    matched_random_circuits,
    paired_ratio,
    random_circuit_test,
    signflip_test,
)
from circuits.statistics.random_circuits import clopper_pearson


def test_p_and_percentile_by_hand() -> None:
    result = random_circuit_test(0.9, [0.1, 0.9, 0.95, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    assert result.p == pytest.approx(3 / 10)  # two random circuits reach .9, ties count
    assert result.percentile == pytest.approx(100 * 7 / 9)
    assert random_circuit_test(1.0, np.zeros(999)).p == pytest.approx(0.001)
    assert random_circuit_test(1.0, np.zeros(999)).resolution == pytest.approx(0.001)


@pytest.mark.parametrize(("successes", "n"), [(0, 9), (4, 17), (9, 9), (998, 999)])
def test_clopper_pearson_agrees_with_statsmodels(successes: int, n: int) -> None:
    assert clopper_pearson(successes, n, 0.9) == pytest.approx(
        proportion_confint(successes, n, alpha=0.1, method="beta")
    )


def test_matched_circuits_keep_size_and_strata(rng: np.random.Generator) -> None:
    stratum = np.array(["l0", "l0", "l0", "l1", "l1", "l2", "l2", "l2", "l2", "l3"])
    member = np.array([1, 0, 1, 0, 1, 1, 0, 0, 0, 0], dtype=bool)
    circuits = matched_random_circuits(member, stratum, rng, draws=4000)
    for name, size in (("l0", 2), ("l1", 1), ("l2", 1), ("l3", 0)):
        assert (circuits[:, stratum == name].sum(axis=1) == size).all()
    assert circuits[:, stratum == "l2"].mean(axis=0) == pytest.approx(np.full(4, 0.25), abs=0.04)


def test_faithfulness_is_a_paired_ratio(rng: np.random.Generator) -> None:
    empty = rng.random(23)
    model = empty + 1.0 + 0.1 * rng.standard_normal(23)
    circuit = empty + 0.8 * (model - empty)
    result = faithfulness(circuit, empty, model)
    assert result.estimate[0] == pytest.approx(0.8)
    expected = paired_ratio((circuit - empty)[None], (model - empty)[None])
    assert [result.low[0], result.high[0]] == [expected.low[0], expected.high[0]]
    with pytest.raises(ValueError, match=r"expected the same images, got \[3, 3, 4\] of them"):
        faithfulness(np.ones(3), np.ones(3), np.ones(4))


def test_controls_by_hand(rng: np.random.Generator) -> None:
    controls = np.arange(9.0)[:, None] + np.zeros((1, 5))
    outcome = np.array([[6.0] * 5, [20.0] * 5]) + 0.1 * rng.standard_normal((2, 5))
    outcome[0] += 6.0 - outcome[0].mean()
    result = control_contrast(outcome, controls)
    assert result.p == pytest.approx([(1 + 3) / 10, 1 / 10])  # 6, 7 and 8 are at least as bad as 6
    assert result.resolution == pytest.approx(0.1)
    assert result.estimate == pytest.approx(outcome.mean(axis=1) - 4.0)
    assert result.p_images == pytest.approx(signflip_test(outcome - 4.0).p)
    assert (result.ci_low < result.estimate).all()
    assert (result.ci_high > result.estimate).all()


def test_a_distance_is_empty_against_zero_and_not_against_controls(rng: np.random.Generator) -> None:
    """A head like any random subspace: its distance to the baseline is "significant" against 0 on any data."""
    controls = np.abs(rng.standard_normal((999, 64)))
    head = np.abs(rng.standard_normal((1, 64)))
    assert signflip_test(head).p[0] < 1e-15
    assert control_contrast(head, controls).p[0] > 0.01


def test_bad_input_is_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match=r"controls: expected shape \[controls >= 1, 5\], got \(3, 4\)"):
        control_contrast(np.ones((1, 5)), np.ones((3, 4)))
    with pytest.raises(ValueError, match="member: expected a vector of booleans"):
        matched_random_circuits(np.ones(3), ["a", "b", "c"], rng)
    with pytest.raises(ValueError, match="circuit: expected a finite statistic, got nan"):
        random_circuit_test(np.nan, [0.1])


@pytest.mark.calibration
def test_p_of_a_random_circuit_is_uniform(rng: np.random.Generator, band) -> None:
    statistics = rng.standard_normal((2000, 100))
    p = np.array([random_circuit_test(row[0], row[1:]).p for row in statistics])
    low, high = band(2000, 0.05)
    assert low <= (p <= 0.05).mean() <= high
