"""Reads what a sweep has recorded so far, a part file once, and reduces it to a few numbers per trial and metric."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from sweeps.seals import Damaged, read_parquet

COLUMNS = ["trial_id", "unit", "metric", "baseline", "ablated"]


@dataclass(frozen=True, slots=True)
class MetricMeans:
    """Means over units (images or seeds); `log_ratio` of log(ablated / baseline), where both are positive."""

    units: int
    baseline: float
    ablated: float
    log_ratio: float

    @property
    def percent(self) -> float:
        """Percent degradation, 100 (exp(mean log ratio) - 1)."""
        with np.errstate(over="ignore"):
            return float(100 * np.expm1(self.log_ratio))


@dataclass(frozen=True, slots=True)
class Measured:
    rows: int
    """Measurements after duplicates are dropped."""
    metrics: dict[str, MetricMeans]


@dataclass
class RecordIndex:
    """Which part files hold which trial. Part files never change; compaction may replace them all."""

    directory: Path
    rows: dict[str, int] = field(default_factory=dict)
    """Rows of each trial, duplicates included."""
    _parts_of: dict[str, list[Path]] = field(default_factory=dict)
    _read: set[Path] = field(default_factory=set)

    def scan(self) -> None:
        """Index the part files that are new. A torn one is not a record yet: it is tried again next time."""
        present = set(self.directory.glob("*.parquet")) if self.directory.is_dir() else set()
        if self._read - present:
            self.rows, self._parts_of, self._read = {}, {}, set()
        for part in sorted(present - self._read):
            try:
                column = read_parquet(part, COLUMNS)["trial_id"]
            except (OSError, Damaged):
                continue
            self._read.add(part)
            for entry in pc.value_counts(column.cast(pa.string()).combine_chunks()).to_pylist():
                trial = entry["values"]
                self.rows[trial] = self.rows.get(trial, 0) + entry["counts"]
                self._parts_of.setdefault(trial, []).append(part)

    def in_order(self, trials: Iterable[str]) -> list[str]:
        """Trials that share part files next to each other, so that `measure` reads each file about once."""
        return sorted(trials, key=lambda trial: str(self._parts_of[trial][0]))

    def measure(self, trials: Iterable[str]) -> dict[str, Measured]:
        wanted = list(trials)
        if not wanted:
            return {}
        parts = sorted({part for trial in wanted for part in self._parts_of[trial]})
        frames = [_rows_of(read_parquet(part, COLUMNS), wanted) for part in parts]
        frame = pd.concat(frames, ignore_index=True).drop_duplicates(["trial_id", "unit", "metric"])
        return _reduce(frame)


def _rows_of(table: pa.Table, trials: list[str]) -> pd.DataFrame:
    keep = pc.is_in(table["trial_id"].cast(pa.string()), value_set=pa.array(trials, pa.string()))
    table = table.filter(keep)
    return pd.DataFrame(
        {
            "trial_id": table["trial_id"].cast(pa.string()).to_pylist(),
            "unit": table["unit"].to_numpy(),
            "metric": table["metric"].cast(pa.string()).to_pylist(),
            "baseline": table["baseline"].to_numpy().astype(np.float64),
            "ablated": table["ablated"].to_numpy().astype(np.float64),
        }
    )


def _reduce(frame: pd.DataFrame) -> dict[str, Measured]:
    baseline, ablated = frame["baseline"].to_numpy(), frame["ablated"].to_numpy()
    paired = (baseline > 0) & (ablated > 0) & np.isfinite(baseline) & np.isfinite(ablated)
    ratio = np.full(len(frame), np.nan)
    ratio[paired] = np.log(ablated[paired] / baseline[paired])
    means = (
        frame.assign(log_ratio=ratio)
        .groupby(["trial_id", "metric"], sort=False)
        .agg(
            units=("unit", "size"),
            baseline=("baseline", "mean"),
            ablated=("ablated", "mean"),
            log_ratio=("log_ratio", "mean"),
        )
    )
    metrics: dict[str, dict[str, MetricMeans]] = {}
    for trial, metric, units, mean_baseline, mean_ablated, log_ratio in means.reset_index().itertuples(index=False):
        metrics.setdefault(trial, {})[metric] = MetricMeans(int(units), mean_baseline, mean_ablated, log_ratio)
    rows = frame["trial_id"].value_counts()
    return {trial: Measured(int(rows[trial]), found) for trial, found in metrics.items()}
