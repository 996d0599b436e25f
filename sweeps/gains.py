"""g = log(ablated / baseline) of every trial on every image, streamed from the records part by part."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Float32, Int

from circuits.effect_tables import gains
from sweeps.records import RunDirectory


@dataclass(frozen=True)
class Gains:
    """One metric of a run.

    Attributes:
        trial_ids: of the rows; only trials with a measurement.
        g: float32, as precise as the measurements it comes from; NaN where a trial was not measured on a unit.
    """

    trial_ids: np.ndarray
    g: Float32[np.ndarray, "trials units"]

    @property
    def counts(self) -> Int[np.ndarray, " trials"]:
        """Units measured per trial."""
        return np.count_nonzero(~np.isnan(self.g), axis=1)

    def groups(self) -> Iterator[tuple[Int[np.ndarray, " rows"], Float32[np.ndarray, "rows n"]]]:
        """Trials measured on equally many units (two at least), and their values without gaps."""
        counts = self.counts
        for n in np.unique(counts[counts >= 2]):
            rows = np.flatnonzero(counts == n)
            if n == self.g.shape[1] and len(rows) == len(self.g):
                yield rows, self.g
                continue
            chosen = self.g[rows]
            yield rows, chosen[~np.isnan(chosen)].reshape(len(rows), int(n))

    def of(self, trial_ids: Sequence[str]) -> Float32[np.ndarray, "wanted units"]:
        """Rows of these trials, in this order.

        Raises:
            KeyError: a trial without measurements.
        """
        places = pd.Index(self.trial_ids).get_indexer(pd.Index(trial_ids))
        if (places < 0).any():
            raise KeyError(f"no measurements of trial {trial_ids[int(np.argmin(places))]}")
        return self.g[places]


def aligned(measured: Gains | None, trial_ids: Sequence[str], width: int) -> Float32[np.ndarray, "trials width"]:
    """The first ``width`` units of these trials; NaN where nothing was measured."""
    g = np.full((len(trial_ids), width), np.nan, dtype=np.float32)
    if measured is not None:
        places = pd.Index(measured.trial_ids).get_indexer(pd.Index(trial_ids))
        there, wide = places >= 0, min(width, measured.g.shape[1])
        g[there, :wide] = measured.g[places[there], :wide]
    return g


def read_gains(directory: RunDirectory, trial_ids: Sequence[str], metrics: Collection[str]) -> dict[str, Gains]:
    """The metrics that the records hold, of these trials, in the order of ``metrics``; a part at a time is in memory.

    Where two parts hold the same measurement (a lease that ran twice) the first one counts.
    """
    place = {trial_id: row for row, trial_id in enumerate(trial_ids)}
    matrices: dict[str, np.ndarray] = {}
    for table in directory.tables():
        for batch in table.to_batches():
            for metric, rows, units, g in _by_metric(batch, place, metrics):
                known = matrices.get(metric)
                matrices[metric] = _filled(known, len(place), rows, units, g)
    found: dict[str, Gains] = {}
    for metric in metrics:
        if metric in matrices:
            matrix = matrices.pop(metric)
            there = ~np.isnan(matrix).all(axis=1)
            ids = np.array(trial_ids, dtype=object)
            found[metric] = Gains(ids, matrix) if there.all() else Gains(ids[there], matrix[there])
    return found


def _by_metric(
    batch: pa.RecordBatch, place: Mapping[str, int], metrics: Collection[str]
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Row, unit and g of the planned trials' measurements, metric by metric."""
    trial, metric = batch.column("trial_id"), batch.column("metric")
    rows = np.array([place.get(name, -1) for name in trial.dictionary.to_pylist()])[trial.indices.to_numpy()]
    codes, units = metric.indices.to_numpy(), batch.column("unit").to_numpy()
    ablated, baseline = batch.column("ablated").to_numpy(), batch.column("baseline").to_numpy()
    for code, name in enumerate(metric.dictionary.to_pylist()):
        if name in metrics:
            here = np.flatnonzero((codes == code) & (rows >= 0))
            if here.size:
                yield name, rows[here], units[here], gains(ablated[here], baseline[here])


def _filled(
    matrix: np.ndarray | None, trials: int, rows: np.ndarray, units: np.ndarray, g: np.ndarray
) -> Float32[np.ndarray, "trials units"]:
    """The matrix with these values where it had none; wider if need be."""
    width = int(units.max()) + 1
    if matrix is None:
        matrix = np.full((trials, width), np.nan, dtype=np.float32)
    elif width > matrix.shape[1]:
        wider = np.full((trials, width), np.nan, dtype=np.float32)
        wider[:, : matrix.shape[1]] = matrix
        matrix = wider
    free = np.isnan(matrix[rows, units])
    # Backwards, so that of two equal places in one part the first one stays; numpy may walk a reversed view forwards.
    backwards = np.flatnonzero(free)[::-1]
    matrix[rows[backwards], units[backwards]] = g[backwards]
    return matrix
