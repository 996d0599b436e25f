"""What a user chooses, and what is used of it."""

from __future__ import annotations

import os

import pytest
import wandb

from sweeps.tracking import TrackerSettings, open_tracker, track_from_records
from sweeps.tracking.settings import resolve_mode
from tests.tracking.runs import KEY, OFFLINE, record


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
