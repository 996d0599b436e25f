"""The library in a notebook gives the numbers of a sweep."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from circuits import ALL_HEADS, Intervention, Measured, Site, Window, effects, measure
from sweeps.plan import Subject
from sweeps.records import RunDirectory
from tests.sweeps.tiny import run_whole

KEY = ["metric", "dataset", "layer_index", "head", "mode", "t_start"]


@pytest.fixture(scope="module")
def run(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    root = tmp_path_factory.mktemp("notebook")
    return run_whole(root, *settings, "sweep.samples=0", "sweep.modes=[zero,resample]", "sweep.seed=5")


def by_hand(subject: Subject, images: int, windows: list[Window]) -> list[Measured]:
    """What the configuration says, written as in a notebook."""
    chosen = [
        Intervention(mode, (Site(layer.name, head),))
        for mode in ("zero", "resample")
        for layer in subject.layers
        for head in (ALL_HEADS, *range(layer.heads))
    ]
    return [
        measure(
            subject.denoiser, subject.data, chosen,
            dataset=name, window=window, images=images, layers=subject.layers, steps=4, seed=5, rows=7,
        )
        for name in subject.data
        for window in windows
    ]  # fmt: skip


def test_effects_equal_a_sweeps_effects_parquet(run: RunDirectory, subject: Subject) -> None:
    trials = pd.read_parquet(run.trials)
    windows = [Window(int(a), int(b)) for a, b in {*zip(trials["t_start"], trials["t_end"], strict=True)}]
    stored = pd.read_parquet(run.effects).merge(trials, on="trial_id")
    ours = effects(by_hand(subject, 8, windows))
    stored, ours = (table.set_index(KEY).sort_index() for table in (stored, ours))
    assert len(stored) == len(trials) * stored.index.get_level_values("metric").nunique() == len(ours)
    assert stored.index.equals(ours.index)
    assert stored.index.is_unique
    for column in ("n", "verdict"):
        assert stored[column].tolist() == ours[column].tolist()
    assert len(set(ours["verdict"])) > 1
    for column, limit in {"mean_log_ratio": 1e-5, "percent": 1e-3, "ci_low": 2e-3, "ci_high": 2e-3}.items():
        np.testing.assert_allclose(ours[column], stored[column], rtol=1e-4, atol=limit, err_msg=column)
    for column in ("d_z", "p_degraded", "p", "q", "q_by"):
        np.testing.assert_allclose(ours[column], stored[column], rtol=2e-3, atol=1e-4, err_msg=column)


def test_the_frame_equals_a_sweeps_records(run: RunDirectory, subject: Subject) -> None:
    trials = pd.read_parquet(run.trials)
    windows = [Window(int(a), int(b)) for a, b in {*zip(trials["t_start"], trials["t_end"], strict=True)}]
    records = pd.concat([table.to_pandas() for table in run.tables()]).merge(trials, on="trial_id")
    ours = pd.concat([part.frame() for part in by_hand(subject, 8, windows)])
    keys = [*KEY, "unit"]
    records["metric"] = records["metric"].astype(str)  # a category
    records, ours = (table.set_index(keys).sort_index() for table in (records, ours))
    assert records.index.equals(ours.index)
    for column in ("baseline", "ablated"):
        np.testing.assert_allclose(ours[column], records[column], rtol=1e-5, atol=1e-9)


def test_what_is_registered_matters(subject: Subject) -> None:
    """The equality above can fail: with another margin or other families the tables differ."""
    part = by_hand(subject, 8, [Window(999, 0)])[0]
    table = effects(part)
    assert effects(part, margin=0.9)["verdict"].tolist() != table["verdict"].tolist()
    assert effects(part, families=["mode"])["q"].tolist() != table["q"].tolist()
