"""Tracking: what W&B will show, read back from the offline runs by wandb's own reader, and what a failure costs."""

from __future__ import annotations

import http.server
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import wandb
import yaml
from PIL import Image
from wandb.sdk import wandb_setup

from sweeps.tracking import TrackerSettings, open_tracker, track_from_records
from sweeps.tracking.contents import Plan, trial_run
from sweeps.tracking.measured import RecordIndex
from sweeps.tracking.settings import one_line, resolve_mode

UNITS = 5
FACTORS = {"noise_mse": 1.25, "edge": 0.5, "luminance": 1.0}  # ablated / baseline, the same for every unit
OFFLINE = TrackerSettings(mode="offline")
KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(autouse=True)
def _no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs" / "smoke-tiny-01234567")


def make_run(run_dir: Path, trials: int = 3) -> Path:
    """A run directory with planned trials: head i, window i % 2; nothing recorded yet."""
    for folder in ("records", "samples", "report/figures"):
        (run_dir / folder).mkdir(parents=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump({"run": {"name": run_dir.name}, "sweep": {"seed": 7}}))
    rows = [
        {
            "trial_id": f"trial{i:03d}",
            "model": "tiny_faces",
            "dataset": "lfw_faces",
            "protocol": "denoise",
            "level": "head",
            "layer": "mid.attn",
            "layer_index": 2,
            "head": i,
            "stream": "image",
            "mode": "zero",
            "strength": 1.0,
            "window_index": i % 2,
            "t_start": (999, 799)[i % 2],
            "t_end": (800, 600)[i % 2],
            "sites": None,
        }
        for i in range(trials)
    ]
    pq.write_table(pa.Table.from_pylist(rows), run_dir / "trials.parquet")
    return run_dir


def record(run_dir: Path, *numbers: int, units: range = range(UNITS), part: str = "") -> list[str]:
    """Measurements and a sample grid of the trials with these numbers, in one part file."""
    trials = [f"trial{i:03d}" for i in numbers]
    rows = [
        {"trial_id": trial, "unit": unit, "metric": metric, "baseline": 2.0 + unit, "ablated": factor * (2.0 + unit)}
        for trial in trials
        for unit in units
        for metric, factor in FACTORS.items()
    ]
    table = pa.Table.from_pylist(rows)
    for column in ("baseline", "ablated"):
        index = table.schema.get_field_index(column)
        table = table.set_column(index, column, table[column].cast(pa.float32()))
    pq.write_table(table, run_dir / "records" / f"{part or '-'.join(trials)}.parquet")
    for number, trial in zip(numbers, trials):
        Image.fromarray(np.full((6, 18), 20 * number, np.uint8)).save(run_dir / "samples" / f"{trial}.png")
    return trials


def folders(run_dir: Path, kind: str = "") -> list[Path]:
    return sorted((run_dir / "wandb").glob(f"offline-run-*-{kind}*"), key=lambda path: path.name.split("-", 3)[-1])


def ids(run_dir: Path, kind: str) -> list[str]:
    return [re.sub(r"offline-run-\d+_\d+-", "", folder.name) for folder in folders(run_dir, kind)]


def ledger(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "tracking.jsonl").read_text().splitlines()]


