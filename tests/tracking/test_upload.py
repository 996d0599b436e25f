"""Online runs, against a local server that plays W&B's API."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator

import pytest

from sweeps.tracking import TrackerSettings, open_tracker, track_from_records
from tests.tracking.api import Api
from tests.tracking.runs import KEY, ids, record


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
        for _ in range(2000):
            if tracker.follow_once() or tracker.mode == "offline":
                break
            time.sleep(0.05)
        outcome = tracker.finish()
    assert (outcome.mode, outcome.logged, outcome.uploaded) == ("offline", 2, 0)
    assert "connection refused" in outcome.message
    assert "wandb sync" in outcome.message

    record(run_dir, 2)
    outcome = track_from_records(run_dir, TrackerSettings())
    assert (outcome.mode, outcome.logged, outcome.uploaded) == ("online", 3, 5)
    trials = {name: sent for name, sent in api.upserts.items() if name.startswith("trial")}
    assert sorted(trials) == ids(run_dir, "trial")
    for sent in trials.values():
        assert (sent["groupName"], sent["jobType"], sent["project"]) == (run_dir.name, "trial", "circuit-sweep")
        assert json.loads(sent["config"])["layer"]["value"] == "mid.attn"
    assert sum(name.startswith("samples_") for name in api.uploads) == 3

    api.upserts.clear()
    assert track_from_records(run_dir, TrackerSettings()).uploaded == 5
    assert not api.upserts, "what has arrived is not sent again"
    for path in run_dir.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), f"{path} holds the key"
