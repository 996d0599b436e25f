"""Profiles on disk: a part a data set and timestep, circuits a data set, and maps of a few heads, each whole or absent.

Everything that the analysis of a run says about heads is computed from these files, so that it can be computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Float

from circuits.circuit_sizes import NestedCircuits
from circuits.profiles import HeadProfiles
from circuits.sites import AttentionLayer
from sweeps.records import RunDirectory, RunDirectoryError, publish_bytes
from sweeps.seals import Damaged, json_bytes, json_object, parquet_bytes, read_parquet

RANK = "effective_rank"
ENERGY = "output_energy"
LAYER = ("index", "name", "projection", "heads", "head_dim", "tokens", "kind", "stream")  # what analysis needs of one
PARTS = pa.schema(
    [("dataset", pa.string()), ("t", pa.int32()), ("name", pa.string()), ("head", pa.int32()),
     ("values", pa.list_(pa.float32()))]
)  # fmt: skip
CIRCUITS = pa.schema(
    [("dataset", pa.string()), ("heads", pa.int32()), ("unit", pa.int32()), ("baseline", pa.float64()),
     ("error", pa.float64())]
)  # fmt: skip


@dataclass(frozen=True)
class StoredProfiles:
    """Everything that was profiled.

    Attributes:
        heads: as ``profile_heads`` returns them; the mass on text tokens is not stored.
        ranks: effective rank of head outputs by data set; empty where it was not measured.
        circuits: by data set; empty where none were measured.
    """

    heads: HeadProfiles
    ranks: Mapping[str, Float[np.ndarray, "heads timesteps images"]]
    circuits: Mapping[str, NestedCircuits]


class ProfileStore:
    """The folder ``profiles/`` of a run."""

    def __init__(self, directory: RunDirectory) -> None:
        self.folder = directory.path / "profiles"
        self.maps = self.folder / "maps.parquet"
        self.sets = self.folder / "sets.parquet"
        self._layers = self.folder / "layers.json"

    def clean(self) -> None:
        """Delete what a killed process left half written."""
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)

    # parts: one data set at one timestep

    def part(self, dataset: str, t: int) -> Path:
        return self.folder / f"heads-{_digest(dataset)}-t{t:06d}.parquet"

    def has_part(self, dataset: str, t: int) -> bool:
        return _is_whole(self.part(dataset, t))

    def write_part(self, dataset: str, t: int, values: Mapping[str, Float[np.ndarray, "heads units"]]) -> None:
        """Values by name, per head and unit."""
        rows = [(name, head, row) for name, found in values.items() for head, row in enumerate(found)]
        table = pa.table(
            {
                "dataset": [dataset] * len(rows),
                "t": pa.array([t] * len(rows), pa.int32()),
                "name": [name for name, _, _ in rows],
                "head": pa.array([head for _, head, _ in rows], pa.int32()),
                "values": pa.array([row.astype(np.float32) for _, _, row in rows], pa.list_(pa.float32())),
            },
            schema=PARTS,
        )
        self._write(self.part(dataset, t), table)

    # circuits: one data set

    def circuits(self, dataset: str) -> Path:
        return self.folder / f"circuits-{_digest(dataset)}.parquet"

    def has_circuits(self, dataset: str) -> bool:
        return _is_whole(self.circuits(dataset))

    def write_circuits(self, dataset: str, found: NestedCircuits) -> None:
        sizes, images = found.errors.shape
        table = pa.table(
            {
                "dataset": [dataset] * (sizes * images),
                "heads": np.repeat(found.sizes.astype(np.int32), images),
                "unit": np.tile(found.images.astype(np.int32), sizes),
                "baseline": np.tile(found.baseline, sizes),
                "error": found.errors.reshape(-1),
            },
            schema=CIRCUITS.with_metadata({b"order": json.dumps(found.order.tolist()).encode()}),
        )
        self._write(self.circuits(dataset), table)

    # everything

    def write_plan(
        self, layers: Sequence[AttentionLayer], datasets: Sequence[str], timesteps: Sequence[int], complexity: bool
    ) -> None:
        """What is to be there in the end."""
        plain = [{name: getattr(layer, name) for name in LAYER} for layer in layers]
        content = {
            "layers": plain, "datasets": list(datasets), "timesteps": list(timesteps), "complexity": complexity,
        }  # fmt: skip
        publish_bytes(self._layers, json_bytes(content))

    def read(self) -> StoredProfiles | None:
        """What was profiled; None where there is nothing, or not all of it yet.

        Raises:
            RunDirectoryError: a file is damaged.
        """
        plan = self._read_plan()
        if plan is None:
            return None
        datasets, timesteps = plan["datasets"], tuple(plan["timesteps"])
        values, ranks, circuits = {}, {}, {}
        for dataset in datasets:
            parts = [_values(_read(self.part(dataset, t))) for t in timesteps]
            if any(part is None for part in parts):
                return None
            stacked = {name: np.stack([part[name] for part in parts if part], axis=1) for name in parts[0] or {}}
            if RANK in stacked:
                ranks[dataset] = stacked.pop(RANK)
            values[dataset] = stacked
            if plan["complexity"]:
                table = _read(self.circuits(dataset))
                if table is None:
                    return None
                circuits[dataset] = _circuits(table)
        layers = tuple(_layer(plain) for plain in plan["layers"])
        return StoredProfiles(HeadProfiles(layers, timesteps, values, {name: {} for name in datasets}), ranks, circuits)

    def _read_plan(self) -> dict[str, Any] | None:
        if not self._layers.is_file():
            return None
        try:
            plan = json_object(self._layers.read_bytes())
            plan["layers"], plan["datasets"], plan["timesteps"], plan["complexity"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunDirectoryError(f"{self._layers} is damaged; delete it, and the sweep profiles again") from error
        return plan

    def read_frame(self, source: Path) -> pd.DataFrame | None:
        """A table of this folder, or None where it is not there.

        Raises:
            RunDirectoryError: it is damaged.
        """
        table = _read(source)
        return None if table is None else table.to_pandas()

    def has_frame(self, source: Path) -> bool:
        return _is_whole(source)

    def write_frame(self, target: Path, frame: pd.DataFrame) -> None:
        self._write(target, pa.Table.from_pandas(frame, preserve_index=False))

    def _write(self, target: Path, table: pa.Table) -> None:
        publish_bytes(target, parquet_bytes(table))


def _digest(name: str) -> str:
    """Of a data set's name, which may hold anything."""
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def _layer(plain: dict[str, Any]) -> AttentionLayer:
    return AttentionLayer(values=None, **{name: plain[name] for name in LAYER})


