"""A tiny random network of every supported architecture, built from its config, with the sites it must have.

Heads, head width, image tokens and text tokens differ from each other in every network, and are primes where the
architecture lets them be, so that a transposed or misplaced axis cannot pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    ChromaTransformer2DModel,
    CogVideoXTransformer3DModel,
    DDPMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    HunyuanDiT2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)

from circuits.denoisers import Denoiser
from tests.circuits.conftest import sharpen_attention

Row = tuple[str, int, str, str]
"""(name, heads, kind, stream) of one attention layer, in execution order."""


def unet() -> Any:
    return UNet2DModel(
        sample_size=14, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(12, 20),
        down_block_types=("AttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "AttnUpBlock2D"),
        attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip


def sd15() -> Any:
    """``attention_head_dim`` of this class means the number of heads."""
    return UNet2DConditionModel(
        sample_size=10, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(12, 21),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=3, cross_attention_dim=11, norm_num_groups=3,
    )  # fmt: skip


def sdxl() -> Any:
    return UNet2DConditionModel(
        sample_size=10, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(12, 30),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 3), transformer_layers_per_block=(1, 2), cross_attention_dim=11, norm_num_groups=3,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 13,
    )  # fmt: skip


def dit() -> Any:
    return DiTTransformer2DModel(
        num_attention_heads=5, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=2,
        sample_size=14, patch_size=2, num_embeds_ada_norm=3, norm_elementwise_affine=False,
    )  # fmt: skip


def pixart() -> Any:
    return PixArtTransformer2DModel(
        num_attention_heads=3, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2, sample_size=10,
        cross_attention_dim=36, caption_channels=11, use_additional_conditions=True,
    )  # fmt: skip


def sd3() -> Any:
    return SD3Transformer2DModel(
        sample_size=10, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=5,
        joint_attention_dim=11, caption_projection_dim=20, pooled_projection_dim=13, pos_embed_max_size=8,
    )  # fmt: skip


def sd35() -> Any:
    return SD3Transformer2DModel(
        sample_size=10, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=5,
        joint_attention_dim=11, caption_projection_dim=20, pooled_projection_dim=13, pos_embed_max_size=8,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip


def flux() -> Any:
    return FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=8, num_attention_heads=3,
        joint_attention_dim=11, pooled_projection_dim=13, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip


def chroma() -> Any:
    return ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=8, num_attention_heads=3,
        joint_attention_dim=11, axes_dims_rope=(2, 2, 4), approximator_num_channels=8, approximator_hidden_dim=12,
        approximator_layers=1,
    )  # fmt: skip


def qwen() -> Any:
    return QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=3,
        joint_attention_dim=11, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip


def hunyuan() -> Any:
    return HunyuanDiT2DModel(
        num_attention_heads=3, attention_head_dim=8, in_channels=4, patch_size=2, sample_size=10, hidden_size=24,
        num_layers=4, mlp_ratio=2.0, cross_attention_dim=11, cross_attention_dim_t5=16, pooled_projection_dim=17,
        text_len=5, text_len_t5=6,
    )  # fmt: skip


def auraflow() -> Any:
    return AuraFlowTransformer2DModel(
        sample_size=10, in_channels=4, out_channels=4, num_mmdit_layers=1, num_single_dit_layers=2,
        attention_head_dim=4, num_attention_heads=5, joint_attention_dim=11, caption_projection_dim=20,
        pos_embed_max_size=49,
    )  # fmt: skip


def cogvideox() -> Any:
    return CogVideoXTransformer3DModel(
        num_attention_heads=3, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=10,
        text_embed_dim=11, num_layers=2, sample_width=10, sample_height=6, sample_frames=9, max_text_seq_length=7,
        use_rotary_positional_embeddings=True,
    )  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """How to build a network, what it is called with, and the sites it must have.

    Attributes:
        sample: shape of one ``x_t``.
        flow: it predicts a velocity.
        gain: factor of all weights; without biases in its modulation, a fresh network hardly listens to attention.
        text_first: in a joint attention, text tokens come before those of the image.
    """

    build: Callable[[], Any]
    sample: tuple[int, ...]
    sites: tuple[Row, ...]
    flow: bool = False
    text_first: bool = True
    classes: int = 0
    gain: float = 1.0

    def denoiser(self, name: str) -> Denoiser:
        """A denoiser with random weights, the same each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = self.build()
            for parameter in network.parameters():
                # Fresh adaLN-Zero gates are closed and fresh tables tiny: nothing would reach the output.
                if parameter.abs().max() < 1e-2:
                    parameter.data = torch.randn_like(parameter) * 0.3
                parameter.data *= self.gain
        sharpen_attention(network)
        scheduler = FlowMatchEulerDiscreteScheduler() if self.flow else DDPMScheduler(clip_sample=False)
        return Denoiser(
            name, network.eval().requires_grad_(False), scheduler, "flow" if self.flow else "epsilon",  # type: ignore[arg-type]
            self.sample[-3], self.sample[-2], self.classes, "", torch.device("cpu"), sample_shape=self.sample,
        )  # fmt: skip


