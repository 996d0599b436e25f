"""Which trial is blamed when a worker is lost, and which is not: the pool with a Ray that is played."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray.exceptions

from sweeps.leases import LeaseQueue
from sweeps.schedule import pool as pools
from sweeps.schedule.pool import Pool
from tests.sweeps.played_ray import Answer, PlayedRay
from tests.sweeps.test_ray_pool import LightLease, LightQueue

NEVER = float("inf")
GONE = ray.exceptions.ActorUnavailableError("Socket closed", None)
DEVICE_LOST = ray.exceptions.RayTaskError("run", "FloatingPointError: the device is lost", FloatingPointError())


@dataclass(eq=False)
class Call(Answer):
    """What a worker was asked."""

    worker: int = field(kw_only=True)
    what: str = field(kw_only=True)


def done(*trial_ids: str) -> SimpleNamespace:
    return SimpleNamespace(gains=dict.fromkeys(trial_ids, 1.0), failures=(), seconds=0.01, last=False)


@dataclass
class Play(PlayedRay):
    """``answer`` fills in when a call is answered, and how; it sees them in order, those to come not yet answered."""

    workers: int
    answer: Callable[[Play, Call], object]
    calls: list[Call] = field(default_factory=list)

    def wanted(self) -> dict[str, int]:
        return {"played": self.workers}

    def start(self, kind: str) -> Any:
        started = {call.worker for call in self.calls}
        index, remote = len(started), SimpleNamespace
        return remote(
            index=index,
            ping=remote(remote=lambda: self._ask(index, "ping")),
            run=remote(remote=lambda lease: self._ask(index, lease.lease_id)),
        )

    def _ask(self, worker: int, what: str) -> Call:
        self.calls.append(Call(NEVER, worker=worker, what=what))
        self.answer(self, self.calls[-1])
        return self.calls[-1]

    def asked(self, worker: int, what: str) -> int:
        """How often."""
        return sum((call.worker, call.what) == (worker, what) for call in self.calls)


@dataclass
class RoundsOfOne(LightQueue):
    """One lease, whenever everything before it came back."""

    to_come: deque[LightLease] = field(default_factory=deque)

    def refill(self) -> bool:
        if self.to_come:
            self.waiting_leases.append(self.to_come.popleft())
        return bool(self)


Playing = Callable[..., tuple[Play, Pool]]


@pytest.fixture
def playing(monkeypatch: pytest.MonkeyPatch) -> Playing:
    def play(queue: LightQueue, workers: int, answer: Callable[[Play, Call], object], timeout: float = 1e9) -> Any:
        found = Play(workers, answer)
        found.play(monkeypatch)
        monkeypatch.setattr(pools, "DEVICE_LOST", (FloatingPointError,))
        return found, Pool(cast(LeaseQueue, queue), found, timeout, threading.Event())

    return play


def results(pool: Pool) -> Iterator[tuple[str, list[str]]]:
    """Leases that came back, with the trials that failed for good."""
    for lease, outcome in pool.outcomes():
        yield lease.lease_id, [failure.trial_id for failure in outcome.failures]


def test_a_lease_that_waited_is_not_blamed_though_its_loss_is_reported_when_the_worker_is_up_again(
    playing: Playing,
) -> None:
    """Ray says of each call by itself that it is lost, up to a second later."""

    def answer(play: Play, call: Call) -> None:
        now, first = play.clock.now, play.asked(0, call.what) == 1
        if call.what == "ping":
            call.at, call.value = now, "one" if first else "two"
        elif first:
            call.at, call.value = (1.0 if call.what == "kills-0" else 1.5), GONE
        else:
            call.at, call.value = now + 1.0, done(call.what)

    play, pool = playing(LightQueue.of(("kills-0",), ("waits-1",)), 1, answer)
    hand, suspects = pools._Worker.hand, list[dict[str, int]]()

    def watched(worker: pools._Worker, lease: Any) -> None:
        suspects.append(dict(pool._deaths))
        hand(worker, lease)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pools._Worker, "hand", watched)
        assert sorted(results(pool)) == [("kills-0", []), ("waits-1", [])]
    assert suspects == [{}, {}, {"kills-0": 1}, {"kills-0": 1}]
    assert play.killed == []


def test_leases_that_are_done_while_the_driver_stands_still_are_not_taken_for_hung(playing: Playing) -> None:
    def answer(play: Play, call: Call) -> None:
        call.at, call.value = (0.0, "one") if call.what == "ping" else (play.clock.now + 1.0, done(call.what))

    play, pool = playing(LightQueue.of(("a",), ("b",), ("c",)), 3, answer, timeout=10)
    found = []
    for lease_id, failed in results(pool):
        found.append((lease_id, failed))
        play.clock.now += 60.0  # a store that hangs, a machine that sleeps
    assert sorted(found) == [("a", []), ("b", []), ("c", [])]
    assert play.killed == []
    assert sum(call.what != "ping" for call in play.calls) == 3, "each was run once"


def test_a_worker_that_hung_is_handed_nothing_before_it_has_ended_though_its_answer_comes(playing: Playing) -> None:
    """Just too late: it would die with the next lease, which would be blamed."""

    def answer(play: Play, call: Call) -> None:
        now, times = play.clock.now, play.asked(0, call.what)
        if call.what == "ping":  # a process answers once it is done with its lease, and ends at 14
            call.at, call.value = (0.0, "one") if times == 1 else (max(now, 11.5), "one") if now < 14 else (now, "two")
        elif now < 14:
            call.at, call.value = (11.5, done(call.what)) if call.what == "slow-0" else (14.0, GONE)
        else:
            call.at, call.value = now + 1.0, done(call.what)

    play, pool = playing(LightQueue.of(("slow-0",), ("next-1",), ("last-2",)), 1, answer, timeout=10)
    assert sorted(results(pool)) == [("last-2", []), ("next-1", []), ("slow-0", [])]
    ((_, when),) = play.killed
    assert 10 < when <= 11
    assert [call.what for call in play.calls if call.what != "ping"][:2] == ["slow-0", "next-1"]
    assert all(call.at >= 15 for call in play.calls[2:] if call.what not in ("ping", "next-1"))
    assert play.asked(0, "next-1") == 2
    assert play.asked(0, "last-2") == 1


def test_a_lost_device_ends_its_process_once_whatever_else_it_was_handed(playing: Playing) -> None:
    """What waited fails on it too; a second order to end might meet the process that follows."""

    def answer(play: Play, call: Call) -> None:
        now, first = play.clock.now, play.asked(0, call.what) == 1
        if call.what == "ping":
            call.at, call.value = (0.0, "one") if first else (now + 0.1, "two")
        else:
            call.at, call.value = now + 1.0, DEVICE_LOST if first else done(call.what)

    play, pool = playing(LightQueue.of(("a",), ("b",)), 1, answer)
    assert sorted(results(pool)) == [("a", []), ("b", [])]
    assert len(play.killed) == 1


def test_a_machine_that_dies_while_it_rests_fails_no_trial(playing: Playing) -> None:
    """Three workers of it wait for a fourth elsewhere; then a round of one trial begins."""

    def answer(play: Play, call: Call) -> None:
        now = play.clock.now
        if now > 1 and call.worker < 3:
            call.at, call.value = now + 1.0, GONE
        elif call.what == "ping":
            call.at, call.value = 0.0, f"process {call.worker}"
        else:
            call.at, call.value = now + (1.0 if call.worker < 3 else 20.0), done(call.what)

    queue = RoundsOfOne.of(("a",), ("b",), ("c",), ("d",))
    queue.to_come.append(LightLease.of("innocent"))
    play, pool = playing(queue, 4, answer)
    assert sorted(results(pool)) == [("a", []), ("b", []), ("c", []), ("d", []), ("innocent", [])]
    assert [call.worker for call in play.calls if call.what == "innocent"] == [3]


def test_a_worker_that_is_dead_for_good_is_replaced(playing: Playing) -> None:
    """Ray starts those again that die, but not those that fail to load the model."""

    def answer(play: Play, call: Call) -> None:
        now = play.clock.now
        if call.worker == 1:
            call.at, call.value = now, ray.exceptions.ActorDiedError()
        else:
            call.at, call.value = now + 2.0 * (call.what != "ping"), done(call.what) if call.what != "ping" else "one"

    play, pool = playing(LightQueue.of(*[(f"{i}",) for i in range(100)]), 2, answer)
    assert len(list(results(pool))) == 100
    assert [worker for worker, _ in play.killed] == [1]
    assert play.killed[0][1] == pytest.approx(60, abs=3)
    assert {call.worker for call in play.calls if call.what != "ping"} == {0, 2}
    assert play.clock.now < 150, "100 leases of 2 s; the second worker came after a minute"


@pytest.mark.parametrize(("process", "kept"), [("one", True), ("two", False)])
def test_what_a_worker_holds_goes_with_its_process(playing: Playing, process: str, kept: bool) -> None:
    """It is asked after a rest, and may have died meanwhile."""

    def answer(play: Play, call: Call) -> None:
        now, first = play.clock.now, play.asked(0, call.what) == 1
        call.at, call.value = (now, "one" if first else process) if call.what == "ping" else (now, done(call.what))

    queue = RoundsOfOne.of(("a",))
    queue.to_come.append(LightLease.of("b"))
    play, pool = playing(queue, 1, answer)
    leases = results(pool)
    assert next(leases) == ("a", [])
    held = pool._workers[0].held
    assert held.place is not None
    play.clock.now += 60.0
    assert list(leases) == [("b", [])]
    assert play.asked(0, "ping") == 2
    assert (pool._workers[0].held is held) == kept
