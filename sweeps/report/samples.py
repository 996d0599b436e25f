"""Sample grids of the strongest trials, inlined within a budget of bytes."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from sweeps.report import wording
from sweeps.report.reported_run import CALLED, CELL_KEYS, SITE_KEYS, ReportedRun

BUDGET_BYTES = 3_000_000
_HEADS, _OTHERS = 5, 3  # distinct sites shown a data set
_SMALLER_WIDTH = 600


@dataclass(frozen=True)
class SampleGrid:
    trial_id: str
    site: str
    where: str
    effect: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Gallery:
    by_dataset: dict[str, list[SampleGrid]]
    available: int
    unreadable: int

    @property
    def shown(self) -> int:
        return sum(map(len, self.by_dataset.values()))


def sample_gallery(run: ReportedRun, budget: int = BUDGET_BYTES) -> Gallery:
    """The strongest called effects on each data set that have samples, each site once, in its strongest cell."""
    folder = run.path / "samples"
    files = {path.stem: path for path in folder.glob("*.png")} if folder.is_dir() else {}
    sampled = run.trials[run.trials["trial_id"].isin(files)]
    keys = ["dataset", *CELL_KEYS]
    called = run.cells[run.cells["verdict"].isin(CALLED)]
    merged = called.merge(sampled[[*keys, "trial_id"]], on=keys, suffixes=("", "_sampled"))
    chosen = {name: list(_strongest_sites(merged[merged["dataset"] == name])) for name in run.datasets}
    share = budget // max(1, sum(map(len, chosen.values())))
    grids: dict[str, list[SampleGrid]] = {name: [] for name in run.datasets}
    unreadable = 0
    for name, trials in chosen.items():
        for trial in trials:
            try:
                uri, (width, height) = _encoded(files[trial.trial_id_sampled], share)
            except OSError:
                unreadable += 1
                continue
            effect = wording.effect(trial)
            where = f"{trial.variant}, {wording.window(trial)}"
            grids[name].append(SampleGrid(trial.trial_id, wording.site(trial), where, effect, uri, width, height))
    return Gallery({name: shown for name, shown in grids.items() if shown}, len(files), unreadable)


def _strongest_sites(cells: pd.DataFrame) -> Iterator[Any]:
    distinct = cells.drop_duplicates(SITE_KEYS)
    yield from distinct[distinct["level"] == "head"].head(_HEADS).itertuples()
    yield from distinct[distinct["level"] != "head"].head(_OTHERS).itertuples()


def _encoded(path: Path, share: int) -> tuple[str, tuple[int, int]]:
    """A data URI of at most about `share` bytes, and the size in pixels. Large grids become smaller JPEGs."""
    with Image.open(path, formats=["PNG"]) as image:
        image.load()
        size = image.size
        data, kind = path.read_bytes(), "png"
        if len(data) * 4 / 3 > share:
            width = min(_SMALLER_WIDTH, image.width)
            size = (width, max(1, round(image.height * width / image.width)))
            buffer = io.BytesIO()
            image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=80)
            data, kind = buffer.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}", size
