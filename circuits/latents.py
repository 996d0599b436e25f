"""Latents: what a latent diffusion model has in place of pixels, as an image autoencoder and as tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float

from circuits.data.image_sets import ImageSet

_ENCODED_AT_ONCE = 8


def pack(latents: Float[torch.Tensor, "n c h w"]) -> Float[torch.Tensor, "n tokens 4c"]:
    """Tokens of 2 x 2 latent pixels, as Flux, Chroma and Qwen-Image take them.

    Raises:
        ValueError: an odd height or width.
    """
    n, c, h, w = latents.shape
    if h % 2 or w % 2:
        raise ValueError(f"latents are packed 2 x 2; expected an even height and width, got {h} x {w}")
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h // 2 * (w // 2), c * 4)


def unpack(tokens: Float[torch.Tensor, "n tokens 4c"], h: int, w: int) -> Float[torch.Tensor, "n c h w"]:
    """The inverse of :func:`pack`, for latents of height ``h`` and width ``w``."""
    n, _, width = tokens.shape
    return tokens.view(n, h // 2, w // 2, width // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(n, width // 4, h, w)


@dataclass(frozen=True)
class ImageCodec:
    """The autoencoder of a latent diffusion model; images are in [-1, 1].

    Attributes:
        autoencoder: ``AutoencoderKL`` in eval mode, gradients off.
    """

    autoencoder: Any

    @property
    def pixels(self) -> int:
        """Image pixels a latent pixel stands for, along each side."""
        return 2 ** (len(self.autoencoder.config["block_out_channels"]) - 1)

    @torch.no_grad()
    def encode(self, images: Float[torch.Tensor, "n 3 H W"]) -> Float[torch.Tensor, "n c h w"]:
        """The posterior's mean, scaled as the denoiser was trained; float32, on the CPU."""
        config = self.autoencoder.config
        shift = config.get("shift_factor") or 0.0
        parts = [self._posterior_mean(part) for part in images.split(_ENCODED_AT_ONCE)]
        return (torch.cat(parts) - shift) * config["scaling_factor"]

    @torch.no_grad()
    def decode(self, latents: Float[torch.Tensor, "n c h w"]) -> Float[torch.Tensor, "n 3 H W"]:
        """Images of latents; float32, on the CPU."""
        config = self.autoencoder.config
        scaled = latents / config["scaling_factor"] + (config.get("shift_factor") or 0.0)
        parts = [self.autoencoder.decode(self._placed(part)).sample.float().cpu() for part in
                 scaled.split(_ENCODED_AT_ONCE)]  # fmt: skip
        return torch.cat(parts)

    def _posterior_mean(self, images: torch.Tensor) -> torch.Tensor:
        return self.autoencoder.encode(self._placed(images)).latent_dist.mode().float().cpu()

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        weight = next(self.autoencoder.parameters())
        return tensor.to(weight.device, weight.dtype)


def encoded(images: ImageSet, codec: ImageCodec) -> ImageSet:
    """The same images as latents, for a denoiser of latents; encoded once, before anything is measured."""
    return replace(images, images=codec.encode(images.images))
