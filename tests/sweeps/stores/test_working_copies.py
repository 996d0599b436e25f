"""Copies of one run on several machines: what each of them may take from the store, and give to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from sweeps.locks import RunLock
from sweeps.records import Failure, measurement_table
from sweeps.stores import Listed, Store
from sweeps.working_copies import StoredRun
from tests.sweeps.stores.conftest import silent


@pytest.fixture
def here(store: Store, tmp_path: Path) -> StoredRun:
    return copy_of(store, tmp_path / "a")


def copy_of(store: Store, path: Path) -> StoredRun:
    """As a command has it that has just begun."""
    run = StoredRun(store, path)
    run.create(run.records, run.samples)
    return run


def read(store: Store, path: Path) -> StoredRun:
    """What a command that only reads leaves behind."""
    run = copy_of(store, path)
    run.fetch()
    run.copy.publish(ended=True)
    return run


def test_failures_that_were_mended_elsewhere_do_not_come_back(store: Store, here: StoredRun, tmp_path: Path) -> None:
    with here.held(silent):
        here.write_run({"plan": "p"})
        here.write_failures([Failure("a", "ValueError: x", "", 2)])
    elsewhere = copy_of(store, tmp_path / "b")
    with elsewhere.held(silent):
        assert len(elsewhere.read_failures()) == 1
        elsewhere.write_failures([])
    again = read(store, here.path)
    assert again.read_failures() == []
    assert "failures.parquet" not in store.listed()


def test_failures_that_the_store_did_not_take_stay(store: Store, here: StoredRun) -> None:
    here.write_failures([Failure("a", "ValueError: x", "", 2)])
    assert len(read(store, here.path).read_failures()) == 1


@pytest.mark.parametrize("torn", [lambda content: content[:-100], lambda content: b""])
def test_a_file_that_is_torn_here_is_brought_again(
    store: Store, here: StoredRun, torn: Callable[[bytes], bytes]
) -> None:
    with here.held(silent):
        part = here.write_part("0a", measurement_table(["a"], "noise_mse", np.ones(3), np.ones((1, 3))))
        sample = here.samples / "0a.png"
        sample.write_bytes(bytes(range(200)))
    whole = {file: file.read_bytes() for file in (part, sample)}
    for file, content in whole.items():
        file.write_bytes(torn(content))
    assert read(store, here.path).recorded() == {"a"}
    assert {file: file.read_bytes() for file in whole} == whole
    assert store.read(f"records/{part.name}") == whole[part], "the torn one did not take its place"


def test_a_driver_that_begins_beside_a_reader_keeps_what_it_writes(
    store: Store, here: StoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with here.held(silent):
        here.write_run({"driver": "the first"})
    lock, listed = RunLock(here.path), store.listed

    def begins() -> Mapping[str, Listed]:
        found = listed()
        lock.__enter__()
        here.write_run({"driver": "the second"})
        return found

    monkeypatch.setattr(store, "listed", begins)
    read(store, here.path)
    assert here.read_run()["driver"] == "the second"
    assert (here.path / "lock.json").exists()
    lock.__exit__()


def test_ctrl_c_twice_ends_at_once_though_the_store_hangs(
    store: Store, here: StoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.claims.LEAVING_SECONDS", 0.1)
    monkeypatch.setattr("sweeps.working_copies.LEAVING_SECONDS", 0.1)
    monkeypatch.setattr("sweeps.working_copies.EVERY", 0.01)
    hanging, back = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> None:
        hanging.set()
        back.wait(120)
        hanging.clear()

    def interrupted() -> None:
        with here.held(silent):
            monkeypatch.setattr(store, "write", hang)
            monkeypatch.setattr(store, "delete", hang)
            here.write_run({})
            assert hanging.wait(60)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert hanging.is_set(), "and still does"
    back.set()
