"""``mode=status``: what it says of runs that are planned, running, killed, finished; and that it leaves them alone."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from sweeps.config import Config, ConfigError
from sweeps.driver import execute
from sweeps.locks import STALE_SECONDS, RunLock
from sweeps.records import RunDirectory
from sweeps.standing import read_standing
from sweeps.status import Driver, is_running, lines, newest_run, read_driver, read_status
from tests.sweeps.poison import poison
from tests.sweeps.test_resume import started
from tests.sweeps.tiny import ROOT, command, environment, launch, only_run

pytestmark = [pytest.mark.run, pytest.mark.usefixtures("no_report")]

Configure = Callable[..., Config]
PATIENCE = 180.0


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder, with its time and size."""
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in (folder, *folder.rglob("*"))}


def said(configure: Configure, capsys: pytest.CaptureFixture[str], *overrides: str) -> list[str]:
    capsys.readouterr()
    assert execute(configure("mode=status", *overrides)) == 0
    return capsys.readouterr().out.splitlines()


# Real runs


def test_a_sweep_is_watched_while_it_runs_and_after_it_was_killed(settings: list[str], tmp_path: Path) -> None:
    root = tmp_path / "runs"
    slow = ["cluster.lease_seconds=1e-6", "run.rows=1", "sweep.samples=20", f"run.root={root}", "run.name=mine"]
    driver = started(command(*settings, *slow), tmp_path)
    directory = RunDirectory(root / "mine")
    try:
        deadline = time.monotonic() + PATIENCE
        while (found := read_standing(directory)) is None or found.done == 0:
            assert driver.poll() is None, driver.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(driver.pid, signal.SIGSTOP)  # so that nothing but the other process could change a file
        os.waitpid(driver.pid, os.WUNTRACED)  # until all of its threads stand still
        before = contents(directory.path)
        other = launch("mode=status", "run.name=mine", f"run.root={root}", cwd=tmp_path)
        assert other.returncode == 0, other.stderr
        assert contents(directory.path) == before
    finally:
        driver.kill()
        driver.communicate()
    standing = read_standing(directory)
    assert standing is not None
    assert 0 < standing.done < 40
    text = other.stdout.splitlines()
    assert text[0] == f"run mine: measuring, {standing.done} of 40 trials ({100 * standing.done // 40}%), 0 failed"
    assert text[1].startswith(f"driver process {driver.pid} on {socket.gethostname()}, alive (last sign of life ")
    assert text[2].startswith(f"rate {standing.trials_per_second:.1f} trials/s, ")
    assert ", ETA " in text[2]
    assert text[3] == "top ten so far (provisional: by the images measured so far, corrected for nothing)"
    assert len(text) == 4 + len(standing.top) <= 14
    for line, strong in zip(text[4:], standing.top, strict=True):  # whichever of the trials were done by then
        assert line.endswith(f"n={strong.images:<4d} {strong.label}")
        assert re.fullmatch(r"layer \d head \d, zero, t (999-500|499-0), (synthetic|natural)", strong.label)

    killed = lines(read_status(directory))
    assert killed[0].startswith("run mine: interrupted, ")
    assert killed[1].startswith(f"driver process {driver.pid} on {socket.gethostname()}, gone (last sign of life ")
    assert killed[-1].startswith("to go on: python launch.py sweep=smoke ")


