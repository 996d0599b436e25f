"""Paired measurements as tables of effects: estimate, interval, p, q and verdict of every trial.

One definition for sweeps and notebooks, so that both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from circuits.statistics import bh, by, equivalence_test, hierarchical_fdr, signflip_test, verdicts
from circuits.statistics import effects as sizes_of

_FLOOR = float(np.finfo(np.float32).tiny)


def gains(ablated: np.ndarray, baseline: np.ndarray) -> Float[np.ndarray, "*any"]:
    """log(ablated / baseline); an error of exactly zero counts as the smallest float32."""
    return np.log(np.maximum(ablated, _FLOOR, dtype=np.float64)) - np.log(
        np.maximum(baseline, _FLOOR, dtype=np.float64)
    )


def estimates(g: Float[np.ndarray, "trials n"], margin: float) -> pd.DataFrame:
    """Effect sizes and unadjusted p-values of trials measured on equally many images, a row each.

    Args:
        g: log(ablated / baseline).
        margin: of "negligible", on the log scale.
    """
    found = sizes_of(g)
    return pd.DataFrame(
        {
            "n": found.n,
            "mean_log_ratio": found.mean_log_ratio,
            "percent": found.percent,
            "ci_low": found.ci_low,
            "ci_high": found.ci_high,
            "d_z": found.d_z,
            "p_degraded": found.p_degraded,
            "p": signflip_test(g, "greater").p,
            "p_improved": signflip_test(g, "less").p,
            "p_negligible": equivalence_test(g, margin).p,
        }
    )


def adjusted(table: pd.DataFrame, families: Sequence[object] | np.ndarray, alpha: float) -> pd.DataFrame:
    """The ``estimates`` of one metric with ``q``, ``q_by`` and ``verdict``, corrected over all rows of the table.

    Args:
        families: of the rows; trials of a family are corrected together (``hierarchical_fdr``).
    """
    p = table["p"].to_numpy()
    q = hierarchical_fdr(p, families, alpha).q
    improved = hierarchical_fdr(table["p_improved"].to_numpy(), families, alpha).q
    verdict = verdicts(q, improved, bh(table["p_negligible"].to_numpy()), alpha)
    return table.assign(q=q, q_by=by(p), verdict=verdict)
