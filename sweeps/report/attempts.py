"""Parts of a page, each made on its own: a table that does not hold what it should costs its part, not the page."""

import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
T = TypeVar("T")

_MISFITS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_LETTERS = 120


class Attempts:
    """
    Attributes:
        lost: a line for each part that could not be made, in words for the reader.
    """

    def __init__(self) -> None:
        self.lost: list[str] = []

    def make(self, part: str, otherwise: T, make: Callable[P, T], *inputs: P.args, **options: P.kwargs) -> T:
        """What `make` gives; `otherwise` where its inputs do not allow that. Numbers out of range make no noise."""
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                for noise in (RuntimeWarning, UserWarning):
                    warnings.simplefilter("ignore", noise)
                return make(*inputs, **options)
        except _MISFITS as error:
            reason = " ".join(str(error).split())[:_LETTERS]
            self.lost.append(f"{part} ({type(error).__name__}: {reason})")
            return otherwise
