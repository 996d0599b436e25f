"""A set of images as the experiments see it: pixels, identities, and whether the model has seen them in training."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps


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
        """The images at these positions, in this order."""
        chosen = list(indices)
        return replace(self, images=self.images[chosen], ids=tuple(self.ids[i] for i in chosen))

    def fingerprint(self) -> str:
        """Hash of the pixels: two selections with the same fingerprint are the same measurement."""
        pixels = np.ascontiguousarray(self.images.numpy().astype("<f4"))
        return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:16]


def to_pixels(image: Image.Image, size: int, channels: int) -> Float[np.ndarray, "c h w"]:
    """Turn upright (EXIF), centre-crop to a square, resize, and convert to the model's colour mode; float32 in [-1, 1].

    Args:
        size: height and width of the result in pixels.
        channels: 1 (gray, Rec. 601 luma) or 3 (rgb); transparent pixels show white.

    Raises:
        ValueError: another number of channels, or floating-point pixels, whose range nobody can know.
    """
    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        raise ValueError(f"images have 1 (gray) or 3 (rgb) channels, the model wants {channels}")
    upright = ImageOps.exif_transpose(image)
    side = min(upright.size)
    left, top = (upright.width - side) // 2, (upright.height - side) // 2
    square = _opaque_8_bit(upright.crop((left, top, left + side, top + side))).convert(mode)
    # Lanczos both ways: antialiased when shrinking, smooth when a 25-pixel face is enlarged to the model's size.
    pixels = np.asarray(square.resize((size, size), Image.Resampling.LANCZOS), dtype=np.float32)
    pixels = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    return pixels / 127.5 - 1.0


def _opaque_8_bit(image: Image.Image) -> Image.Image:
    """Pillow would clip 16-bit pixels to white and show what lies under transparent ones."""
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers; expected integers of 8 or 16 bits")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image
