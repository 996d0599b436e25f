"""What was measured, on disk: Parquet parts that appear whole or not at all, and the files around them.

A part holds whole trials, so a trial that is in an intact part is recorded. Parts may overlap (a lease that ran twice);
readers drop the duplicates.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa

from sweeps.seals import Damaged, json_bytes, json_object, parquet_bytes, parquet_table, yaml_bytes, yaml_value

SCHEMA_VERSION = 1
MEASUREMENTS = pa.schema(
    [
        ("trial_id", pa.string()),
        ("unit", pa.int32()),
        ("metric", pa.string()),
        ("baseline", pa.float32()),
        ("ablated", pa.float32()),
    ]
)
KEY = ["trial_id", "unit", "metric"]

T = TypeVar("T")


class RunDirectoryError(RuntimeError):
    """A run directory that cannot be used; the message is one line for the user."""


class GaveOut(RuntimeError):
    """The work cannot go on here (a full disk, no worker that stays alive); the message is one line for the user."""


@dataclass(frozen=True)
class Failure:
    """A trial that failed for good."""

    trial_id: str
    error: str
    traceback: str
    attempts: int


class RunDirectory:
    """A run's files, by the names that other tools rely on."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.records = self.path / "records"
        self.samples = self.path / "samples"
        self.config = self.path / "config.yaml"
        self.trials = self.path / "trials.parquet"
        self.effects = self.path / "effects.parquet"
        self.comparisons = self.path / "comparisons.parquet"
        self.diagnostics = self.path / "diagnostics.parquet"
        self.heads = self.path / "heads.parquet"
        self.units = self.path / "units.parquet"
        self.failures = self.path / "failures.parquet"
        self.run = self.path / "run.json"
        self.progress = self.path / "progress.json"
        self._damaged: set[str] = set()
        self._trials_in: dict[str, tuple[str, ...]] = {}

    @property
    def where(self) -> str:
        """How the user names it."""
        return str(self.path)

    @property
    def lock(self) -> Path:
        """The file that names the driver at work, if there is one."""
        return self.path / "lock.json"

    def shown(self, file: Path) -> str:
        """How the user finds a file of it."""
        return str(file)

    def create(self, *folders: Path) -> None:
        """Make the run's folder, and these inside it.

        Raises:
            RunDirectoryError: they cannot be made.
        """
        try:
            for folder in (self.path, *folders):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirectoryError(f"run.root: {self.path} cannot be made ({reason(error)})") from error

    def clean(self) -> list[Path]:
        """Delete what a killed process left half written, and set damaged parts aside; only under the lock.

        Returns:
            the parts set aside, whose trials count as not measured.
        """
        for folder in (self.path, self.records, self.samples, self.path / "report"):
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)
        damaged = [part for part in self._listed() if self._trials_of(part) is None]
        for part in damaged:
            part.rename(part.with_suffix(".damaged"))
        return damaged

    def damage(self) -> list[str]:
        """A line for each part that was found damaged so far: what was computed from the parts lacks it."""
        told = "damaged, does not count; the sweep's command, run again, measures its trials again"
        return [f"{self.shown(self.records / name)}: {told}" for name in sorted(self._damaged)]

    # measurements

    def write_part(self, lease_id: str, measurements: pa.Table) -> Path:
        """Publish a lease's measurements: temporary name, sync, rename."""
        target = self.records / f"{lease_id}-{uuid.uuid4().hex[:8]}.parquet"
        publish_bytes(target, parquet_bytes(measurements))
        return target

    def tables(self) -> Iterator[pa.Table]:
        """The intact parts, one at a time, with ``trial_id`` and ``metric`` dictionary-encoded."""
        for part in self._listed():
            table = self._intact(part)
            if table is not None:
                yield table

    def recorded(self) -> set[str]:
        """Ids of the trials with measurements on disk."""
        return {trial_id for part in self._listed() for trial_id in self._trials_of(part) or ()}

    def _trials_of(self, part: Path) -> tuple[str, ...] | None:
        """Its trials, or None where it is damaged. A part is read once for this: it never changes."""
        if part.name not in self._trials_in:
            table = self._intact(part)
            if table is None:
                return None
            self._trials_in[part.name] = tuple(table.column("trial_id").unique().to_pylist())
        return self._trials_in[part.name]

    def _intact(self, part: Path) -> pa.Table | None:
        """A part's measurements, or None where a byte of it is wrong or missing."""
        try:
            return parquet_table(part.read_bytes(), MEASUREMENTS.names, ["trial_id", "metric"])
        except (Damaged, OSError):
            self._damaged.add(part.name)
            return None

    def measurements(self) -> pd.DataFrame:
        """Every measurement once."""
        tables = [table.cast(MEASUREMENTS) for table in self.tables()]
        frame = pa.concat_tables(tables or [MEASUREMENTS.empty_table()]).to_pandas()
        return frame.drop_duplicates(KEY, ignore_index=True)

    def _listed(self) -> list[Path]:
        return sorted(self.records.glob("*.parquet"))

    # the files around them

    def write_config(self, plain: dict[str, Any]) -> None:
        publish_bytes(self.config, yaml_bytes(plain))

    def read_config(self) -> dict[str, Any]:
        """
        Raises:
            RunDirectoryError: nothing was run here yet, or it is damaged.
        """
        config = self._opened(self.config, yaml_value)
        return config if isinstance(config, dict) else {}

    def write_frame(self, target: Path, frame: pd.DataFrame) -> None:
        publish_bytes(target, parquet_bytes(pa.Table.from_pandas(frame, preserve_index=False)))

    def read_frame(self, source: Path) -> pd.DataFrame:
        """
        Raises:
            RunDirectoryError: it is not there, or damaged.
        """
        return self._opened(source, parquet_table).to_pandas()

    def _opened(self, source: Path, read: Callable[[bytes], T]) -> T:
        """What a file holds, in one line of error where it holds nothing."""
        try:
            return read(source.read_bytes())
        except OSError as error:
            raise RunDirectoryError(f"{self.where} holds no run: {source.name} cannot be read") from error
        except Damaged as error:
            raise RunDirectoryError(
                f"{self.shown(source)} is damaged, or was edited; the command of its sweep, run again, writes it anew"
            ) from error

    def write_failures(self, failures: Iterable[Failure]) -> None:
        rows = [vars(f) for f in failures]
        if rows:
            self.write_frame(self.failures, pd.DataFrame(rows))
        else:
            self.failures.unlink(missing_ok=True)

    def read_failures(self) -> list[Failure]:
        """Trials that failed in earlier runs; none where the file is absent or from another version."""
        try:
            rows = self.read_frame(self.failures).to_dict("records")
            return [Failure(**{str(key): value for key, value in row.items()}) for row in rows]
        except (RunDirectoryError, TypeError):
            return []

    def write_run(self, facts: dict[str, Any]) -> None:
        """Merge into run.json, which grows over the life of a run."""
        merged = self.read_run() | facts | {"schema_version": SCHEMA_VERSION}
        publish_bytes(self.run, json_bytes(merged))

    def read_run(self) -> dict[str, Any]:
        """
        Raises:
            RunDirectoryError: a newer version wrote it, or it is damaged.
        """
        if not self.run.is_file():
            return {}
        try:
            facts = json_object(self.run.read_bytes())
            written_by = int(facts.get("schema_version", SCHEMA_VERSION))
        except (OSError, TypeError, ValueError) as error:
            raise RunDirectoryError(
                f"{self.shown(self.run)} is damaged, or was edited; delete it to go on without it"
            ) from error
        if written_by > SCHEMA_VERSION:
            raise RunDirectoryError(
                f"{self.where} was written by a newer version (schema {written_by}, this one knows {SCHEMA_VERSION})"
            )
        return facts