class Seen:
    """An offline run, read with `wandb leet inspect`."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30, cwd=folder).stdout
        records = [json.loads(line) for line in printed.splitlines()]
        self.kinds = {found["type"] for found in records}
        self.run = next(found["run"] for found in records if found["type"] == "run")
        self.config = self.run["config"]["update"]
        self.history = [found["history"]["item"] for found in records if found["type"] == "history"]
        self.metrics = [found["metric"] for found in records if found["type"] == "metric"]
        self.artifacts = [record["artifact"] for record in records if record["type"] == "artifact"]
        self.exit_code = next(found["exit"].get("exit_code", 0) for found in records if found["type"] == "exit")


def trial_folder(run_dir: Path, trial: str) -> Path:
    (folder,) = folders(run_dir, Plan.read(run_dir).trial_id(trial))
    return folder


# What W&B shows


def test_a_trial_becomes_a_run_with_its_axes_metrics_and_samples(run_dir, capfd):
    trials = record(run_dir, 0, 1)
    tracker = open_tracker(run_dir, OFFLINE)
    for trial in trials:
        tracker.trial_done(trial)
    assert tracker.follow_once() == 2
    outcome = tracker.finish()
    assert (outcome.mode, outcome.logged, outcome.pending, outcome.failed) == ("offline", 2, 0, 0)
    assert f"wandb sync {run_dir}/wandb" in outcome.message
    assert f"wandb leet {run_dir}/wandb" in outcome.message
    assert capfd.readouterr() == ("", "")

    shown = trial_folder(run_dir, trials[1])
    seen = Seen(shown)
    planned = pq.read_table(run_dir / "trials.parquet").to_pylist()[1]
    assert {axis: value for axis, value in seen.config.items() if axis != "_wandb"} == planned
    assert seen.run["run_group"] == run_dir.name
    assert seen.run["job_type"] == "trial"
    assert seen.run["project"] == "circuit-sweep"
    assert set(seen.run["tags"]) == {"zero", "lfw_faces", "denoise", "head"}
    assert seen.run["display_name"] == "mid.attn h1 zero t799-600 lfw_faces denoise"
    assert seen.exit_code == 0
    (row,) = seen.history
    for metric, factor in FACTORS.items():
        assert row[f"{metric}/percent"] == pytest.approx(100 * (factor - 1), abs=1e-4)
        assert row[f"{metric}/log_ratio"] == pytest.approx(math.log(factor), abs=1e-6)
        assert row[f"{metric}/baseline"] == pytest.approx(4.0)
        assert row[f"{metric}/ablated"] == pytest.approx(4.0 * factor)
        assert row[f"{metric}/units"] == UNITS
    assert row["timestep"] == pytest.approx(699.5)
    assert any(metric.get("glob_name") == "*" for metric in seen.metrics)
    assert row["samples._type"] == "image-file"
    assert "baseline | ablated | difference" in row["samples.caption"]
    assert (shown / "files" / row["samples.path"]).read_bytes() == (run_dir / "samples/trial001.png").read_bytes()
    # Lean: nothing about the machine, its packages, the console, the code.
    assert seen.kinds <= {"header", "run", "telemetry", "metric", "files", "summary", "history", "exit"}
    assert {path.name for path in (shown / "files").iterdir()} == {"media"}


def test_the_summary_holds_effects_ranking_figures_and_the_report(run_dir, tmp_path):
    record(run_dir, 0, 1)
    effects = [
        {"trial_id": f"trial{i:03d}", "metric": metric, "n": UNITS, "percent": percent, "q": 0.01, "verdict": verdict}
        for i, metric, percent, verdict in [
            (0, "noise_mse", 25.0, "degraded"),
            (1, "noise_mse", 31.0, "degraded"),
            (0, "edge", -50.0, "improved"),
        ]
    ]
    pq.write_table(pa.Table.from_pylist(effects), run_dir / "effects.parquet")
    pq.write_table(pa.Table.from_pylist([{"name": "ratio", "estimate": 1.5}]), run_dir / "comparisons.parquet")
    (run_dir / "report/index.html").write_text("<html></html>")
    Image.new("L", (7, 5)).save(run_dir / "report/figures/heatmap.png")
    (run_dir / "run.json").write_text('{"seed": 7, "versions": {"torch": "2"}}')
    track_from_records(run_dir, OFFLINE)

    (folder,) = folders(run_dir, "summary")
    seen = Seen(folder)
    assert seen.run["job_type"] == "summary"
    assert seen.run["run_group"] == seen.run["display_name"] == run_dir.name
    assert seen.config["sweep"] == {"seed": 7}
    assert seen.config["run_record"]["versions"] == {"torch": "2"}
    (row,) = seen.history
    assert (row["trials/planned"], row["trials/recorded"], row["trials/failed"]) == (3, 2, 0)
    assert (row["effects/degraded"], row["effects/improved"]) == (2, 1)
    assert row["figures/heatmap._type"] == "image-file"
    assert [caption.split()[1] for caption in row["samples/strongest.captions"]] == ["h1", "h0"]

    def table(key: str) -> list[dict[str, Any]]:
        content = json.loads((folder / "files" / row[f"{key}.path"]).read_text())
        return [dict(zip(content["columns"], cells)) for cells in content["data"]]

    assert [(found["head"], found["metric"], found["percent"]) for found in table("effects")] == [
        (1, "noise_mse", 31.0),
        (0, "noise_mse", 25.0),
        (0, "edge", -50.0),
    ]
    assert [(found["rank"], found["percent"]) for found in table("ranking/noise_mse")] == [(1, 31.0), (2, 25.0)]
    assert table("comparisons") == [{"name": "ratio", "estimate": 1.5}]
    (report,) = [artifact for artifact in seen.artifacts if artifact["type"] == "report"]
    names = {entry["path"] for entry in report["manifest"]["contents"]}
    assert {"report/index.html", "report/figures/heatmap.png", "effects.parquet", "config.yaml"} <= names
    # wandb stages artifacts and keeps logs in the home directory unless told otherwise.
    assert not list((tmp_path / "home").rglob("*"))


def test_many_trials_become_a_run_per_layer_and_window(run_dir):
    record(run_dir, 0)
    tracker = open_tracker(run_dir, TrackerSettings(mode="offline", max_trial_runs=2))
    tracker.trial_done("trial000")
    assert tracker.follow_once() == 0, "window 0 holds heads 0 and 2"
    record(run_dir, 2)
    record(run_dir, 1)
    tracker.trial_done("trial002")
    assert tracker.follow_once() == 1
    outcome = tracker.finish()
    assert (outcome.logged, outcome.pending) == (3, 0)
    assert not folders(run_dir, "trial")
    assert len(folders(run_dir, "group")) == 2
    shown = next(run_dir / line["path"] for line in ledger(run_dir) if line["trials"] == 2)
    seen = Seen(shown)
    assert (seen.run["job_type"], seen.config["layer"], seen.config["window_index"]) == ("group", "mid.attn", 0)
    (row,) = seen.history
    assert row["noise_mse/percent_max"] == pytest.approx(25.0, abs=1e-4)
    content = json.loads((shown / "files" / row["table.path"]).read_text())
    cells = [dict(zip(content["columns"], found)) for found in content["data"]]
    assert {(found["trial_id"], found["head"]) for found in cells} == {("trial000", 0), ("trial002", 2)}
    assert all(found["edge/percent"] == pytest.approx(-50.0) for found in cells)
    assert [caption.split()[1] for caption in row["samples.captions"]] == ["h0", "h2"]


def make_controlled_run(run_dir: Path) -> Path:
    """Head 0 of window 0 (trial000), a random subspace of it (trial001), the unablated model again (trial002)."""
    run_dir = make_run(run_dir)
    rows = pq.read_table(run_dir / "trials.parquet").to_pylist()
    changes: list[dict[str, Any]] = [
        {"phase": "grid", "draw": 0},
        {"phase": "control", "mode": "subspace", "draw": 5},
        {"phase": "control", "mode": "zero", "strength": 0.0, "draw": 0},
    ]
    same = {"window_index": 0, "t_start": 999, "t_end": 800, "head": 0}
    pq.write_table(
        pa.Table.from_pylist([{**row, **same, **change} for row, change in zip(rows, changes)]),
        run_dir / "trials.parquet",
    )
    return run_dir


def test_controls_share_a_run_beside_the_runs_of_trials(tmp_path):
    run_dir = make_controlled_run(tmp_path / "runs" / "controlled")
    head, *_ = record(run_dir, 0, 1, 2)
    outcome = track_from_records(run_dir, OFFLINE)
    assert (outcome.logged, outcome.pending) == (3, 0)
    seen = Seen(trial_folder(run_dir, head))
    assert (seen.run["job_type"], set(seen.run["tags"])) == ("trial", {"zero", "lfw_faces", "denoise", "head"})
    assert len(folders(run_dir, "trial")) == 1
    (controls,) = (Seen(folder) for folder in folders(run_dir, "group"))
    assert (controls.run["job_type"], controls.config["trials"]) == ("control", 2)
    (folder,) = folders(run_dir, "summary")
    (row,) = Seen(folder).history
    assert (row["trials/planned"], row["trials/controls"]) == (3, 2)


def test_controls_do_not_count_towards_the_limit_of_runs(tmp_path):
    run_dir = make_controlled_run(tmp_path / "runs" / "controlled")
    record(run_dir, 0, 1, 2)
    track_from_records(run_dir, TrackerSettings(mode="offline", granularity="auto", max_trial_runs=1))
    assert (len(folders(run_dir, "trial")), len(folders(run_dir, "group"))) == (1, 1)


def test_controls_stay_out_of_the_groups_of_ablations(tmp_path):
    run_dir = make_controlled_run(tmp_path / "runs" / "controlled")
    record(run_dir, 0, 1, 2)
    outcome = track_from_records(run_dir, TrackerSettings(mode="offline", granularity="group"))
    assert (outcome.logged, outcome.pending) == (3, 0)
    heads, controls = sorted((Seen(folder) for folder in folders(run_dir, "group")), key=lambda s: s.config["trials"])
    assert (heads.run["job_type"], heads.run["tags"], heads.config["trials"]) == ("group", ["group"], 1)
    assert (controls.run["job_type"], set(controls.run["tags"])) == ("control", {"group", "control"})
    assert controls.run["display_name"] == "mid.attn t999-800 controls"
    assert controls.config["trials"] == 2


def test_a_group_waits_for_trials_that_are_still_measured(run_dir):
    """A trial that may stop early has records of its first images long before it is done."""
    record(run_dir, 0, 2)
    tracker = open_tracker(run_dir, TrackerSettings(mode="offline", granularity="group"))
    tracker.trial_done("trial000")
    assert tracker.follow_once() == 0, "trial002 goes on"
    record(run_dir, 2, units=range(UNITS, 9), part="more-images")
    assert tracker.follow_once() == 0
    tracker.trial_done("trial002")
    assert tracker.follow_once() == 1
    assert tracker.follow_once() == 0
    (folder,) = folders(run_dir, "group")
    (row,) = Seen(folder).history
    content = json.loads((folder / "files" / row["table.path"]).read_text())
    assert {found[content["columns"].index("trial_id")] for found in content["data"]} == {"trial000", "trial002"}
    assert [line["content"] for line in ledger(run_dir)] == [str((5 + 9) * len(FACTORS))]
    assert tracker.finish().pending == 0


def test_a_bad_measurement_leaves_only_its_number_out(run_dir):
    rows = [
        {"trial_id": "trial000", "unit": unit, "metric": "edge", "baseline": baseline, "ablated": 3.0}
        for unit, baseline in enumerate([0.0, 1.0, 1.5])
    ]
    rows += [{"trial_id": "trial000", "unit": 0, "metric": "dead", "baseline": 0.0, "ablated": 0.0}]
    pq.write_table(pa.Table.from_pylist(rows), run_dir / "records" / "a.parquet")
    index = RecordIndex(run_dir / "records")
    index.scan()
    values = trial_run(Plan.read(run_dir), "trial000", index.measure(["trial000"])["trial000"], samples=True).values
    assert values["edge/log_ratio"] == pytest.approx((math.log(3) + math.log(2)) / 2)
    assert values["edge/percent"] == pytest.approx(100 * (math.sqrt(6) - 1))
    assert values["dead/baseline"] == 0
    assert "dead/percent" not in values


# Once and only once


def test_ids_depend_on_the_run_name_and_the_trial_alone(tmp_path):
    first, again, other = (make_run(tmp_path / place / name) for place, name in [("a", "x"), ("b", "x"), ("a", "y")])
    for run_dir in (first, again, other):
        record(run_dir, 0, 1)
        track_from_records(run_dir, OFFLINE)
    assert len(ids(first, "trial")) == 2
    assert ids(first, "") == ids(again, "")
    assert not set(ids(first, "")) & set(ids(other, ""))


def test_only_what_is_missing_is_logged(run_dir):
    record(run_dir, 0)
    track_from_records(run_dir, OFFLINE)
    before, lines = folders(run_dir), ledger(run_dir)
    assert track_from_records(run_dir, OFFLINE).logged == 1
    assert (folders(run_dir), ledger(run_dir)) == (before, lines)

    record(run_dir, 1)
    record(run_dir, 0, part="the-same-lease-again")
    assert track_from_records(run_dir, OFFLINE).logged == 2
    assert set(folders(run_dir, "trial")) > {folder for folder in before if "trial" in folder.name}
    assert [line["content"] for line in ledger(run_dir) if line["run"].startswith("trial")] == ["15", "15"]

    record(run_dir, 0, units=range(UNITS, 7), part="more-images")
    assert track_from_records(run_dir, OFFLINE).logged == 2
    assert len(folders(run_dir, "trial")) == 2, "the earlier state of a trial makes way"
    assert Seen(trial_folder(run_dir, "trial000")).history[0]["edge/units"] == 7


def test_a_lost_ledger_and_torn_runs_do_not_lead_to_doubles(run_dir):
    record(run_dir, 0, 1)
    track_from_records(run_dir, OFFLINE)
    expected = ids(run_dir, "")
    with open(run_dir / "tracking.jsonl", "r+") as file:
        file.truncate(50)
    assert track_from_records(run_dir, OFFLINE).logged == 2
    assert ids(run_dir, "") == expected


def test_a_trial_is_logged_when_done_and_recorded(run_dir):
    tracker = open_tracker(run_dir, OFFLINE)
    thread = threading.Thread(target=tracker.trial_done, args=("trial001",))
    thread.start()
    thread.join()
    assert tracker.follow_once() == 0
    (run_dir / "records" / "torn.parquet").write_bytes(b"PAR1 and then the power went")
    record(run_dir, 0, 1)
    assert tracker.follow_once() == 1
    assert tracker.follow_once() == 0
    assert tracker.finish().logged == 2
    assert tracker.finish().logged == 2


def test_two_trackers_do_not_share_a_run(run_dir):
    record(run_dir, 0)
    tracker = open_tracker(run_dir, OFFLINE)
    second = track_from_records(run_dir, OFFLINE)
    assert (second.mode, second.logged) == ("disabled", 0)
    assert "another process tracks" in second.message
    assert tracker.finish().logged == 1


# Off


@pytest.mark.parametrize(("mode", "environment"), [("disabled", ""), ("auto", "disabled")])
def test_disabled_does_nothing(run_dir, monkeypatch, mode, environment):
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("called"))
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    record(run_dir, 0)
    before = sorted(run_dir.rglob("*"))
    tracker = open_tracker(run_dir, TrackerSettings(mode=mode))
    tracker.trial_done("trial000")
    assert tracker.follow_once() == 0
    assert (tracker.finish().mode, tracker.finish().logged) == ("disabled", 0)
    assert sorted(run_dir.rglob("*")) == before


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": KEY}, "online"),
        ("auto", {"WANDB_MODE": "offline", "WANDB_API_KEY": KEY}, "offline"),
        ("auto", {"WANDB_MODE": "dryrun"}, "offline"),
        ("auto", {"WANDB_MODE": "online", "WANDB_API_KEY": KEY}, "online"),
        ("auto", {"WANDB_MODE": "online"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "disabled"),
        ("auto", {"WANDB_MODE": "sideways"}, "offline"),
        ("offline", {"WANDB_MODE": "online", "WANDB_API_KEY": KEY}, "offline"),
        ("online", {}, "offline"),
    ],
)
def test_the_mode(mode, environment, expected, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    resolved, note = resolve_mode(TrackerSettings(mode=mode), os.environ)
    assert resolved == expected
    asked_in_vain = expected == "offline" and "online" in (mode, environment.get("WANDB_MODE")) and mode != "offline"
    assert bool(note) == (asked_in_vain or environment.get("WANDB_MODE") == "sideways")


def test_a_netrc_login_is_a_login(monkeypatch, tmp_path):
    (tmp_path / "home" / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    assert resolve_mode(TrackerSettings(), os.environ) == ("online", "")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"mode": "ofline"}, "did you mean offline"),
        ({"granularity": "head"}, "auto, trial, group"),
        ({"project": "a/b"}, "project"),
        ({"max_trial_runs": -1}, "max_trial_runs"),
        ({"finish_timeout": 0.0}, "finish_timeout"),
    ],
)
def test_settings_are_checked(wrong, says):
    with pytest.raises(ValueError, match=says):
        TrackerSettings(**wrong)


@pytest.mark.parametrize("place", ["nowhere", "s3://bucket/run"])
def test_without_a_plan_there_is_nothing_to_track(tmp_path, place):
    outcome = track_from_records(place if "://" in place else tmp_path / place, OFFLINE)
    assert outcome.mode == "disabled"
    assert outcome.message


# Failure


def test_wandb_that_raises_costs_nothing_but_the_log(run_dir, monkeypatch):
    def broken(**_: Any) -> None:
        raise wandb.errors.CommError(f"no\nnetwork {KEY}")

    record(run_dir, 0, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(wandb, "init", broken)
        outcome = track_from_records(run_dir, OFFLINE)
    assert (outcome.logged, outcome.pending, outcome.failed) == (0, 3, 4)
    assert outcome.errors == ("CommError: no network ...",)
    assert "mode=track" in outcome.message
    assert track_from_records(run_dir, OFFLINE).logged == 3


def test_wandb_that_always_raises_is_given_up(tmp_path, monkeypatch):
    calls = []

    def broken(**arguments: Any) -> None:
        calls.append(arguments["id"])
        raise OSError("disk full")

    run_dir = make_run(tmp_path / "many", trials=11)
    record(run_dir, *range(11))
    monkeypatch.setattr(wandb, "init", broken)
    assert track_from_records(run_dir, OFFLINE).pending == 11
    assert len(calls) == 5


def test_wandb_that_hangs_is_left(run_dir, monkeypatch):
    release = threading.Event()
    record(run_dir, 0, 1, 2)
    start = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(wandb, "init", lambda **_: release.wait(20) and 1 / 0)
        outcome = track_from_records(run_dir, TrackerSettings(mode="offline", init_timeout=0.2))
    release.set()
    assert time.monotonic() - start < 3
    assert (outcome.logged, outcome.pending, outcome.failed) == (0, 3, 2)
    assert "did not answer within 0.2 s" in outcome.errors[0]
    assert track_from_records(run_dir, OFFLINE).logged == 3


def test_a_service_that_hangs_is_replaced(run_dir):
    """wandb waits for its service at exit, however long: this would hold the process for ever."""
    record(run_dir, 0, 1, 2)
    tracker = open_tracker(run_dir, TrackerSettings(mode="offline", init_timeout=2.0))
    tracker.trial_done("trial000")
    assert tracker.follow_once() == 1
    service = wandb_setup.singleton().ensure_service()._proc._process  # type: ignore[union-attr]
    os.kill(service.pid, signal.SIGSTOP)
    tracker.trial_done("trial001")
    assert tracker.follow_once() == 0
    outcome = tracker.finish()
    assert (outcome.logged, outcome.failed) == (3, 1)
    assert service.wait(5) == -signal.SIGKILL


PROCESS = """
import os, sys
before = dict(os.environ), sys.exit, sys.excepthook
from sweeps.tracking import TrackerSettings, track_from_records
outcome = track_from_records(sys.argv[1], TrackerSettings())
assert (outcome.mode, outcome.logged) == ("offline", 1), outcome
assert (dict(os.environ), sys.exit, sys.excepthook) == before
assert not {"ray", "hydra", "omegaconf"} & set(sys.modules)
"""


def test_the_process_prints_nothing_ends_and_is_left_as_it_was(run_dir, tmp_path):
    record(run_dir, 0)
    settings = tmp_path / "home" / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nproject = from-the-home-directory\n")
    command = [sys.executable, "-c", PROCESS, str(run_dir)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "runs"]


def test_the_end_is_bounded(tmp_path):
    run_dir = make_run(tmp_path / "late", trials=3)
    record(run_dir, 0, 1, 2)
    outcome = open_tracker(run_dir, TrackerSettings(mode="offline", finish_timeout=1e-6)).finish()
    assert (outcome.logged, outcome.pending, outcome.failed) == (0, 3, 0)
    assert "mode=track" in outcome.message
    assert track_from_records(run_dir, TrackerSettings(mode="offline", finish_timeout=1e-6)).pending == 0


def test_an_error_becomes_one_short_line():
    text = one_line(ValueError(f"a\n  b {KEY} " + "c " * 400))
    assert text.startswith("ValueError: a b ... c")
    assert len(text) <= 300


# Online


class Api(http.server.BaseHTTPRequestHandler):
    """The endpoints of W&B that `wandb sync` (0.31) calls, and what they were sent."""

    protocol_version = "HTTP/1.1"
    upserts: dict[str, dict[str, Any]]
    uploads: set[str]

    def log_message(self, *_: Any) -> None:
        pass

    def do_PUT(self) -> None:
        self._body()
        self.uploads.add(self.path.rsplit("/", 1)[-1])
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        self._answer(self._graphql(json.loads(body)) if self.path == "/graphql" else {})

    def _graphql(self, query: dict[str, Any]) -> dict[str, Any]:
        given = query.get("variables", {})
        match query.get("operationName"):
            case "UpsertBucket":
                found = self.upserts.setdefault(given["name"], {})
                found.update({key: value for key, value in given.items() if value is not None})
                project = {"id": "p", "name": given.get("project"), "entity": {"id": "e", "name": "me"}}
                bucket = {"id": "r", "name": given["name"], "displayName": "", "config": "{}", "project": project}
                return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
            case "CreateRunFiles":
                host = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
                files = [{"name": name, "uploadUrl": f"{host}/storage/{name}"} for name in given["files"]]
                return {"data": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}}
            case "CreateArtifact":
                artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
                return {"data": {"createArtifact": {"artifact": artifact}}}
        return {"data": {}}

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Api]]:
    handler = type("FreshApi", (Api,), {"upserts": {}, "uploads": set()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_without_a_network_it_goes_on_offline_and_uploads_later(run_dir, api, monkeypatch):
    record(run_dir, 0, 1)
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        patch.setenv("WANDB__GRAPHQL_RETRY_MAX", "1")
        tracker = open_tracker(run_dir, TrackerSettings(upload_every=0.1))
        assert tracker.mode == "online"
        tracker.trial_done("trial000")
        assert tracker.follow_once() == 1
        for _ in range(200):
            if tracker.follow_once() or tracker.mode == "offline":
                break
            time.sleep(0.05)
        outcome = tracker.finish()
    assert (outcome.mode, outcome.logged, outcome.uploaded) == ("offline", 2, 0)
    assert "connection refused" in outcome.message
    assert "wandb sync" in outcome.message

    record(run_dir, 2)
    outcome = track_from_records(run_dir, TrackerSettings())
    assert (outcome.mode, outcome.logged, outcome.uploaded) == ("online", 3, 4)
    trials = {name: sent for name, sent in api.upserts.items() if name.startswith("trial")}
    assert sorted(trials) == ids(run_dir, "trial")
    for sent in trials.values():
        assert (sent["groupName"], sent["jobType"], sent["project"]) == (run_dir.name, "trial", "circuit-sweep")
        assert json.loads(sent["config"])["layer"]["value"] == "mid.attn"
    assert sum(name.startswith("samples_") for name in api.uploads) == 3

    api.upserts.clear()
    assert track_from_records(run_dir, TrackerSettings()).uploaded == 4
    assert not api.upserts, "what has arrived is not sent again"
    for path in run_dir.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), f"{path} holds the key"
