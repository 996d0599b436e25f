"""Online runs, against a local server that plays W&B's API."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeps.tracking import TrackerSettings, open_tracker, track_from_records
from tests.tracking.api import Server, serving
from tests.tracking.runs import KEY, OFFLINE, effect, folders, ids, make_run, record, write_effects


def log_in(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", server.address)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving() as server:
        log_in(server, monkeypatch)
        yield server


def finished(run_dir: Path) -> Path:
    """A sweep of two heads and two windows, aggregated, with a report."""
    make_run(run_dir, trials=4, heads=2)
    record(run_dir, 0, 1, 2, 3)
    write_effects(run_dir, *(effect(i, 10.0 * i, "degraded" if i else "negligible") for i in range(4)))
    (run_dir / "report/index.html").write_text("<html></html>")
    (run_dir / "run.json").write_text('{"model": {"name": "tiny_faces", "revision": "abc"}, "plan": "0123"}')
    return run_dir


def test_without_a_network_it_goes_on_offline_and_uploads_later(run_dir, server, monkeypatch):
    record(run_dir, 0, 1)
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        patch.setenv("WANDB__GRAPHQL_RETRY_MAX", "1")
        tracker = open_tracker(run_dir, TrackerSettings(upload_every=0.1))
        assert tracker.mode == "online"
        tracker.trial_done("trial000")
        assert tracker.follow_once() == 1
        for _ in range(2000):
            if tracker.follow_once() or tracker.mode == "offline":
                break
            time.sleep(0.05)
        outcome = tracker.finish()
    assert (outcome.mode, outcome.logged, outcome.uploaded) == ("offline", 2, 0)
    assert "connection refused" in outcome.message
    assert not outcome.complete
    assert "wandb sync" in outcome.message

    record(run_dir, 2)
    outcome = track_from_records(run_dir, TrackerSettings())
    assert (outcome.mode, outcome.logged, outcome.uploaded) == ("online", 3, 5)
    trials = {name: run for name, run in server.runs.items() if name.startswith("trial")}
    assert sorted(trials) == sorted(ids(run_dir, "trial"))
    for run in trials.values():
        sent = run.fields
        assert (sent["groupName"], sent["jobType"], sent["project"]) == (run_dir.name, "trial", "circuit-sweep")
        assert run.config["layer"] == "mid.attn"
        assert sum(name.startswith("media/images/samples_") for name in run.files) == 1

    server.operations.clear()
    assert track_from_records(run_dir, TrackerSettings()).uploaded == 5
    assert not server.operations, "what has arrived is not sent again"
    for path in run_dir.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), f"{path} holds the key"


def names(server: Server, artifacts: set[str]) -> set[str]:
    """Artifacts without their versions; those of tables by their kind."""
    found = (server.artifacts[key].partition(":")[0] for key in artifacts)
    return {name.partition("/")[0] if name.startswith("run_table/") else name for name in found}


def arrived(server: Server) -> dict[str, Any]:
    """Everything that W&B shows of the runs, without when it was and what it calls versions of artifacts itself."""

    def lasting(value: Any) -> Any:
        if isinstance(value, dict):
            passing = ("_timestamp", "_runtime", "_wandb", "artifact_path", "_latest_artifact_path")
            return {key: lasting(found) for key, found in value.items() if key not in passing}
        return value

    kept = ("groupName", "jobType", "displayName", "project", "tags", "notes")
    return {
        name: {
            "fields": {key: run.fields.get(key) for key in kept},
            "config": lasting(run.config),
            "history": lasting({str(i): row for i, row in enumerate(run.history)}),
            "summary": lasting(run.summary),
            "files": sorted(run.files),
            "used": names(server, run.used),
            "made": names(server, run.made),
            "complete": run.complete,
        }
        for name, run in server.runs.items()
    }


def test_online_and_offline_then_synced_arrive_alike(tmp_path, server, monkeypatch):
    online = finished(tmp_path / "online" / "same")
    assert track_from_records(online, TrackerSettings()).uploaded == 8
    seen = arrived(server)

    with serving() as later, monkeypatch.context() as patch:
        offline = finished(tmp_path / "offline" / "same")
        assert track_from_records(offline, OFFLINE).uploaded == 0
        assert not later.operations
        log_in(later, patch)
        folders = sorted(str(folder) for folder in (offline / "wandb").glob("offline-run-*"))
        command = [sys.executable, "-m", "wandb", "sync", *folders]
        environ = os.environ | {"WANDB_DATA_DIR": str(offline / "wandb"), "WANDB_CACHE_DIR": str(tmp_path / "cache")}
        subprocess.run(command, check=True, timeout=300, cwd=tmp_path, env=environ, capture_output=True)
        assert arrived(later) == seen

    kinds = [name.partition("-")[0] for name in seen]
    assert {kind: kinds.count(kind) for kind in kinds} == {"trial": 4, "head": 2, "records": 1, "all": 1}
    assert all(run["complete"] for run in seen.values())
    trial = next(run for run in seen.values() if run["config"].get("trial_id") == "trial003")
    assert trial["summary"]["verdict"] == "degraded"
    assert (trial["summary"]["percent"], trial["history"]["0"]["noise_mse/percent"]) == (30.0, 30.0)
    head = next(
        run for run in seen.values() if run["config"].get("where") == "L2H1" and run["config"]["kind"] == "head"
    )
    assert [(row["timestep"], row["timesteps/noise_mse"]) for row in head["history"].values()] == [
        (699.5, 30.0),
        (899.5, 20.0),
    ]
    assert head["summary"]["timesteps/noise_mse"] == {"max": 30.0, "mean": 25.0}


def test_the_run_directory_is_versioned_with_its_lineage(tmp_path, server):
    run_dir = finished(tmp_path / "lineage")
    track_from_records(run_dir, TrackerSettings())
    runs = {name.partition("-")[0]: run for name, run in server.runs.items()}
    assert names(server, runs["records"].used) == {"model/model-tiny_faces", "dataset/data-None", "plan/plan-lineage"}
    assert names(server, runs["records"].made) == {"records/records-lineage"}
    assert names(server, runs["all"].used) == {"plan/plan-lineage", "records/records-lineage"}
    assert names(server, runs["all"].made) == {"effects/effects-lineage", "report/report-lineage", "run_table"}
    (records,) = runs["records"].made
    assert records in runs["all"].used, "one and the same version"
    sent = {path.rpartition("/")[2] for path in server.uploads if path.startswith("/artifact/")}
    assert {"trials.parquet", "config.yaml", "effects.parquet", "run.json", "index.html", "model.json"} <= sent
    assert [path for path in server.uploads if path.startswith(f"/artifact/{records}/")] == [
        f"/artifact/{records}/records/trial000-trial001-trial002-trial003.parquet"
    ]

    versions = set(server.artifacts.values())
    server.uploads.clear()
    write_effects(run_dir, *(effect(i, 11.0 * i, "degraded" if i else "negligible") for i in range(4)))
    track_from_records(run_dir, TrackerSettings())
    new = {name.partition("/")[0] for name in set(server.artifacts.values()) - versions}
    assert new == {"effects", "run_table"}, "plan, records and report are the versions that were there"
    sent = {path.rpartition("/")[2] for path in server.uploads if path.startswith("/artifact/")}
    assert "effects.parquet" in sent
    assert not {"trials.parquet", "config.yaml", "index.html", "trial000-trial001-trial002-trial003.parquet"} & sent
    trial = next(run for run in server.runs.values() if run.config.get("trial_id") == "trial003")
    assert (len(trial.history), trial.history[0]["noise_mse/percent"], trial.summary["percent"]) == (1, 33.0, 33.0)


def test_a_run_directory_that_moved_is_uploaded_with_its_artifacts(tmp_path, server):
    """wandb finds their files by whole paths: `wandb sync` of what moved loses them and says nothing."""
    run_dir = finished(tmp_path / "container" / "same")
    track_from_records(run_dir, OFFLINE)
    trials = set(folders(run_dir, "trial"))
    moved = (tmp_path / "host").resolve() / "same"
    shutil.copytree(run_dir, moved)
    shutil.rmtree(run_dir)
    assert track_from_records(moved, TrackerSettings()).uploaded == 8
    assert len(server.artifacts) == 9
    assert server.committed == set(server.artifacts)
    assert {folder.name for folder in folders(moved, "trial")} == {folder.name for folder in trials}


def test_many_records_are_listed_instead_of_uploaded(run_dir, monkeypatch):
    import hashlib

    from sweeps.tracking.artifacts import records_artifact
    from sweeps.tracking.plan import Plan

    record(run_dir, 0, 1, part="some")
    (part,) = (run_dir / "records").iterdir()
    whole = records_artifact(Plan.read(run_dir))
    assert (dict(whole.files), dict(whole.texts)) == ({"records/some.parquet": part}, {})
    monkeypatch.setattr("sweeps.tracking.artifacts.UPLOADED", 1)
    listed = records_artifact(Plan.read(run_dir))
    assert not listed.files
    digest = hashlib.sha256(part.read_bytes()).hexdigest()
    assert json.loads(listed.texts["records.json"]) == [
        {"name": "records/some.parquet", "bytes": part.stat().st_size, "sha256": digest}
    ]
    assert listed.metadata == {"files": 1, "bytes": part.stat().st_size, "uploaded": False}
