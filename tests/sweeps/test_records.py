"""What is on disk survives: torn parts, duplicates, leftovers, a second driver, a newer version, a full disk."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sweeps import locks
from sweeps.gains import read_gains
from sweeps.locks import RunLock
from sweeps.records import (
    MEASUREMENTS,
    SCHEMA_VERSION,
    Failure,
    GaveOut,
    RunDirectory,
    RunDirectoryError,
    measurement_table,
    publish,
)
from sweeps.seals import Damaged, parquet_table
from tests.sweeps.tiny import FAILURE_COLUMNS, RECORD_COLUMNS, environment

UNITS = 3


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "run")
    made.create(made.records, made.samples)
    return made


def table(*trial_ids: str, value: float = 2.0, metric: str = "noise_mse") -> pa.Table:
    ids = list(trial_ids)
    return measurement_table(ids, metric, np.ones(UNITS), np.full((len(ids), UNITS), value))


# Parts


def test_a_part_holds_the_columns_of_the_architecture_as_float32(directory: RunDirectory) -> None:
    part = directory.write_part("lease", table("a", "b"))
    assert part.parent == directory.records
    assert part.name.startswith("lease-")
    assert part.name.endswith(".parquet")
    stored = pq.read_table(part)
    assert stored.column_names == RECORD_COLUMNS
    assert stored.schema.field("baseline").type == stored.schema.field("ablated").type == pa.float32()
    assert stored.column("unit").to_pylist() == [0, 1, 2, 0, 1, 2]
    assert directory.recorded() == {"a", "b"}


def test_rows_are_trial_by_trial_with_the_baseline_of_the_same_unit() -> None:
    made = measurement_table(["a", "b"], "edge", np.array([1.0, 2]), np.array([[3.0, 4], [5, 6]]), first_unit=7)
    assert made.to_pylist() == [
        {"trial_id": "a", "unit": 7, "metric": "edge", "baseline": 1.0, "ablated": 3.0},
        {"trial_id": "a", "unit": 8, "metric": "edge", "baseline": 2.0, "ablated": 4.0},
        {"trial_id": "b", "unit": 7, "metric": "edge", "baseline": 1.0, "ablated": 5.0},
        {"trial_id": "b", "unit": 8, "metric": "edge", "baseline": 2.0, "ablated": 6.0},
    ]


def test_a_lease_that_ran_twice_counts_once(directory: RunDirectory) -> None:
    first = directory.write_part("lease", table("a", "b"))
    second = directory.write_part("lease", table("b", "c", value=3.0))
    assert first != second
    measured = directory.measurements()
    assert len(measured) == 3 * UNITS
    assert not measured.duplicated(["trial_id", "unit", "metric"]).any()
    winner = 2.0 if first < second else 3.0
    assert set(measured.loc[measured["trial_id"] == "b", "ablated"]) == {winner}
    gains = read_gains(directory, ["a", "b", "c"], ["noise_mse"])["noise_mse"]
    np.testing.assert_allclose(gains.of(["b"]), np.log(winner), rtol=1e-6)


DAMAGES = {
    "zero length": lambda content: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "no Parquet": lambda content: b"x" * len(content),
    "footer overwritten": lambda content: content[:-20] + b"\0" * 20,
    "a page overwritten": lambda content: content[:40] + bytes(255 - b for b in content[40:60]) + content[60:],
    "the last page overwritten": lambda content: _spoil_last_page(content),
}


def _spoil_last_page(content: bytes) -> bytes:
    """One bit of the values of ``ablated``: without checksums it would be another number."""
    chunk = pq.ParquetFile(pa.BufferReader(content)).metadata.row_group(0).column(4)
    end = chunk.file_offset + chunk.total_compressed_size if chunk.file_offset else 0
    end = max(end, (chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size)
    return content[: end - 2] + bytes([content[end - 2] ^ 1]) + content[end - 1 :]


def test_any_byte_that_is_wrong_missing_or_too_many_makes_a_part_damaged(directory: RunDirectory) -> None:
    """Each one of them, the footer's and the seal's too: pages alone have checksums in Parquet."""
    part = directory.write_part("lease", table("a", "b"))
    content, rng = part.read_bytes(), np.random.default_rng(0)
    flips = rng.integers(1, 256, len(content))
    for place, flip in enumerate(flips.tolist()):
        before, byte, after = content[:place], content[place], content[place + 1 :]
        for spoilt in (bytes([byte ^ flip]), b"", bytes([byte, flip])):
            with pytest.raises(Damaged):
                parquet_table(before + spoilt + after, MEASUREMENTS.names)
    for end in range(len(content)):
        with pytest.raises(Damaged):
            parquet_table(content[:end])
    assert parquet_table(content, MEASUREMENTS.names).to_pylist() == table("a", "b").to_pylist()


def test_parts_of_versions_before_seals_are_read_and_their_pages_checked(directory: RunDirectory) -> None:
    old = directory.records / "lease-0.parquet"
    pq.write_table(table("a"), old, compression="zstd", write_page_checksum=True)
    assert directory.recorded() == {"a"}
    assert len(directory.measurements()) == UNITS
    content, rng = old.read_bytes(), np.random.default_rng(0)
    for place in rng.choice(len(content), 300, replace=False).tolist():
        old.write_bytes(content[:place] + bytes([content[place] ^ int(rng.integers(1, 256))]) + content[place + 1 :])
        RunDirectory(directory.path).measurements()  # whatever it is, no exception
    assert directory.clean() == [], "what was read once is not read again"


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "trials.parquet"])
def test_a_file_that_was_changed_is_said_and_one_without_a_seal_is_read(directory: RunDirectory, name: str) -> None:
    plain = {"seed": 12, "nested": {"a": [1, 2]}, "text": "ünïcode: #"}
    file = directory.path / name
    directory.write_config(plain)
    directory.write_run(plain)
    directory.write_frame(directory.trials, pd.DataFrame([plain]))

    def read() -> object:
        if name == "config.yaml":
            return directory.read_config()["seed"]
        return directory.read_run()["seed"] if name == "run.json" else directory.read_frame(file)["seed"][0]

    assert read() == 12
    content = file.read_bytes()
    for spoilt in (content.replace(b"c", b"d", 1), content[:-3], content[:50], content[10:], content + b" ", b"\0"):
        file.write_bytes(spoilt)
        with pytest.raises(
            RunDirectoryError, match=rf"^\S+{name} is damaged, or was edited; .* to go on|writes it anew"
        ):
            read()
    file.write_bytes({
        "config.yaml": b"seed: 12", "run.json": b'{"seed": 12}',
    }.get(name) or _unsealed(pd.DataFrame([plain])))  # fmt: skip
    assert read() == 12, "from a version before seals"


def _unsealed(frame: pd.DataFrame) -> bytes:
    sink = io.BytesIO()
    frame.to_parquet(sink)
    return sink.getvalue()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_counts_for_nothing_and_is_set_aside(directory: RunDirectory, damage: str) -> None:
    directory.write_part("good", table("a"))
    bad = directory.write_part("bad", table("b", "c"))
    bad.write_bytes(DAMAGES[damage](bad.read_bytes()))
    assert directory.recorded() == {"a"}
    assert set(directory.measurements()["trial_id"]) == {"a"}
    assert list(read_gains(directory, ["a", "b", "c"], ["noise_mse"])["noise_mse"].trial_ids) == ["a"]
    assert directory.clean() == [bad]
    assert not bad.exists()
    assert bad.with_suffix(".damaged").exists(), "set aside, not deleted"
    assert directory.clean() == []


def test_a_part_with_other_columns_is_set_aside(directory: RunDirectory) -> None:
    pq.write_table(table("a").drop_columns(["unit"]), directory.records / "old-1.parquet")
    assert directory.recorded() == set()
    assert len(directory.clean()) == 1


def test_no_parts_no_measurements(directory: RunDirectory) -> None:
    assert directory.recorded() == set()
    assert list(directory.measurements().columns) == RECORD_COLUMNS
    assert MEASUREMENTS.names == RECORD_COLUMNS


def test_leftovers_of_a_killed_process_are_cleaned(directory: RunDirectory) -> None:
    kept = [directory.write_part("a", table("a")), directory.samples / "a.png", directory.path / "notes.tmp"]
    left = [folder / f".x-{i}.tmp" for i, folder in enumerate((directory.path, directory.records, directory.samples))]
    for file in (*left, *kept[1:]):
        file.write_bytes(b"half")
    directory.clean()
    assert not any(file.exists() for file in left)
    assert all(file.exists() for file in kept)


@pytest.mark.run
def test_a_process_killed_while_it_writes_leaves_whole_parts_only(directory: RunDirectory) -> None:
    """SIGKILL at random moments of a tight loop of writes, which says what it has published."""
    code = (
        "import sys; from pathlib import Path; from sweeps.records import *; import numpy as np\n"
        "d = RunDirectory(Path(sys.argv[1])); i = 0\n"
        "while True:\n"
        "    ids = [f'{sys.argv[2]}-{i}-{j}' for j in range(50)]\n"
        "    d.write_part(f'{i}', measurement_table(ids, 'noise_mse', np.ones(64), np.ones((50, 64))))\n"
        "    print(i, flush=True); i += 1\n"
    )
    rng = np.random.default_rng(5)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(directory.path), str(k)], env=environment(), stdout=-1, text=True
        )
        for k in range(2)
    ]
    published = []
    for k, process in enumerate(workers):
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0.05, 0.3))
        process.send_signal(signal.SIGKILL)
        said = process.communicate()[0].split()
        published += [f"{k}-{i}-{j}" for i in (0, *map(int, said)) for j in range(50)]
    assert directory.clean() == [], "a part appeared that was not whole"
    assert directory.recorded() >= set(published)
    assert all(directory.measurements().groupby("trial_id").size() == 64)


# Publishing


def test_publish_replaces_a_file_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "file"
    publish(target, lambda temporary: temporary.write_text("one"))

    def fail(temporary: Path) -> NoReturn:
        temporary.write_text("tw")
        assert target.read_text() == "one"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(target, fail)
    assert target.read_text() == "one"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_said_in_one_line_and_costs_nothing_recorded(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    directory.write_part("a", table("a"))

    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(GaveOut, match=r"^\S+b-\w+\.parquet could not be written \(No space left on device\)$"):
        directory.write_part("b", table("b"))
    monkeypatch.undo()
    assert directory.recorded() == {"a"}
    assert len(os.listdir(directory.records)) == 1, "the half-written file is gone"


def test_a_disk_that_fills_up_in_the_middle_of_a_file(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(where: Path, content: bytes) -> NoReturn:
        where.write_text(content[:100].decode("latin-1"))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(GaveOut, match="No space left on device"):
        directory.write_part("b", table("b"))
    assert os.listdir(directory.records) == []


# The files around the records


def test_failures_have_the_columns_of_the_architecture_and_are_absent_when_there_are_none(
    directory: RunDirectory,
) -> None:
    failures = [Failure("a", "ValueError: x", "Traceback ...", 2)]
    directory.write_failures(failures)
    assert list(pd.read_parquet(directory.failures).columns) == FAILURE_COLUMNS
    assert directory.read_failures() == failures
    directory.write_failures([])
    assert not directory.failures.exists()
    assert directory.read_failures() == []


def test_a_folder_that_looks_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "seed=3")
    directory.create(directory.records)
    directory.write_frame(directory.trials, pd.DataFrame({"trial_id": ["a"]}))
    directory.write_part("x", table("a"))
    assert list(directory.read_frame(directory.trials).columns) == ["trial_id"]
    assert list(directory.measurements().columns) == RECORD_COLUMNS


def test_run_json_grows(directory: RunDirectory) -> None:
    directory.write_run({"plan": "p", "started": "now"})
    directory.write_run({"counts": {"trials": 3}})
    assert directory.read_run() == {
        "plan": "p", "started": "now", "counts": {"trials": 3}, "schema_version": SCHEMA_VERSION,
    }  # fmt: skip


def test_a_newer_version_is_refused(directory: RunDirectory) -> None:
    directory.run.write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(RunDirectoryError, match=rf"newer version \(schema {SCHEMA_VERSION + 1}, this one knows"):
        directory.read_run()
    with pytest.raises(RunDirectoryError):
        directory.write_run({})


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"schema_version": "x"}'])
def test_a_damaged_run_json_is_said(directory: RunDirectory, content: str) -> None:
    directory.run.write_text(content)
    with pytest.raises(RunDirectoryError, match=r"run\.json is damaged, or was edited; delete it"):
        directory.read_run()


@pytest.mark.parametrize("read", ["read_config", "trials"])
def test_a_folder_without_a_run_is_said(directory: RunDirectory, read: str) -> None:
    with pytest.raises(RunDirectoryError, match="holds no run"):
        directory.read_config() if read == "read_config" else directory.read_frame(directory.trials)


def test_a_root_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"^run\.root: .*file/run cannot be made \(Not a directory\)$"):
        RunDirectory(tmp_path / "file" / "run").create()


# The lock


def test_one_driver_at_a_time(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        holder = json.loads((tmp_path / "lock.json").read_text())
        assert holder == {"host": socket.gethostname(), "pid": os.getpid()}
        with pytest.raises(
            RunDirectoryError, match=rf"in use by process {os.getpid()} on {socket.gethostname()}; wait"
        ):
            RunLock(tmp_path).__enter__()
    with RunLock(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", ["", "{", "3", json.dumps({"host": socket.gethostname(), "pid": 1})])
def test_a_lock_left_by_a_dead_process_is_taken_over(tmp_path: Path, content: str) -> None:
    """Whatever it says: also where its process id belongs to another process by now (1 always lives)."""
    (tmp_path / "lock.json").write_text(content)
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()


def test_a_lock_of_another_host_is_not_taken_over_while_it_is_touched(tmp_path: Path) -> None:
    """By a holder whose clock is a year behind."""
    lock, ended = tmp_path / "lock.json", threading.Event()
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1}))

    def touch() -> None:
        moment = time.time() - 365 * 86_400
        while not ended.wait(0.05):
            moment += 0.05
            os.utime(lock, (moment, moment))

    holder = threading.Thread(target=touch)
    holder.start()
    try:
        for _ in range(2):
            with pytest.raises(
                RunDirectoryError, match=r"in use by process 1 on elsewhere; wait for it, or delete .*lock\.json"
            ):
                RunLock(tmp_path).__enter__()
    finally:
        ended.set()
        holder.join()


def test_a_lock_that_another_host_left_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its machine was preempted, say: nobody touches the lock. Neither clock matters: the wall clock jumps here."""
    monkeypatch.setattr(locks, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(time, "time", iter(range(10**9, 0, -86_400)).__next__)
    (tmp_path / "lock.json").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    said: list[str] = []
    started = time.monotonic()
    with RunLock(tmp_path, said.append):
        assert time.monotonic() - started >= 0.5
        assert json.loads((tmp_path / "lock.json").read_text())["host"] == socket.gethostname()
    assert len(said) == 1
    assert "was left locked by elsewhere" in said[0]


def test_a_holder_touches_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.02)
    with RunLock(tmp_path):
        before = (tmp_path / "lock.json").stat().st_mtime_ns
        deadline = time.monotonic() + 60
        while (tmp_path / "lock.json").stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_lock_that_another_host_took_over_is_left_to_it(tmp_path: Path) -> None:
    """This machine was asleep, say, longer than a lock goes untouched."""
    lock = tmp_path / "lock.json"
    taken = json.dumps({"host": "elsewhere", "pid": os.getpid()})
    with RunLock(tmp_path):
        lock.write_text(taken)
    assert lock.read_text() == taken


