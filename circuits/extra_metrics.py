"""What ``denoise`` measures beside its own metrics: functions of your own, called with clean images in pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from jaxtyping import Int

from circuits.metrics import Images, PerImage
from circuits.vocabulary import DENOISE_METRICS

Metric = Callable[[Images, Images], PerImage]
"""(predicted clean images, true ones) -> one number an image, 0 or more: an error, so that more is worse."""


class ExtraMetrics(Protocol):
    """Metrics by name, some of them of some data sets only."""

    def names(self, dataset: str) -> tuple[str, ...]: ...

    def measure(
        self, dataset: str, images: Int[torch.Tensor, " n"], predicted: Images, truth: Images
    ) -> dict[str, PerImage]:
        """Of predicted clean images; ``images`` says which of the data set they are."""
        ...


class OwnMetrics:
    """Functions from Python as metrics.

    Args:
        clamped: whether predictions are clamped to [-1, 1] first, as samplers do with pixels.

    Raises:
        ValueError: the name of a metric that there is.
    """

    def __init__(self, functions: Mapping[str, Metric], *, clamped: bool) -> None:
        taken = sorted(set(functions) & set(DENOISE_METRICS))
        if taken:
            raise ValueError(f"metric {taken[0]!r} is there already; choose another name for your own")
        self._functions = functions
        self._clamped = clamped

    def names(self, dataset: str) -> tuple[str, ...]:
        return tuple(self._functions)

    def measure(
        self, dataset: str, images: Int[torch.Tensor, " n"], predicted: Images, truth: Images
    ) -> dict[str, PerImage]:
        shown = predicted.clamp(-1, 1) if self._clamped else predicted
        return {name: _checked(name, function(shown, truth), len(truth)) for name, function in self._functions.items()}


def _checked(name: str, values: PerImage, n: int) -> PerImage:
    if not isinstance(values, torch.Tensor) or values.shape != (n,):
        got = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
        raise ValueError(f"metric {name!r}: expected one number an image, shape ({n},), got {got}")
    if not (values >= 0).all():
        raise ValueError(f"metric {name!r}: expected numbers of 0 or more, got {float(values.min()):g}")
    return values.float()