def plain(*names: tuple[str, int]) -> tuple[Row, ...]:
    return tuple((name, heads, "self", "image") for name, heads in names)


def crossed(*blocks: tuple[str, int]) -> tuple[Row, ...]:
    """Self-attention, then cross-attention to the text, in every block."""
    return tuple(
        (f"{block}.attn{i}", heads, kind, "image") for block, heads in blocks for i, kind in ((1, "self"), (2, "cross"))
    )


def double(name: str, heads: int, *, image_first: bool) -> tuple[Row, ...]:
    pair: list[Row] = [(name, heads, "joint", "image"), (f"{name}:text", heads, "joint", "text")]
    return tuple(pair if image_first else reversed(pair))


def single(*names: str, heads: int) -> tuple[Row, ...]:
    return tuple((name, heads, "joint", "joint") for name in names)


ARCHITECTURES: dict[str, Architecture] = {
    "unet": Architecture(
        unet, (3, 14, 14),
        plain(("down_blocks.0.attentions.0", 3), ("mid_block.attentions.0", 5), ("up_blocks.1.attentions.0", 3),
              ("up_blocks.1.attentions.1", 3)),
    ),
    "sd15": Architecture(
        sd15, (4, 10, 10),
        crossed(*((f"{block}.transformer_blocks.0", 3) for block in (
            "down_blocks.0.attentions.0", "mid_block.attentions.0", "up_blocks.1.attentions.0",
            "up_blocks.1.attentions.1"))),
    ),
    "sdxl": Architecture(
        sdxl, (4, 10, 10),
        crossed(*((f"{block}.attentions.{i}.transformer_blocks.{j}", 3) for block, count in (
            ("down_blocks.1", 1), ("mid_block", 1), ("up_blocks.0", 2)) for i in range(count) for j in range(2))),
    ),
    "dit": Architecture(
        dit, (4, 14, 14), plain(*((f"transformer_blocks.{i}.attn1", 5) for i in range(2))), classes=3
    ),
    "pixart": Architecture(pixart, (4, 10, 10), crossed(*((f"transformer_blocks.{i}", 3) for i in range(2)))),
    "hunyuan": Architecture(hunyuan, (4, 10, 10), crossed(*((f"blocks.{i}", 3) for i in range(4)))),
    "sd3": Architecture(
        sd3, (4, 10, 10),
        (*double("transformer_blocks.0.attn", 5, image_first=False),
         ("transformer_blocks.1.attn", 5, "joint", "image")),
        flow=True, text_first=False,
    ),
    "sd35": Architecture(
        sd35, (4, 10, 10),
        (*double("transformer_blocks.0.attn", 5, image_first=False), ("transformer_blocks.0.attn2", 5, "self", "image"),
         ("transformer_blocks.1.attn", 5, "joint", "image")),
        flow=True, text_first=False,
    ),
    "flux": Architecture(
        flux, (4, 10, 10),
        (*double("transformer_blocks.0.attn", 3, image_first=True),
         *single(*(f"single_transformer_blocks.{i}.attn" for i in range(2)), heads=3)),
        flow=True,
    ),
    "chroma": Architecture(
        chroma, (4, 10, 10),
        (*double("transformer_blocks.0.attn", 3, image_first=True),
         *single(*(f"single_transformer_blocks.{i}.attn" for i in range(2)), heads=3)),
        flow=True,
    ),
    "qwen": Architecture(
        qwen, (4, 10, 10),
        tuple(row for i in range(2) for row in double(f"transformer_blocks.{i}.attn", 3, image_first=True)), flow=True,
    ),
    "auraflow": Architecture(
        auraflow, (4, 10, 10),
        (*double("joint_transformer_blocks.0.attn", 5, image_first=True),
         *single(*(f"single_transformer_blocks.{i}.attn" for i in range(2)), heads=5)),
        flow=True, gain=2.0,
    ),
    "cogvideox": Architecture(
        cogvideox, (3, 4, 6, 10), single(*(f"transformer_blocks.{i}.attn1" for i in range(2)), heads=3)
    ),
}  # fmt: skip
