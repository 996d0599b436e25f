"""Streaming of per-image values and the effects from them, against an independent implementation with pivots."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats

from circuits.effect_tables import gains
from circuits.statistics import bh, by, effects, equivalence_test, hierarchical_fdr, signflip_test, verdicts
from sweeps.aggregate import EFFECT_COLUMNS, TESTED, aggregate
from sweeps.contrasts import contrasts, permutations_for
from sweeps.gains import read_gains
from sweeps.records import RunDirectory, measurement_table
from tests.synthetic_run import BASELINE, Cell, measured, write_run

UNITS = 13


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def grid(rng: np.random.Generator, units: int = UNITS) -> list[Cell]:
    """2 data sets x 2 windows x 3 heads x 2 metrics, some with an effect."""
    return [
        Cell(rng.normal(0.3 * (head == 1), 0.2, units), head=head, window=window, dataset=dataset, metric=metric)
        for dataset in ("natural", "synthetic")
        for window in ((999, 500), (499, 0))
        for head in range(3)
        for metric in ("noise_mse", "edge")
    ]


def pivoted(directory: RunDirectory, metric: str) -> pd.DataFrame:
    """The matrix of a metric by pandas: a row a planned trial, a column a unit."""
    rows = directory.measurements()
    rows = rows[rows["metric"] == metric]
    wide = {name: rows.pivot(index="trial_id", columns="unit", values=name) for name in ("ablated", "baseline")}
    g = np.log(wide["ablated"].astype(float)) - np.log(wide["baseline"].astype(float))
    order = [trial for trial in pd.read_parquet(directory.trials)["trial_id"] if trial in g.index]
    return g.loc[order]


def test_matrices_are_those_of_a_pivot(tmp_path, rng):
    directory = write_run(tmp_path / "run", grid(rng))
    ids = pd.read_parquet(directory.trials)["trial_id"].tolist()
    found = read_gains(directory, ids, TESTED)
    assert list(found) == ["noise_mse", "edge"]  # in the order of TESTED
    for metric, matrix in found.items():
        expected = pivoted(directory, metric)
        assert matrix.trial_ids.tolist() == expected.index.tolist()
        assert matrix.g.dtype == np.float32
        np.testing.assert_allclose(matrix.g, expected.to_numpy(), rtol=1e-7)


def test_units_come_in_any_order_number_and_part(tmp_path, rng):
    """Gaps stay gaps, later parts may be wider, and unplanned trials are left out."""
    g = rng.normal(size=9)
    g[[2, 5]] = np.nan
    directory = write_run(tmp_path / "run", [Cell(g[:4]), Cell(rng.normal(size=3), head=1)])
    ids = pd.read_parquet(directory.trials)["trial_id"].tolist()
    late = measurement_table(ids[:1], "noise_mse", np.full(5, BASELINE), BASELINE * np.exp(g[None, 4:]), first_unit=4)
    late = late.filter(pa.array(~np.isnan(g[4:]))).take([3, 1, 0, 2])
    directory.write_part("later", late)
    other = measurement_table(["unplanned"], "noise_mse", np.ones(2), np.ones((1, 2)))
    directory.write_part("other", other)
    found = read_gains(directory, [*ids, "never measured"], ["noise_mse"])["noise_mse"]
    assert found.trial_ids.tolist() == ids
    assert found.counts.tolist() == [7, 3]
    np.testing.assert_array_equal(np.isnan(found.g[0]), np.isnan(g))
    np.testing.assert_allclose(found.g[0][~np.isnan(g)], measured(g[~np.isnan(g)]), rtol=1e-6)
    groups = {n: rows.tolist() for rows, values in found.groups() for n in [values.shape[1]]}
    assert groups == {3: [1], 7: [0]}
    assert found.of(ids[::-1]).shape == (2, 9)
    with pytest.raises(KeyError, match="no measurements of trial never measured"):
        found.of([ids[0], "never measured"])


def test_a_measurement_made_twice_counts_once_and_the_first_one(tmp_path):
    directory = write_run(tmp_path / "run", [Cell([0.1, 0.2, 0.3])])
    trial = pd.read_parquet(directory.trials)["trial_id"].tolist()
    again = measurement_table(trial * 2, "noise_mse", np.full(3, BASELINE), BASELINE * np.exp([[9.0] * 3, [8.0] * 3]))
    directory.write_part("zzz", again)
    found = read_gains(directory, trial, ["noise_mse"])["noise_mse"]
    np.testing.assert_allclose(found.g, [measured([0.1, 0.2, 0.3])], rtol=1e-6)
    assert len(directory.measurements()) == 3
    alone = write_run(tmp_path / "alone", [Cell([np.nan])])
    alone.write_part("twice", again.slice(0, 4))  # within one part: unit 0 is there twice
    trials = read_gains(alone, trial, ["noise_mse"])["noise_mse"]
    np.testing.assert_allclose(trials.g, [[9.0, 9.0, 9.0]], rtol=1e-6)


def test_zero_errors_are_the_smallest_number_and_never_infinite():
    tiny = np.finfo(np.float32).tiny
    np.testing.assert_allclose(gains(np.array([0.0, 1.0]), np.array([1.0, 0.0])), np.log([tiny, 1 / tiny]))
    assert gains(np.zeros(2), np.zeros(2)).tolist() == [0, 0]


def test_effects_are_those_of_a_pivot(tmp_path, rng):
    directory = write_run(tmp_path / "run", grid(rng))
    found = aggregate(directory)
    assert found.missing == 0
    assert found.effects.columns.tolist() == EFFECT_COLUMNS
    trials = pd.read_parquet(directory.trials).set_index("trial_id")
    for metric in ("noise_mse", "edge"):
        g = pivoted(directory, metric)
        here = found.effects[found.effects["metric"] == metric].set_index("trial_id").loc[g.index]
        sizes, values = effects(g.to_numpy()), g.to_numpy()
        for column in ("mean_log_ratio", "percent", "ci_low", "ci_high", "d_z", "p_degraded"):
            np.testing.assert_allclose(here[column], getattr(sizes, column), rtol=2e-6, atol=1e-9, err_msg=column)
        p = signflip_test(values).p
        family = [f"{trials.at[t, 'layer_index']}|{trials.at[t, 'window_index']}" for t in g.index]
        q = hierarchical_fdr(p, family).q
        np.testing.assert_allclose(here["p"], p, rtol=1e-4)
        np.testing.assert_allclose(here["q"], q, rtol=1e-4)
        np.testing.assert_allclose(here["q_by"], by(p), rtol=1e-4)
        improved = hierarchical_fdr(signflip_test(values, "less").p, family).q
        negligible = bh(equivalence_test(values, np.log1p(0.05)).p)
        assert here["verdict"].tolist() == verdicts(q, improved, negligible).tolist()


def test_trials_with_different_numbers_of_images_are_corrected_together(tmp_path, rng):
    cells = [Cell(rng.normal(0.2, 0.3, n), head=head) for head, n in enumerate((5, 9, 5, 12, 1))]
    found = aggregate(write_run(tmp_path / "run", cells)).effects
    assert found["n"].tolist() == [5, 9, 5, 12]  # one image is no estimate
    exact = {"permutation_type": "samples", "alternative": "greater"}
    expected = [stats.permutation_test((measured(cell.g),), np.mean, **exact).pvalue for cell in cells[:4]]
    np.testing.assert_allclose(found["p"], expected, rtol=1e-9)
    np.testing.assert_allclose(found["q"], stats.false_discovery_control(expected), rtol=1e-9)  # one family


def test_data_sets_are_contrasted_cell_by_cell(tmp_path, rng):
    directory = write_run(tmp_path / "run", grid(rng))
    found = aggregate(directory).comparisons
    g = pivoted(directory, "noise_mse").to_numpy().reshape(2, 2, 3, -1)  # data set, window, head; natural comes first
    first, second = g.swapaxes(1, 2).reshape(2, 6, -1)
    np.testing.assert_allclose(found["estimate"], second.mean(1) - first.mean(1), rtol=1e-5)
    interval = stats.ttest_ind(second, first, axis=1, equal_var=False).confidence_interval()
    np.testing.assert_allclose(found["ci_low"], interval.low, rtol=1e-5)
    np.testing.assert_allclose(found["ci_high"], interval.high, rtol=1e-5)
    np.testing.assert_allclose(found["q"], stats.false_discovery_control(found["p"]), rtol=1e-12)
    welch = stats.ttest_ind(second, first, axis=1, equal_var=False).pvalue
    np.testing.assert_allclose(found["p"], welch, rtol=0.25, atol=0.02)  # 9,999 permutations of 26 images
    assert set(found["name"]) == {"data set contrast: synthetic - natural"}


@pytest.mark.parametrize(
    ("cells", "alpha", "expected"),
    [
        (10, 0.05, 9_999),
        (540, 0.05, 21_600),
        (1_000, 0.05, 40_000),
        (1_200, 0.05, 0),
        (50_000, 0.05, 0),
        (540, 0.01, 0),
    ],
)
def test_permutations_can_pass_the_correction_or_are_not_made(cells, alpha, expected):
    assert permutations_for(cells, alpha) == expected
    if expected:
        assert 1 / (expected + 1) < alpha / cells


def test_many_cells_are_tested_by_welch(rng):
    a, b = rng.normal(0.2, 1, (5_000, 7)), rng.normal(0, 2, (5_000, 11))
    found = contrasts(a, b, "test", 0)
    expected = stats.ttest_ind(a, b, axis=1, equal_var=False)
    np.testing.assert_allclose(found["p"], expected.pvalue, rtol=1e-9)
    np.testing.assert_allclose(found["estimate"], a.mean(1) - b.mean(1), rtol=1e-9)
    assert (found["n_a"] == 7).all()
    assert (found["n_b"] == 11).all()
    one_sided = contrasts(a, b, "test", 0, "less")
    np.testing.assert_allclose(
        one_sided["p"], stats.ttest_ind(a, b, axis=1, equal_var=False, alternative="less").pvalue, rtol=1e-9
    )