def test_a_finished_run(configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(configure()) == 0
    text = said(configure, capsys)
    assert text == [
        f"run {only_run(tmp_path / 'runs').path.name}: finished, 40 of 40 trials (100%), 0 failed",
        "driver none",
    ]
    assert said(configure, capsys, f"run.name={only_run(tmp_path / 'runs').path.name}") == text


def test_failures_are_told_with_their_causes(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    poison(monkeypatch)
    assert execute(configure()) == 3
    text = said(configure, capsys)
    assert ": finished, 24 of 40 trials (100%), 16 failed" in text[0]
    causes = [line for line in text if line.startswith("failed ")]
    assert len(causes) == 2
    assert any("ArithmeticError: this head" in cause for cause in causes)
    only_run(tmp_path / "runs").progress.unlink()
    from_records = said(configure, capsys)
    assert from_records[0] == text[0]
    assert sorted(line for line in from_records if line.startswith("failed ")) == sorted(causes)


def test_without_progress_json_the_records_say_it(
    configure: Configure, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Of an earlier version: what the driver saw and what the records hold is the same, to float32."""
    assert execute(configure()) == 0
    directory = only_run(tmp_path / "runs")
    told = read_standing(directory)
    assert told is not None
    directory.progress.unlink()
    directory.effects.unlink()
    found = read_status(directory).standing
    assert (found.state, found.done, found.trials) == ("interrupted", 40, 40)
    assert [(t.label, t.images) for t in found.top] == [(t.label, t.images) for t in told.top]
    assert [t.percent for t in found.top] == pytest.approx([t.percent for t in told.top], rel=1e-5)


def test_a_planned_run(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(configure("mode=plan")) == 0
    assert ": planned, 0 of 40 trials (0%), 0 failed" in said(configure, capsys)[0]


def test_for_programs(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(configure()) == 0
    found = json.loads("\n".join(said(configure, capsys, "run.as_json=true")))
    assert found["standing"]["state"] == "finished"
    assert found["standing"]["done"] == 40
    assert len(found["standing"]["top"]) == 10
    assert found["driver"] is None


def test_what_is_not_there_is_said_in_one_line(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^run\.root: expected a folder with runs, got .*, which has none$"):
        execute(configure("mode=status"))
    assert not (tmp_path / "runs").exists()
    assert execute(configure("mode=plan", "run.name=faces")) == 0
    with pytest.raises(ConfigError, match=r"^run\.name: no run .*facse.*; did you mean 'faces'"):
        execute(configure("mode=status", "run.name=facse"))


def test_a_look_needs_no_torch(tmp_path: Path) -> None:
    """It would take seconds of a processor that the sweep wants, at every look. The run has no progress.json yet."""
    directory = RunDirectory(tmp_path / "runs" / "mine")
    directory.create()
    directory.write_frame(directory.trials, pd.DataFrame({"trial_id": ["a", "b"]}))
    code = (
        "import sys, launch\n"
        "launch.register()\n"
        f"assert launch._launch(launch._composed(['mode=status', 'run.root={tmp_path}/runs']), []) == 0\n"
        "print(sorted({'torch', 'diffusers', 'ray', 'wandb', 'scipy', 'matplotlib'} & set(sys.modules)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment())
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == ["run mine: planned, 0 of 2 trials (0%), 0 failed", "driver none", "[]"]


# Who works on it


def lock(folder: Path, content: str, age: float = 0.0) -> Path:
    path = folder / "lock.json"
    path.write_text(content)
    os.utime(path, (1000.0 - age, 1000.0 - age))
    return path


def now() -> float:
    return 1000.0


def test_a_driver_of_this_machine(tmp_path: Path) -> None:
    host, pid = socket.gethostname(), os.getpid()
    mine = json.dumps({"host": host, "pid": pid})
    assert read_driver(lock(tmp_path, mine, 3), now) == Driver(host, pid, alive=True, silent=3.0)
    stale = read_driver(lock(tmp_path, mine, STALE_SECONDS + 1), now)
    assert stale is not None
    assert not stale.alive, "the process of that number is another one by now"
    child = os.fork()
    if child == 0:
        os._exit(0)
    while is_running(child):  # until it has ended; nobody waits for it, so it is a zombie then
        time.sleep(0.01)
    gone = read_driver(lock(tmp_path, json.dumps({"host": host, "pid": child})), now)
    os.waitpid(child, 0)
    assert gone == Driver(host, child, alive=False, silent=0.0)


def test_a_driver_elsewhere_is_known_by_its_signs_of_life(tmp_path: Path) -> None:
    other = json.dumps({"host": "elsewhere", "pid": 1})
    assert read_driver(lock(tmp_path, other, 20), now) == Driver("elsewhere", 1, alive=True, silent=20.0)
    assert read_driver(lock(tmp_path, other, 100), now) == Driver("elsewhere", 1, alive=False, silent=100.0)
    for damaged in ("", "[1]"):
        beginning = read_driver(lock(tmp_path, damaged), now)
        assert beginning is not None
        assert beginning.alive
    assert read_driver(tmp_path / "absent.json", now) is None


def test_the_lock_of_a_live_driver_is_left_alone(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        found = read_driver(tmp_path / "lock.json")
        assert found is not None
        assert (found.pid, found.alive) == (os.getpid(), True)
        with pytest.raises(Exception, match="is in use by process"), RunLock(tmp_path):
            pass


def test_the_newest_run_is_the_one_touched_last(tmp_path: Path) -> None:
    assert newest_run(tmp_path / "absent") is None
    for age, name in ((50, "old"), (10, "new"), (30, "middle")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trials.parquet").touch()
        os.utime(tmp_path / name / "trials.parquet", (1000 - age, 1000 - age))
    (tmp_path / "no run").mkdir()
    found = newest_run(tmp_path)
    assert found is not None
    assert found.path.name == "new"
    (tmp_path / "old" / "progress.json").touch()
    found = newest_run(tmp_path)
    assert found is not None
    assert found.path.name == "old"
