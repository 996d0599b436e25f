"""What every function of this package accepts, checked once at its boundary."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

Alternative = Literal["greater", "less", "two-sided"]
ALTERNATIVES: tuple[str, ...] = get_args(Alternative)

TINY: float = float(np.finfo(np.float64).tiny)
"""Smallest p-value ever returned where a formula underflows: a p-value is never zero."""


def check_matrix(values: np.ndarray, name: str, columns: int = 2) -> Float[np.ndarray, "trials n"]:
    """A finite real matrix [trials, n] with at least `columns` columns; float32 stays float32."""
    array = np.asarray(values)
    if array.ndim != 2:
        raise ValueError(f"{name}: expected shape [trials, n], got {array.shape}")
    if array.shape[1] < columns:
        raise ValueError(f"{name}: expected at least {columns} images per trial, got {array.shape[1]}")
    return _finite(array, name)


def check_vector(values: Sequence[float] | np.ndarray, name: str, length: int = 1) -> Float[np.ndarray, " n"]:
    """A finite real vector with at least `length` entries, as float64."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {array.shape}")
    if array.size < length:
        raise ValueError(f"{name}: expected at least {length} values, got {array.size}")
    return _finite(array, name).astype(np.float64)


def check_probabilities(values: Sequence[float] | np.ndarray, name: str) -> Float[np.ndarray, " trials"]:
    """A vector of values in [0, 1] (p- or q-values), as float64."""
    array = check_vector(values, name, length=0)
    if array.size and (array.min() < 0 or array.max() > 1):
        raise ValueError(f"{name}: expected values in [0, 1], got a range of [{array.min():g}, {array.max():g}]")
    return array


def check_fraction(value: float, name: str) -> float:
    """A number strictly between 0 and 1 (alpha, a confidence level)."""
    if not 0 < value < 1:
        raise ValueError(f"{name}: expected a number strictly between 0 and 1, got {value!r}")
    return float(value)


def check_positive(value: float, name: str) -> float:
    """A finite number greater than 0 (a margin, a scale)."""
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected a finite number greater than 0, got {value!r}")
    return float(value)


def check_count(value: int, name: str, least: int = 1) -> int:
    """A whole number of at least `least` (draws, images, block sizes)."""
    if isinstance(value, bool) or int(value) != value or value < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
    return int(value)


def check_labels(values: Sequence[object] | np.ndarray, name: str, length: int) -> Int[np.ndarray, " trials"]:
    """Any labels, one per trial, as codes 0..k-1 in sorted order of the labels."""
    array = np.asarray(values)
    if array.shape != (length,):
        raise ValueError(f"{name}: expected one label for each of {length} trials, got shape {array.shape}")
    return np.unique(array, return_inverse=True)[1].reshape(-1)


def check_choice(value: str, name: str, choices: Sequence[str]) -> str:
    """One of the named choices."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    return value


def _finite(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name}: expected real numbers, got dtype {array.dtype}")
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise ValueError(f"{name}: expected finite values, got {bad} that are NaN or infinite")
    return array
