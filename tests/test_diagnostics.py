"""Halves, skewness and ranks of a run, and what its report concludes from them."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sweeps.aggregate import aggregate
from sweeps.diagnostics import COLUMNS, TOP, diagnostics
from sweeps.gains import Gains
from sweeps.report.resolution import (
    agreement_of_halves,
    corrected_level,
    level_under_skew,
    smallest_detectable,
    spread_between_images,
    whole_from_halves,
)
from tests.synthetic_run import Cell, measured, write_run


def plan(heads: int, **columns) -> pd.DataFrame:
    table = pd.DataFrame({"trial_id": [f"t{i}" for i in range(heads)], "dataset": "natural", "level": "head"})
    return table.assign(**columns)


def table_of(trials: pd.DataFrame, g: np.ndarray) -> pd.DataFrame:
    measured = Gains(trials["trial_id"].to_numpy(dtype=object), g.astype(np.float32))
    return diagnostics(trials, measured, "noise_mse").set_index("trial_id")


def test_halves_and_skewness(tmp_path):
    g = np.array([[0.1, 0.5, -0.2, 0.4, 0.9], [0.0, 0.0, 0.0, 0.0, np.nan]])
    directory = write_run(tmp_path / "run", [Cell(row, head=head) for head, row in enumerate(g)])
    aggregate(directory)
    found = pd.read_parquet(directory.diagnostics)
    assert found.columns.tolist() == COLUMNS
    values = measured(g[0])
    centred = values - values.mean()
    expected = (centred**3).mean() / (centred**2).mean() ** 1.5
    np.testing.assert_allclose(found["skewness"], [expected, 0.0], rtol=1e-6)
    np.testing.assert_allclose(found["half_a"], [values[[0, 2, 4]].mean(), 0.0], rtol=1e-6)
    np.testing.assert_allclose(found["half_b"], [values[[1, 3]].mean(), 0.0], rtol=1e-6)
    assert found["rank"].isna().all()  # five images rank nothing


def test_heads_far_apart_have_certain_ranks_and_equal_heads_have_none():
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.1, (6, 40))
    found = table_of(plan(6), np.array([0, 5, 1, 4, 2, 3])[:, None] + noise)
    assert found["rank"].tolist() == [6, 1, 5, 2, 4, 3]
    assert (found["rank_low"] == found["rank"]).all()
    assert (found["rank_high"] == found["rank"]).all()
    assert set(found["ranked"]) == {6}
    assert set(found["rank_images"]) == {40}
    equal = table_of(plan(6), noise)
    assert equal["rank_low"].tolist() == [1] * 6
    assert equal["rank_high"].tolist() == [6] * 6


def test_more_heads_than_the_top_are_screened_on_other_images():
    """What leads on the even images is ranked on the odd ones, where the order is another."""
    rng = np.random.default_rng(2)
    count = TOP + 40
    g = np.zeros((count, 32))
    g[:, ::2] = np.arange(count)[:, None]
    g[:, 1::2] = -np.arange(count)[:, None]
    found = table_of(plan(count), g + rng.normal(0, 0.01, g.shape))
    ranked = found[found["rank"].notna()]
    assert ranked.index.tolist() == [f"t{i}" for i in range(40, count)]
    assert ranked["rank"].tolist() == list(range(1, TOP + 1))
    assert set(ranked["rank_images"]) == {16}


def test_ranks_are_within_a_data_set_and_without_what_a_search_chose_from():
    rng = np.random.default_rng(3)
    dataset = ["natural", "synthetic"] * 3 + ["natural"] * 2
    level = ["head"] * 7 + ["layer"]
    phase = ["grid"] * 6 + ["search", "grid"]
    trials = plan(8, dataset=dataset, level=level, phase=phase)
    found = table_of(trials, np.arange(8.0)[:, None] + rng.normal(0, 0.1, (8, 20)))
    assert found["rank"].tolist()[:6] == [3, 3, 2, 2, 1, 1]
    assert found["rank"].isna().tolist()[6:] == [True, True]
    assert set(found["ranked"].dropna()) == {3}


def test_ranks_use_the_images_that_all_heads_share():
    rng = np.random.default_rng(4)
    g = np.arange(3.0)[:, None] + rng.normal(0, 0.1, (3, 20))
    g[0, 12:] = np.nan
    assert set(table_of(plan(3), g)["rank_images"]) == {12}


def test_without_the_metric_there_is_nothing():
    assert diagnostics(plan(2), None, "noise_mse").empty


# what the report concludes


def test_the_detectable_effect_is_found_four_times_in_five():
    cells = pd.DataFrame({"mean_log_ratio": [0.1, -0.3, 0.0, 0.2], "d_z": [0.5, -1.5, 0.0, math.inf], "n": 64})
    spread = spread_between_images(cells)
    np.testing.assert_allclose(spread, [0.2, 0.2])
    for alpha in (0.05, 0.01):
        shift = smallest_detectable(0.2, 256, alpha) / 0.2 * math.sqrt(256)
        power = stats.nct.sf(stats.t.isf(alpha, 255), 255, shift)
        assert power == pytest.approx(0.8, abs=0.01)


def test_the_corrected_level_is_the_largest_p_that_passed():
    cells = pd.DataFrame({"p": [0.001, 0.02, 0.03, 0.9], "q": [0.004, 0.04, 0.06, 0.9]})
    assert corrected_level(cells, 0.05) == 0.02
    assert corrected_level(cells.assign(q=1.0), 0.05) == 0.05 / 4


def test_agreement_of_halves():
    rng = np.random.default_rng(5)
    true = rng.normal(0, 1, 4_000)
    halves = pd.DataFrame({"half_a": true + rng.normal(0, 1, 4_000), "half_b": true + rng.normal(0, 1, 4_000)})
    found = agreement_of_halves(halves)
    assert found == pytest.approx(6 / math.pi * math.asin(0.5 / 2), abs=0.03)  # Pearson 1/2, ranks of normals
    assert whole_from_halves(0.5) == pytest.approx(2 / 3)  # two means of twice the images, noise variance 1/2 each
    assert math.isnan(agreement_of_halves(halves.assign(half_a=0.0)))
    assert math.isnan(agreement_of_halves(halves.head(2)))


@pytest.mark.parametrize("side", [-1, 1])
def test_the_level_under_skew_is_that_of_a_simulation(side):
    """Exponential values, skewness 2, leaning left or right: the t test of a true null at .05."""
    rng = np.random.default_rng(6)
    n, trials = 128, 20_000
    g = side * (rng.exponential(1, (trials, n)) - 1)
    t = g.mean(1) / (g.std(1, ddof=1) / math.sqrt(n))
    rate = (t > stats.t.isf(0.05, n - 1)).mean()
    assert level_under_skew(0.05, side * 2.0, n) == pytest.approx(rate, abs=0.006)
    assert (rate > 0.06) if side < 0 else (rate < 0.04)
