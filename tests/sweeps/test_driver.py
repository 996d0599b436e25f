"""Whole sweeps in this process: exit codes, files, resumption, and what does not change the numbers."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

import launch
from sweeps import schedule
from sweeps.config import Config, ConfigError
from sweeps.driver import execute, interruptible, subject_spec
from sweeps.leases import LeaseQueue, Task
from sweeps.locks import RunLock
from sweeps.progress import SweepProgress
from sweeps.records import Failure, RunDirectory, RunDirectoryError
from sweeps.report import write_report
from tests.sweeps.poison import is_poisoned, poison
from tests.sweeps.tiny import (
    COMPARISON_COLUMNS,
    EFFECT_COLUMNS,
    FAILURE_COLUMNS,
    RECORD_COLUMNS,
    TRIAL_COLUMNS,
    assert_same_effects,
    duplicated_trials,
    only_run,
    run_whole,
)

pytestmark = [pytest.mark.run, pytest.mark.usefixtures("no_report")]

Configure = Callable[..., Config]
TRIALS = 40


@pytest.fixture(scope="module")
def reference(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The tiny sweep, undisturbed."""
    return run_whole(tmp_path_factory.mktemp("reference"), *settings)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the trials that were measured, as leases come back."""
    seen: list[str] = []
    add = SweepProgress.add

    def note(self: SweepProgress, gains: dict[str, np.ndarray], done: int, failed: int, rows: int) -> None:
        seen.extend(gains)
        add(self, gains, done, failed, rows)

    monkeypatch.setattr(SweepProgress, "add", note)
    return seen


def after_leases(count: int, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something when so many leases came back."""
    add, done = SweepProgress.add, iter(range(count))

    def note(self: SweepProgress, *arguments: Any) -> None:
        add(self, *arguments)
        if next(done, -1) == count - 1:
            act()

    monkeypatch.setattr(SweepProgress, "add", note)


