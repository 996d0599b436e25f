"""Errors of the one-step clean image that faces have: of their symmetry, and of their parts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int

from circuits.metrics import Images, PerImage, luminance_map, mean_square

FACE_METRICS = ("symmetry", "parts")

Masks = Bool[torch.Tensor, "images parts height width"]


def symmetry_error(predicted: Images, truth: Images) -> PerImage:
    """Mean square of the odd half, across the vertical axis, of the difference in luminance.

    An error that both sides of a face have alike is none of symmetry. An image that is wrong by the same everywhere
    has an error of 0, one that is wrong on one side only has half of its mean square error here.
    """
    difference = luminance_map(predicted - truth)
    return mean_square((difference - difference.flip(3)) / 2)


def part_error(predicted: Images, truth: Images, parts: Masks) -> PerImage:
    """Mean over the parts that an image shows of the squared error in their mean luminance.

    Less the error of the image's own mean: which part is lighter than which, not how light the image is.
    """
    difference = luminance_map(predicted - truth)
    shares: Float[torch.Tensor, "n parts h w"] = parts.to(difference)
    area = shares.sum(dim=(2, 3))
    of_part = (shares * difference).sum(dim=(2, 3)) / area.clamp_min(1)
    errors = (of_part - difference.mean(dim=(1, 2, 3))[:, None]).square() * (area > 0)
    return errors.sum(dim=1) / (area > 0).sum(dim=1).clamp_min(1)


class FaceMetrics:
    """Measures ``FACE_METRICS`` beside those of the protocol ``denoise``.

    Args:
        masks: of parts, by data set, for every image that may be measured; None where they are not known, and
            ``parts`` is then not measured.
    """

    def __init__(self, masks: Mapping[str, Masks | None]) -> None:
        self._masks = masks

    def names(self, dataset: str) -> tuple[str, ...]:
        return tuple(name for name in FACE_METRICS if name != "parts" or self._masks.get(dataset) is not None)

    def measure(
        self, dataset: str, images: Int[torch.Tensor, " n"], predicted: Images, truth: Images
    ) -> dict[str, PerImage]:
        """Of predicted clean images, which are clamped to the range of images first, as samplers do.

        Args:
            images: which of the data set they are; on the CPU.
        """
        clamped = predicted.clamp(-1, 1)
        found = {"symmetry": symmetry_error(clamped, truth)}
        masks = self._masks.get(dataset)
        if masks is not None:
            found["parts"] = part_error(clamped, truth, masks[images].to(truth.device))
        return found
