"""A set of images as the experiments see it: pixels, identities, and whether the model has seen them in training."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image


@dataclass(frozen=True)
class ImageSet:
    """Images of one data set, at a model's size and colour mode.

    Attributes:
        name: the data set's name in every table, e.g. ``"natural"``.
        images: pixels in [-1, 1].
        ids: one name an image, stable across runs (a file name, an index).
        held_out: True if no image of the set was used to train the shipped model; None if unknown.
        trained_on: one sentence for the report on what the model has seen of this data set.
    """

    name: str
    images: Float[torch.Tensor, "n c h w"]
    ids: tuple[str, ...]
    held_out: bool | None
    trained_on: str

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: range | list[int]) -> ImageSet:
        chosen = list(indices)
        return replace(self, images=self.images[chosen], ids=tuple(self.ids[i] for i in chosen))

    def fingerprint(self) -> str:
        """Hash of the pixels: two selections with the same fingerprint are the same measurement."""
        pixels = np.ascontiguousarray(self.images.numpy().astype("<f4"))
        return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:16]


def to_pixels(image: Image.Image, size: int, channels: int) -> Float[np.ndarray, "c h w"]:
    """Centre-crop to a square, resize to ``size`` and convert to the model's colour mode; values in [-1, 1]."""
    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        raise ValueError(f"images have 1 (gray) or 3 (rgb) channels, the model wants {channels}")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.convert(mode).crop((left, top, left + side, top + side))
    # Lanczos both ways: antialiased when shrinking, smooth when a 25-pixel face is enlarged to the model's size.
    pixels = np.asarray(square.resize((size, size), Image.Resampling.LANCZOS), dtype=np.float32)
    pixels = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    return pixels / 127.5 - 1.0