def measurement_table(
    trial_ids: list[str], metric: str, baseline: np.ndarray, ablated: np.ndarray, first_unit: int = 0
) -> pa.Table:
    """One metric of several trials as rows. ``baseline`` is ``[units]``, ``ablated`` ``[trials, units]``."""
    trials, units = ablated.shape
    return pa.table(
        {
            "trial_id": np.repeat(np.array(trial_ids, dtype=object), units),
            "unit": np.tile(np.arange(first_unit, first_unit + units, dtype=np.int32), trials),
            "metric": pa.array([metric] * (trials * units)),
            "baseline": np.tile(baseline.astype(np.float32), trials),
            "ablated": ablated.astype(np.float32).reshape(-1),
        },
        schema=MEASUREMENTS,
    )


def publish(target: Path, write: Callable[[Path], Any], synced: bool = True) -> None:
    """Write a file so that it is there whole or not at all, whatever kills the process.

    Args:
        synced: also after a power cut; takes some ten milliseconds.

    Raises:
        GaveOut: it cannot be written, because the disk is full, say.
    """
    temporary = target.parent / f".{target.name}-{uuid.uuid4().hex[:8]}.tmp"
    try:
        write(temporary)
        if synced:
            with temporary.open("rb+") as handle:
                os.fsync(handle.fileno())
        os.replace(temporary, target)
        if synced:
            _sync_folder(target.parent)
    except OSError as error:
        _discard(temporary)
        raise GaveOut(f"{target} could not be written ({reason(error)})") from error
    except BaseException:
        _discard(temporary)
        raise


def publish_bytes(target: Path, content: bytes) -> None:
    """``publish`` of what a file is to hold."""
    publish(target, lambda temporary: temporary.write_bytes(content))


def _sync_folder(folder: Path) -> None:
    """Make a rename in it durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _discard(temporary: Path) -> None:
    with contextlib.suppress(
        OSError
    ):  # what made the write fail may keep it from being deleted; the next run cleans up
        temporary.unlink(missing_ok=True)


def reason(error: OSError) -> str:
    """What went wrong, in a few words."""
    return error.strerror or str(error)
