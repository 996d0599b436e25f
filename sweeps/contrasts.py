"""Independent samples of images compared cell by cell: the test that the number of cells allows."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from circuits.seeds import numpy_generator
from circuits.statistics import independent_contrast

CONTRAST_COLUMNS = ["estimate", "ci_low", "ci_high", "p", "n_a", "n_b"]

_FEWEST_PERMUTATIONS = 9_999
_AFFORDABLE = 50_000_000  # permutations x cells: about a second for every 6 million on one core
_BLOCK = 2_048


def permutations_for(cells: int, alpha: float) -> int:
    """Enough that a single cell can survive the correction over all of them; 0 where that costs too much."""
    wanted = max(_FEWEST_PERMUTATIONS, math.ceil(2 * cells / alpha))
    return wanted if wanted * cells <= _AFFORDABLE else 0


def contrasts(
    a: Float[np.ndarray, "cells n_a"],
    b: Float[np.ndarray, "cells n_b"],
    purpose: str,
    permutations: int,
    alternative: Literal["two-sided", "greater", "less"] = "two-sided",
) -> pd.DataFrame:
    """mean(a) - mean(b) per cell with Welch's interval.

    p: studentised permutation of the labels; with 0 permutations Welch's t, whose p has no smallest value.
    """
    rng = numpy_generator(0, purpose)
    step = len(a) if permutations else _BLOCK  # the same permutations serve every cell
    pieces = []
    for start in range(0, len(a), max(step, 1)):
        rows = slice(start, start + step)
        found = independent_contrast(a[rows], b[rows], rng, alternative, permutations or 1)
        pieces.append(
            pd.DataFrame(
                {
                    "estimate": found.estimate,
                    "ci_low": found.ci_low,
                    "ci_high": found.ci_high,
                    "p": found.p if permutations else found.p_welch,
                    "n_a": found.n_a,
                    "n_b": found.n_b,
                }
            )
        )
    return pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame(columns=CONTRAST_COLUMNS)
