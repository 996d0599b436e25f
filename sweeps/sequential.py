"""Effects of trials that a stopping rule ended: its verdicts, and p-values and intervals that hold wherever it stopped.

The decisions are taken again from the records, so they need no file of their own, and images measured beyond a
decision (in flight when it was taken, or by an earlier run that waited for a trial since failed) count for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from circuits.statistics import (
    SequentialResult,
    SequentialTrials,
    StoppingRule,
    by,
    effects,
    percent,
    repeated_intervals,
)
from sweeps.gains import Gains, aligned
from sweeps.rounds import decide, family_labels

_FEWEST = 2


def sequential_effects(
    trials: pd.DataFrame, gain_table: Mapping[str, Gains], metric: str, rule: StoppingRule, axes: Sequence[str]
) -> Iterator[pd.DataFrame]:
    """Rows of effects.parquet, metric by metric, for the governed ``trials`` (rows of trials.parquet).

    The registered ``metric`` decides, corrected within families of trials alike in ``axes``. The others are described
    on the images that it took: their p-values are the rule's too, which are valid whatever ended a trial, and they stop
    nothing.
    """
    ids = trials["trial_id"].tolist()
    images = trials["images"].to_numpy(dtype=np.int64)
    families = family_labels(trials, axes)
    primary = aligned(gain_table.get(metric), ids, int(images.max()))
    decided = decide(families, images.tolist(), primary, rule).result()
    yield _table(ids, metric, primary, images, decided, rule)
    for other, measured in gain_table.items():
        if other != metric:
            g = aligned(measured, ids, int(images.max()))
            yield _table(ids, other, g, images, _described(g, decided.n, families, images, rule), rule)


def _described(
    g: np.ndarray, counts: np.ndarray, families: Sequence[str], images: np.ndarray, rule: StoppingRule
) -> SequentialResult:
    """Evidence of a metric that decides nothing, on the first ``counts`` images of the trials that have them."""
    state = SequentialTrials(len(g), rule, families, n_max=images)
    for n in np.unique(counts):
        rows = np.flatnonzero((counts == n) & ~np.isnan(g[:, :n]).any(axis=1))
        if n and rows.size:
            state.update(rows, 0, g[rows, :n])
    return state.result()


def _table(
    ids: Sequence[str], metric: str, g: np.ndarray, images: np.ndarray, found: SequentialResult, rule: StoppingRule
) -> pd.DataFrame:
    """A row for each trial with at least two images."""
    q_by, names = by(found.p_degraded), np.array(ids, dtype=object)
    pieces = []
    for n in np.unique(found.n[found.n >= _FEWEST]):
        rows = np.flatnonzero(found.n == n)
        values = g[rows, :n]
        sizes = effects(values)
        interval = repeated_intervals(values, rule, images[rows])
        stopped = found.stopped[rows].astype(object)
        stopped[stopped == ""] = None
        pieces.append(
            pd.DataFrame(
                {
                    "trial_id": names[rows], "metric": metric, "n": int(n),
                    "mean_log_ratio": sizes.mean_log_ratio, "percent": sizes.percent,
                    "ci_low": percent(interval.low), "ci_high": percent(interval.high), "d_z": sizes.d_z,
                    "p_degraded": sizes.p_degraded, "p": found.p_degraded[rows], "q": found.q_degraded[rows],
                    "q_by": q_by[rows], "verdict": found.verdict[rows].astype(object), "stopped": stopped,
                },
                index=rows,
            )
        )  # fmt: skip
    return pd.concat(pieces).sort_index() if pieces else pd.DataFrame()
