"""Leases: trials handed to a worker at once, because they share a model, a data set, a clean pass and a layer."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sweeps.holdings import Place
from sweeps.plan import Trial

_SMALLER = 8  # times that a lease at the end of a round is smaller than usual, at most
_TOO_LARGE = 2  # times the right size: a lease that was given back is then cut for the worker that takes it
_SHORTEST = 1e-4  # seconds of a task that count as measured
_HALVINGS = 32  # of the time that fair_shares looks for


@dataclass(frozen=True)
class Task:
    """Images of a trial that are measured together: ``units`` counts from 0 within the trial's own images."""

    trial: Trial
    units: range

    @classmethod
    def whole(cls, trial: Trial) -> Task:
        return cls(trial, range(trial.images))


@dataclass(frozen=True)
class Lease:
    """What Ray schedules and retries; users see trials.

    Attributes:
        units: which of their images; None for all of them. Samples are generated with the first ones.
    """

    lease_id: str
    trials: tuple[Trial, ...]
    units: range | None = None

    @classmethod
    def of(cls, trials: Iterable[Trial], units: range | None = None) -> Lease:
        held = tuple(trials)
        if units is not None and all(units == range(trial.images) for trial in held):
            units = None
        suffix = "" if units is None else f"{units.start}-{units.stop}"
        digest = hashlib.sha256(("".join(t.trial_id for t in held) + suffix).encode()).hexdigest()
        return cls(digest[:16], held, units)

    @property
    def place(self) -> Place:
        """What its trials share, but for their layer."""
        first = self.trials[0]
        return Place.of(first, range(first.images) if self.units is None else self.units)

    def halves(self) -> list[Lease]:
        """Two smaller leases, to find the trial that kills its worker; one trial cannot be halved."""
        return list(self.cut(middle)) if (middle := len(self.trials) // 2) else [self]

    def cut(self, size: int) -> tuple[Lease, Lease]:
        """The first ``size`` trials, and the others."""
        return Lease.of(self.trials[:size], self.units), Lease.of(self.trials[size:], self.units)


class Pace:
    """How long a task takes one worker: a running mean of what it took, in ratios, since workers differ by hundreds.

    Attributes:
        seconds: of a task; None until one came back.
    """

    def __init__(self) -> None:
        self.seconds: float | None = None

    def observe(self, tasks: int, seconds: float) -> None:
        """Learn from a finished lease. One in which every trial was lost teaches nothing."""
        if tasks:
            found = max(seconds / tasks, _SHORTEST)
            self.seconds = found if self.seconds is None else math.sqrt(self.seconds * found)

    def fits(self, seconds: float) -> int:
        """Tasks that take so long, one at least; one where nothing is known yet."""
        return 1 if self.seconds is None else max(1, round(seconds / self.seconds))


Choose = Callable[[Mapping[Place, int]], Place]


def _first(waiting: Mapping[Place, int]) -> Place:
    return next(iter(waiting))


class LeaseQueue:
    """Cuts tasks into leases of about ``seconds`` of work, by the pace of the worker that takes them.

    Args:
        following: the tasks of the next round, asked for when all of this round came back; none ends the sweep.
    """

    def __init__(self, tasks: Iterable[Task], seconds: float, following: Callable[[], Iterable[Task]] = tuple) -> None:
        self._groups: dict[Place, dict[int, deque[Task]]] = {}  # by layer
        self._returned: deque[Lease] = deque()
        self._seconds = seconds
        self._following = following
        self._add(tasks)

    def __bool__(self) -> bool:
        return bool(self._groups or self._returned)

    def _add(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            layers = self._groups.setdefault(Place.of(task.trial, task.units), {})
            layers.setdefault(task.trial.layer_index, deque()).append(task)
        self._waiting = {place: sum(map(len, layers.values())) for place, layers in self._groups.items()}

    def refill(self) -> bool:
        """Go on to the next round; call it when nothing is waiting or in flight. False when the sweep is over."""
        self._add(self._following())
        return bool(self)

    @property
    def waiting(self) -> int:
        """Tasks that nobody has."""
        return sum(self._waiting.values()) + sum(len(lease.trials) for lease in self._returned)

    def take(self, pace: Pace, share: int | None = None, choose: Choose = _first) -> Lease:
        """The next lease; tasks of one place and layer stay together as long as they fit.

        Args:
            pace: of the worker that takes it.
            share: of what is waiting, tasks that this worker should run (see ``fair_shares``); None: all of it. It gets
                half of them at once, so that toward the end of a round leases get smaller, down to an eighth of the
                usual, and nobody is left with a long one while the others wait for the next round.
            choose: the place to take it from, of those at which tasks wait and how many; what was given back goes
                before.
        """
        usual = size = pace.fits(self._seconds)
        if share is not None:
            size = max(1, usual // _SMALLER, min(usual, share // 2))
        if self._returned:
            lease = self._returned.popleft()
            if len(lease.trials) > _TOO_LARGE * size:  # of a faster worker
                lease, rest = lease.cut(size)
                self._returned.appendleft(rest)
            return lease
        place = choose(self._waiting)
        layers = self._groups[place]
        layer, group = next(iter(layers.items()))
        units = group[0].units
        size = min(size, len(group))
        lease = Lease.of((group.popleft().trial for _ in range(size)), units)
        self._waiting[place] -= size
        if not group:
            del layers[layer]
        if not layers:
            del self._groups[place], self._waiting[place]
        return lease

    def give_back(self, lease: Lease) -> None:
        """A lease whose worker was lost; it goes first."""
        self._returned.appendleft(lease)


def fair_shares(tasks: int, paces: Sequence[float], busy: Sequence[float]) -> list[int]:
    """How many of so many tasks each worker would run, were each given to whoever has it done first.

    A worker so slow that the others are done with everything sooner gets none. Where several would be done at the same
    time each counts, so the shares may add up to more than there is.

    Args:
        paces: seconds that a task takes each worker.
        busy: seconds until each is done with what it has.
    """
    pace, free = np.asarray(paces), np.asarray(busy)
    low, high = 0.0, float((free + tasks * pace).min())  # by then one of them alone is done with all
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _done_by(middle, pace, free).sum() >= tasks else (middle, high)
    return _done_by(high, pace, free).astype(int).tolist()


def _done_by(seconds: float, pace: np.ndarray, free: np.ndarray) -> np.ndarray:
    return np.floor(np.maximum(seconds - free, 0) / pace + 1e-6)


def share_key(trial: Trial) -> tuple[Place, int]:
    """Trials with the same key share their clean pass and the layer at which they first differ from it."""
    return Place.of(trial, range(trial.images)), trial.layer_index
