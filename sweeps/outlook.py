"""What is to come under a stopping rule: images that trials are expected to take, for ETA and plan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

SURVIVAL = 0.5
"""Share of the running trials that a look leaves running, where nothing is known. The default sweep: 0.5."""

_PRIOR = 20  # looks that the assumption counts for, before a sweep's own ones outweigh it


@dataclass(frozen=True)
class Looks:
    """Looks at trials that had images left, and how many of the trials went on after them."""

    taken: int = 0
    went_on: int = 0

    def and_then(self, taken: int, went_on: int) -> Looks:
        return Looks(self.taken + taken, self.went_on + went_on)

    @property
    def survival(self) -> float:
        """Share of trials that a look leaves running: as seen, drawn toward ``SURVIVAL`` where little was seen."""
        return (self.went_on + SURVIVAL * _PRIOR) / (self.taken + _PRIOR)


def expected_images(left: Int[np.ndarray, " trials"], batch: int, survival: float) -> Float[np.ndarray, " trials"]:
    """Images that trials with so many ``left`` take from their next look on, if each look leaves a share running."""
    left = np.asarray(left)
    whole, rest = np.divmod(left, batch)
    if survival >= 1:
        return left.astype(float)
    looks = survival * (1 - survival**whole) / (1 - survival)
    return batch * looks + rest * survival ** (whole + 1)
