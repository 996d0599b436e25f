"""Leases: trials handed to a worker at once, because they share a model, a data set, a clean pass and a layer."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sweeps.plan import Trial

_SMALLER = 8  # times that a lease at the end of a round is smaller than usual, at most


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

    def halves(self) -> list[Lease]:
        """Two smaller leases, to find the trial that kills its worker; one trial cannot be halved."""
        middle = len(self.trials) // 2
        parts = (self.trials[:middle], self.trials[middle:])
        return [Lease.of(part, self.units) for part in parts] if middle else [self]


class LeaseQueue:
    """Cuts tasks into leases of about ``seconds`` of work, by a running estimate of a task's time.

    Args:
        following: the tasks of the next round, asked for when all of this round came back; none ends the sweep.
    """

    def __init__(self, tasks: Iterable[Task], seconds: float, following: Callable[[], Iterable[Task]] = tuple) -> None:
        self._groups: deque[deque[Task]] = deque()
        self._returned: deque[Lease] = deque()
        self._seconds = seconds
        self._seconds_per_task = seconds / 4  # small first leases, until something was measured
        self._following = following
        self._waiting = 0
        self._add(tasks)

    def __bool__(self) -> bool:
        return bool(self._groups or self._returned)

    def _add(self, tasks: Iterable[Task]) -> None:
        groups: OrderedDict[tuple, deque[Task]] = OrderedDict()
        for task in tasks:
            self._waiting += 1
            groups.setdefault((*share_key(task.trial), task.units.start, task.units.stop), deque()).append(task)
        self._groups.extend(groups.values())

    def refill(self) -> bool:
        """Go on to the next round; call it when nothing is waiting or in flight. False when the sweep is over."""
        self._add(self._following())
        return bool(self)

    @property
    def waiting(self) -> int:
        """Tasks that nobody has."""
        return self._waiting + sum(len(lease.trials) for lease in self._returned)

    def take(self, workers: int = 1) -> Lease:
        """The next lease; tasks of one group stay together as long as they fit.

        Args:
            workers: that share what is waiting. Toward the end of a round leases get smaller, down to an eighth, so
                that nobody is left with a long one while the others wait for the next round.
        """
        if self._returned:
            return self._returned.popleft()
        group = self._groups[0]
        usual = size = max(1, round(self._seconds / self._seconds_per_task))
        if workers > 1:
            size = max(1, usual // _SMALLER, min(usual, self._waiting // (2 * workers)))
        units = group[0].units
        size = min(size, len(group))
        lease = Lease.of((group.popleft().trial for _ in range(size)), units)
        self._waiting -= size
        if not group:
            self._groups.popleft()
        return lease

    def give_back(self, lease: Lease) -> None:
        """A lease whose worker was lost; it goes first."""
        self._returned.appendleft(lease)

    def observe(self, trials: int, seconds: float) -> None:
        """Learn from a finished lease."""
        if trials:
            self._seconds_per_task = 0.7 * self._seconds_per_task + 0.3 * max(seconds / trials, 1e-4)


def share_key(trial: Trial) -> tuple:
    """Trials with the same key share their clean pass and the layer at which they first differ from it."""
    units = (trial.first_image, trial.images, trial.samples)
    return (trial.model, trial.dataset, trial.protocol, trial.window, units, trial.layer_index)
