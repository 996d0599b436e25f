"""What W&B will show, read back from the offline runs."""

from __future__ import annotations

import json
import math
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sweeps.tracking import TrackerSettings, open_tracker, track_from_records
from sweeps.tracking.contents import Plan, trial_run
from sweeps.tracking.measured import RecordIndex
from tests.tracking.runs import (
    FACTORS,
    OFFLINE,
    UNITS,
    Seen,
    folders,
    ledger,
    make_controlled_run,
    record,
    trial_folder,
)  # fmt: skip


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
