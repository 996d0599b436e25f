"""What W&B will show, read back from the offline runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sweeps.tracking import TrackerSettings, open_tracker, track_from_records
from sweeps.tracking.maps import maps
from sweeps.tracking.measured import RecordIndex
from sweeps.tracking.outcomes import Outcomes
from sweeps.tracking.plan import Plan
from sweeps.tracking.summary import summary_run
from sweeps.tracking.trials import trial_run
from tests.tracking.runs import (
    FACTORS,
    OFFLINE,
    UNITS,
    Seen,
    effect,
    folders,
    ids,
    ledger,
    make_controlled_run,
    make_run,
    record,
    table,
    table_file,
    trial_folder,
    write_effects,
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
    assert {axis: value for axis, value in seen.config.items() if axis != "_wandb"} == {
        "trial_id": "trial001", "model": "tiny_faces", "dataset": "lfw_faces", "protocol": "denoise", "level": "head",
        "layer": "mid.attn", "layer_index": 2, "head": 1, "stream": "image", "mode": "zero", "strength": 1.0,
        "window_index": 1, "t_start": 799, "t_end": 600, "sweep": run_dir.name, "where": "L2H1", "ablation": "zero",
        "window": "t799-600", "kind": "trial", "sweep_id": Plan.read(run_dir).sweep_id,
    }  # fmt: skip
    assert seen.run["run_group"] == run_dir.name
    assert seen.run["job_type"] == "trial"
    assert seen.run["project"] == "circuit-sweep"
    assert set(seen.run["tags"]) == {"zero", "lfw_faces", "denoise", "head", "L2H1", "t799-600"}
    assert seen.run["display_name"] == "mid.attn h1 zero t799-600 lfw_faces denoise"
    assert shown.name.split("-", 3)[-1].startswith("trial-L2H1-w1-zero-lfw_faces-")
    assert seen.exit_code == 0
    (row,) = seen.history
    for metric, factor in FACTORS.items():
        assert row[f"{metric}/percent"] == pytest.approx(100 * (factor - 1), abs=1e-4)
        assert seen.summary[f"{metric}/baseline"] == pytest.approx(4.0)
        assert seen.summary[f"{metric}/ablated"] == pytest.approx(4.0 * factor)
    assert seen.summary["units"] == UNITS
    assert "verdict" not in seen.summary, "nothing was aggregated yet"
    assert row["timestep"] == pytest.approx(699.5)
    assert [(found.get("glob_name"), found.get("step_metric")) for found in seen.metrics if "glob_name" in found] == [
        ("*", "timestep")
    ]
    assert row["samples._type"] == "image-file"
    assert row["samples.caption"] == "mid.attn h1 zero t799-600 lfw_faces denoise: baseline | ablated | difference"
    assert (shown / "files" / row["samples.path"]).read_bytes() == (run_dir / "samples/trial001.png").read_bytes()
    # Lean: nothing about the machine, its packages, the console, the code.
    assert seen.kinds <= {"header", "run", "telemetry", "metric", "files", "summary", "history", "exit"}
    assert {path.name for path in (shown / "files").iterdir()} == {"media"}


def test_after_the_aggregation_a_trial_says_its_verdict(run_dir):
    trials = record(run_dir, 0, 1)
    tracker = open_tracker(run_dir, OFFLINE)
    for trial in trials:
        tracker.trial_done(trial)
    assert tracker.follow_once() == 2
    before = ids(run_dir, "trial")
    write_effects(run_dir, effect(1, 31.5, "degraded"), effect(1, -50.0, "improved", "edge"))
    assert tracker.finish().logged == 2

    assert ids(run_dir, "trial") == before, "the same runs, written again"
    seen = Seen(trial_folder(run_dir, "trial001"))
    assert "degraded" in seen.run["tags"]
    expected = {"verdict": "degraded", "percent": 31.5, "ci_low": 29.5, "ci_high": 33.5, "q": 0.01, "p": 0.005}
    assert expected.items() <= seen.summary.items()
    assert {"edge/verdict": "improved", "edge/ci_low": -52.0}.items() <= seen.summary.items()
    assert (seen.history[0]["noise_mse/percent"], seen.history[0]["edge/percent"]) == (31.5, -50.0)
    assert seen.history[0]["luminance/percent"] == pytest.approx(0.0, abs=1e-4)
    assert "verdict" not in Seen(trial_folder(run_dir, "trial000")).summary, "its effects are not known"


def test_a_head_is_a_run_over_the_diffusion_process(tmp_path):
    run_dir = make_run(tmp_path / "runs" / "lines", trials=4, heads=2)  # head i // 2, window i % 2
    record(run_dir, 0, 1, 2, 3)
    write_effects(
        run_dir,
        *(effect(0, 3.0, "negligible"), effect(1, 20.0, "degraded"), effect(0, 1.0, "negligible", "edge")),
        effect(2, 4.0, "inconclusive"),
    )
    track_from_records(run_dir, OFFLINE)
    first, second = (Seen(folder) for folder in folders(run_dir, "head"))
    assert (first.run["job_type"], first.run["display_name"]) == ("head", "mid.attn h0 zero lfw_faces denoise")
    expected = {"head": 0, "layer": "mid.attn", "where": "L2H0", "windows": 2, "kind": "head", "sweep": "lines"}
    assert expected.items() <= first.config.items()
    assert not {"window_index", "t_start", "trial_id"} & set(first.config)
    line = [(row["timestep"], row["timesteps/noise_mse"], row.get("timesteps/edge")) for row in first.history]
    assert line == [(699.5, 20.0, None), (899.5, 3.0, 1.0)]
    assert first.history[0]["interval/noise_mse/ci_high"] == 22.0
    defined = {found["glob_name"]: (found["step_metric"], found.get("summary")) for found in first.metrics[1:]}
    # Disjoint: of two that fit a metric wandb takes either, and the summary would differ from sync to sync.
    assert defined == {"timesteps/*": ("timestep", {"max": True, "mean": True}), "interval/*": ("timestep", None)}
    assert first.summary["timesteps/noise_mse"] == {"max": 20.0, "mean": 11.5}
    expected = {"verdict": "degraded", "percent": 20.0, "strongest": "t799-600", "degraded": 1}
    assert expected.items() <= first.summary.items()
    assert [row["timestep"] for row in second.history] == [899.5]


def test_too_many_heads_become_a_run_per_layer(tmp_path):
    run_dir = make_run(tmp_path / "runs" / "lines", trials=4, heads=2)
    record(run_dir, 0, 1, 2, 3)
    percents = [3.0, 20.0, 4.0, 40.0]
    write_effects(run_dir, *(effect(i, p, "degraded" if p > 5 else "negligible") for i, p in enumerate(percents)))
    track_from_records(run_dir, TrackerSettings(mode="offline", max_trial_runs=1))
    assert not folders(run_dir, "head")
    (folder,) = folders(run_dir, "layer")
    seen = Seen(folder)
    assert (seen.run["job_type"], seen.config["heads"], seen.config["where"]) == ("layer", 2, "L2")
    keys = ("timestep", "timesteps/noise_mse", "timesteps/noise_mse/max", "timesteps/degraded")
    assert [tuple(row[key] for key in keys) for row in seen.history] == [(699.5, 30.0, 40.0, 2), (899.5, 3.5, 4.0, 0)]


def test_the_summary_holds_effects_ranking_maps_figures_and_the_report(run_dir, tmp_path):
    record(run_dir, 0, 1)
    write_effects(
        run_dir, effect(0, 25.0, "degraded"), effect(1, 31.0, "degraded"), effect(0, -50.0, "improved", "edge")
    )
    pq.write_table(pa.Table.from_pylist([{"name": "ratio", "estimate": 1.5}]), run_dir / "comparisons.parquet")
    (run_dir / "report/index.html").write_text("<html></html>")
    Image.new("L", (7, 5)).save(run_dir / "report/figures/heatmap.png")
    (run_dir / "run.json").write_text('{"seed": 7, "versions": {"torch": "2"}, "model": {"revision": "abc"}}')
    track_from_records(run_dir, OFFLINE)

    (folder,) = folders(run_dir, "summary")
    seen = Seen(folder)
    assert seen.run["run_id"] == min(ids(run_dir, "")), "so wandb leet lists the runs of a second"
    assert seen.run["job_type"] == "summary"
    assert seen.run["run_group"] == seen.run["display_name"] == run_dir.name
    assert (seen.config["sweep"], seen.config["revision"], seen.config["metric"]) == (run_dir.name, "abc", "noise_mse")
    assert seen.config["settings"]["sweep"] == {"seed": 7}
    assert seen.config["run_record"]["versions"] == {"torch": "2"}
    expected = {"trials/planned": 3, "trials/recorded": 2, "trials/failed": 0, "verdicts/degraded": 2}
    assert expected.items() <= seen.summary.items()
    assert (seen.summary["verdict"], seen.summary["percent"]) == ("degraded", 31.0)
    assert seen.summary["strongest"] == "mid.attn h1 zero t799-600 lfw_faces denoise"

    first, last = seen.history
    counts = [(row["timestep"], row["degraded heads/lfw_faces/zero"], row["highest percent/lfw_faces/zero"])
              for row in (first, last)]  # fmt: skip
    assert counts == [(699.5, 1, 31.0), (899.5, 1, 25.0)]
    assert last["figures/heatmap._type"] == "image-file"
    assert [caption.split()[1] for caption in last["samples/strongest.captions"]] == ["h1", "h0"]
    rows = table(seen, "tables/effects")
    assert [(row["head"], row["metric"], row["percent"], row["verdict"]) for row in rows] == [
        (1, "noise_mse", 31.0, "degraded"),
        (0, "noise_mse", 25.0, "degraded"),
        (0, "edge", -50.0, "improved"),
    ]
    assert list(rows[0])[:4] == ["samples", "verdict", "percent", "ci_low"]
    assert (rows[0]["samples"]["_type"], rows[0]["samples"]["caption"].split()[1]) == ("image-file", "h1")
    assert table(seen, "tables/comparisons") == [{"name": "ratio", "estimate": 1.5}]
    assert table(seen, "top/noise_mse_table") == [
        {"trial": "mid.attn h1 zero t799-600 lfw_faces denoise", "percent": 31.0},
        {"trial": "mid.attn h0 zero t999-800 lfw_faces denoise", "percent": 25.0},
    ]
    # wandb stages artifacts and keeps logs in the home directory unless told otherwise.
    assert not list((tmp_path / "home").rglob("*"))


def test_columns_of_a_table_can_be_sorted(run_dir):
    """A column has one type, so that W&B sorts numbers as numbers; what mixes them becomes text."""
    record(run_dir, 0)
    write_effects(run_dir, effect(0, 25.0, "degraded"))
    mixed = pd.DataFrame({"name": ["a", "b", "c"], "group": [1, "two", None], "estimate": [1, 2.5, np.inf]})
    mixed["group"] = [str(value) if value is not None else None for value in mixed["group"]]
    mixed.to_parquet(run_dir / "comparisons.parquet")
    track_from_records(run_dir, OFFLINE)
    (folder,) = folders(run_dir, "summary")
    seen = Seen(folder)
    assert table(seen, "tables/comparisons") == [
        {"name": "a", "group": "1", "estimate": 1.0},
        {"name": "b", "group": "two", "estimate": 2.5},
        {"name": "c", "group": None, "estimate": None},
    ]
    types = table_file(seen, "tables/comparisons")["column_types"]["params"]["type_map"]
    kinds = {name: {t["wb_type"] for t in found["params"]["allowed_types"]} for name, found in types.items()}
    assert kinds == {"name": {"none", "string"}, "group": {"none", "string"}, "estimate": {"none", "number"}}


def test_a_table_that_is_too_long_says_so(run_dir, monkeypatch):
    record(run_dir, 0, 1)
    wild = effect(0, 90.0, "degraded", "edge")
    write_effects(run_dir, wild, effect(0, 25.0, "degraded"), effect(1, 31.0, "degraded"))
    monkeypatch.setattr("sweeps.tracking.summary.TABLE_ROWS", 2)
    content = summary_run(Plan.read(run_dir), 2, samples=False)
    assert [row[1] for row in content.tables["tables/effects"].rows] == [31.0, 25.0], "of the registered metric"
    assert content.notes == "effects: the first 2 of 3 rows; the whole table is in the artifact of effects."


def test_maps_are_figures_that_plotly_draws(tmp_path):
    """Layer x head, a trace a window, and the strongest window of each cell."""
    run_dir = make_run(tmp_path / "runs" / "maps", trials=4, heads=2)  # head i // 2, window i % 2
    record(run_dir, 0, 1, 2, 3)
    percents, verdicts = [3.0, 20.0, 4.0, -6.0], ["negligible", "degraded", "inconclusive", "improved"]
    write_effects(run_dir, *(effect(i, p, v) for i, (p, v) in enumerate(zip(percents, verdicts))))
    track_from_records(run_dir, OFFLINE)
    (folder,) = folders(run_dir, "summary")
    row = Seen(folder).history[-1]
    assert row["map/lfw_faces/denoise/zero._type"] == "plotly-file"
    figure = json.loads((folder / "files" / row["map/lfw_faces/denoise/zero.path"]).read_text())
    assert {trace["name"]: trace["z"] for trace in figure["data"]} == {
        "strongest window": [[20.0, 4.0]],
        "t999-800": [[3.0, 4.0]],
        "t799-600": [[20.0, -6.0]],
    }
    assert [trace["visible"] for trace in figure["data"]] == [True, False, False]
    assert figure["data"][0]["text"] == [["*", ""]]
    assert (figure["data"][0]["x"], figure["data"][0]["y"]) == (["head 0", "head 1"], ["mid.attn"])
    assert figure["data"][2]["hovertext"][0][1] == "-6.0% (-8.0 to -4.0), q 0.01<br>improved, t799-600"
    (menu,) = figure["layout"]["updatemenus"]
    assert [button["label"] for button in menu["buttons"]] == ["strongest window", "t999-800", "t799-600"]
    assert menu["buttons"][2]["args"] == [{"visible": [False, False, True]}]


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
    cells = table(seen, "table")
    assert {(found["trial_id"], found["head"]) for found in cells} == {("trial000", 0), ("trial002", 2)}
    assert all(found["edge/percent"] == pytest.approx(-50.0) for found in cells)
    assert [caption.split()[1] for caption in row["samples.captions"]] == ["h0", "h2"]


def test_controls_share_a_run_beside_the_runs_of_trials(tmp_path):
    run_dir = make_controlled_run(tmp_path / "runs" / "controlled")
    head, *_ = record(run_dir, 0, 1, 2)
    outcome = track_from_records(run_dir, OFFLINE)
    assert (outcome.logged, outcome.pending) == (3, 0)
    seen = Seen(trial_folder(run_dir, head))
    assert (seen.run["job_type"], seen.config["kind"]) == ("trial", "trial")
    assert len(folders(run_dir, "trial")) == 1
    (controls,) = (Seen(folder) for folder in folders(run_dir, "group"))
    assert (controls.run["job_type"], controls.config["trials"]) == ("control", 2)
    (folder,) = folders(run_dir, "summary")
    assert {"trials/planned": 3, "trials/controls": 2}.items() <= Seen(folder).summary.items()


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
    assert (heads.run["job_type"], heads.run["tags"], heads.config["trials"]) == (
        "group",
        ["group", "L2", "t999-800"],
        1,
    )
    assert (controls.run["job_type"], set(controls.run["tags"])) == ("control", {"group", "control", "L2", "t999-800"})
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
    assert {found["trial_id"] for found in table(Seen(folder), "table")} == {"trial000", "trial002"}
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
    measured = index.measure(["trial000"])["trial000"]
    assert measured.metrics["edge"].log_ratio == pytest.approx((math.log(3) + math.log(2)) / 2)
    plan = Plan.read(run_dir)
    content = trial_run(plan, "trial000", measured, Outcomes.read(run_dir, plan.metric), samples=True)
    assert content.history[0]["edge/percent"] == pytest.approx(100 * (math.sqrt(6) - 1))
    assert content.summary["dead/baseline"] == 0
    assert "dead/percent" not in content.history[0]


def test_a_whole_layer_does_not_wash_out_the_map_of_its_heads():
    cell = {"dataset": "a", "protocol": "denoise", "ablation": "zero", "layer": "mid", "layer_index": 0, "q": 0.5}
    cell |= {"window": "t9-0", "t_start": 9, "ci_low": 0.0, "ci_high": 0.0, "verdict": "negligible"}
    heads = [{**cell, "level": "head", "head": head, "percent": percent} for head, percent in enumerate([3.0, -7.5])]
    layer = {**cell, "level": "layer", "head": -1, "percent": 90.0}
    (figure,) = maps(Plan(Path(), {}, {}), pd.DataFrame([*heads, layer])).values()
    (trace,) = figure["data"]
    assert (trace["z"], trace["x"]) == ([[3.0, -7.5, 90.0]], ["head 0", "head 1", "all"])
    assert (trace["zmin"], trace["zmax"]) == (-8.0, 8.0)
    (alone,) = maps(Plan(Path(), {}, {}), pd.DataFrame([layer])).values()
    assert alone["data"][0]["zmax"] == 90.0
