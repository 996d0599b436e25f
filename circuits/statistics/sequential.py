"""Stopping a trial as soon as its verdict is certain, for many trials that share one image order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from circuits.statistics.evidence import Accumulator, BettingEProcess, Evidence, ObrienFleming, SignEProcess
from circuits.statistics.fdr import bh, by, e_bh, hierarchical_fdr
from circuits.statistics.validation import (
    check_choice,
    check_count,
    check_fraction,
    check_labels,
    check_matrix,
    check_positive,
)
from circuits.statistics.verdicts import MARGIN, verdicts

Statistic = Literal["obf", "sign", "betting"]
Correction = Literal["hierarchical", "bh", "by", "e-bh"]


@dataclass(frozen=True)
class StoppingRule:
    """Fixed before the run.

    statistic: "obf" (default), "sign" or "betting": see `evidence`.
    correction: "hierarchical" or "bh" for obf; "by" (default of the e-processes) or "e-bh" (synchronous rounds only)
    for sign and betting, whose p = 1 / sup E come with no positive dependence. None chooses the default.
    n_max: images of a trial that is never stopped. first: images before OBF first looks. batch: images between looks.
    horizons: of OBF, pairs (fraction of n_max, share of the error); ((1, 1),) is the classical boundary. The default
    adds one at half of n_max: it saves a further 17 % of the images in the reference sweep (margin .3 sd), where 97.6 %
    of the verdicts of fixed N are kept (99.1 % by the classical boundary), both with clear = 0.
    margin: of "negligible", on the log scale. alpha: FDR of each of the three sets of claims.
    clear: an effect that is certain ends its trial only where the mean so far is beyond this share of the margin; a
    smaller one goes on, since further images may yet show that it is negligible, which is the verdict then. With 0 the
    first certain verdict ends a trial: fewer images, but small effects are degraded that fixed N calls negligible.
    futility: a trial whose *unadjusted* p of "mean below margin" falls to this stops as "futile", freeing compute. It
    stays inconclusive unless its adjusted p-values come to support a verdict; None (default) never stops for futility,
    because at .05 nearly every negligible trial would end as futile just before it can be called negligible.
    """

    statistic: Statistic = "obf"
    correction: Correction | None = None
    n_max: int = 256
    first: int = 16
    batch: int = 16
    horizons: tuple[tuple[float, float], ...] = ((0.5, 0.75), (1.0, 0.25))
    margin: float = MARGIN
    alpha: float = 0.05
    clear: float = 0.8
    futility: float | None = None

    def __post_init__(self) -> None:
        check_choice(self.statistic, "statistic", get_args(Statistic))
        allowed = ("hierarchical", "bh", "by") if self.statistic == "obf" else ("by", "e-bh")
        if self.correction is None:
            object.__setattr__(self, "correction", allowed[0])
        check_choice(str(self.correction), f"correction of statistic={self.statistic}", allowed)
        check_count(self.n_max, "n_max", least=2)
        check_count(self.first, "first", least=2)
        check_count(self.batch, "batch")
        check_positive(self.margin, "margin")
        check_fraction(self.alpha, "alpha")
        if self.futility is not None:
            check_fraction(self.futility, "futility")
        if not 0 <= self.clear < np.inf:
            raise ValueError(f"clear: expected a share of the margin, 0 or more, got {self.clear}")
        if max(f for f, _ in self.horizons) != 1 or min(min(pair) for pair in self.horizons) <= 0:
            raise ValueError(f"horizons: expected positive pairs, the last fraction 1, got {self.horizons}")
        if abs(sum(share for _, share in self.horizons) - 1) > 1e-9:
            raise ValueError(f"horizons: expected shares that sum to 1, got {self.horizons}")
        if self.first > self.n_max:
            raise ValueError(f"first: expected at most n_max = {self.n_max}, got {self.first}")


@dataclass(frozen=True)
class SequentialResult:
    """Per trial, after any number of images.

    p, q: of "degraded" (`improved` and `negligible` likewise). n: images counted.
    verdict: degraded, improved, negligible or inconclusive; that of a decided trial was fixed when it stopped.
    stopped: "decided", "futile", or "" for a trial that is still running or has all its images.
    """

    n: Int[np.ndarray, " trials"]
    p_degraded: Float[np.ndarray, " trials"]
    p_improved: Float[np.ndarray, " trials"]
    p_negligible: Float[np.ndarray, " trials"]
    q_degraded: Float[np.ndarray, " trials"]
    q_improved: Float[np.ndarray, " trials"]
    q_negligible: Float[np.ndarray, " trials"]
    verdict: Shaped[np.ndarray, " trials"]
    stopped: Shaped[np.ndarray, " trials"]


class SequentialTrials:
    """The state of a sequential sweep: feed images with `update`, stop trials with `decide`, read `result`.

    All trials see one random image order; position i is the i-th image of that order. State depends on the images
    alone and not on how they were batched, so it is rebuilt from records by feeding them again.
    """

    def __init__(
        self,
        trials: int,
        rule: StoppingRule,
        family: Sequence[object] | np.ndarray | None = None,
        n_max: Sequence[int] | Int[np.ndarray, " trials"] | None = None,
    ) -> None:
        """`n_max`: images of each trial, where a data set has fewer than the rule's; `family`: see hierarchical_fdr."""
        check_count(trials, "trials")
        self.rule = rule
        self.n_max = np.full(trials, rule.n_max) if n_max is None else np.asarray(n_max, dtype=np.int64)
        if self.n_max.shape != (trials,) or self.n_max.min() < 2 or self.n_max.max() > rule.n_max:
            raise ValueError(f"n_max: expected {trials} numbers from 2 to {rule.n_max}, got {n_max!r}")
        self.family = np.zeros(trials, dtype=int) if family is None else check_labels(family, "family", trials)
        self._evidence = _accumulator(trials, rule, self.n_max)
        self._verdict = np.full(trials, "inconclusive", dtype="<U12")
        self._stopped = np.full(trials, "", dtype="<U7")

    @property
    def n(self) -> Int[np.ndarray, " trials"]:
        """Images counted per trial."""
        return self._evidence.count.copy()

    @property
    def active(self) -> Bool[np.ndarray, " trials"]:
        """Trials that want further images."""
        return (self._stopped == "") & (self._evidence.count < self.n_max)

    def update(
        self,
        trials: Sequence[int] | np.ndarray,
        start: int | Sequence[int] | np.ndarray,
        g: Float[np.ndarray, "rows images"],
    ) -> int:
        """Count the images at positions start, start + 1, ... of the given trials; returns how many were new.

        Positions that a trial has already counted are skipped, so a resumed or retried lease counts no image twice;
        a gap is an error, and so is a position past n_max. Images of a stopped trial (still in flight when it
        stopped) are ignored: its verdict does not change.
        """
        rows = self._rows(trials)
        g = check_matrix(g, "g", columns=1).astype(np.float64)
        if g.shape[0] != rows.size:
            raise ValueError(f"g: expected one row for each of {rows.size} trials, got {g.shape[0]}")
        first = np.broadcast_to(np.asarray(start, dtype=np.int64), rows.shape)
        if first.size and (first.min() < 0 or (first + g.shape[1] > self.n_max[rows]).any()):
            raise ValueError(
                f"start: expected positions in [0, {self.n_max[rows].min()}), got {first.min()} to "
                f"{first.max() + g.shape[1] - 1}"
            )
        running = self._stopped[rows] == ""
        gap = running & (first > self._evidence.count[rows])
        if gap.any():
            at = int(np.flatnonzero(gap)[0])
            raise ValueError(
                f"start: expected at most {self._evidence.count[rows[at]]} for trial {rows[at]}, whose images so far "
                f"number that many, got {first[at]}"
            )
        known = self._evidence.count[rows] - first
        counted = 0
        for skip in np.unique(known[running & (known < g.shape[1])]):  # one group, but for retried leases
            group = running & (known == skip)
            self._evidence.add(rows[group], g[group, skip:])
            counted += int(np.count_nonzero(group)) * (g.shape[1] - int(skip))
        return counted

    def decide(self) -> SequentialResult:
        """Adjust the p-values over all trials, stop those that are decided or futile, and return the state.

        A futile trial whose adjusted p-value has meanwhile come to support a verdict (other trials' rejections relax
        the threshold, and its own p-value is valid) becomes decided.
        """
        if self.rule.correction == "e-bh" and np.unique(self._evidence.count[self.active]).size > 1:
            counts = self._evidence.count[self.active]
            raise ValueError(
                "e-bh: expected all running trials at the same image (synchronous rounds), got "
                f"{counts.min()} to {counts.max()}"
            )
        evidence = self._evidence.evidence()
        q = self._adjusted(evidence)
        verdict = verdicts(*q, alpha=self.rule.alpha)
        short = self._evidence.count < self.n_max
        # An effect that is certain and looks small goes on: further images may yet show that it is negligible.
        settled = (verdict == "negligible") | ((verdict != "inconclusive") & self._evidence.beyond(self.rule.clear))
        newly = short & (self._stopped != "decided") & settled
        self._verdict[newly] = verdict[newly]
        self._stopped[newly] = "decided"
        if self.rule.futility is not None:
            self._stopped[self.active & (evidence.below_margin <= self.rule.futility)] = "futile"
        return self._result(evidence, q)

    def result(self) -> SequentialResult:
        """The state as it is: stops nothing. A stopped trial keeps the verdict of its stop."""
        evidence = self._evidence.evidence()
        return self._result(evidence, self._adjusted(evidence))

    def _result(self, evidence: Evidence, q: tuple[np.ndarray, np.ndarray, np.ndarray]) -> SequentialResult:
        verdict = np.where(self._stopped == "", verdicts(*q, alpha=self.rule.alpha), self._verdict)
        return SequentialResult(
            n=self.n,
            p_degraded=evidence.degraded,
            p_improved=evidence.improved,
            p_negligible=evidence.negligible,
            q_degraded=q[0],
            q_improved=q[1],
            q_negligible=q[2],
            verdict=verdict,
            stopped=self._stopped.copy(),
        )

    def _adjusted(self, evidence: Evidence) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.rule.correction == "e-bh":
            return e_bh(evidence.e_degraded), e_bh(evidence.e_improved), e_bh(evidence.e_negligible)
        return self._adjust(evidence.degraded), self._adjust(evidence.improved), self._adjust(evidence.negligible)

    def _adjust(self, p: Float[np.ndarray, " trials"]) -> Float[np.ndarray, " trials"]:
        if self.rule.correction == "hierarchical":
            return hierarchical_fdr(p, self.family, self.rule.alpha).q
        return bh(p) if self.rule.correction == "bh" else by(p)

    def _rows(self, trials: Sequence[int] | np.ndarray) -> Int[np.ndarray, " rows"]:
        rows = np.asarray(trials, dtype=np.int64)
        if rows.ndim != 1 or (rows.size and (rows.min() < 0 or rows.max() >= self._stopped.size)):
            raise ValueError(f"trials: expected indices in [0, {self._stopped.size}), got {trials!r}")
        if np.unique(rows).size != rows.size:
            raise ValueError("trials: expected distinct indices, got some of them twice")
        return rows


def _accumulator(trials: int, rule: StoppingRule, n_max: Int[np.ndarray, " trials"]) -> Accumulator:
    if rule.statistic == "sign":
        return SignEProcess(trials, rule.margin)
    if rule.statistic == "betting":
        return BettingEProcess(trials, rule.margin)
    horizons = [
        (np.maximum(np.minimum(rule.first, n_max), np.rint(fraction * n_max).astype(np.int64)), share)
        for fraction, share in rule.horizons
    ]
    return ObrienFleming(trials, rule.margin, horizons, rule.first)
