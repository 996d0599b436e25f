"""Images that are tensors already, as a data set."""

from __future__ import annotations

import torch
from jaxtyping import Float

from circuits.data.image_sets import ImageSet
from circuits.data.model_data import in_space_of
from circuits.data.sources import DataSet, split
from circuits.denoisers import Denoiser

_FEWEST = 2
_ROUNDING = 0.01


def data_set_of(
    name: str,
    images: Float[torch.Tensor, "n c h w"],
    *,
    label: int | None = None,
    measured: int | None = None,
    denoiser: Denoiser | None = None,
) -> DataSet:
    """A data set of your own images, at the model's size and with its channels.

    Args:
        images: in [-1, 1]; latents, for a model of latents, unless ``denoiser`` is given.
        label: their class, for a model that is conditioned on classes.
        measured: the first ones, which are measured; the next ones are what mean ablation averages over. By default
            all but 64, or half of them where there are fewer than 128.
        denoiser: encodes images for a model of latents, and gives a model of text the empty prompt.

    Raises:
        ValueError: fewer than 2 images to measure, whole numbers, or values that are not finite or no pixels.
    """
    if images.dim() < 4 or len(images) < _FEWEST or not images.isfinite().all():
        raise ValueError(f"data set {name!r}: expected finite images [n, c, h, w], at least 2, got {_said(images)}")
    if not images.is_floating_point():
        raise ValueError(f"data set {name!r}: expected floating-point images, got {images.dtype}")
    of_pixels = denoiser is not None and (denoiser.pixels == 1 or denoiser.codec is not None)
    if of_pixels and float(images.abs().max()) > 1 + _ROUNDING:
        raise ValueError(f"data set {name!r}: expected images in [-1, 1], got {images.min():g} to {images.max():g}")
    count = max(len(images) - 64, (len(images) + 1) // 2) if measured is None else measured
    if not _FEWEST <= count <= len(images):
        raise ValueError(f"data set {name!r}: expected 2 to {len(images)} images to measure, got {count}")
    every = ImageSet(name, images.float().cpu(), tuple(f"{name}_{i}" for i in range(len(images))), None, "")
    shown, reference = split(every, count)
    data = DataSet(name, label, shown, reference)
    return data if denoiser is None else in_space_of(denoiser, data)


def _said(images: torch.Tensor) -> str:
    return f"shape {tuple(images.shape)}" + ("" if images.isfinite().all() else " with values that are not finite")
