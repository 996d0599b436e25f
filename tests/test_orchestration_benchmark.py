"""The benchmark of orchestration, small and without Ray: it plans, records and resumes what it says it does."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import orchestration
from sweeps.leases import LeaseQueue, Pace
from sweeps.plan import make_plan
from sweeps.records import RunDirectory
from sweeps.rounds import resumed_rounds


def test_100_000_trials_are_50_layers() -> None:
    assert orchestration.PER_LAYER * orchestration.LAYERS == 100_000


def test_no_op_work_is_recorded_decided_and_resumed(tmp_path: Path) -> None:
    config, subject = orchestration.settings(1, stopped=True), orchestration.subject_of(1)
    directory = RunDirectory(tmp_path / "run")
    directory.create(directory.records)
    plan = make_plan(config, subject)
    assert len(plan) == orchestration.PER_LAYER == 2_000
    rounds = resumed_rounds(config, plan, directory)
    queue = LeaseQueue(rounds.tasks(), 3.0, rounds.following)
    pace = Pace()
    worker = orchestration.NoOpWorker(orchestration.assignment(directory), 0.0)
    while queue or queue.refill():
        lease = queue.take(pace)
        outcome = worker.run(lease)
        pace.observe(len(lease.trials), outcome.seconds)
        rounds.add(outcome.gains)
    assert len(rounds.done) == 2_000
    units = directory.measurements().query("metric == 'noise_mse'").groupby("trial_id").size()
    assert set(units.unique()) == {16, 48}, "most are decided at the first look, the others at the third"
    assert np.mean(units == 48) == pytest.approx(orchestration.UNDECIDED, abs=0.05)
    found = orchestration.resume(directory.path, 1)
    assert 0 < found["resume_s"] < 60
    next(directory.records.glob("*.parquet")).unlink()
    with pytest.raises(RuntimeError, match="not finished"):
        orchestration.resume(directory.path, 1)


def test_one_line_of_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(orchestration, "figures", lambda *given: {"trials": given[0], "efficiency_8": 0.97})
    monkeypatch.setattr("sys.argv", ["orchestration", "--json", "--trials", "4000"])
    orchestration.main()
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"trials": 4000, "efficiency_8": 0.97}
