"""Sample grids for the picked trial: as small as they show, the strongest trials first, within a budget of bytes."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from sweeps.report.reported_run import CALLED, CELL_KEYS, ReportedRun

_WIDEST = 384
_MAGNIFICATIONS = (4, 3, 2)
_QUALITY = 80


@dataclass(frozen=True)
class SampleGrids:
    """
    Attributes:
        uris: by name; the others are in samples/. available: how many there are. unreadable: those that are torn.
    """

    uris: dict[str, str]
    available: int = 0
    unreadable: int = 0

    @property
    def note(self) -> str:
        if not self.available:
            return ""
        torn = f" {self.unreadable:,} could not be read." if self.unreadable else ""
        if len(self.uris) + self.unreadable >= self.available:
            return f"Small copies; the originals are in samples/.{torn}"
        return (
            f"Thinned to keep this page small: {len(self.uris):,} of {self.available:,} grids are here, "
            f"those called and the strongest first. All are in samples/.{torn}"
        )


def sample_grids(run: ReportedRun, trials: pd.DataFrame, budget: int) -> SampleGrids:
    """Of these trials (rows of trials.parquet with `verdict` and `mean_log_ratio`), up to so many bytes of base64."""
    files = grid_files(run, trials)
    size = pd.to_numeric(trials["mean_log_ratio"], errors="coerce").abs()
    order = trials.assign(called=trials["verdict"].isin(CALLED), size=size)
    order = order[order["trial_id"].isin(files)].sort_values(["called", "size"], ascending=False, kind="stable")
    return thinned([(trial_id, files[trial_id]) for trial_id in order["trial_id"]], budget)


def thinned(files: Sequence[tuple[str, Path]], budget: int) -> SampleGrids:
    """In this order, up to so many bytes of base64."""
    uris: dict[str, str] = {}
    unreadable = 0
    for name, path in files:
        if budget <= 0:
            break
        try:
            uri = small_copy(path)
        except (OSError, ValueError, Image.DecompressionBombError):
            unreadable += 1
            continue
        budget -= len(uri)
        if budget >= 0:
            uris[name] = uri
    return SampleGrids(uris, len(files), unreadable)


def grid_files(run: ReportedRun, trials: pd.DataFrame) -> dict[str, Path]:
    """The grid of each trial: its own, or that of the trial that generated images with the same ablation."""
    folder = run.path / "samples"
    files = {path.stem: path for path in folder.glob("*.png")} if folder.is_dir() else {}
    if not files:
        return {}
    keys = ["dataset", *CELL_KEYS]
    sampled = run.trials[run.trials["trial_id"].isin(files)].drop_duplicates(keys)
    merged = trials[[*keys, "trial_id"]].merge(sampled[[*keys, "trial_id"]], on=keys, suffixes=("", "_sampled"))
    found = {row.trial_id: files[row.trial_id_sampled] for row in merged.itertuples()}
    return found | {name: files[name] for name in trials["trial_id"] if name in files}


def small_copy(path: Path) -> str:
    """A data URI; pixels that were only repeated are there once, and what is wide is made narrower."""
    with Image.open(path, formats=["PNG"]) as opened:
        image: Any = opened.convert("L" if opened.mode in ("1", "L", "I;16", "I") else "RGB")
    image = _once(image)
    if image.width > _WIDEST:
        height = max(1, round(image.height * _WIDEST / image.width))
        image = image.resize((_WIDEST, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_QUALITY, method=2)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _once(image: Any) -> Any:
    """Undo a magnification by repeated pixels."""
    pixels = np.asarray(image)
    for times in _MAGNIFICATIONS:
        if image.height % times or image.width % times:
            continue
        small = pixels[::times, ::times]
        if np.array_equal(np.repeat(np.repeat(small, times, axis=0), times, axis=1), pixels):
            return Image.fromarray(small)
    return image