def test_the_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        raise ZeroDivisionError
    with RunLock(tmp_path):
        pass


@pytest.fixture
def contenders(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that each try for the lock when told to, say whether they have it, and hold it until told to leave."""
    lock = Path(sys.modules[RunLock.__module__].__file__ or "")
    # The module's source without its imports of pandas and pyarrow, which take seconds to load.
    source = lock.read_text()
    code = (
        "from __future__ import annotations\nimport contextlib, fcntl, json, os, socket, sys, threading, time\n"
        "from pathlib import Path\nfrom typing import Any\nclass RunDirectoryError(RuntimeError): pass\n"
        "def reason(error): return str(error)\nBEAT_SECONDS, STALE_SECONDS = 10, 90\n"
        + source[source.index("class RunLock:") :]
        + "\nsys.stdin.readline()\ntry:\n    with RunLock(Path(sys.argv[1])):\n"
        "        print('held', flush=True); sys.stdin.readline()\n"
        "except RunDirectoryError as error: print(error, flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True) for _ in range(6)]
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_of_several_processes_at_a_stale_lock_one_gets_it(
    tmp_path: Path, contenders: list[subprocess.Popen[str]]
) -> None:
    dead: dict[str, Any] = {"host": socket.gethostname(), "pid": 2**22 - 1}
    (tmp_path / "lock.json").write_text(json.dumps(dead))
    *first, last = contenders
    for process in first:
        tell(process)
    answers = {process: heard(process) for process in first}
    (winner,) = [process for process, answer in answers.items() if answer == "held"]
    assert all("is in use by process" in a for a in answers.values() if a != "held")
    winner.kill()  # SIGKILL: the kernel drops the lock
    winner.wait()
    tell(last)
    assert heard(last) == "held"
