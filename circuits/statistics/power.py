"""How many images a grid needs: power of the one-sided paired tests, and what the correction leaves of alpha."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct, norm, t

from circuits.statistics.validation import check_count, check_fraction, check_positive

POWER = 0.8
MOST_IMAGES = 10**7
Sizes = Any  # a number, an array or a series


def t_power(effect: float, spread: float, n: int, alpha: float) -> float:
    """Chance that a one-sided t test at alpha finds a mean of ``effect`` in n normal values of this spread.

    By the noncentral t distribution, exact. The studentised sign-flip test has the same power to first order.
    """
    check_count(n, "n", least=2)
    check_fraction(alpha, "alpha")
    check_positive(spread, "spread")
    return float(nct.sf(t.isf(alpha, n - 1), n - 1, math.sqrt(n) * effect / spread))


def images_for_p(alpha: float) -> int:
    """The fewest images with which a sign-flip p, never below 2^-n, can be alpha."""
    check_fraction(alpha, "alpha")
    return max(2, math.ceil(math.log2(1 / alpha) - 1e-9))


def images_needed(effect: float, spread: float, alpha: float, power: float = POWER) -> int:
    """The fewest images with which a mean log ratio of ``effect`` is found at alpha, one-sided, with this power.

    At least as many as a p of alpha takes. ``MOST_IMAGES`` where more would be needed.
    """
    check_positive(effect, "effect")
    check_fraction(power, "power")
    return _fewest(lambda n: t_power(effect, spread, n, alpha) >= power, images_for_p(alpha))


def images_needed_by_boundary(effect: float, spread: float, alpha: float, share: float, power: float = POWER) -> int:
    """As :func:`images_needed`, of the O'Brien-Fleming boundary whose last horizon has this share of the error.

    That horizon alone, so a few too many: the path may also reach a nearer one. By Brownian motion, which takes the
    spread for known, with the images that a t test needs beside a z test at the boundary's own level on top.
    """
    check_positive(effect, "effect")
    tail = alpha * share / 2
    found = math.ceil((boundary_drift(tail, power) * spread / effect) ** 2)
    unknown = images_needed(effect, spread, tail, power) - math.ceil(
        ((norm.isf(tail) + norm.ppf(power)) * spread / effect) ** 2
    )
    return min(MOST_IMAGES, max(found + max(unknown, 0), images_for_p(alpha)))


def boundary_drift(tail: float, power: float = POWER) -> float:
    """Drift, in standard errors at the last image, by which a Brownian path reaches isf(tail) with this power.

    P(max of B(t) + shift t over t <= 1 reaches z) = Phi(shift - z) + exp(2 z shift) Phi(-z - shift).
    """
    z = float(norm.isf(tail))

    def excess(shift: float) -> float:
        return float(norm.cdf(shift - z) + np.exp(2 * z * shift + norm.logcdf(-z - shift))) - power

    return float(brentq(excess, 0.0, z + 8.0))


def sufficient_level(alpha: float, families: int, family_size: int, selected: int = 1) -> float:
    """A p that hierarchical FDR at alpha lets pass wherever ``selected`` of the families hold such a p.

    alpha R / (m s), for a family of s trials, R of m families selected: Simes' p of the family is at most s p, which
    BH over m families with R at or below it selects at alpha, and BH inside the family at alpha R / m lets p pass. With
    R = 1 it is Bonferroni's bound over the grid. Further small p in the family let larger ones pass too.
    """
    check_fraction(alpha, "alpha")
    check_count(family_size, "family_size")
    if not 1 <= selected <= families:
        raise ValueError(f"selected: expected 1 to {families} families, got {selected}")
    return alpha * selected / (families * family_size)


def _fewest(enough: Callable[[int], bool], least: int) -> int:
    """By bisection, of something that more images never undo."""
    high = least
    while not enough(high):
        if high >= MOST_IMAGES:
            return MOST_IMAGES
        least, high = high + 1, min(2 * high, MOST_IMAGES)
    while least < high:
        middle = (least + high) // 2
        least, high = (least, middle) if enough(middle) else (middle + 1, high)
    return high
