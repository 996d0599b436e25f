"""What a grid can find: images that effects of given sizes need, and what to be warned of before the work."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from circuits.statistics.power import (
    MOST_IMAGES,
    POWER,
    images_for_p,
    images_needed,
    images_needed_by_boundary,
    sufficient_level,
)
from circuits.statistics.sequential import StoppingRule
from sweeps.rounds import family_labels

PERCENTS = (5, 10, 25)
"""Degradations of the table."""

SELECTED = 0.5
"""Share of the families that hold an effect, by which the second number of the table is calculated."""


@dataclass(frozen=True)
class Families:
    """Trials that are corrected together.

    Attributes:
        count: of families; largest: trials of the largest.
        penalty: what the correction divides every level by; above 1 for ``by`` alone, which holds under any dependence.
    """

    count: int
    largest: int
    penalty: float = 1.0

    def level(self, alpha: float, share: float = 0.0) -> float:
        """A p that is enough, where such a share of the families hold an effect; 0: this one alone."""
        found = sufficient_level(alpha, self.count, self.largest, max(1, math.floor(share * self.count)))
        return found / self.penalty


@dataclass(frozen=True)
class Need:
    """Images that an effect of a metric needs: alone in the grid, and where half of the families hold one."""

    percent: int
    alone: int
    among: int


def families_of(trials: pd.DataFrame, axes: Sequence[str], rule: StoppingRule | None = None) -> Families:
    """Of the trials that are tested: rows of trials.parquet without controls."""
    sizes = Counter(family_labels(trials, axes))
    harmonic = math.fsum(1 / place for place in range(1, len(trials) + 1))
    return Families(len(sizes), max(sizes.values()), harmonic if rule and rule.correction == "by" else 1.0)


def needs(spread: float, families: Families, alpha: float, rule: StoppingRule | None) -> list[Need]:
    """By the t test, or by the rule's O'Brien-Fleming boundary at its last image."""
    found = []
    for percent in PERCENTS:
        effect = math.log1p(percent / 100)
        alone, among = (
            images_needed(effect, spread, level)
            if rule is None
            else images_needed_by_boundary(effect, spread, level, rule.horizons[-1][1])
            for level in (families.level(alpha), families.level(alpha, SELECTED))
        )
        found.append(Need(percent, alone, among))
    return found


def has_formula(rule: StoppingRule | None) -> bool:
    """Whether the power is known: of e-processes it is not."""
    return rule is None or rule.statistic == "obf"


def warnings(
    images: Mapping[str, int], metric: str, spread: float, families: Families, alpha: float, rule: StoppingRule | None
) -> list[str]:
    """A line each, for data sets whose images are too few, by the noise of the registered metric."""
    said = []
    alone = images_for_p(families.level(alpha))
    for dataset, n in images.items():
        if 2.0**-n > alpha:
            said.append(
                f"{dataset}: no trial can be significant: with {n} images p is never below 2^-{n} = {2.0**-n:.2g}, "
                f"and alpha is {alpha:g}; it takes {images_for_p(alpha)} images at least"
            )
        elif n < alone:
            said.append(
                f"{dataset}: an effect alone in the grid cannot be significant: with {n} images p is never below "
                f"2^-{n} = {2.0**-n:.2g}, and {families.count * families.largest} trials in {families.count} families "
                f"take {families.level(alpha):.2g}; it takes {alone} images at least"
            )
        if not has_formula(rule) or not spread > 0:
            continue
        missed = [need for need in needs(spread, families, alpha, rule) if need.among > n]
        if missed:
            worst = missed[-1]
            said.append(
                f"{dataset}: {n} images are too few for effects of {worst.percent}% and less of {metric}: "
                f"{worst.percent}% takes {shown(worst.among)} images, {shown(worst.alone)} where it is alone in "
                "the grid"
            )
    return said


def explanation(families: Families, alpha: float, rule: StoppingRule | None) -> str:
    """What the table assumes, in a sentence or two."""
    how = "a one-sided t test of as many images" if rule is None else "the stopping rule's boundary at its last image"
    return (
        f"Images for {POWER:.0%} power by {how}, at q <= {alpha:g} over {families.count} families of up to "
        f"{families.largest} trials: first where half of the families hold an effect as strong "
        f"(p <= {families.level(alpha, SELECTED):.2g}), then where it is alone in the grid "
        f"(p <= {families.level(alpha):.2g})."
    )


def shown(images: int) -> str:
    return f"over {MOST_IMAGES:,}" if images >= MOST_IMAGES else f"{images:,}"
