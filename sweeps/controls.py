"""Is ablating a head worse than removing as much of a random subspace? And how much does measuring twice differ?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from circuits.interventions import Mode
from circuits.statistics import bh, control_contrast
from sweeps.comparison_names import NOISE_FLOOR, WORSE_ON_IMAGES, WORSE_THAN_CONTROLS
from sweeps.gains import Gains


def control_contrasts(trials: pd.DataFrame, measured: Gains) -> pd.DataFrame:
    """Rows of comparisons.parquet: each zeroed head against the random subspaces of its data set, window and layer.

    Two claims with the same estimate, the mean over images of (head - mean of the controls) in log ratios. "Over
    images": worse than the average control, paired over the n_a images that all have. "Over controls": at least as bad
    as all but a share p of the n_b controls, so p is never below 1 / (n_b + 1). A claim about both needs both.
    """
    there = trials[trials["trial_id"].isin(measured.trial_ids) & (trials["strength"] == 1)]
    heads = there[(there["mode"] == Mode.zero.value) & (there["level"] == "head") & (there["phase"] == "grid")]
    drawn = there[there["mode"] == Mode.subspace.value]
    pieces = []
    axes = ["dataset", "protocol", "layer_index", "window_index"]
    controls = {key: part["trial_id"].tolist() for key, part in drawn.groupby(axes)}
    for key, part in heads.groupby(axes, sort=False):
        g = measured.of([*part["trial_id"], *controls.get(key, [])])
        g = g[:, ~np.isnan(g).any(axis=0)]
        if key not in controls or g.shape[1] < 2:
            continue
        found = control_contrast(g[: len(part)], g[len(part) :])
        groups = [
            f"layer {layer} head {head} | zero | window {window} | {dataset}"
            for layer, head, window, dataset in zip(
                part["layer_index"], part["head"], part["window_index"], part["dataset"], strict=True
            )
        ]
        shared = {
            "group": groups, "estimate": found.estimate, "ci_low": found.ci_low, "ci_high": found.ci_high,
            "n_a": found.n, "n_b": found.controls,
        }  # fmt: skip
        pieces.append(pd.DataFrame({**shared, "name": WORSE_ON_IMAGES, "p": found.p_images}))
        pieces.append(pd.DataFrame({**shared, "name": WORSE_THAN_CONTROLS, "p": found.p}))
    if not pieces:
        return pd.DataFrame()
    every = pd.concat(pieces, ignore_index=True)
    return every.assign(q=every.groupby("name")["p"].transform(lambda p: bh(p.to_numpy())))


def noise_floor(trials: pd.DataFrame, measured: Gains) -> pd.DataFrame:
    """A row of comparisons.parquet a data set: the largest |log ratio| of an image measured twice without ablation.

    Only the batches differ, so it is what rounding does; effects of its size are none.
    """
    again = trials[(trials["phase"] == "control") & (trials["strength"] == 0)]
    rows = []
    for dataset, part in again.groupby("dataset", sort=False):
        ids = [trial_id for trial_id in part["trial_id"] if trial_id in set(measured.trial_ids)]
        if ids:
            g = measured.of(ids)
            values = np.abs(g[~np.isnan(g)])
            rows.append({"name": NOISE_FLOOR, "group": dataset, "estimate": values.max(), "n_a": values.size, "n_b": 0})
    return pd.DataFrame(rows)
