"""What a comparison's application shows: matched cells, and the effects, images and samples of both runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from sweeps.report import wording
from sweeps.report.cell_grid import WHOLE_LAYER
from sweeps.report.columns import counts, floats, names, numbers
from sweeps.report.compared import VERDICTS, Comparison
from sweeps.report.image_values import BUDGET_BYTES, fitting, packed_ratios, places
from sweeps.report.sample_grids import thinned
from sweeps.report.theme import BIN_EDGES, BIN_NAMES

MAX_CELLS = 20_000  # the surest; the others are in comparisons.parquet
SAMPLE_BYTES = 3_400_000
_KEYS = ["trial_a", "trial_b"]


def comparison_application(found: Comparison) -> dict[str, Any]:
    """For the script."""
    cells = pd.concat([found.primary, found.cells[found.cells["metric"] != found.metric]], ignore_index=True)
    cells = cells.drop_duplicates(_KEYS).head(MAX_CELLS).reset_index(drop=True)
    first = ~cells["trial_a"].duplicated()
    cells["id"] = cells["trial_a"].astype(str).where(first, cells["trial_b"].astype(str))
    metrics = dict.fromkeys([found.metric, *found.cells["metric"].astype(str)])
    samples, note = _samples(found, cells)
    return {
        "kind": "comparison",
        "metric": found.metric,
        "confidence": wording.CONFIDENCE,
        "names": dict(zip("ab", found.names, strict=True)),
        "looks": VERDICTS,
        "bins": {"edges": list(BIN_EDGES), "names": list(BIN_NAMES)},
        "cells": _cell_columns(cells),
        "contrasts": {metric: _contrast_columns(found, metric, cells) for metric in metrics},
        "images": _images(found.path, cells),
        "samples": samples,
        "samples_note": note,
    }


def windows_of(cell: Any) -> str:
    """``t 999–800``, or what it is in a and in b."""
    text = wording.window(cell)
    other = f"t {wording.number(cell.t_start_b)}–{wording.number(cell.t_end_b)}"
    return text if text == other else f"{text} → {other}"


def _cell_columns(cells: pd.DataFrame) -> dict[str, Any]:
    return {
        "id": cells["id"].tolist(),
        "site": names(wording.site(cell) for cell in cells.itertuples()),
        "level": names(cells["level"], ("head", "layer")),
        "layer": counts(cells["layer_index"]),
        "head": numbers(pd.to_numeric(cells["head"], errors="coerce").fillna(WHOLE_LAYER), "i4"),
        "stream": names(cells["stream"]),
        "mode": names(cells["variant"]),
        "dataset": names(cells["data"]),
        "protocol": names(cells["protocol"]),
        "window": counts(cells["window_index"]),
        "window_text": names(windows_of(cell) for cell in cells.itertuples()),
        "t": floats((cells["t_start"] + cells["t_end"]) / 2),
        "paired": names(np.where(cells["paired"].astype(bool), "paired", "independent")),
    }


def _contrast_columns(found: Comparison, metric: str, cells: pd.DataFrame) -> dict[str, Any]:
    place = {key: row for row, key in enumerate(cells[_KEYS].itertuples(index=False, name=None))}
    here = found.cells[found.cells["metric"] == metric].drop_duplicates(_KEYS)
    rows = [place.get(key, -1) for key in here[_KEYS].itertuples(index=False, name=None)]
    here = here.assign(cell=rows)[lambda part: part["cell"] >= 0]
    columns = ("estimate", "ci_low", "ci_high", "p", "q", "mean_a", "low_a", "high_a", "mean_b", "low_b", "high_b")
    return {name: floats(here[name]) for name in columns} | {
        "cell": counts(here["cell"]),
        "n_a": counts(here["n_a"]),
        "n_b": counts(here["n_b"]),
        "verdict": names(here["verdict"], VERDICTS),
    }


def _images(path: Path, cells: pd.DataFrame) -> dict[str, Any] | None:
    """Log ratios of the compared images in both runs; None where the comparison was made without them."""
    try:
        values = pd.read_parquet(path / "images.parquet")
    except (OSError, pa.ArrowException):
        return None
    values = values.drop_duplicates(_KEYS).set_index(_KEYS).reindex(pd.MultiIndex.from_frame(cells[_KEYS]))
    sides = {side: _matrix(values[side]) for side in ("a", "b")}
    sizes = places(sides["a"]) + places(sides["b"])
    if 2 * sizes.sum() > BUDGET_BYTES:
        first = fitting(sizes, BUDGET_BYTES // 2) // 2
        sides = {side: g[:, : max(1, first)] for side, g in sides.items()}
    return {side: packed_ratios(g) for side, g in sides.items()}


def _matrix(lists: pd.Series) -> np.ndarray:
    """[cells, units], NaN beyond the end of a cell's values."""
    rows = [np.asarray(values, dtype=np.float32) if np.ndim(values) else np.empty(0, np.float32) for values in lists]
    g = np.full((len(rows), max((len(row) for row in rows), default=0)), np.nan, dtype=np.float32)
    for place, row in enumerate(rows):
        g[place, : len(row)] = row
    return g


def _samples(found: Comparison, cells: pd.DataFrame) -> tuple[dict[str, dict[str, str]], str]:
    """The grids of both runs by cell, where their folders are still there, the largest differences first."""
    folders = {side: Path(str(found.facts[side].get("path", ""))) / "samples" for side in "ab"}
    files = [
        (f"{cell.id}/{side}", file)
        for cell in cells.itertuples()
        for side, trial in (("a", cell.trial_a), ("b", cell.trial_b))
        if (file := folders[side] / f"{trial}.png").is_file()
    ]
    grids = thinned(files, SAMPLE_BYTES)
    by_cell: dict[str, dict[str, str]] = {}
    for name, uri in grids.uris.items():
        cell, _, side = name.rpartition("/")
        by_cell.setdefault(cell, {})[side] = uri
    return by_cell, grids.note
