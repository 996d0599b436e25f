"""The effects table of trials that a stopping rule ended, and the controls beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from circuits.statistics import StoppingRule, control_contrast, effects, repeated_intervals
from sweeps.aggregate import EFFECT_COLUMNS, Registered, comparisons_of, effects_of
from sweeps.comparison_names import NOISE_FLOOR, WORSE_ON_IMAGES, WORSE_THAN_CONTROLS
from sweeps.config import Config
from sweeps.driver import execute, planned
from sweeps.gains import Gains
from sweeps.plan import Subject
from sweeps.records import RunDirectory
from sweeps.rounds import decide
from tests.sweeps.tiny import assert_same_effects, effects_by_trial, only_run, stored_rows

IMAGES = 64
RULE = StoppingRule(n_max=IMAGES)


def trials_of(count: int, **columns: object) -> pd.DataFrame:
    frame = pd.DataFrame({"trial_id": [f"t{i}" for i in range(count)]})
    plain = {
        "dataset": "natural", "protocol": "denoise", "level": "head", "layer_index": 0, "head": range(count),
        "mode": "zero", "strength": 1.0, "window_index": 0, "phase": "grid", "images": IMAGES, "draw": 0,
    }  # fmt: skip
    return frame.assign(**{**plain, **columns}, sites=[[f"b:{i}"] for i in range(count)])


@pytest.fixture(scope="module")
def g() -> np.ndarray:
    rng = np.random.default_rng(8)
    means, sds = np.resize([0.0, 0.4, 0.06, 0.03], 24), np.resize([0.02, 0.3, 0.1, 0.12], 24)
    return (means[:, None] + sds[:, None] * rng.standard_normal((24, IMAGES))).astype(np.float32)


def test_the_registered_metric_decides_and_the_others_are_described_on_its_images(g: np.ndarray) -> None:
    trials = trials_of(24)
    ids = trials["trial_id"].to_numpy(dtype=object)
    other = np.random.default_rng(9).normal(0.1, 0.2, g.shape).astype(np.float32)
    table = {"noise_mse": Gains(ids, g), "edge": Gains(ids, other)}
    found = effects_of(trials, table, Registered("noise_mse", 0.05, 0.05, RULE))
    assert list(found.columns) == EFFECT_COLUMNS
    expected = decide(["0|0"] * 24, [IMAGES] * 24, g, RULE).result()
    by_metric = {name: part.set_index("trial_id").loc[ids] for name, part in found.groupby("metric")}
    primary, edge = by_metric["noise_mse"], by_metric["edge"]
    assert (primary["n"] == expected.n).all()
    assert (edge["n"] == expected.n).all()
    assert (primary["verdict"] == expected.verdict).all()
    assert (primary["stopped"].fillna("") == expected.stopped).all()
    assert edge["stopped"].isna().all()
    assert 0 < (expected.stopped == "decided").sum() < 24
    row, n = 1, int(expected.n[1])
    sizes, interval = effects(g[row : row + 1, :n]), repeated_intervals(g[row : row + 1, :n], RULE, np.array([IMAGES]))
    assert primary["percent"].iloc[row] == pytest.approx(sizes.percent[0])
    assert np.log1p(primary["ci_low"].iloc[row] / 100) == pytest.approx(interval.low[0])
    assert np.log1p(edge["percent"].iloc[row] / 100) == pytest.approx(other[row, :n].mean(dtype=float), rel=1e-5)


def test_heads_against_random_subspaces_and_the_noise_floor(g: np.ndarray) -> None:
    heads, controls = trials_of(4), trials_of(7, mode="subspace", phase="control", images=16)
    again = trials_of(1, strength=0.0, phase="control", images=16)
    trials = pd.concat([heads, controls, again], ignore_index=True)
    trials["trial_id"] = [f"t{i}" for i in range(len(trials))]
    values = g[: len(trials)].copy()
    values[4:, 16:] = np.nan
    values[-1, :16] = np.linspace(-3e-6, 2e-6, 16)
    measured = Gains(trials["trial_id"].to_numpy(dtype=object), values)
    found = comparisons_of(trials, {"noise_mse": measured}, Registered("noise_mse", 0.05, 0.05, RULE))
    expected = control_contrast(values[:4, :16], values[4:11, :16])
    images, over = (found[found["name"] == name] for name in (WORSE_ON_IMAGES, WORSE_THAN_CONTROLS))
    np.testing.assert_allclose(images["estimate"], expected.estimate)
    np.testing.assert_allclose(images["p"], expected.p_images)
    np.testing.assert_allclose(over["p"], expected.p)
    assert over["p"].min() >= 1 / 8
    assert (images["n_a"].unique().tolist(), images["n_b"].unique().tolist()) == ([16], [7])
    (floor,) = found.loc[found["name"] == NOISE_FLOOR, "estimate"]
    assert floor == pytest.approx(3e-6)
    assert not set(effects_of(trials, {"noise_mse": measured}, Registered("noise_mse", 0.05, 0.05))["trial_id"]) & set(
        trials.loc[4:, "trial_id"]
    ), "controls are no effects"


SEQUENTIAL = [
    "stats=sequential", "stats.n_max=24", "stats.first=8", "stats.batch=8", "sweep.images=null", "sweep.controls=2",
    "sweep.control_images=8",
]  # fmt: skip


def test_a_sequential_sweep_measures_each_trial_until_it_is_decided(configure: Callable[..., Config]) -> None:
    config = configure(*SEQUENTIAL)
    assert execute(config) == 0
    directory = only_run(Path(config.run.root))
    trials, rows = pd.read_parquet(directory.trials), stored_rows(directory)
    assert set(trials["phase"]) == {"grid", "control"}
    errors = rows[rows["metric"] == "noise_mse"].groupby("trial_id")["unit"].agg(["count", "nunique", "max"])
    assert (errors["count"] == errors["nunique"]).all(), "no image twice"
    assert (errors["max"] == errors["count"] - 1).all(), "no gap"
    effects_table = effects_by_trial(directory).xs("noise_mse", level="metric")
    assert (effects_table["n"] == errors.loc[effects_table.index, "count"]).all()
    short = effects_table["n"] < 24
    assert short.any()
    assert (effects_table["stopped"].notna() == short).all()
    assert (errors.loc[trials.loc[trials["phase"] == "control", "trial_id"], "count"] == 8).all()
    samples = {path.stem for path in directory.samples.iterdir()}
    assert samples == set(trials.loc[trials["phase"] == "grid", "trial_id"])
    counts = directory.read_run()["counts"]
    assert counts["recorded"] == counts["trials"] == len(trials)


def test_an_interrupted_sequential_sweep_ends_with_the_same_effects(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = configure(*SEQUENTIAL, "run.name=whole"), configure(*SEQUENTIAL, "run.name=broken")
    assert execute(whole) == 0
    from sweeps import measuring

    real, calls = measuring.outcomes_of, [0]

    def cut(*arguments: object) -> object:
        for taken, outcome in enumerate(real(*arguments)):  # type: ignore[arg-type]
            yield outcome
            if taken == 3 + calls[0]:
                calls[0] += 5
                raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "outcomes_of", cut)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            execute(broken)
    monkeypatch.setattr(measuring, "outcomes_of", real)
    assert execute(broken) == 0
    left, right = (directory_of(config) for config in (whole, broken))
    assert_same_effects(left, right)
    assert len(stored_rows(left)) == len(stored_rows(right)), "nothing was measured twice"


def test_the_plan_is_registered_with_its_rule(configure: Callable[..., Config], subject: Subject) -> None:
    plain = planned(configure(*SEQUENTIAL), subject)
    for change in (
        "stats.first=9",
        "stats.batch=4",
        "stats.statistic=sign",
        "stats.futility=0.1",
        "stats.margin=0.1",
        "stats.families=[mode]",
    ):
        other = planned(configure(*SEQUENTIAL, change), subject)
        assert other.digest != plain.digest
        assert [t.trial_id for t in other.trials] == [t.trial_id for t in plain.trials]


def directory_of(config: Config) -> RunDirectory:
    return RunDirectory(Path(config.run.root) / str(config.run.name))
