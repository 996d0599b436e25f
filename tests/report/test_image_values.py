"""Log ratios and baselines of single images, as the page carries them."""

import numpy as np
import pandas as pd
import pytest
from fake_run import IMAGES
from page_data import column

from sweeps.records import MEASUREMENTS, RunDirectory
from sweeps.report.image_values import image_values, read_baselines


@pytest.fixture
def directory(small_run) -> RunDirectory:
    return RunDirectory(small_run)


@pytest.fixture
def trials(directory) -> pd.DataFrame:
    return directory.read_frame(directory.trials).query("protocol == 'denoise'")


def test_baselines_are_those_of_the_records(directory, trials):
    found = image_values(directory, trials, ["noise_mse"]).data
    group, values = column(found["group"]), column(found["metrics"]["noise_mse"]["baseline"]).reshape(-1, IMAGES)
    records = directory.measurements().query("metric == 'noise_mse'")
    wide = records.pivot(index="trial_id", columns="unit", values="baseline").loc[trials["trial_id"]]
    np.testing.assert_array_equal(values[group], wide.to_numpy())
    assert len(values) == 2 * 2  # data sets by windows


def test_a_baseline_on_which_trials_disagree_is_not_shown(directory, trials):
    first = trials["trial_id"].iloc[0]
    rows = directory.measurements().query("metric == 'noise_mse'")
    odd = (rows["trial_id"] == first) & (rows["unit"] == 5)
    part = rows.assign(baseline=rows["baseline"].where(~odd, rows["baseline"] * np.float32(1.01)))
    for old in directory.records.iterdir():
        old.unlink()
    directory.write_part("changed", pa_table(part))
    groups = dict.fromkeys(trials["trial_id"], 1)
    place = trials.set_index("trial_id").loc[first]
    alike = trials[(trials["dataset"] == place["dataset"]) & (trials["window_index"] == place["window_index"])]
    groups |= dict.fromkeys(alike["trial_id"], 0)
    found = read_baselines(directory, groups, {"noise_mse": 7})["noise_mse"]
    assert np.isnan(found[0]).tolist() == [unit == 5 for unit in range(7)]


def pa_table(frame: pd.DataFrame):
    import pyarrow as pa

    return pa.Table.from_pandas(frame, schema=MEASUREMENTS, preserve_index=False)


def test_the_budget_leaves_out_other_metrics_first(directory, trials):
    each = 2 * IMAGES * len(trials)
    everything = image_values(directory, trials, ["noise_mse", "edge", "luminance"], 3 * each)
    assert list(everything.data["metrics"]) == ["noise_mse", "edge", "luminance"]
    assert everything.left_out == ()
    fewer = image_values(directory, trials, ["noise_mse", "edge", "luminance"], 2 * each)
    assert list(fewer.data["metrics"]) == ["noise_mse", "edge"]
    assert fewer.left_out == ("luminance",)
    assert fewer.first is None
    part = image_values(directory, trials, ["noise_mse", "edge"], each // 2 + 1)
    assert part.first == IMAGES // 2
    assert set(column(part.data["metrics"]["noise_mse"]["counts"])) == {IMAGES // 2}
    assert part.left_out == ("edge",)


def test_without_records_there_are_none(directory, trials):
    for part in directory.records.iterdir():
        part.unlink()
    assert image_values(directory, trials, ["noise_mse"]).data == {}
