"""A run directory written from per-image values chosen by a test: no model behind it, every number known."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from sweeps.records import RunDirectory, measurement_table
from sweeps.units import UNIT_COLUMNS

BASELINE = 0.25
"""Of every measurement: a power of two, so that log(ablated / baseline) loses nothing to it."""


@dataclass(frozen=True)
class Cell:
    """A trial and its g per unit; NaN for a unit that was not measured."""

    g: Sequence[float] | np.ndarray
    layer: int = 0
    head: int = 0
    mode: str = "zero"
    dataset: str = "natural"
    protocol: str = "denoise"
    window: tuple[int, int] = (999, 500)
    strength: float = 1.0
    metric: str = "noise_mse"
    level: str = "head"
    sites: tuple[str, ...] = ()

    def row(self, run: str) -> dict[str, object]:
        where = (run, self.layer, self.head, self.dataset, self.protocol, self.window, self.sites)
        content = repr((*where, self.mode, self.strength))
        return {
            "trial_id": hashlib.sha256(content.encode()).hexdigest()[:16], "model": "m", "dataset": self.dataset,
            "protocol": self.protocol, "level": self.level, "layer": f"blocks.{self.layer}.attn",
            "layer_index": self.layer, "head": self.head, "stream": "image", "mode": self.mode,
            "strength": self.strength, "window_index": int(self.window[0] < 999), "t_start": self.window[0],
            "t_end": self.window[1], "sites": list(self.sites) or [f"blocks.{self.layer}.attn:{self.head}"],
        }  # fmt: skip


def write_run(
    path: Path,
    cells: Sequence[Cell],
    *,
    images: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    metric: str = "noise_mse",
    revision: str = "r1",
    margin: float = 0.05,
    sources: Mapping[str, str] | None = None,
) -> RunDirectory:
    """``images``: fingerprints by data set, in the order of the units; by default the same in every run."""
    directory = RunDirectory(path)
    directory.create(directory.records)
    names = list(dict.fromkeys(cell.dataset for cell in cells))
    source = {name: (sources or {}).get(name, "lfw_faces") for name in names}
    sets = [{"name": name, "source": source[name], "label": 1, "root": None} for name in names]
    directory.write_config(
        {
            "mode": "run", "sweep": {"name": "synthetic", "seed": seed}, "model": {"name": "m", "dtype": "float32"},
            "data": {"name": "faces", "root": None, "sets": sets}, "run": {"name": path.name},
            "stats": {"metric": metric, "alpha": 0.05, "margin": margin},
        }
    )  # fmt: skip
    model = {"name": "m", "revision": revision}
    directory.write_run({"model": model, "timesteps": [900, 100], "counts": {"trials": len(cells)}})
    rows = pd.DataFrame([cell.row(path.name) for cell in cells])
    directory.write_frame(directory.trials, rows.drop_duplicates("trial_id", ignore_index=True))
    for index, cell in enumerate(cells):
        g = np.asarray(cell.g, dtype=float)
        ids, baseline = [str(rows["trial_id"][index])], np.full(len(g), BASELINE)
        table = measurement_table(ids, cell.metric, baseline, BASELINE * np.exp(g)[None])
        directory.write_part(f"{index:04d}", table.filter(pa.array(~np.isnan(g))))
    most = max(len(cell.g) for cell in cells)
    units = [
        (name, unit, f"{name}_{fingerprint}", fingerprint)
        for name in names
        for unit, fingerprint in enumerate((images or {}).get(name, [f"{name}-{i}" for i in range(most)]))
    ]
    directory.write_frame(directory.units, pd.DataFrame(units, columns=UNIT_COLUMNS))
    return directory


def measured(g: Sequence[float] | np.ndarray) -> np.ndarray:
    """g as it comes back from the records: float32 measurements, and their log ratio in float32."""
    ablated = (BASELINE * np.exp(np.asarray(g, dtype=float))).astype(np.float32).astype(float)
    return (np.log(ablated) - np.log(BASELINE)).astype(np.float32).astype(float)