def launched(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> int:
    """Exit code of a command line, in this process."""
    monkeypatch.setattr(sys, "argv", ["launch.py", *overrides])
    with pytest.raises(SystemExit) as ended:
        launch.main()
    return int(ended.value.code or 0)


# A run and its files


def test_a_run_leaves_the_files_of_the_architecture(reference: RunDirectory) -> None:
    there = {str(p.relative_to(reference.path)) for p in reference.path.rglob("*") if p.is_file()}
    for name in ("config.yaml", "trials.parquet", "effects.parquet", "comparisons.parquet", "run.json"):
        assert name in there
    assert "failures.parquet" not in there
    assert "lock.json" not in there
    assert not [name for name in there if name.endswith(".tmp")]
    trials = pd.read_parquet(reference.trials)
    assert len(trials) == TRIALS
    assert list(trials.columns)[: len(TRIAL_COLUMNS)] == TRIAL_COLUMNS
    assert list(pd.read_parquet(reference.effects).columns) == EFFECT_COLUMNS
    assert list(pd.read_parquet(reference.comparisons).columns) == COMPARISON_COLUMNS
    assert {f"samples/{trial}.png" for trial in trials["trial_id"]} == {n for n in there if n.startswith("samples/")}
    for part in reference.records.iterdir():
        lease, _, piece = part.stem.rpartition("-")
        assert lease
        assert piece
        assert pq.read_schema(part).names == RECORD_COLUMNS
    assert duplicated_trials(reference) == 0


def test_the_run_is_named_after_its_plan_and_says_what_made_it(reference: RunDirectory) -> None:
    facts = reference.read_run()
    assert reference.path.name == f"smoke-hub-{facts['plan'][:8]}"
    assert facts["counts"]["trials"] == facts["counts"]["recorded"] == TRIALS
    assert facts["counts"]["failed"] == 0
    assert facts["seeds"] == {"sweep": 0}
    assert {"torch", "numpy", "ray"} <= set(facts["versions"])
    assert facts["model"]["heads"] == 4
    assert facts["timesteps"] == [999, 749, 499, 249]
    assert list(facts["data"]) == ["synthetic", "natural"]
    config = yaml.safe_load(reference.config.read_text())
    assert config["sweep"]["images"] == 8
    assert not [
        line for line in reference.config.read_text().lower().splitlines() if "api_key" in line or "token" in line
    ]


def test_the_same_command_again_measures_nothing(
    configure: Configure, reference: RunDirectory, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(configure()) == 0
    assert len(measured) == len(set(measured)) == TRIALS
    measured.clear()
    assert execute(configure()) == 0
    assert measured == []
    assert f"{TRIALS} of {TRIALS} trials are recorded already" in capsys.readouterr().err


# What does not change the numbers


@pytest.mark.parametrize(
    "overrides",
    [["cluster.lease_seconds=1e-6", "run.rows=5"], ["cluster.lease_seconds=1e6", "run.rows=500"]],
    ids=str,
)
def test_leases_and_rows_do_not_change_the_numbers(
    overrides: list[str], configure: Configure, reference: RunDirectory, tmp_path: Path
) -> None:
    assert execute(configure(*overrides)) == 0
    found = only_run(tmp_path / "runs")
    assert found.path.name == reference.path.name
    assert_same_effects(found, reference)


def test_a_part_of_the_grid_has_the_numbers_of_the_whole(
    configure: Configure, reference: RunDirectory, tmp_path: Path
) -> None:
    """Estimates only: what is corrected for the number of tests depends on it."""
    assert execute(configure("sweep.heads=[2]", "sweep.layers=[1]")) == 0
    part = pd.read_parquet(only_run(tmp_path / "runs").effects).set_index(["trial_id", "metric"])
    whole = pd.read_parquet(reference.effects).set_index(["trial_id", "metric"]).loc[part.index]
    own = ["n", "mean_log_ratio", "percent", "ci_low", "ci_high", "d_z", "p_degraded", "p"]
    pd.testing.assert_frame_equal(part[own], whole[own], rtol=1e-5)


def test_every_mode_and_protocol_runs(configure: Configure, tmp_path: Path) -> None:
    config = configure(
        "sweep.modes=[zero,mean,resample,resample_across,identity]", "sweep.protocols=[denoise,sample]",
        "sweep.windows=[[999,500]]", "sweep.heads=[1]", "sweep.layers=[1]", "sweep.images=6", "sweep.strength=0.5",
    )  # fmt: skip
    assert execute(config) == 0
    frame = pd.read_parquet(only_run(tmp_path / "runs").trials)
    assert len(frame) == 5 * 2 * 2 * 2
    assert set(frame["strength"]) == {0.5}


# Failures


def test_failed_trials_give_code_3_and_are_tried_again(
    configure: Configure, reference: RunDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, measured: list[str]
) -> None:
    with monkeypatch.context() as patch:
        poison(patch)
        assert execute(configure()) == 3
    directory = only_run(tmp_path / "runs")
    trials = pd.read_parquet(directory.trials).set_index("trial_id")
    bad = set(trials.index[[is_poisoned(head) for head in trials["head"]]])
    failures = pd.read_parquet(directory.failures)
    assert list(failures.columns) == FAILURE_COLUMNS
    assert set(failures["trial_id"]) == bad
    assert (failures["attempts"] == 2).all()
    assert directory.recorded() == set(trials.index) - bad
    assert set(pd.read_parquet(directory.effects)["trial_id"]) == directory.recorded(), "the rest is aggregated"
    assert directory.read_run()["counts"]["failed"] == len(bad) == 16
    measured.clear()
    assert execute(configure()) == 0
    assert set(measured) == bad
    assert not directory.failures.exists()
    assert_same_effects(directory, reference)


def test_when_every_trial_fails_there_is_nothing_to_aggregate(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch)
    assert execute(configure("sweep.heads=[2,3]", "sweep.levels=[head]")) == 3
    assert "has no measurements of its planned trials yet" in capsys.readouterr().err


def test_a_failure_that_was_not_tried_again_is_still_listed(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        poison(patch)
        assert execute(configure()) == 3
    before = pd.read_parquet(only_run(tmp_path / "runs").failures)
    after_leases(1, lambda: os.kill(os.getpid(), signal.SIGINT), monkeypatch)
    assert execute(configure("cluster.lease_seconds=1e-6")) == 130
    directory = only_run(tmp_path / "runs")
    after = pd.read_parquet(directory.failures)
    assert 0 < len(after) < len(before)
    assert set(after["trial_id"]) == set(before["trial_id"]) - directory.recorded()
    assert directory.read_failures()[0] == Failure(
        **before.set_index("trial_id").loc[[after["trial_id"][0]]].reset_index().iloc[0].to_dict()
    )


# Interruption


def test_ctrl_c_finishes_what_is_in_flight_and_resumes(
    configure: Configure,
    reference: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["launch.py", "sweep.modes=[zero]", "sweep.heads=[0,3]"])
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        after_leases(2, lambda: os.kill(os.getpid(), signal.SIGINT), patch)
        assert execute(configure("cluster.lease_seconds=1e-6")) == 130
    said = capsys.readouterr().err
    assert "Stopping when what is in flight has finished; again to stop at once." in said
    hint = "the same command goes on where it stopped: python launch.py 'sweep.modes=[zero]' 'sweep.heads=[0,3]'"
    assert hint in said, "brackets are no markup, and the line is not broken"
    directory = only_run(tmp_path / "runs")
    recorded = directory.recorded()
    assert len(recorded) == 1 + 1, "a lease of one trial, before anything was timed, and one more"
    assert not directory.effects.exists()
    assert execute(configure()) == 0
    assert duplicated_trials(directory) == 0
    assert_same_effects(directory, reference)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_twice_ends_at_once(
    settings: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    after_leases(1, twice, monkeypatch)
    assert launched(monkeypatch, *settings, f"run.root={tmp_path}", "cluster.lease_seconds=1e-6") == 130
    assert "Interrupted; the same command goes on where it stopped." in capsys.readouterr().err
    assert len(only_run(tmp_path).recorded()) >= 1
    assert not (only_run(tmp_path).path / "lock.json").exists()


def test_sigterm_drains_too(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    after_leases(1, lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch)
    assert execute(configure("cluster.lease_seconds=1e-6")) == 130


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    from rich.console import Console

    stops: list[bool] = []

    def enter() -> None:
        with interruptible(Console()) as stop:
            stops.append(stop.is_set())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert stops == [False]


def test_a_stopped_queue_hands_out_nothing(configure: Configure, subject: Any, reference: RunDirectory) -> None:
    from sweeps.driver import runner_spec
    from sweeps.plan import make_plan

    stop = threading.Event()
    stop.set()
    config = configure()
    leases = LeaseQueue(map(Task.whole, make_plan(config, subject).trials), 1.0)
    spec = runner_spec(config, subject_spec(config), reference)
    assert list(schedule.inline(leases, spec, subject, stop)) == []


# The machine


def test_a_full_disk_ends_the_run_in_one_line_and_loses_nothing(
    settings: list[str],
    reference: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    overrides = [*settings, f"run.root={tmp_path}", "cluster.lease_seconds=1e-6"]
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith(".parquet") and len(list((Path(target).parent).glob("*.parquet"))) >= 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert launched(patch, *overrides) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("error: ")
    assert "could not be written (No space left on device); what is recorded is kept" in said
    directory = only_run(tmp_path)
    assert len(directory.recorded()) == 5, "each of the five parts holds a trial"
    assert launched(monkeypatch, *overrides) == 0
    assert duplicated_trials(directory) == 0
    assert_same_effects(directory, reference)


@pytest.mark.parametrize("name", ["run.json", "trials.parquet", "effects.parquet", "heatmap"])
def test_a_disk_that_is_full_for_any_other_file(
    settings: list[str],
    reference: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    """Before, between and after the measuring; a figure of the report, too, which is not published as a whole."""
    where = (f"run.root={tmp_path}", "run.name=mine")
    replace, write_text = os.replace, Path.write_text

    def full(target: Any) -> None:
        if name in Path(target).name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    with monkeypatch.context() as patch:
        patch.setattr("sweeps.driver.write_report", write_report)
        patch.setattr(os, "replace", lambda source, target: (full(target), replace(source, target)))
        patch.setattr(Path, "write_text", lambda path, *a, **k: (full(path), write_text(path, *a, **k))[1])
        assert launched(patch, *settings, *where) == 1
    (line,) = [said for said in capsys.readouterr().err.splitlines() if said.startswith("error: ")]
    assert line.startswith(f"error: {tmp_path / 'mine'}/")
    assert " could not be written (No space left on device); what is recorded is kept, and the same" in line
    assert launched(monkeypatch, *settings, *where) == 0
    directory = RunDirectory(tmp_path / "mine")
    assert duplicated_trials(directory) == 0
    assert_same_effects(directory, reference)


def test_a_damaged_part_is_measured_again(
    configure: Configure,
    reference: RunDirectory,
    tmp_path: Path,
    measured: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert execute(configure()) == 0
    directory = only_run(tmp_path / "runs")
    part = next(directory.records.iterdir())
    lost = set(pd.read_parquet(part)["trial_id"])
    part.write_bytes(part.read_bytes()[:-100])
    measured.clear()
    capsys.readouterr()
    assert execute(configure()) == 0
    assert f"damaged part {part.name}: set aside, its trials are measured again" in capsys.readouterr().err
    assert set(measured) == lost
    assert_same_effects(directory, reference)


def test_a_run_in_use_is_refused(
    settings: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine" / "records").mkdir(parents=True)
    half = tmp_path / "mine" / "records" / ".part.tmp"
    half.write_bytes(b"the other driver is writing this")
    with RunLock(tmp_path / "mine"):
        code = launched(monkeypatch, *settings, f"run.root={tmp_path}", "run.name=mine")
    assert code == 2
    assert f"mine is in use by process {os.getpid()} on " in capsys.readouterr().err
    assert half.exists(), "nothing of a run in use is touched"


def test_a_run_of_a_newer_version_is_refused(configure: Configure, tmp_path: Path) -> None:
    newer = tmp_path / "runs" / "mine"
    newer.mkdir(parents=True)
    (newer / "run.json").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(RunDirectoryError, match="newer version"):
        execute(configure("run.name=mine"))
    assert [p.name for p in newer.iterdir()] == ["run.json"]


# Other modes


@pytest.mark.parametrize("mode", ["run", "plan"])
def test_another_plan_cannot_overwrite_a_run(configure: Configure, tmp_path: Path, mode: str) -> None:
    assert execute(configure("run.name=mine")) == 0
    files = {p: p.read_bytes() for p in (tmp_path / "runs" / "mine").iterdir() if p.is_file()}
    with pytest.raises(
        ConfigError, match=r"^run\.name: mine holds a different plan \(\w{8}, this one is \w{8}\); choose"
    ):
        execute(configure("run.name=mine", "sweep.seed=1", f"mode={mode}"))
    assert {p: p.read_bytes() for p in (tmp_path / "runs" / "mine").iterdir() if p.is_file()} == files


def test_mode_plan_writes_the_plan_only(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str], reference: RunDirectory
) -> None:
    assert execute(configure("mode=plan")) == 0
    directory = only_run(tmp_path / "runs")
    assert [p.name for p in directory.path.iterdir()] == ["trials.parquet"]
    pd.testing.assert_frame_equal(pd.read_parquet(directory.trials), pd.read_parquet(reference.trials))
    shown = capsys.readouterr().out
    for word in (
        "trials",
        "40",
        "leases",
        "forwards",
        "FLOPs",
        "estimated time",
        "999-500",
        "transformer_blocks.0.attn1",
    ):
        assert word in shown
    with pytest.raises(RunDirectoryError, match="holds no run"):
        execute(configure("mode=aggregate"))


def test_mode_aggregate_and_report_need_no_ray_and_no_model(
    configure: Configure, reference: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object) -> NoReturn:
        raise AssertionError

    monkeypatch.setattr("sweeps.driver.load", never)
    before = pd.read_parquet(reference.effects)
    reference.effects.unlink()
    where = (f"run.root={reference.path.parent}", f"run.name={reference.path.name}")
    assert execute(configure(*where, "mode=aggregate")) == 0
    assert f"{len(before)} effects, 0 trials not measured" in capsys.readouterr().out.replace("\n", "")
    pd.testing.assert_frame_equal(pd.read_parquet(reference.effects), before)
    assert execute(configure(*where, "mode=report")) == 0


def test_mode_track_says_whether_all_was_logged(
    configure: Configure, reference: RunDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Exit code 1, resumable: a script that logs later sees it."""

    def broken(**_: object) -> NoReturn:
        raise OSError("no network")

    shutil.copytree(reference.path, tmp_path / "runs" / "copy")
    tracked = configure("run.name=copy", "mode=track", "tracker=wandb", "tracker.mode=offline", "tracker.samples=0")
    with monkeypatch.context() as patch:
        patch.setattr("wandb.init", broken)
        assert execute(tracked) == 1
    assert execute(tracked) == 0


def test_an_unknown_run_is_said_with_the_nearest(configure: Configure, reference: RunDirectory) -> None:
    where = (f"run.root={reference.path.parent}", f"run.name={reference.path.name[:-1]}")
    with pytest.raises(ConfigError, match=rf"no run .*; did you mean '{reference.path.name}'\?"):
        execute(configure(*where, "mode=aggregate"))


# Several runs


def test_multirun_runs_every_job_though_one_has_failed_trials(
    settings: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    poison(monkeypatch)
    monkeypatch.chdir(tmp_path)
    overrides = (*settings, f"run.root={tmp_path / 'runs'}", "sweep.windows=1", "sweep.levels=[head]")
    assert launched(monkeypatch, "--multirun", *overrides, "sweep.heads='0-3','0-1'", "sweep.seed=0,1") == 3
    runs = [p for p in (tmp_path / "runs").iterdir() if p.is_dir()]
    counts = sorted(len(pd.read_parquet(p / "trials.parquet")) for p in runs)
    assert counts == [8, 8, 16, 16]
    assert sorted((p / "failures.parquet").exists() for p in runs) == [False, False, True, True]
    effects = [pd.read_parquet(p / "effects.parquet") for p in runs]
    assert len({round(float(np.sum(e["mean_log_ratio"])), 6) for e in effects}) == 2, "one for each seed"


def test_a_local_folder_does_not_hide_the_model_that_ships(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_faces").mkdir()
    (tmp_path / "mine").mkdir()
    assert subject_spec(configure("model.path=tiny_faces")).model_path == "tiny_faces"
    assert subject_spec(configure("model.path=mine", "data.root=mine")).model_path == str(tmp_path / "mine")
    assert subject_spec(configure("data.root=mine")).sources[1].root == str(tmp_path / "mine")
    assert subject_spec(configure("model.path=owner/name")).model_path == "owner/name"


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before
