"""Actors that come and go, and the leases they hold.

Leases are executed at least once; a worker that dies costs its leases nothing but a second run. A lease that keeps
killing workers is halved until the poison trial is alone, and that one is recorded as failed.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from sweeps.drain import Draining
from sweeps.holdings import Holdings, next_place
from sweeps.leases import Lease, LeaseQueue, Pace, fair_shares
from sweeps.records import Failure, GaveOut
from sweeps.run import DEVICE_LOST, LeaseOutcome
from sweeps.schedule.workers import last_line

IN_FLIGHT = 2
IDLE_SECONDS = 60.0
"""After which a worker of a cluster gives its place back, when no lease is left for it."""

WAITING_SECONDS = 60.0
"""After which it is said that no worker has come up yet."""

LOST_SECONDS = 900.0
"""After which workers that are said to be starting again are given up, if all of them are."""

REPLACE_SECONDS = 60.0
"""After which another is started for a worker that Ray does not: one whose model could not be loaded, say."""

_DEATHS_BEFORE_HALVING = 2
_SILENCE_LIMIT = 5  # times in a row that a worker may die before it answers
_ASK_AGAIN_SECONDS = 0.5
_RESTED_SECONDS = 5.0  # without a word, after which a worker is asked whether it is there before it is handed a lease


class Factory(Protocol):
    """Starts workers, of one kind or several; see :class:`sweeps.schedule.workers.WorkerFactory`."""

    def wanted(self) -> Mapping[Any, int]: ...

    def start(self, kind: Any) -> Any: ...


@dataclass(frozen=True)
class _Flight:
    """A lease that a worker has.

    Attributes:
        since: when it was handed over, or the one before it came back.
        life: which of the worker's lives it was handed to.
    """

    lease: Lease
    since: float
    life: int


@dataclass(eq=False)
class _Worker:
    """An actor of the pool. It is handed leases from an answered ping on, until it loses one.

    Attributes:
        kind: what the factory calls it.
        pace: how long a task takes it.
        held: what its process has computed that other leases may need.
        rested: since when it has had nothing to do.
        heard: when it last answered anything.
        flying: leases in the order in which they were handed over, which is the order in which they are run.
        ping: what was asked of a worker that is not known to be up.
        life: times that it has come up.
        process: which of the processes that it becomes when it dies it was when it last answered.
        ended: the one that was told to die, if any: it may still answer.
        silent: pings in a row that it did not answer, having died.
        lost_since: since when it has not answered.
        asked_again: when its next answer is looked for.
        leaving: its machine is about to go; it is handed nothing more.
    """

    kind: Any
    handle: Any
    ping: Any
    rested: float
    heard: float
    life: int = 0
    process: Any = None
    ended: Any = None
    pace: Pace = field(default_factory=Pace)
    held: Holdings = field(default_factory=Holdings)
    flying: dict[Any, _Flight] = field(default_factory=dict)
    silent: int = 0
    lost_since: float | None = None
    asked_again: float = 0.0
    leaving: bool = False

    @property
    def up(self) -> bool:
        return self.ping is None

    def lost_for(self, now: float) -> float:
        return 0.0 if self.lost_since is None else now - self.lost_since

    def busy_for(self, pace: float, now: float) -> float:
        """Seconds until it is done with what it has, at so many a task; one that is overdue is taken to need as long
        again as it is overdue, so that nobody waits for a worker that hangs."""
        if not self.flying:
            return 0.0
        since = next(iter(self.flying.values())).since
        return abs(pace * sum(len(flight.lease.trials) for flight in self.flying.values()) - (now - since))

    def ask(self) -> None:
        self.ping = self.handle.ping.remote()

    def hand(self, lease: Lease) -> None:
        self.held.enter(lease.place)
        self.flying[self.handle.run.remote(lease)] = _Flight(lease, time.monotonic(), self.life)

    def take_back(self, ref: Any) -> _Flight:
        """The lease whose turn is over; the next one's starts now, not when it was handed over."""
        flight = self.flying.pop(ref)
        self.heard = self.rested = now = time.monotonic()
        for other, waiting in self.flying.items():
            self.flying[other] = replace(waiting, since=now)
        return flight


