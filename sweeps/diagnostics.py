"""What the report needs of the per-image values beside the effects: halves, skewness, and intervals of ranks."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import skew

from circuits.seeds import numpy_generator
from circuits.statistics import RankIntervals, rank_intervals, screened_rank_intervals
from sweeps.gains import Gains

COLUMNS = [
    "trial_id", "metric", "skewness", "half_a", "half_b", "rank", "rank_low", "rank_high", "ranked", "rank_images",
]  # fmt: skip
TOP = 200
"""Trials ranked, at most; of more than that, those that lead on every other image are ranked on the images between."""

_FEWEST_IMAGES = 8
_BLOCK = 4_096


def diagnostics(trials: pd.DataFrame, measured: Gains | None, metric: str) -> pd.DataFrame:
    """A row for each trial measured on the registered metric.

    skewness: of g over images (biased moment estimator; 0 where g is constant). half_a, half_b: mean g over the even
    and the odd ones of the trial's images. rank, rank_low, rank_high: of a head among the `ranked` head trials of its
    data set, 1 = largest mean g, simultaneous 95 % intervals from `rank_images` images; empty where it is not ranked.
    """
    if measured is None:
        return pd.DataFrame(columns=COLUMNS)
    table = pd.DataFrame(index=pd.Index(measured.trial_ids, name="trial_id"), columns=COLUMNS[2:], dtype=float)
    for rows, g in measured.groups():
        ids = measured.trial_ids[rows]
        table.loc[ids, "skewness"] = _skewness(g)
        table.loc[ids, "half_a"] = g[:, ::2].mean(axis=1, dtype=np.float64)
        table.loc[ids, "half_b"] = g[:, 1::2].mean(axis=1, dtype=np.float64)
    for dataset, ids in _rankable(trials, measured):
        found = _ranks(measured.of(ids), dataset)
        if found is not None:
            chosen = [ids[index] for index in found.trials]
            table.loc[chosen, "rank"] = found.rank
            table.loc[chosen, "rank_low"] = found.low
            table.loc[chosen, "rank_high"] = found.high
            table.loc[chosen, "ranked"] = len(chosen)
            table.loc[chosen, "rank_images"] = found.n
    return table.reset_index().assign(metric=metric)[COLUMNS]


def _skewness(g: Float[np.ndarray, "trials n"]) -> Float[np.ndarray, " trials"]:
    found = np.zeros(len(g))
    for start in range(0, len(g), _BLOCK):
        rows = g[start : start + _BLOCK].astype(np.float64)
        varies = rows.max(axis=1) > rows.min(axis=1)
        found[start : start + _BLOCK][varies] = skew(rows[varies], axis=1)
    return found


def _rankable(trials: pd.DataFrame, measured: Gains) -> list[tuple[str, list[str]]]:
    """Head trials by data set: trials of one data set share their images, which ranks need."""
    there = trials["trial_id"].isin(measured.trial_ids) & (trials["level"] == "head")
    if "phase" in trials:
        there &= ~trials["phase"].isin(["search", "control"])
    return [(str(name), part["trial_id"].tolist()) for name, part in trials[there].groupby("dataset", sort=False)]


def _ranks(g: Float[np.ndarray, "trials units"], dataset: str) -> RankIntervals | None:
    """On the images that every trial was measured on; None where trials or images are too few."""
    g = g[:, ~np.isnan(g).any(axis=0)]
    if len(g) < 2 or g.shape[1] < _FEWEST_IMAGES:
        return None
    rng = numpy_generator(0, f"ranks/{dataset}")
    if len(g) <= TOP:
        return rank_intervals(g, rng)
    return screened_rank_intervals(g, np.arange(g.shape[1]) % 2 == 0, rng, top=TOP)
