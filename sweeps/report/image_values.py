"""Values image by image, as the page carries them: log ratios of every trial, and what they are relative to.

A log ratio is kept as a 16-bit step of its trial's largest one, so it is off by at most 1/65,534 of that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32

from sweeps.gains import Gains, aligned, read_gains
from sweeps.records import RunDirectory
from sweeps.report.columns import Column, numbers

BUDGET_BYTES = 1_500_000  # before base64
MAX_RECORD_BYTES = 250_000_000  # records that take longer to read than a reader of the page would wait
_STEPS = 32_767
_MISSING = -32_768


@dataclass(frozen=True)
class ImageValues:
    """
    Attributes:
        data: for the script. first: images of a trial that are here at most; None where all of them are.
        left_out: metrics without values here. too_many: whether the records were not read at all.
    """

    data: dict[str, Any]
    first: int | None = None
    left_out: tuple[str, ...] = ()
    too_many: bool = False


def image_values(
    directory: RunDirectory, trials: pd.DataFrame, metrics: Sequence[str], budget: int = BUDGET_BYTES
) -> ImageValues:
    """Of these trials, the first metric before the others, as far as the budget goes.

    Args:
        trials: `trial_id`, and `dataset`, `protocol`, `t_start`, `t_end`, which say what a baseline belongs to.
    """
    parts = list(directory.records.glob("*.parquet"))
    if trials.empty or not parts:
        return ImageValues({})
    if sum(part.stat().st_size for part in parts) > MAX_RECORD_BYTES:
        return ImageValues({}, left_out=tuple(metrics), too_many=True)
    ids = trials["trial_id"].tolist()
    group = trials.groupby(["dataset", "protocol", "t_start", "t_end"], sort=False, dropna=False).ngroup().to_numpy()
    found = read_gains(directory, ids, metrics)
    kept: dict[str, np.ndarray] = {}
    first: int | None = None
    for metric in (metric for metric in metrics if metric in found):
        g = _prefixes(found[metric], ids)
        size = 2 * int(places(g).sum())
        if size > budget:
            if kept:
                continue
            first = fitting(places(g), budget // 2)
            g, size = g[:, :first], budget
        kept[metric] = g
        budget -= size
    baselines = read_baselines(directory, dict(zip(ids, group, strict=True)), {m: g.shape[1] for m, g in kept.items()})
    data = {metric: packed_ratios(g) | {"baseline": numbers(baselines[metric], "f4")} for metric, g in kept.items()}
    left_out = tuple(metric for metric in metrics if metric in found and metric not in kept)
    return ImageValues({"group": numbers(group, "u4"), "metrics": data} if data else {}, first, left_out)


def read_baselines(
    directory: RunDirectory, groups: Mapping[str, int], widths: Mapping[str, int]
) -> dict[str, Float32[np.ndarray, "groups units"]]:
    """What the unablated model had on every unit: the same for all trials of a group, NaN where nothing is known.

    Where trials of a group disagree by more than rounding (parts from different machines), it is NaN too.
    """
    shapes = {metric: (max(groups.values()) + 1, width) for metric, width in widths.items()}
    least = {metric: np.full(shape, np.inf, np.float32) for metric, shape in shapes.items()}
    most = {metric: np.full(shape, -np.inf, np.float32) for metric, shape in shapes.items()}
    for table in directory.tables():
        for batch in table.to_batches():
            trial, metric = batch.column("trial_id"), batch.column("metric")
            of_trial = np.array([groups.get(name, -1) for name in trial.dictionary.to_pylist()], dtype=int)
            group, units = of_trial[trial.indices.to_numpy()], batch.column("unit").to_numpy()
            codes, baseline = metric.indices.to_numpy(), batch.column("baseline").to_numpy()
            for code, name in enumerate(metric.dictionary.to_pylist()):
                if name in shapes:
                    here = np.flatnonzero((codes == code) & (group >= 0) & (units < widths[name]))
                    np.minimum.at(least[name], (group[here], units[here]), baseline[here])
                    np.maximum.at(most[name], (group[here], units[here]), baseline[here])
    return {
        name: np.where(np.isclose(least[name], most[name], rtol=1e-3, atol=0), least[name], np.nan) for name in shapes
    }


def _prefixes(measured: Gains, ids: Sequence[str]) -> Float32[np.ndarray, "trials units"]:
    g = aligned(measured, ids, measured.g.shape[1])
    g[~np.isfinite(g)] = np.nan
    return g


def places(g: np.ndarray) -> np.ndarray:
    """Places up to the last value of a trial."""
    there = ~np.isnan(g)
    return np.where(there.any(axis=1), g.shape[1] - np.argmax(there[:, ::-1], axis=1), 0)


def fitting(sizes: np.ndarray, room: int) -> int:
    """The most images a trial for which all trials together take no more than so many places."""
    totals = np.array([np.minimum(sizes, most).sum() for most in range(1, int(sizes.max(initial=0)) + 1)])
    return max(1, int((totals <= room).sum()))


def packed_ratios(g: np.ndarray) -> dict[str, Column | int]:
    """Log ratios [trials, units], NaN where there is none."""
    counts = places(g)
    largest = np.nan_to_num(np.abs(g)).max(axis=1, initial=0)
    step = np.where(largest > 0, largest / _STEPS, 1).astype(np.float32)
    codes = np.where(np.isnan(g), _MISSING, np.clip(np.rint(np.nan_to_num(g) / step[:, None]), -_STEPS, _STEPS))
    flat = codes[np.arange(g.shape[1]) < counts[:, None]]
    return {
        "units": g.shape[1],
        "counts": numbers(counts, "u4"),
        "step": numbers(step, "f4"),
        "codes": numbers(flat, "i2"),
    }
