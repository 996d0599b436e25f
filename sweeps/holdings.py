"""Where a worker goes next: what it has computed for its last leases serves others like them, and no other worker.

That is the clean pass of a window's images, the means of the window's timesteps over the reference images, and the
clean trajectory of generated images. A hundred workers that all went through a sweep in the order of its plan would
each compute all of it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import NamedTuple

from circuits.engine import Window
from sweeps.plan import Trial, generated


class Place(NamedTuple):
    """What trials have in common that share a clean pass.

    Attributes:
        images: ``first_image``, ``images`` and ``samples`` of the trials.
        units: which of the images are measured, the first one and the one behind the last.
        seeds: images that are generated: in ``denoise`` with the first units only.
    """

    model: str
    dataset: str
    protocol: str
    window: Window
    images: tuple[int, int, int]
    units: tuple[int, int]
    seeds: int

    @classmethod
    def of(cls, trial: Trial, units: range) -> Place:
        images = (trial.first_image, trial.images, trial.samples)
        seeds = generated(trial) if units.start == 0 else 0
        return cls(trial.model, trial.dataset, trial.protocol, trial.window, images, (units.start, units.stop), seeds)

    @property
    def shared(self) -> frozenset[Hashable]:
        """What is computed here and serves other places too: means of a window, a trajectory of all windows."""
        means = (self.model, self.dataset, self.window)
        trajectory = (self.model, self.dataset, self.images[0], self.seeds)
        return frozenset([means, trajectory] if self.seeds else [means])


class Holdings:
    """What a worker holds.

    Attributes:
        place: where it was handed its last lease.
    """

    def __init__(self) -> None:
        self.place: Place | None = None
        self._shared: set[Hashable] = set()

    def enter(self, place: Place) -> None:
        """It is handed a lease of this place."""
        self.place = place
        self._shared |= place.shared

    def lacking(self, place: Place) -> int:
        """Of what a place shares with others, the things that it would have to compute."""
        return len(place.shared - self._shared)


def next_place(waiting: Mapping[Place, int], held: Holdings, there: Mapping[Place, int], workers: int) -> Place:
    """Where a worker is handed its next lease.

    Where it is, as long as something waits there. Then of the places that have not as many workers yet as is their
    share of the work, the one for which it lacks least; then the one with the fewest workers for its work; then the
    first. There always is such a place: were none left, all other workers together would be as many as ``workers``.

    Args:
        waiting: tasks of each place that nobody has, at least one; in the order of the plan.
        there: busy workers of each place.
        workers: all of them, this one included.
    """
    if held.place is not None and held.place in waiting:
        return held.place
    share = workers / sum(waiting.values())
    room = [place for place in waiting if there.get(place, 0) < share * waiting[place]]
    return min(room, key=lambda place: (held.lacking(place), there.get(place, 0) / waiting[place]))
