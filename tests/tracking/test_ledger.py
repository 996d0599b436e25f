"""Every trial is logged once and only once, whatever was logged before."""

from __future__ import annotations

import threading

from sweeps.follower import Follower
from sweeps.tracking import open_tracker, track_from_records
from tests.tracking.runs import OFFLINE, UNITS, Seen, folders, ids, ledger, make_run, record, trial_folder


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

    staged = len(list((run_dir / "wandb").rglob("staging/*")))
    record(run_dir, 0, units=range(UNITS, 7), part="more-images")
    assert track_from_records(run_dir, OFFLINE).logged == 2
    assert len(folders(run_dir, "trial")) == 2, "the earlier state of a trial makes way"
    assert len(list((run_dir / "wandb").rglob("staging/*"))) == staged + 2, "and so does what was staged of its sweep"
    assert Seen(trial_folder(run_dir, "trial000")).summary["units"] == 7


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


def test_a_sweep_does_not_wait_for_its_log(run_dir, monkeypatch):
    """What there was no time for while it ran is written at the end, once."""
    monkeypatch.setattr("sweeps.tracking.tracker.AT_FIRST", 0.0)
    monkeypatch.setattr("sweeps.tracking.tracker.SHARE", 0.0)
    tracker = open_tracker(run_dir, OFFLINE)
    for trial in record(run_dir, 0, 1):
        tracker.trial_done(trial)
    assert tracker.follow_once() == 0
    assert (tracker.finish().logged, len(folders(run_dir, "trial"))) == (2, 2)


def test_a_sweep_that_ends_early_lets_go_of_the_run(run_dir):
    """Interrupted, or without a Ray cluster there: the next one may log. Bytes that are no text are no line."""
    follower = Follower(run_dir, OFFLINE)
    with follower:
        pass
    (run_dir / "tracking.jsonl").write_bytes(b"\xff\xfe{\n")
    second = Follower(run_dir, OFFLINE)
    with second:
        assert "in use" not in second.finish()