def _read(source: Path) -> pa.Table | None:
    """A table, or None where it is not there.

    Raises:
        RunDirectoryError: it is damaged.
    """
    try:
        return read_parquet(source)
    except FileNotFoundError:
        return None
    except (OSError, Damaged) as error:
        raise RunDirectoryError(f"{source} is damaged; the command of its sweep, run again, profiles again") from error


def _is_whole(source: Path) -> bool:
    try:
        return _read(source) is not None
    except RunDirectoryError:
        return False


def _values(table: pa.Table | None) -> dict[str, Float[np.ndarray, "heads units"]] | None:
    if table is None:
        return None
    rows = table.to_pandas().sort_values(["name", "head"], kind="stable")
    return {str(name): np.stack(part["values"].to_list()) for name, part in rows.groupby("name", sort=False)}


def _circuits(table: pa.Table) -> NestedCircuits:
    metadata = table.schema.metadata or {}
    frame = table.to_pandas()
    errors = frame.pivot(index="heads", columns="unit", values="error")
    baseline = frame.drop_duplicates("unit").set_index("unit")["baseline"].reindex(errors.columns)
    return NestedCircuits(
        order=np.array(json.loads(metadata[b"order"])),
        sizes=errors.index.to_numpy(),
        images=errors.columns.to_numpy(),
        baseline=baseline.to_numpy(),
        errors=errors.to_numpy(),
    )
