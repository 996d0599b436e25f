"""Which attention kernel of a forward is a layer's, and which of its tokens are the image's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from circuits.conditioning import Conditioning
from circuits.denoisers import Denoiser
from circuits.hooks import KernelCall, capture_inputs, edit_attention_kernels, observing_kernels
from circuits.sites import AttentionLayer
from circuits.token_grids import TokenGrid, token_grid


@dataclass(frozen=True)
class LayerKernel:
    """The kernel call of a layer.

    Attributes:
        ordinal: n-th call in a forward, from 0.
        queries: those whose heads the layer's site holds; the image's alone where text and image share the site.
        image_keys: the image's tokens among the keys; None in cross-attention and at a site of text.
        grid: of the queries; None where they are text or lie on no grid (videos).
    """

    layer: AttentionLayer
    ordinal: int
    queries: slice
    image_keys: slice | None
    grid: TokenGrid | None

    @property
    def only_image(self) -> bool:
        """Keys are the queries' own tokens and nothing else."""
        return self.image_keys is not None and self.layer.kind == "self"


@torch.no_grad()
def layer_kernels(
    denoiser: Denoiser,
    layers: Sequence[AttentionLayer],
    x_t: torch.Tensor,
    t: torch.Tensor,
    condition: Conditioning | torch.Tensor | None,
) -> tuple[LayerKernel, ...]:
    """The kernels of these layers, found in one forward on the given input.

    Raises:
        ValueError: a layer whose heads no kernel makes.
    """
    calls: list[KernelCall] = []
    with (
        edit_attention_kernels(denoiser.network, {}) as callers,
        observing_kernels(calls.append),
        capture_inputs(denoiser.network, [layer.projection for layer in layers]) as sites,
    ):
        denoiser(x_t, t, condition)
    text = _text_tokens(condition)
    return tuple(_found(denoiser, layer, callers, calls, sites[layer.projection], text) for layer in layers)


def _text_tokens(condition: Conditioning | torch.Tensor | None) -> int:
    if not isinstance(condition, Conditioning) or "encoder_hidden_states" not in condition.tensors:
        return 0
    return condition.tensors["encoder_hidden_states"].shape[1]


def _found(
    denoiser: Denoiser,
    layer: AttentionLayer,
    callers: Sequence[str],
    calls: Sequence[KernelCall],
    site: torch.Tensor,
    text: int,
) -> LayerKernel:
    if layer.module not in callers:
        raise ValueError(f"layer {layer.name}: no attention kernel is called in {layer.module}")
    ordinal = callers.index(layer.module)
    output = calls[ordinal].output
    start = _start(output, site[..., : layer.width])
    stop = start + site.shape[1]
    if layer.stream == "joint":
        # In every model where text and image are one sequence at the site, the text comes first.
        start = stop - _image_tokens(denoiser, stop - start - text)
    queries = slice(start, stop)
    of_text = layer.stream == "text"
    height, width = denoiser.sample_shape[-2:]
    grid = None if of_text or len(denoiser.sample_shape) != 3 else token_grid(stop - start, height, width)
    return LayerKernel(layer, ordinal, queries, None if of_text or layer.kind == "cross" else queries, grid)


def _image_tokens(denoiser: Denoiser, most: int) -> int:
    """Image tokens in a sequence with at most so many: a network may have put tokens of its own beside the text."""
    if len(denoiser.sample_shape) != 3:
        return most
    height, width = denoiser.sample_shape[-2:]
    patches = (side for side in range(1, min(height, width) + 1) if height % side == width % side == 0)
    return next((count for side in patches if (count := height * width // side**2) <= most), most)


def _start(output: torch.Tensor, site: torch.Tensor) -> int:
    """First of the site's tokens among the kernel's: text may come before or behind the image."""
    joined = output.transpose(1, 2).flatten(2)
    tokens = site.shape[1]
    return min(
        (0, joined.shape[1] - tokens), key=lambda s: (joined[:, s : s + tokens] - site).float().abs().mean().item()
    )
