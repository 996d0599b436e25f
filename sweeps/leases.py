"""Leases: trials handed to a worker at once, because they share a model, a data set, a clean pass and a layer."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from sweeps.plan import Trial


@dataclass(frozen=True)
class Lease:
    """What Ray schedules and retries; users see trials."""

    lease_id: str
    trials: tuple[Trial, ...]

    @classmethod
    def of(cls, trials: Iterable[Trial]) -> Lease:
        held = tuple(trials)
        digest = hashlib.sha256("".join(t.trial_id for t in held).encode()).hexdigest()
        return cls(digest[:16], held)

    def halves(self) -> list[Lease]:
        """Two smaller leases, to find the trial that kills its worker; one trial cannot be halved."""
        middle = len(self.trials) // 2
        return [Lease.of(self.trials[:middle]), Lease.of(self.trials[middle:])] if middle else [self]


class LeaseQueue:
    """Cuts the pending trials into leases of about ``seconds`` of work, by a running estimate of a trial's time."""

    def __init__(self, trials: Iterable[Trial], seconds: float) -> None:
        groups: OrderedDict[tuple, deque[Trial]] = OrderedDict()
        for trial in trials:
            groups.setdefault(share_key(trial), deque()).append(trial)
        self._groups = deque(groups.values())
        self._returned: deque[Lease] = deque()
        self._seconds = seconds
        self._seconds_per_trial = seconds / 4  # small first leases, until something was measured

    def __bool__(self) -> bool:
        return bool(self._groups or self._returned)

    def take(self) -> Lease:
        """The next lease; trials of one group stay together as long as they fit."""
        if self._returned:
            return self._returned.popleft()
        group = self._groups[0]
        size = max(1, round(self._seconds / self._seconds_per_trial))
        lease = Lease.of(group.popleft() for _ in range(min(size, len(group))))
        if not group:
            self._groups.popleft()
        return lease

    def give_back(self, lease: Lease) -> None:
        """A lease whose worker was lost; it goes first."""
        self._returned.appendleft(lease)

    def observe(self, trials: int, seconds: float) -> None:
        """Learn from a finished lease."""
        if trials:
            self._seconds_per_trial = 0.7 * self._seconds_per_trial + 0.3 * max(seconds / trials, 1e-4)


def share_key(trial: Trial) -> tuple:
    """Trials with the same key share their clean pass and the layer at which they first differ from it."""
    units = (trial.first_image, trial.images, trial.samples)
    return (trial.model, trial.dataset, trial.protocol, trial.window, units, trial.layer_index)
