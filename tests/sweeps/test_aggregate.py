"""From records to effects: against numpy, scipy and statsmodels, and against the procedure spelled out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from circuits.vocabulary import DENOISE_METRICS, SAMPLE_DISTANCES
from sweeps.aggregate import Aggregate, aggregate
from sweeps.config import as_plain
from sweeps.plan import make_plan
from sweeps.records import RunDirectory, RunDirectoryError, measurement_table
from tests.sweeps.fake_subject import fake_subject
from tests.sweeps.tiny import COMPARISON_COLUMNS, EFFECT_COLUMNS, TRIAL_COLUMNS, composed

IMAGES = 10
ALPHA, MARGIN = 0.05, 0.05
METRICS = ("noise_mse", "edge")


@dataclass
class Recorded:
    """A run directory with simulated measurements, and the per-image log ratios that are in it."""

    directory: RunDirectory
    trials: pd.DataFrame
    g: dict[str, pd.DataFrame]

    def effects(self, metric: str) -> pd.DataFrame:
        table = pd.read_parquet(self.directory.effects)
        return table[table["metric"] == metric].set_index("trial_id")


def record(path: Path, g_of: Callable[[pd.Series, np.random.Generator], np.ndarray], skip: int = 0) -> Recorded:
    """2 data sets x 3 windows x 2 layers of 3 heads and the whole: 48 trials; the last ``skip`` are not measured."""
    overrides = ("sweep.modes=[zero]", "sweep.windows=3", f"sweep.images={IMAGES}", f"stats.margin={MARGIN}")
    config = composed(*overrides)
    trials = make_plan(config, fake_subject(layers=2, heads=3)).frame()
    directory = RunDirectory(path)
    directory.create(directory.records, directory.samples)
    directory.write_config(as_plain(config))
    directory.write_frame(directory.trials, trials)
    rng = np.random.default_rng(3)
    g: dict[str, dict[str, np.ndarray]] = {metric: {} for metric in METRICS}
    for start in range(0, len(trials) - skip, 5):
        block = trials.iloc[start : min(start + 5, len(trials) - skip)]
        for metric in METRICS:
            baseline = rng.lognormal(-3, 1, IMAGES).astype(np.float32)
            ratios = np.stack([g_of(row, rng) for _, row in block.iterrows()])
            ablated = (baseline * np.exp(ratios)).astype(np.float32)
            g[metric] |= dict(zip(block["trial_id"], np.log(ablated.astype(float) / baseline), strict=True))
            table = measurement_table(block["trial_id"].tolist(), metric, baseline, ablated)
            directory.write_part(f"lease{start}", table)
            if start % 2:
                directory.write_part(f"again{start}", table)  # a lease that ran twice
        distances = rng.random((len(block), 2))
        directory.write_part(
            f"d{start}", measurement_table(block["trial_id"].tolist(), SAMPLE_DISTANCES[0], np.zeros(2), distances)
        )
    frames = {metric: pd.DataFrame.from_dict(values, orient="index") for metric, values in g.items()}
    return Recorded(directory, trials, frames)


def mixed(row: pd.Series, rng: np.random.Generator) -> np.ndarray:
    """Whole layers hurt, head 0 helps, head 1 does nothing to speak of, head 2 is too noisy to tell."""
    mean, spread = {-1: (0.8, 0.3), 0: (-0.5, 0.3), 1: (0.001, 0.01), 2: (0.05, 0.4)}[row["head"]]
    mean += 0.7 * (row["dataset"] == "natural") * (row["head"] == -1)
    return rng.normal(mean, spread, IMAGES)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorded, Aggregate]:
    made = record(tmp_path_factory.mktemp("recorded") / "run", mixed)
    return made, aggregate(made.directory)


def test_tables_have_the_columns_of_the_architecture(recorded: tuple[Recorded, Aggregate]) -> None:
    made, found = recorded
    assert list(found.effects.columns) == list(pd.read_parquet(made.directory.effects).columns) == EFFECT_COLUMNS
    assert list(found.comparisons.columns) == COMPARISON_COLUMNS
    assert list(pd.read_parquet(made.directory.comparisons).columns) == COMPARISON_COLUMNS
    assert found.missing == 0
    assert len(found.effects) == 48 * len(METRICS)
    assert found.effects["stopped"].isna().all()


def test_distances_to_the_baseline_are_not_tested(recorded: tuple[Recorded, Aggregate]) -> None:
    """They are zero for the baseline by construction, so testing them against zero is empty."""
    assert set(recorded[1].effects["metric"]) == set(METRICS) < set(DENOISE_METRICS)


@pytest.mark.parametrize("metric", METRICS)
def test_estimates_are_those_of_numpy_and_scipy(recorded: tuple[Recorded, Aggregate], metric: str) -> None:
    made, _ = recorded
    effects = made.effects(metric)
    g = made.g[metric].loc[effects.index].to_numpy()
    assert (effects["n"] == IMAGES).all()
    np.testing.assert_allclose(effects["mean_log_ratio"], g.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(effects["percent"], 100 * (stats.gmean(np.exp(g), axis=1) - 1), atol=1e-4)
    low, high = stats.t.interval(0.95, IMAGES - 1, g.mean(axis=1), stats.sem(g, axis=1))
    np.testing.assert_allclose(effects["ci_low"], 100 * np.expm1(low), atol=2e-4)
    np.testing.assert_allclose(effects["ci_high"], 100 * np.expm1(high), atol=2e-4)
    np.testing.assert_allclose(effects["d_z"], g.mean(axis=1) / g.std(axis=1, ddof=1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(effects["p_degraded"], (g > 0).mean(axis=1))


def enumerated(g: np.ndarray) -> float:
    """The sign-flip p by going through all sign patterns."""
    signs = np.array(list(itertools.product((1, -1), repeat=len(g))))
    return float(np.mean(signs @ g >= g.sum() - 1e-9))


@pytest.mark.parametrize("metric", METRICS)
def test_p_values_are_those_of_all_sign_patterns(recorded: tuple[Recorded, Aggregate], metric: str) -> None:
    made, _ = recorded
    effects = made.effects(metric)
    expected = [enumerated(row) for row in made.g[metric].loc[effects.index].to_numpy()]
    np.testing.assert_allclose(effects["p"], expected, rtol=1e-6)
    assert effects["p"].min() == 2.0**-IMAGES


def rejected(p: np.ndarray, families: np.ndarray, alpha: float) -> np.ndarray:
    """The hierarchical procedure at one alpha: Simes per family, BH over families, BH inside at alpha R / m."""
    names = np.unique(families)
    simes = []
    for name in names:
        ordered = np.sort(p[families == name])
        simes.append(np.min(ordered * len(ordered) / np.arange(1, len(ordered) + 1)))
    selected = multipletests(simes, alpha, method="fdr_bh")[0]
    found = np.zeros(len(p), dtype=bool)
    for name, chosen in zip(names, selected, strict=True):
        if chosen:
            within = multipletests(p[families == name], alpha * selected.sum() / len(names), method="fdr_bh")[0]
            found[families == name] = within
    return found


def families_of(made: Recorded, ids: pd.Index) -> np.ndarray:
    place = made.trials.set_index("trial_id").loc[ids]
    return (place["layer"] + "/" + place["t_start"].astype(str)).to_numpy()


@pytest.mark.parametrize("metric", METRICS)
def test_q_is_the_smallest_alpha_at_which_the_procedure_rejects(
    recorded: tuple[Recorded, Aggregate], metric: str
) -> None:
    """Families are layer x window, over both data sets and all heads."""
    made, _ = recorded
    effects = made.effects(metric)
    families = families_of(made, effects.index)
    assert len(set(families)) == 2 * 3
    p, q = effects["p"].to_numpy(), effects["q"].to_numpy()
    for alpha in (0.001, 0.003, 0.01, 0.03, 0.049, 0.1, 0.3, 0.7):
        np.testing.assert_array_equal(q <= alpha, rejected(p, families, alpha))
    np.testing.assert_allclose(effects["q_by"], multipletests(p, method="fdr_by")[1])
    assert (q >= p).all()


@pytest.mark.parametrize("metric", METRICS)
def test_verdicts_follow_from_the_three_tests(recorded: tuple[Recorded, Aggregate], metric: str) -> None:
    made, _ = recorded
    effects = made.effects(metric)
    g = made.g[metric].loc[effects.index].to_numpy()
    families = families_of(made, effects.index)
    margin = np.log1p(MARGIN)
    equivalence = [ttost_paired(row, np.zeros(IMAGES), -margin, margin)[0] for row in g]
    negligible = multipletests(equivalence, ALPHA, method="fdr_bh")[0]
    degraded = rejected(effects["p"].to_numpy(), families, ALPHA)
    improved = rejected(np.array([enumerated(-row) for row in g]), families, ALPHA)
    assert not (degraded & improved).any()
    expected = np.select(
        [negligible, degraded, improved], ["negligible", "degraded", "improved"], default="inconclusive"
    )
    np.testing.assert_array_equal(effects["verdict"].to_numpy(dtype=str), expected)
    assert set(expected) == {"negligible", "degraded", "improved", "inconclusive"}, "each of the four occurs"


def test_verdicts_are_what_was_put_in(recorded: tuple[Recorded, Aggregate]) -> None:
    made, _ = recorded
    heads = made.trials.set_index("trial_id")["head"]
    verdict = made.effects("noise_mse")["verdict"]
    assert set(verdict[heads.loc[verdict.index].to_numpy() == -1]) == {"degraded"}
    assert set(verdict[heads.loc[verdict.index].to_numpy() == 1]) == {"negligible"}
    assert "degraded" not in set(verdict[heads.loc[verdict.index].to_numpy() == 0])


def test_the_contrast_is_the_second_data_set_minus_the_first(recorded: tuple[Recorded, Aggregate]) -> None:
    made, found = recorded
    contrasts = found.comparisons
    assert set(contrasts["name"]) == {"data set contrast: natural - synthetic"}
    assert set(contrasts["metric"]) == {"noise_mse"}, "the registered metric only"
    assert len(contrasts) == 24
    assert (contrasts[["n_a", "n_b"]] == IMAGES).all(axis=None)
    g = made.g["noise_mse"]
    place = made.trials.set_index("trial_id")
    for row in contrasts.itertuples():
        of_cell = place[
            [
                row.group
                == (
                    f"layer {t.layer_index}"
                    + (f" head {t.head}" if t.head >= 0 else "")
                    + f" | {t.mode} | window {t.window_index}"
                )
                for t in place.itertuples()
            ]
        ]
        (natural,) = g.loc[of_cell.index[of_cell["dataset"] == "natural"]].to_numpy()
        (synthetic,) = g.loc[of_cell.index[of_cell["dataset"] == "synthetic"]].to_numpy()
        welch = stats.ttest_ind(natural, synthetic, equal_var=False)
        assert row.estimate == pytest.approx(natural.mean() - synthetic.mean(), abs=1e-5)
        interval = welch.confidence_interval()
        assert (row.ci_low, row.ci_high) == pytest.approx((interval.low, interval.high), abs=1e-4)
        assert row.p == pytest.approx(welch.pvalue, abs=0.05)
    layers = contrasts[~contrasts["group"].str.contains("head")]
    assert (layers["estimate"] > 0.2).all()
    np.testing.assert_allclose(contrasts["q"], multipletests(contrasts["p"], method="fdr_bh")[1])


def test_a_partial_run_aggregates_and_says_what_is_missing(tmp_path: Path) -> None:
    made = record(tmp_path / "run", mixed, skip=7)
    found = aggregate(made.directory)
    assert found.missing == 7
    measured = set(made.trials["trial_id"][:-7])
    assert set(found.effects["trial_id"]) == measured
    effects = made.effects("edge")
    np.testing.assert_allclose(effects["mean_log_ratio"], made.g["edge"].loc[effects.index].mean(axis=1), atol=1e-6)


def test_an_older_run_aggregates(recorded: tuple[Recorded, Aggregate], tmp_path: Path) -> None:
    """Without run.json, without columns that came later, and with measurements that are not in the plan."""
    made = record(tmp_path / "run", mixed)
    made.directory.write_frame(made.directory.trials, made.trials[TRIAL_COLUMNS])
    made.directory.write_part("other", measurement_table(["unplanned"], "edge", np.ones(IMAGES), np.ones((1, IMAGES))))
    found = aggregate(made.directory)
    pd.testing.assert_frame_equal(found.effects, recorded[1].effects)


def test_trials_measured_on_different_numbers_of_images_are_corrected_together(tmp_path: Path) -> None:
    made = record(tmp_path / "run", mixed, skip=24)
    ids = made.trials["trial_id"][24:].tolist()
    rng = np.random.default_rng(4)
    baseline, g = np.ones(6, dtype=np.float32), rng.normal(0.5, 0.3, (24, 6))
    made.directory.write_part("late", measurement_table(ids, "edge", baseline, np.exp(g)))
    aggregate(made.directory)
    effects = made.effects("edge")
    assert effects["n"].value_counts().to_dict() == {10: 24, 6: 24}
    np.testing.assert_allclose(effects.loc[ids, "mean_log_ratio"], g.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(effects["q_by"], multipletests(effects["p"], method="fdr_by")[1])


def test_errors_of_exactly_zero_are_no_obstacle(tmp_path: Path) -> None:
    made = record(tmp_path / "run", mixed, skip=1)
    last = made.trials["trial_id"].iloc[-1]
    made.directory.write_part("zero", measurement_table([last], "edge", np.zeros(IMAGES), np.zeros((1, IMAGES))))
    aggregate(made.directory)
    row = made.effects("edge").loc[last]
    assert (row["mean_log_ratio"], row["p"], row["verdict"]) == (0.0, 1.0, "negligible")


def test_one_data_set_has_no_contrasts(tmp_path: Path) -> None:
    made = record(tmp_path / "run", mixed)
    made.directory.write_frame(made.directory.trials, made.trials[made.trials["dataset"] == "natural"])
    found = aggregate(made.directory)
    assert len(found.comparisons) == 0
    assert list(found.comparisons.columns) == COMPARISON_COLUMNS
    assert set(found.effects["n"]) == {IMAGES}


def test_nothing_measured_nothing_planned_and_newer_runs_are_said(tmp_path: Path) -> None:
    made = record(tmp_path / "run", mixed, skip=48)
    with pytest.raises(RunDirectoryError, match="no measurements of its planned trials yet"):
        aggregate(made.directory)
    with pytest.raises(RunDirectoryError, match="holds no run"):
        aggregate(RunDirectory(tmp_path / "nowhere"))
    made.directory.run.write_text('{"schema_version": 99}')
    with pytest.raises(RunDirectoryError, match="newer version"):
        aggregate(made.directory)


def test_the_run_folder_may_look_like_a_partition(recorded: tuple[Recorded, Aggregate], tmp_path: Path) -> None:
    made = record(tmp_path / "head=3", mixed)
    pd.testing.assert_frame_equal(aggregate(made.directory).effects, recorded[1].effects)
