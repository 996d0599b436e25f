"""What two runs have measured of the same cells: log ratios of both, unit by unit as they are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from sweeps.aggregate import TESTED
from sweeps.gains import Gains, read_gains
from sweeps.matching import CROSSABLE, CellMatch
from sweeps.records import RunDirectory, RunDirectoryError
from sweeps.units import UnitMatch, Units

PairingKey = tuple[str, str, str]
"""Data set in a, data set in b, protocol."""


@dataclass(frozen=True)
class ComparedRun:
    """A run as far as a comparison needs it."""

    directory: RunDirectory
    trials: pd.DataFrame
    config: dict[str, Any]
    facts: dict[str, Any]
    units: dict[str, Units]

    @property
    def name(self) -> str:
        return self.directory.path.name

    @property
    def stats(self) -> Mapping[str, Any]:
        return self.config["stats"]

    @property
    def stops_early(self) -> bool:
        return self.stats.get("statistic", "none") != "none"

    @cached_property
    def gains(self) -> dict[str, Gains]:
        found = read_gains(self.directory, self.trials["trial_id"].tolist(), TESTED)
        if not found:
            raise RunDirectoryError(f"{self.directory.where} has no measurements of its planned trials yet")
        return found


def image_ratios(
    match: CellMatch, a: ComparedRun, b: ComparedRun, pairings: Mapping[PairingKey, UnitMatch], metric: str
) -> pd.DataFrame:
    """What the comparison of each cell rests on: g of every unit in a and in b, side by side where they are paired."""
    rows = []
    for key, part in by_pairing(measured_cells(match, a, b, metric)):
        g_a, g_b = compared_gains(part, key, pairings[key], a, b, metric)
        rows += [
            {
                "trial_a": trial_a,
                "trial_b": trial_b,
                "paired": pairings[key].paired,
                "a": _known(left),
                "b": _known(right),
            }
            for trial_a, trial_b, left, right in zip(part["trial_a"], part["trial_b"], g_a, g_b, strict=True)
        ]
    return pd.DataFrame(rows, columns=["trial_a", "trial_b", "paired", "a", "b"])


def measured_cells(match: CellMatch, a: ComparedRun, b: ComparedRun, metric: str) -> pd.DataFrame:
    """The matched cells measured on a metric in both runs, with the axes of b also where they are those of a."""
    cells = match.cells
    there = cells["trial_a"].isin(a.gains[metric].trial_ids) & cells["trial_b"].isin(b.gains[metric].trial_ids)
    axes = [axis for columns in CROSSABLE.values() for axis in columns]
    return cells.assign(**{f"{axis}_b": cells[axis] for axis in axes if f"{axis}_b" not in cells})[there]


def by_pairing(cells: pd.DataFrame) -> Iterator[tuple[PairingKey, pd.DataFrame]]:
    for key, part in cells.groupby(["dataset", "dataset_b", "protocol"], sort=False):
        yield (str(key[0]), str(key[1]), str(key[2])), part


def compared_gains(
    cells: pd.DataFrame, key: PairingKey, units: UnitMatch, a: ComparedRun, b: ComparedRun, metric: str
) -> tuple[Float[np.ndarray, "cells n_a"], Float[np.ndarray, "cells n_b"]]:
    """g in a and in b on the units that are compared, NaN elsewhere."""
    g_a = columns_of(a.gains[metric].of(cells["trial_a"].tolist()), units.a)
    g_b = columns_of(b.gains[metric].of(cells["trial_b"].tolist()), units.b)
    if units.paired:
        gone = np.isnan(g_a) | np.isnan(g_b)
        g_a, g_b = np.where(gone, np.nan, g_a), np.where(gone, np.nan, g_b)
    if key[2] == "denoise" and (a.stops_early or b.stops_early):
        # When a trial stopped depends on its values, so only the first looks, which every trial has, are compared.
        g_a, g_b = complete(g_a), complete(g_b)
    return g_a, g_b


def columns_of(g: Float[np.ndarray, "cells units"], units: np.ndarray) -> Float[np.ndarray, "cells wanted"]:
    """These units, NaN where a run never measured so many."""
    missing = int(units.max(initial=-1)) + 1 - g.shape[1]
    padded = np.pad(g, ((0, 0), (0, missing)), constant_values=np.nan) if missing > 0 else g
    return padded[:, units]


def complete(g: Float[np.ndarray, "cells units"]) -> Float[np.ndarray, "cells shared"]:
    """The units that every cell has."""
    return g[:, ~np.isnan(g).any(axis=0)]


def _known(g: Float[np.ndarray, " units"]) -> Float[np.ndarray, " known"]:
    return g[~np.isnan(g)].astype(np.float32)
