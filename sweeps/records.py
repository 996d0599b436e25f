"""What was measured, on disk: Parquet parts that appear whole or not at all, and the files around them.

A part holds whole trials, so a trial that is in a readable part is recorded. Parts may overlap (a lease that ran twice); readers
drop the duplicates.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

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


class RunDirectoryError(RuntimeError):
    """A run directory that cannot be used; the message is one line for the user."""


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
        self.failures = self.path / "failures.parquet"
        self.run = self.path / "run.json"

    def create(self) -> None:
        self.records.mkdir(parents=True, exist_ok=True)
        self.samples.mkdir(exist_ok=True)
        for leftover in self.path.rglob(".*.tmp"):
            leftover.unlink(missing_ok=True)

    # measurements

    def write_part(self, lease_id: str, measurements: pa.Table) -> Path:
        """Publish a lease's measurements: temporary name, sync, rename."""
        target = self.records / f"{lease_id}-{uuid.uuid4().hex[:8]}.parquet"
        publish(target, lambda temporary: pq.write_table(measurements, temporary, compression="zstd"))
        return target

    def parts(self) -> tuple[list[Path], list[Path]]:
        """Readable and unreadable parts; a part without a valid footer (cut off, overwritten) counts for nothing."""
        good: list[Path] = []
        bad: list[Path] = []
        for part in sorted(self.records.glob("*.parquet")):
            try:
                known = set(pq.read_schema(part).names) >= set(MEASUREMENTS.names)
            except (pa.ArrowException, OSError):
                known = False
            (good if known else bad).append(part)
        return good, bad

    def recorded(self) -> set[str]:
        """Ids of the trials with measurements on disk."""
        found: set[str] = set()
        for part in self.parts()[0]:
            try:
                column = pq.read_table(part, columns=["trial_id"]).column(0)
            except (pa.ArrowException, OSError):
                continue  # a damaged column: its trials are measured again
            found.update(column.unique().to_pylist())
        return found

    def measurements(self) -> pd.DataFrame:
        """Every measurement once."""
        tables = []
        for part in self.parts()[0]:
            try:
                tables.append(pq.read_table(part, columns=MEASUREMENTS.names))
            except (pa.ArrowException, OSError):
                continue
        table = pa.concat_tables(tables) if tables else MEASUREMENTS.empty_table()
        frame = table.to_pandas()
        return frame.drop_duplicates(KEY, ignore_index=True)

    # the files around them

    def write_config(self, plain: dict[str, Any]) -> None:
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        publish(self.config, lambda temporary: temporary.write_text(text))

    def read_config(self) -> dict[str, Any]:
        return yaml.safe_load(self.config.read_text())

    def write_frame(self, target: Path, frame: pd.DataFrame) -> None:
        publish(target, lambda temporary: frame.to_parquet(temporary, index=False))

    def write_failures(self, failures: Iterable[Failure]) -> None:
        rows = [vars(f) for f in failures]
        if rows:
            self.write_frame(self.failures, pd.DataFrame(rows))
        else:
            self.failures.unlink(missing_ok=True)

    def write_run(self, facts: dict[str, Any]) -> None:
        """Merge into run.json, which grows over the life of a run."""
        merged = self.read_run() | facts | {"schema_version": SCHEMA_VERSION}
        text = json.dumps(merged, indent=2, default=str) + "\n"
        publish(self.run, lambda temporary: temporary.write_text(text))

    def read_run(self) -> dict[str, Any]:
        try:
            facts = json.loads(self.run.read_text())
        except (OSError, json.JSONDecodeError):
            return {}
        if facts.get("schema_version", SCHEMA_VERSION) > SCHEMA_VERSION:
            raise RunDirectoryError(
                f"{self.path} was written by a newer version (schema {facts['schema_version']}, this one knows {SCHEMA_VERSION})"
            )
        return facts


def measurement_table(trial_ids: list[str], metric: str, baseline: np.ndarray, ablated: np.ndarray) -> pa.Table:
    """One metric of several trials as rows. ``baseline`` is ``[units]``, ``ablated`` ``[trials, units]``; units count from 0."""
    trials, units = ablated.shape
    return pa.table(
        {
            "trial_id": np.repeat(np.array(trial_ids, dtype=object), units),
            "unit": np.tile(np.arange(units, dtype=np.int32), trials),
            "metric": pa.array([metric] * (trials * units)),
            "baseline": np.tile(baseline.astype(np.float32), trials),
            "ablated": ablated.astype(np.float32).reshape(-1),
        },
        schema=MEASUREMENTS,
    )


def publish(target: Path, write: Callable[[Path], Any]) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut."""
    temporary = target.parent / f".{target.name}-{uuid.uuid4().hex[:8]}.tmp"
    try:
        write(temporary)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class RunLock:
    """Only one driver works on a run directory; a lock left by a dead process of this machine is taken over."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "lock.json"

    def __enter__(self) -> RunLock:
        mine = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
        for _ in range(2):
            try:
                with self._path.open("x") as handle:
                    handle.write(mine)
                return self
            except FileExistsError:
                self._refuse_if_alive()
                self._path.unlink(missing_ok=True)
        raise RunDirectoryError(f"could not take the lock {self._path}; another driver is starting at the same time")

    def _refuse_if_alive(self) -> None:
        try:
            holder = json.loads(self._path.read_text())
            host, pid = str(holder["host"]), int(holder["pid"])
        except (OSError, ValueError, KeyError, TypeError):
            return  # cut off while being written: its writer is gone or is about to retry
        here = host == socket.gethostname()
        if not here or _alive(pid):
            raise RunDirectoryError(
                f"{self._path.parent} is in use by process {pid} on {host}; wait for it, or delete {self._path} if it is dead"
            )

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