class Pool:
    """Workers that come and go, and the leases they hold.

    Args:
        timeout: seconds after which a lease is taken for hung.
        idle: seconds without work after which a worker is ended, or no longer waits for a place: a cluster that grows
            would make room for nothing.
    """

    def __init__(
        self,
        leases: LeaseQueue,
        factory: Factory,
        timeout: float,
        stop: threading.Event,
        idle: float = float("inf"),
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        import ray

        self._ray = ray
        self._leases = leases
        self._factory = factory
        self._timeout = timeout
        self._stop = stop
        self._idle = idle
        self._say = say
        self._deaths: dict[str, int] = {}  # of workers that had the trial, since it was last measured
        self._workers: list[_Worker] = []
        self._alone_since: float | None = time.monotonic()
        self._out_of_work: float | None = None
        self._staff()

    def outcomes(self) -> Iterator[tuple[Lease, LeaseOutcome]]:
        while True:
            if not self._stop.is_set():
                self._staff()
                self._hand_out()
            # A worker runs its leases in order, so only its first one can come back or have killed it.
            first = {next(iter(worker.flying)): worker for worker in self._workers if worker.flying}
            if not first:
                if self._stop.is_set() or not (self._leases or self._leases.refill()):
                    return
                if not any(worker.up for worker in self._workers):
                    self._tell_if_alone()
                    time.sleep(0.1)
                continue
            self._alone_since = None
            ready, _ = self._ray.wait(list(first), num_returns=1, timeout=1.0)
            for ref in ready:
                yield from self._collect(first[ref], ref)
            yield from self._end_hung_leases()

    def answered(self) -> int:
        """Workers that are up by now."""
        return sum(self._answered(worker) for worker in self._workers)

    def _staff(self) -> None:
        """As many workers as there is room and work for; others go, so that a cluster can shrink."""
        now = time.monotonic()
        for worker in [w for w in self._workers if not w.flying]:
            if worker.leaving or (worker.silent >= _SILENCE_LIMIT and worker.lost_for(now) > REPLACE_SECONDS):
                self._dismiss(worker)
        if self._leases:
            busy = sum(bool(worker.flying) for worker in self._workers)
            there = Counter(worker.kind for worker in self._workers if not worker.leaving)
            work_for = busy + self._leases.waiting - there.total()
            for kind, wanted in self._factory.wanted().items():
                missing = max(0, min(wanted - there[kind], work_for))
                work_for -= missing
                for _ in range(missing):
                    handle = self._factory.start(kind)
                    self._workers.append(_Worker(kind, handle, handle.ping.remote(), rested=now, heard=now))
            self._out_of_work = None
            return
        if self._idle == float("inf"):
            return
        # Until the next round there may be nothing to do for a while, which is shorter than loading a model.
        self._out_of_work = now if self._out_of_work is None else self._out_of_work
        for worker in [w for w in self._workers if not w.flying]:
            if now - max(worker.rested, self._out_of_work) > self._idle:
                self._dismiss(worker)

    def _dismiss(self, worker: _Worker) -> None:
        self._ray.kill(worker.handle)
        self._workers.remove(worker)

    def _tell_if_alone(self) -> None:
        """Once, when no worker has come up for a while: the cluster may be full, or growing, or the model large."""
        now = time.monotonic()
        self._alone_since = now if self._alone_since is None else self._alone_since
        if now - self._alone_since > WAITING_SECONDS:
            self._alone_since = float("inf")
            self._say(f"waiting for {len(self._workers)} workers: they wait for a place, or load the model")

    def _hand_out(self) -> None:
        now = time.monotonic()
        for worker in self._workers if self._leases else ():
            if worker.up and not worker.flying and now - worker.heard > _RESTED_SECONDS:
                worker.ask()  # had it died while it rested, the next lease would be blamed
        able = [worker for worker in self._workers if self._answered(worker) and not worker.leaving]
        # Beside a suspect nothing else is in flight: a worker that the next lease kills may take the answer of the one
        # before with it, which would be blamed.
        at_once = 1 if self._deaths else IN_FLIGHT
        for _ in range(at_once):
            for index, worker in enumerate(able):
                if self._leases and len(worker.flying) < at_once and (share := self._shares(able)[index]):
                    there = Counter(w.held.place for w in self._workers if w.flying and w.held.place)
                    choose = partial(next_place, held=worker.held, there=there, workers=len(self._workers))
                    worker.hand(self._leases.take(worker.pace, share, choose))

    def _shares(self, able: Sequence[_Worker]) -> list[int]:
        """Tasks that each should run of what waits; one that has not run any yet is taken for an average one."""
        known = [worker.pace.seconds for worker in able if worker.pace.seconds is not None]
        usual, now = statistics.geometric_mean(known or [1.0]), time.monotonic()
        paces = [worker.pace.seconds or usual for worker in able]
        busy = [worker.busy_for(pace, now) for worker, pace in zip(able, paces, strict=True)]
        return fair_shares(self._leases.waiting, paces, busy)

    def _collect(self, worker: _Worker, ref: Any) -> Iterator[tuple[Lease, LeaseOutcome]]:
        flight = worker.take_back(ref)
        lease = flight.lease
        try:
            outcome = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, Draining):
                worker.leaving = True
                self._leases.give_back(lease)
                return
            # Trials that raise are handled by the runner, so this is the worker's surroundings: a full disk, say.
            if isinstance(error.cause, GaveOut):
                raise GaveOut(str(error.cause)) from error
            if not isinstance(error.cause, DEVICE_LOST):
                raise
            yield from self._lost(worker, flight, last_line(error), lives=True)
        except self._ray.exceptions.RayError as error:
            yield from self._lost(worker, flight, last_line(error))
        else:
            worker.leaving = worker.leaving or outcome.last
            worker.pace.observe(len(lease.trials), outcome.seconds)
            for trial in lease.trials if self._deaths else ():
                self._deaths.pop(trial.trial_id, None)
            yield lease, outcome

    def _lost(
        self, worker: _Worker, flight: _Flight, cause: str, lives: bool = False
    ) -> Iterator[tuple[Lease, LeaseOutcome]]:
        """The worker died or could not be reached: quarantine it, and hand the lease out again.

        Args:
            lives: its process is still there, and has to go.
        """
        lease = flight.lease
        # A life ends with the first lease that is lost. Those that waited behind it are lost with it, and Ray may say
        # so after the worker has come up again.
        if not worker.up or flight.life != worker.life or worker.leaving:
            self._leases.give_back(lease)
            return
        if lives:
            worker.ended = worker.process
            self._ray.kill(worker.handle, no_restart=False)
        worker.ask()
        deaths = 1 + max(self._deaths.get(trial.trial_id, 0) for trial in lease.trials)
        self._deaths |= {trial.trial_id: deaths for trial in lease.trials}
        alone = len(lease.trials) == 1
        if deaths < _DEATHS_BEFORE_HALVING or (alone and deaths == _DEATHS_BEFORE_HALVING):
            self._leases.give_back(lease)
        elif alone:
            poison = lease.trials[0].trial_id
            del self._deaths[poison]
            failure = Failure(poison, f"its worker died {deaths} times: {cause}", "", deaths)
            yield lease, LeaseOutcome({}, (failure,), 0, 0.0)
        else:
            self._deaths |= {trial.trial_id: _DEATHS_BEFORE_HALVING - 1 for trial in lease.trials}
            for half in lease.halves():
                self._leases.give_back(half)

    def _answered(self, worker: _Worker) -> bool:
        """Whether the worker is up.

        Raises:
            GaveOut: none of the workers comes up.
        """
        now = time.monotonic()
        if worker.up or now < worker.asked_again or not self._ray.wait([worker.ping], timeout=0)[0]:
            return worker.up
        try:
            process = self._ray.get(worker.ping)
        except self._ray.exceptions.RayError as error:
            # One that is starting again is unavailable for as long as that takes: no sign that it would not.
            starting = isinstance(error, self._ray.exceptions.ActorUnavailableError)
            worker.lost_since = now if worker.lost_since is None else worker.lost_since
            worker.silent += not starting
            if all(w.silent >= _SILENCE_LIMIT or w.lost_for(now) > LOST_SECONDS for w in self._workers):
                raise GaveOut(f"no worker stays alive: {last_line(error)}") from error
            worker.ask()
            worker.asked_again = now + (_ASK_AGAIN_SECONDS if starting else 0.0)
            return False
        if process != worker.process:
            worker.process, worker.held = process, Holdings()
        if worker.ended is not None and worker.process == worker.ended:
            worker.ask()
            worker.asked_again = now + _ASK_AGAIN_SECONDS
            return False
        worker.ping, worker.silent, worker.lost_since, worker.ended = None, 0, None, None
        worker.heard, worker.life = now, worker.life + 1
        return True

    def _end_hung_leases(self) -> Iterator[tuple[Lease, LeaseOutcome]]:
        now = time.monotonic()
        for worker in self._workers:
            ref, flight = next(iter(worker.flying.items()), (None, None))
            if flight is None or now - flight.since <= self._timeout:
                continue
            back, _ = self._ray.wait([ref], timeout=0)
            if not back:  # else it was this process that stood still
                worker.take_back(ref)
                cause = f"a lease took longer than cluster.lease_timeout ({self._timeout:g} s)"
                yield from self._lost(worker, flight, cause, lives=True)
