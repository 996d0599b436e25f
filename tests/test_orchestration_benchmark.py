"""The benchmark of orchestration, small and without Ray: it plans, records and resumes what it says it does."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

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


KEYS = {"plan_s", "per_trial_ms", "resume_s", "driver_rss_mb", "efficiency_8"}


@pytest.mark.parametrize("nodes", [(), ("--nodes", "2")], ids=["both", "two nodes"])
def test_one_line_of_json(
    nodes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what other tools read, and the worse of what was found on two and on eight nodes."""

    def found(trials: int, nodes: int, sleepers: int) -> dict[str, float]:
        few = nodes == 2
        return {
            "trials": trials, "nodes": nodes, "plan_s": 3.0 if few else 2.0, "per_trial_ms": 0.3 if few else 0.4,
            "resume_s": 9.0, "driver_rss_mb": 850, f"efficiency_{sleepers}": 0.97 if few else 0.98,
        }  # fmt: skip

    monkeypatch.setattr(orchestration, "figures", found)
    monkeypatch.setattr(orchestration, "measured", found)
    monkeypatch.setattr("sys.argv", ["orchestration", "--json", "--trials", "4000", *nodes])
    orchestration.main()
    (line,) = capsys.readouterr().out.splitlines()
    printed = json.loads(line)
    assert set(printed) >= KEYS
    assert printed["trials"] == 4000
    if nodes:
        assert printed["per_trial_ms"] == 0.3
    else:
        assert (printed["plan_s"], printed["per_trial_ms"], printed["efficiency_8"]) == (3.0, 0.4, 0.97)
        assert set(printed["by_nodes"]) == {"2", "8"}
        assert printed["by_nodes"]["8"]["efficiency_8"] == 0.98


def test_the_figures_of_a_small_run_have_the_same_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without Ray, and with a run that was done before: what is measured ends up under the names that are read."""

    @contextmanager
    def no_cluster(nodes: int, workers: int) -> Iterator[None]:
        yield None

    run = {"trials": 2000, "plan_s": 0.1, "run_s": 1.0, "driver_rss_mb": 500.0}
    monkeypatch.setattr(orchestration, "simulated_cluster", no_cluster)
    monkeypatch.setattr(orchestration, "orchestrate", lambda *_: run)
    monkeypatch.setattr(orchestration, "efficiency", lambda *_: 0.95)
    again = json.dumps({"resume_s": 0.9, "resume_rss_mb": 600.0})
    monkeypatch.setattr(orchestration.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=again))
    found = orchestration.figures(2000, 2, 8)
    assert set(found) >= KEYS
    assert found["per_trial_ms"] == pytest.approx(1.0)
    assert (found["driver_rss_mb"], found["efficiency_8"]) == (600, 0.95)
