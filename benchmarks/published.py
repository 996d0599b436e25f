"""Published models by their shapes: networks of their configs on the meta device, without weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel, UNet2DConditionModel

from benchmarks.skeletons import META
from benchmarks.subjects import data_of_noise
from circuits.conditioning import Conditioning, inputs_of
from circuits.data.prompts import PromptedSet
from circuits.data.sources import DataSet
from circuits.denoisers import Denoiser

TEXT_TOKENS = 77
"""Of a prompt, as CLIP's text encoders pad it."""


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        build: makes its denoising network from its config.
        size: of its latents.
        parameters: millions that the network has.
    """

    build: Callable[[], Any]
    size: int
    parameters: float

    def denoiser(self, name: str) -> Denoiser:
        """The network on the meta device.

        Raises:
            ValueError: the network has another number of parameters than the published one.
        """
        with META:
            network = self.build()
        found = sum(p.numel() for p in network.parameters()) / 1e6
        if round(found, 1) != self.parameters:
            raise ValueError(f"{name}: expected {self.parameters} million parameters, got {found:.1f}")
        return Denoiser(
            name=name,
            network=network.to(META).eval().requires_grad_(False),
            scheduler=DDPMScheduler(clip_sample=False),
            prediction_type="epsilon",
            channels=4,
            size=self.size,
            classes=next((i.classes for i in inputs_of(network) if i.kind == "label"), 0),
            revision="shapes",
            device=META,
        )


def _sd15() -> Any:
    """U-Net of Stable Diffusion 1.5 (Rombach et al., arXiv 2112.10752): the defaults of its class, but for the text."""
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


def _sdxl() -> Any:
    """U-Net of Stable Diffusion XL base 1.0 (Podell et al., arXiv 2307.01952)."""
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def _dit_xl_2_256() -> Any:
    """DiT-XL/2 at 256 pixels (Peebles & Xie, arXiv 2212.09748).

    Its 675 million parameters are 750 in diffusers, whose blocks have an embedding of timestep and class each.
    """
    return DiTTransformer2DModel(
        num_attention_heads=16,
        attention_head_dim=72,
        in_channels=4,
        out_channels=8,
        num_layers=28,
        sample_size=32,
        patch_size=2,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )


PUBLISHED = {
    "sd15": Published(_sd15, 64, 859.5),
    "sdxl": Published(_sdxl, 128, 2567.5),
    "dit_xl_2_256": Published(_dit_xl_2_256, 32, 749.8),
}


def data_for(denoiser: Denoiser, images: int, tokens: int = TEXT_TOKENS) -> dict[str, DataSet]:
    """Two data sets of noise, with prompts of so many tokens where the network takes text."""
    drawn = data_of_noise(denoiser, images)
    inputs = [i for i in inputs_of(denoiser.network) if i.kind == "embedding"]
    if not inputs:
        return drawn
    shapes = {i.name: (tokens, *i.shape[1:]) if i.text else i.shape for i in inputs}
    given = Conditioning({name: torch.zeros(images, *shape) for name, shape in shapes.items()})
    return {
        name: PromptedSet(name, data.label, data.measured, data.reference, given, given) for name, data in drawn.items()
    }
