"""Which units two runs share: the images of a data set, or the seeds of generated images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Int

from circuits.data.sources import DataSet

UNIT_COLUMNS = ["dataset", "unit", "image", "fingerprint"]

_ENOUGH_SHARED = 0.5  # of the smaller set: below that, pairing would throw away more than it gains


@dataclass(frozen=True)
class Units:
    """One side of a comparison on one data set.

    Attributes:
        images, fingerprints: of every unit, in order: names that are stable across runs, and hashes of the pixels.
        source: where the images come from; names mean the same image only within one source.
        noise: what the noise of a unit is drawn from besides its index.
    """

    images: tuple[str, ...]
    fingerprints: tuple[str, ...]
    source: tuple[str, ...]
    noise: tuple[str, int]


@dataclass(frozen=True)
class UnitMatch:
    """Units to compare: a pair a row where they are shared, else two independent samples.

    Attributes:
        shared_images, shared_noise: what the units of a pair have in common.
        dropped: units of either side left out, since they would tie samples that are treated as independent, or have
            no partner.
    """

    a: Int[np.ndarray, " n_a"]
    b: Int[np.ndarray, " n_b"]
    paired: bool
    shared_images: bool
    shared_noise: bool
    dropped: int


def unit_table(data: Mapping[str, DataSet]) -> pd.DataFrame:
    """units.parquet: a row an image that a run may measure; a unit is the position of its image."""
    rows = [
        (name, unit, image, data_set.measured.take([unit]).fingerprint())
        for name, data_set in data.items()
        for unit, image in enumerate(data_set.measured.ids)
    ]
    return pd.DataFrame(rows, columns=UNIT_COLUMNS)


def match_images(a: Units, b: Units) -> UnitMatch:
    """Units of protocol ``denoise``: the same image is the same unit, by its pixels or by its name in the same source.

    Two runs that share images are not independent, whatever their noise; a pair of images keeps what they share.
    """
    same_noise = a.noise == b.noise
    partner = _partners(a.fingerprints, b.fingerprints)
    if not partner and a.source == b.source:
        partner = _partners(a.images, b.images)  # the same photograph at another size
    left, right = np.arange(len(a.images)), np.arange(len(b.images))
    if partner and len(partner) >= _ENOUGH_SHARED * min(len(left), len(right)):
        pairs = np.array(sorted(partner.items()))
        dropped = len(left) + len(right) - 2 * len(pairs)
        # The noise of a unit is drawn for its position.
        aligned = bool((pairs[:, 0] == pairs[:, 1]).all())
        return UnitMatch(pairs[:, 0], pairs[:, 1], True, True, same_noise and aligned, dropped)
    alone = np.setdiff1d(right, list(partner.values()))
    return UnitMatch(left, alone, False, False, False, len(right) - len(alone))


def match_seeds(a: Units, b: Units, seeds_a: int, seeds_b: int) -> UnitMatch:
    """Units of protocol ``sample``: the same seed for the same data set starts from the same noise."""
    if a.noise != b.noise:
        return UnitMatch(np.arange(seeds_a), np.arange(seeds_b), False, False, False, 0)
    both = np.arange(min(seeds_a, seeds_b))
    return UnitMatch(both, both, True, False, True, abs(seeds_a - seeds_b))


def _partners(a: tuple[str, ...], b: tuple[str, ...]) -> dict[int, int]:
    """Position in ``b`` by position in ``a``; of names that occur twice the first one counts, once."""
    place: dict[str, int] = {}
    for position, name in enumerate(b):
        place.setdefault(name, position)
    found: dict[int, int] = {}
    for position, name in enumerate(a):
        if name in place:
            found[position] = place.pop(name)
    return found
