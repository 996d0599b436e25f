"""Claims on runs in a store: one driver at a time, whoever dies or starts at the same moment."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from sweeps import claims
from sweeps.claims import Claim
from sweeps.config import Config
from sweeps.driver import execute
from sweeps.records import RunDirectoryError
from sweeps.stores import Store
from sweeps.uris import Uri
from tests.sweeps.stores.conftest import Place, silent

ELSEWHERE = {"host": "elsewhere", "pid": 7, "machine": "another", "since": "1", "held": True}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.claims.BEAT_SECONDS", 0.05)
    monkeypatch.setattr("sweeps.claims.STALE_SECONDS", 1.0)


def left(store: Store, **changed: object) -> str:
    """Another's claim in the store."""
    store.write("claims/other.json", json.dumps(ELSEWHERE | changed).encode())
    return "claims/other.json"


def held_by(store: Store) -> list[str]:
    return claims.claims(store.listed())


@contextmanager
def beating(store: Store, **changed: object) -> Iterator[None]:
    """Another's claim, which is written again and again."""
    ended = threading.Event()

    def beat() -> None:
        beats = 0
        while not ended.wait(0.02):
            beats += 1
            left(store, beat=beats, **changed)

    left(store, **changed)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_claim_is_there_while_it_is_held_and_lists_what_the_run_has(store: Store, quick: None) -> None:
    store.write("run.json", b"{}")
    with Claim(store, silent) as claim:
        assert set(claim.files) == {"run.json", *held_by(store)}
        (name,) = held_by(store)
        own = json.loads(store.read(name))
        assert (own["host"], own["pid"], own["held"]) == (socket.gethostname(), os.getpid(), True)
        deadline = time.monotonic() + 30
        while json.loads(store.read(name))["beat"] < own["beat"] + 3:
            assert time.monotonic() < deadline, "it beats"
            time.sleep(0.01)
    assert held_by(store) == []


def test_a_second_driver_of_this_machine_is_refused_at_once(store: Store) -> None:
    with Claim(store, silent):
        (name,) = held_by(store)
        with (
            pytest.raises(
                RunDirectoryError,
                match=rf"in use by process {os.getpid()} on {socket.gethostname()}; wait for it, or delete ",
            ),
            Claim(store, silent),
        ):
            pass
        assert held_by(store) == [name], "the second one withdrew"


def test_a_driver_elsewhere_is_refused_while_it_beats(
    store: Store, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.claims.STALE_SECONDS", 10.0)  # the other one beats in time on a busy machine too
    waited: list[str] = []
    with beating(store), pytest.raises(RunDirectoryError, match=r"in use by process 7 on elsewhere"):
        Claim(store, waited.append).__enter__()
    assert "was left claimed by elsewhere; seeing whether it still works there" in waited[0]
    assert held_by(store) == ["claims/other.json"]


@pytest.mark.parametrize(
    "holder",
    [
        {},  # nobody beats
        {"held": False},
        {"host": socket.gethostname(), "machine": claims._machine(), "pid": 2**22 + 1},  # no such process
        {"host": socket.gethostname(), "machine": claims._machine(), "pid": 1, "since": "-1"},  # another one by now
        {"host": socket.gethostname(), "machine": claims._machine(), "pid": os.getpid(),
         "since": claims._started(os.getpid())},  # of this process, which lost the store and let go
    ],
)  # fmt: skip
def test_a_stale_claim_is_taken_over(store: Store, quick: None, holder: dict[str, object]) -> None:
    other = left(store, **holder)
    with Claim(store, silent):
        assert other not in held_by(store)
        assert len(held_by(store)) == 1


def test_of_two_that_start_at_once_on_two_machines_one_works(
    store: Store, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one withdraws when it sees that the first one is alive, which takes a while, and beats until then."""
    monkeypatch.setattr("sweeps.claims.STALE_SECONDS", 5.0)
    monkeypatch.setattr("sweeps.claims._PATIENT", 0)
    looks, look, ended = [0], Claim._content, threading.Event()

    def counted(claim: Claim, name: str) -> bytes | None:
        looks[0] += 1
        return look(claim, name)

    def be_second() -> None:
        with beating(store, held=False):
            while looks[0] < 4 and not ended.wait(0.01):
                pass
        store.delete("claims/other.json")

    monkeypatch.setattr(Claim, "_content", counted)
    left(store, held=False)
    second = threading.Thread(target=be_second)
    second.start()
    try:
        with Claim(store, silent):
            assert len(held_by(store)) == 1
    finally:
        ended.set()
        second.join()


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[]", b'{"pid": "x", "machine": 3}'])
def test_a_claim_that_cannot_be_read_goes_stale_too(store: Store, quick: None, content: bytes) -> None:
    store.write("claims/other.json", content)
    with Claim(store, silent):
        assert len(held_by(store)) == 1


def test_of_many_that_start_at_once_never_two_work(store: Store) -> None:
    inside, most, worked, refused = [0], [0], [0], [0]
    counting = threading.Lock()
    waits = np.random.default_rng(0).uniform(0, 0.02, size=(6, 8))

    def drive(number: int) -> None:
        for wait in waits[number]:
            time.sleep(wait)
            try:
                with Claim(store, silent):
                    with counting:
                        inside[0] += 1
                        worked[0] += 1
                        most[0] = max(most[0], inside[0])
                    time.sleep(0.005)
                    with counting:
                        inside[0] -= 1
            except RunDirectoryError:
                with counting:
                    refused[0] += 1

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    assert worked[0] + refused[0] == 48
    assert worked[0] > 0
    assert held_by(store) == []


def test_whoever_was_taken_over_notices(store: Store, quick: None) -> None:
    with Claim(store, silent) as claim:
        assert not claim.lost
        deadline = time.monotonic() + 30
        while not claim.lost:
            assert time.monotonic() < deadline
            for name in held_by(store):  # again where it was just being written
                store.delete(name)
            time.sleep(0.01)
    assert held_by(store) == []


def files_of(place: Place) -> dict[str, bytes]:
    """Without the claim, which beats."""
    return {name: content for name, content in place.run()[1].items() if not name.startswith("claims/")}


def test_a_sweep_in_use_elsewhere_is_refused(
    place: Place,
    sweep: Callable[..., Config],
    machine: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert execute(sweep("run.name=mine", "sweep.samples=0")) == 0
    machine("b")
    with Claim(Store.open(Uri.parse(place.root)).child("mine"), silent):
        before = files_of(place)
        with pytest.raises(RunDirectoryError, match=rf"mine is in use by process {os.getpid()} on "):
            execute(sweep("run.name=mine", "sweep.samples=0"))
        assert files_of(place) == before, "nothing of a run in use is touched"
        capsys.readouterr()
        assert execute(sweep("mode=status", "run.name=mine")) == 0
        assert f"driver process {os.getpid()} on {socket.gethostname()}, alive" in capsys.readouterr().out
    assert execute(sweep("mode=status", "run.name=mine")) == 0
    assert "driver none" in capsys.readouterr().out
