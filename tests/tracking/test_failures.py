"""What a failure of wandb costs: nothing but the log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
import wandb
from wandb.proto.wandb_server_pb2 import ServerRequest
from wandb.sdk import wandb_setup
from wandb.sdk.lib.service.service_finalizer import ServiceFinalizer

from sweeps.tracking import TrackerSettings, open_tracker, track_from_records
from sweeps.tracking.client import Patience, _abandon_service
from sweeps.tracking.settings import one_line
from tests.tracking.runs import KEY, OFFLINE, effect, folders, make_run, record, write_effects


def test_wandb_that_raises_costs_nothing_but_the_log(run_dir, monkeypatch):
    def broken(**_: Any) -> None:
        raise wandb.errors.CommError(f"no\nnetwork {KEY}")

    record(run_dir, 0, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(wandb, "init", broken)
        outcome = track_from_records(run_dir, OFFLINE)
    assert (outcome.logged, outcome.pending, outcome.failed) == (0, 3, 5)
    assert outcome.errors == ("CommError: no network ...",)
    assert "mode=track" in outcome.message
    assert not outcome.complete
    again = track_from_records(run_dir, OFFLINE)
    assert (again.logged, again.complete) == (3, True)


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
    release, came_back = threading.Event(), []
    record(run_dir, 0, 1, 2)

    def hang(**_: Any) -> None:
        release.wait()
        came_back.append(True)
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(wandb, "init", hang)
        outcome = track_from_records(run_dir, TrackerSettings(mode="offline", init_timeout=0.2))
    assert not came_back
    release.set()
    assert (outcome.logged, outcome.pending, outcome.failed) == (0, 3, 2)
    assert "did not answer within 0.2 s" in outcome.errors[0]
    assert track_from_records(run_dir, OFFLINE).logged == 3


def test_a_service_that_hangs_is_replaced(run_dir):
    """wandb waits for its service at exit, however long: this would hold the process for ever."""
    record(run_dir, 0, 1, 2)
    tracker = open_tracker(run_dir, TrackerSettings(mode="offline", init_timeout=60.0))
    writer = tracker._writer  # type: ignore[attr-defined]
    tracker.trial_done("trial000")
    assert tracker.follow_once() == 1
    patient, writer.target = writer.target, replace(writer.target, timeout=0.5)
    service = wandb_setup.singleton().ensure_service()._proc._process  # type: ignore[union-attr]
    os.kill(service.pid, signal.SIGSTOP)
    tracker.trial_done("trial001")
    assert tracker.follow_once() == 0
    writer.target = patient
    outcome = tracker.finish()
    assert (outcome.logged, outcome.failed) == (3, 1)
    assert service.wait(60) == -signal.SIGKILL
    assert len(folders(run_dir, "trial")) == 3, "what the hanging service left of a run is not uploaded beside it"


def test_a_service_that_wandb_itself_gave_up_is_abandoned(monkeypatch):
    """At exit wandb waits for it without a limit."""
    connection = Mock()
    connection._proc._process.poll.return_value = None
    monkeypatch.setattr(wandb_setup, "_singleton", Mock(_connection=connection))
    with pytest.raises(TimeoutError, match="initialization"):
        Patience().call(Mock(side_effect=TimeoutError("initialization")), 60)
    connection._proc._process.kill.assert_called_once()


def test_a_service_that_dies_is_replaced(run_dir):
    """For want of memory, say: nothing else that is logged is lost."""
    record(run_dir, 0, 1, 2)
    tracker = open_tracker(run_dir, OFFLINE)
    for trial in ("trial000", "trial001"):
        tracker.trial_done(trial)
        service = wandb_setup.singleton().ensure_service()._proc._process  # type: ignore[union-attr]
        if trial == "trial001":
            service.kill()
            service.wait(60)
        assert tracker.follow_once() == (trial == "trial000")
    outcome = tracker.finish()
    assert (outcome.logged, outcome.failed) == (3, 1)
    assert outcome.errors == ("ConnectionError: wandb's own process died",)


def test_the_clean_up_thread_of_an_abandoned_service_says_nothing(monkeypatch):
    """However late it comes to run: its traceback stood beside our one line."""
    tracebacks: list[Any] = []
    killed = threading.Event()
    monkeypatch.setattr(threading, "excepthook", tracebacks.append)

    def send(_: Any) -> None:
        killed.wait()
        raise ConnectionResetError("Connection lost")

    finalizer = ServiceFinalizer(Mock(run=send), Mock())
    finalizer._queue.put(ServerRequest(request_id="clean up"))
    process = Mock(kill=killed.set)
    connection = Mock(_finalizer=finalizer, _proc=Mock(_process=process))
    monkeypatch.setattr(wandb_setup, "_singleton", Mock(_connection=connection))
    _abandon_service()
    finalizer._thread.join(60)
    assert not finalizer._thread.is_alive()
    assert not tracebacks
    process.wait.assert_called_once()
    connection._cleanup.assert_called_once()


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
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "runs"]


def test_the_end_is_bounded(tmp_path):
    run_dir = make_run(tmp_path / "late", trials=3)
    record(run_dir, 0, 1, 2)
    outcome = open_tracker(run_dir, TrackerSettings(mode="offline", finish_timeout=1e-6)).finish()
    assert (outcome.logged, outcome.pending, outcome.failed, outcome.complete) == (0, 3, 0, False)
    assert "mode=track" in outcome.message
    outcome = track_from_records(run_dir, TrackerSettings(mode="offline", finish_timeout=1e-6))
    assert (outcome.pending, outcome.complete, "mode=track" in outcome.message) == (0, True, False)
    write_effects(run_dir, effect(0, 25.0, "degraded"))
    outcome = open_tracker(run_dir, TrackerSettings(mode="offline", finish_timeout=1e-6)).finish()
    assert (outcome.logged, outcome.pending, outcome.complete) == (3, 0, False)
    assert "not all that was found of them; mode=track" in outcome.message


def test_an_error_becomes_one_short_line():
    text = one_line(ValueError(f"a\n  b {KEY} " + "c " * 400))
    assert text.startswith("ValueError: a b ... c")
    assert len(text) <= 300
