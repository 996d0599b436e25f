"""False discovery rates over many trials: flat (BH, BY) and hierarchical (families of trials)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.stats import false_discovery_control

from circuits.statistics.validation import check_fraction, check_labels, check_probabilities, check_vector


def bh(p: Sequence[float] | np.ndarray) -> Float[np.ndarray, " trials"]:
    """Benjamini-Hochberg adjusted p-values (scipy): FDR <= alpha under independence or positive dependence (PRDS)."""
    p = check_probabilities(p, "p")
    return false_discovery_control(p, method="bh") if p.size else p


def by(p: Sequence[float] | np.ndarray) -> Float[np.ndarray, " trials"]:
    """Benjamini-Yekutieli adjusted p-values (scipy): FDR <= alpha under any dependence, at a cost of log m."""
    p = check_probabilities(p, "p")
    return false_discovery_control(p, method="by") if p.size else p


@dataclass(frozen=True)
class HierarchicalFDR:
    """Result of `hierarchical_fdr`.

    q: per trial, the smallest alpha at which the whole procedure rejects the trial; `q <= alpha` is its rejection.
    rejected: q <= alpha.
    families: the family labels, sorted; family_p their Simes p-values; family_q their BH-adjusted values.
    family_index: the index into `families` of every trial.
    """

    q: Float[np.ndarray, " trials"]
    rejected: Bool[np.ndarray, " trials"]
    families: Shaped[np.ndarray, " families"]
    family_p: Float[np.ndarray, " families"]
    family_q: Float[np.ndarray, " families"]
    family_index: Int[np.ndarray, " trials"]
    alpha: float


def hierarchical_fdr(
    p: Sequence[float] | np.ndarray, family: Sequence[object] | np.ndarray, alpha: float = 0.05
) -> HierarchicalFDR:
    """Simes per family, BH over the m families, then BH inside each of the R selected families at alpha R / m.

    Benjamini & Bogomolov, "Selective inference on multiple families of hypotheses" (JRSS B 76, 2014): controls the
    expected average FDP over the selected families, and the FDR of the family discoveries, both at alpha; flat BH
    controls neither. Assumes independence or positive dependence inside and across families.

    The procedure is monotone in alpha. With family q-values Q_(1) <= ... <= Q_(m) and the within-family BH value b of a
    trial, it rejects at alpha exactly when some k has Q_(k) <= alpha and m b <= k alpha (a family whose trial passes
    is itself selected, because the smallest b of a family is its Simes p). Hence
    q = min over k of max(Q_(k), m b / k), which is never below b, hence never below p.
    """
    p = check_probabilities(p, "p")
    codes = check_labels(family, "family", p.size)
    check_fraction(alpha, "alpha")
    labels = np.unique(np.asarray(family))
    m = labels.size
    within = np.empty_like(p)
    family_p = np.empty(m)
    order = np.argsort(codes, kind="stable")
    for index, members in enumerate(np.split(order, np.cumsum(np.bincount(codes, minlength=m))[:-1]) if m else []):
        within[members] = bh(p[members])
        family_p[index] = within[members].min()
    family_q = bh(family_p)
    q = _smallest_alpha(within, np.sort(family_q))
    return HierarchicalFDR(
        q=q, rejected=q <= alpha, families=labels, family_p=family_p, family_q=family_q, family_index=codes, alpha=alpha
    )


def _smallest_alpha(
    within: Float[np.ndarray, " trials"], family_q: Float[np.ndarray, " families"]
) -> Float[np.ndarray, " trials"]:
    """min over k of max(Q_(k), m b / k): the first rises with k and the second falls, so the crossing decides."""
    m = family_q.size
    if not m:
        return within
    k = np.arange(1, m + 1)
    first = np.searchsorted(k * family_q, m * within, side="left")  # 0-based: the first k with k Q_(k) >= m b
    rising = np.where(first < m, family_q[np.minimum(first, m - 1)], np.inf)
    falling = np.where(first > 0, m * within / np.maximum(first, 1), np.inf)
    return np.minimum(np.minimum(rising, falling), 1.0)


def e_bh(e: Sequence[float] | np.ndarray) -> Float[np.ndarray, " trials"]:
    """e-BH (Wang & Ramdas, JRSS B 84, 2022) as adjusted values: BH on min(1, 1 / e); FDR <= alpha under any dependence.

    `e` must be e-values stopped in one common filtration: for trials that share images, all at the same round.
    """
    e = check_vector(e, "e", length=0)
    if e.size and e.min() < 0:
        raise ValueError(f"e: expected e-values of at least 0, got {e.min():g}")
    return bh(1.0 / np.maximum(e, 1.0))
