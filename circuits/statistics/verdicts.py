"""Equivalence at a registered margin, and the four verdicts of a trial."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped
from scipy.special import stdtr

from circuits.statistics.effects import moments
from circuits.statistics.validation import TINY, check_fraction, check_matrix, check_positive, check_probabilities

Verdict = Literal["degraded", "improved", "negligible", "inconclusive"]

MARGIN: float = float(np.log(1.05))
"""Default margin of equivalence on the log scale: the geometric mean ratio within +-5 %."""


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests (TOST) of |mean g| < margin. p is the larger of the two one-sided p-values."""

    p: Float[np.ndarray, " trials"]
    p_above_lower: Float[np.ndarray, " trials"]
    p_below_upper: Float[np.ndarray, " trials"]
    margin: float


def equivalence_test(g: Float[np.ndarray, "trials n"], margin: float = MARGIN) -> Equivalence:
    """TOST per trial: reject "mean g <= -margin" and "mean g >= margin" by one-sided t tests (Schuirmann 1987).

    `margin` is on the log scale, symmetric, fixed before the run. Assumes independent images; exact for normal g.
    A constant row is equivalent with the smallest p if it lies inside the margin, and with p = 1 if not.
    Agrees with statsmodels' ttost_paired.
    """
    g = check_matrix(g, "g")
    check_positive(margin, "margin")
    m = moments(g)
    error = m.sd / np.sqrt(m.n)
    lower = _tail(m.mean + margin, error, m.n - 1)
    upper = _tail(margin - m.mean, error, m.n - 1)
    return Equivalence(p=np.maximum(lower, upper), p_above_lower=lower, p_below_upper=upper, margin=margin)


def verdicts(
    q_degraded: Sequence[float] | np.ndarray,
    q_improved: Sequence[float] | np.ndarray,
    q_negligible: Sequence[float] | np.ndarray,
    alpha: float = 0.05,
) -> Shaped[np.ndarray, " trials"]:
    """One of degraded, improved, negligible, inconclusive per trial, from three adjusted p-values.

    q_degraded and q_improved come from the two one-sided tests against 0, q_negligible from the equivalence test,
    each adjusted over all trials. Where a trial is both inside the margin and different from 0, **negligible wins**:
    the margin was registered as the smallest effect of interest, and an effect shown to be smaller is not one.
    A trial is degraded or improved, never both: q >= p, and the two p-values cannot both be below 1/2.
    FDR is controlled for the rejections of each test; "degraded" is that set less the trials shown negligible.
    """
    degraded = check_probabilities(q_degraded, "q_degraded")
    improved = check_probabilities(q_improved, "q_improved")
    negligible = check_probabilities(q_negligible, "q_negligible")
    if not degraded.shape == improved.shape == negligible.shape:
        raise ValueError(
            "q_degraded, q_improved, q_negligible: expected one length, got "
            f"{degraded.size}, {improved.size}, {negligible.size}"
        )
    check_fraction(alpha, "alpha")
    verdict = np.full(degraded.shape, "inconclusive", dtype="<U12")
    verdict[improved <= alpha] = "improved"
    verdict[degraded <= alpha] = "degraded"
    verdict[negligible <= alpha] = "negligible"
    return verdict


def _tail(
    distance: Float[np.ndarray, " trials"], error: Float[np.ndarray, " trials"], df: int
) -> Float[np.ndarray, " trials"]:
    """P(T_df >= distance / error), with the limits for error = 0."""
    certain = np.where(distance > 0, TINY, 1.0)
    p = stdtr(df, -distance / np.where(error > 0, error, 1.0))
    return np.where(error > 0, np.maximum(p, TINY), certain)
