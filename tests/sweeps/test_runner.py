"""A worker's work: leases measured and recorded; a trial that fails is isolated, and what is nobody's fault is not."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from circuits.vocabulary import DENOISE_METRICS, SAMPLE_DISTANCES, SAMPLE_METRICS
from sweeps.config import Config
from sweeps.driver import subject_spec
from sweeps.leases import Lease
from sweeps.plan import Plan, Subject, make_plan
from sweeps.records import GaveOut, RunDirectory
from sweeps.run import ATTEMPTS, DEVICE_LOST, Runner, RunnerSpec, save_grid
from tests.sweeps.poison import NAN_HEAD, is_poisoned, poison
from tests.sweeps.tiny import SIZE, stored_rows

Configure = Callable[..., Config]


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "run")
    made.create(made.records, made.samples)
    return made


def planned(config: Config, subject: Subject) -> Plan:
    return make_plan(config, subject)


def runner(config: Config, subject: Subject, directory: RunDirectory) -> Runner:
    spec = RunnerSpec(
        subject=subject_spec(config),
        rows=config.run.rows,
        threads=0,
        run_dir=str(directory.path),
        metric=config.stats.metric,
    )
    return Runner(spec, subject)


def test_a_lease_is_measured_and_recorded(configure: Configure, subject: Subject, directory: RunDirectory) -> None:
    config = configure()
    lease = Lease.of(planned(config, subject).trials[:5])
    outcome = runner(config, subject, directory).run(lease)
    ids = {t.trial_id for t in lease.trials}
    assert set(outcome.gains) == directory.recorded() == ids
    assert outcome.failures == ()
    assert outcome.rows == 5 * (8 + 2 * 4) + 8 + 2 * 4
    measured = directory.measurements()
    units = measured.groupby("metric")["unit"].agg(["nunique", "max"])
    assert set(units.index) == {*DENOISE_METRICS, *SAMPLE_DISTANCES}
    assert (units.loc[list(DENOISE_METRICS)] == [8, 7]).all(axis=None)
    assert (units.loc[list(SAMPLE_DISTANCES)] == [2, 1]).all(axis=None)
    assert (measured.loc[measured["metric"].isin(SAMPLE_DISTANCES), "baseline"] == 0).all()
    baselines = measured[measured["metric"] == "noise_mse"].pivot(index="trial_id", columns="unit", values="baseline")
    assert (baselines == baselines.iloc[0]).all(axis=None), "trials of a lease share their baseline"
    assert (baselines.nunique(axis=1) == 8).all(), "images differ"


def test_gains_are_those_of_the_records(configure: Configure, subject: Subject, directory: RunDirectory) -> None:
    config = configure()
    outcome = runner(config, subject, directory).run(Lease.of(planned(config, subject).trials[:5]))
    rows = directory.measurements().query("metric == 'noise_mse'")
    for trial_id, part in rows.assign(g=np.log(rows["ablated"] / rows["baseline"])).groupby("trial_id"):
        assert outcome.gains[str(trial_id)] == pytest.approx(
            part.sort_values("unit")["g"].to_numpy(), rel=1e-4, abs=1e-6
        )
        assert outcome.gains[str(trial_id)].dtype == np.float32, "what the records hold, so that a resumed sweep agrees"


def test_protocol_sample_measures_its_images(configure: Configure, subject: Subject, directory: RunDirectory) -> None:
    config = configure("sweep.protocols=[sample]", "stats.metric=contrast", "sweep.samples=0")
    lease = Lease.of(planned(config, subject).trials[:2])
    outcome = runner(config, subject, directory).run(lease)
    assert not outcome.failures
    counts = directory.measurements().groupby("metric")["unit"].nunique()
    assert counts.to_dict() == dict.fromkeys((*SAMPLE_METRICS, *SAMPLE_DISTANCES), 8)


def test_sample_grids_are_one_row_a_seed(configure: Configure, subject: Subject, directory: RunDirectory) -> None:
    config = configure()
    lease = Lease.of(planned(config, subject).trials[:2])
    runner(config, subject, directory).run(lease)
    files = sorted(directory.samples.iterdir())
    assert [f.stem for f in files] == sorted(t.trial_id for t in lease.trials)
    with Image.open(files[0]) as grid:
        assert grid.size == (2 * 3 * SIZE, 2 * 2 * SIZE)


def test_a_grid_shows_baseline_ablated_and_difference(tmp_path: Path) -> None:
    baseline, ablated = torch.full((1, 1, 2, 2), -1.0), torch.full((1, 1, 2, 2), 1.0)
    save_grid(tmp_path / "x.png", baseline, ablated)
    pixels = np.asarray(Image.open(tmp_path / "x.png"))
    assert pixels.shape == (4, 12)
    assert pixels[0, ::4].tolist() == [0, 255, 255]
    save_grid(tmp_path / "same.png", ablated, ablated)
    assert np.asarray(Image.open(tmp_path / "same.png"))[0, ::4].tolist() == [255, 255, 128]


@pytest.fixture
def undisturbed(configure: Configure, subject: Subject, tmp_path: Path) -> pd.DataFrame:
    directory = RunDirectory(tmp_path / "undisturbed")
    directory.create(directory.records, directory.samples)
    config = configure()
    runner(config, subject, directory).run(Lease.of(planned(config, subject).trials[:5]))
    return directory.measurements().set_index(["trial_id", "unit", "metric"]).sort_index()


def test_trials_that_fail_cost_the_others_of_their_lease_nothing(
    configure: Configure,
    subject: Subject,
    directory: RunDirectory,
    undisturbed: pd.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = configure()
    lease = Lease.of(planned(config, subject).trials[:5])
    bad = {t.trial_id: t.head for t in lease.trials if is_poisoned(t.head)}
    good = {t.trial_id for t in lease.trials} - set(bad)
    poison(monkeypatch)
    outcome = runner(config, subject, directory).run(lease)
    assert {f.trial_id for f in outcome.failures} == set(bad)
    assert set(outcome.gains) == directory.recorded() == good
    for failure in outcome.failures:
        of_nan = bad[failure.trial_id] == NAN_HEAD
        assert failure.attempts == ATTEMPTS == 2
        assert failure.traceback.startswith("Traceback (most recent call last):")
        expected = "FloatingPointError: metric " if of_nan else "ArithmeticError: this head"
        assert failure.error.startswith(expected)
        assert "\n" not in failure.error
    measured = directory.measurements().set_index(["trial_id", "unit", "metric"]).sort_index()
    expected_rows = undisturbed.loc[undisturbed.index.get_level_values("trial_id").isin(good)]
    pd.testing.assert_frame_equal(measured, expected_rows, rtol=1e-5)
    assert not stored_rows(directory).duplicated(["trial_id", "unit", "metric"]).any()


def test_a_failure_that_passes_is_no_failure(
    configure: Configure, subject: Subject, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease fails, its first trial fails once more, then all goes well."""
    config = configure()
    working = runner(config, subject, directory)
    measure, calls = working._measure, iter([True, True])

    def shaky(*arguments: object) -> object:
        if next(calls, False):
            raise RuntimeError("a hiccup")
        return measure(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(working, "_measure", shaky)
    outcome = working.run(Lease.of(planned(config, subject).trials[:3]))
    assert outcome.failures == ()
    assert len(directory.recorded()) == 3


def test_a_full_disk_is_no_trials_fault(
    configure: Configure, subject: Subject, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even while the sample grids are written, which happens in the midst of the measuring."""
    config = configure()
    working, lease = runner(config, subject, directory), Lease.of(planned(config, subject).trials[:3])

    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(GaveOut, match=r"samples/\w+\.png could not be written \(No space left on device\)"):
        working.run(lease)
    monkeypatch.undo()
    assert directory.recorded() == set()


def test_a_lost_device_is_no_trials_fault(
    configure: Configure, subject: Subject, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it, every trial of this process would fail."""
    (device_lost,) = DEVICE_LOST
    config = configure()
    working = runner(config, subject, directory)

    def lost(*_: object) -> NoReturn:
        raise device_lost("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(working, "_measure", lost)
    with pytest.raises(device_lost):
        working.run(Lease.of(planned(config, subject).trials[:3]))
