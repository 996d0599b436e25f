"""Where to intervene: the attention layers of a denoiser in execution order, found and verified on the loaded model.

The site is the input of the output projection, which holds the concatenated heads; zeroing a head there equals zeroing it inside
attention. Zeroing columns of the projection's *output* is a different and wrong thing, since it mixes the heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from circuits.denoisers import Denoiser, ModelError
from circuits.hooks import capture_inputs, edit_inputs, head_zeroed_inside_attention
from circuits.interventions import replace_heads


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer and the site of its heads.

    Attributes:
        index: position in execution order.
        name: module path of the attention, e.g. ``transformer_blocks.0.attn1``; the layer's name in every table.
        projection: module path whose input is the concatenated heads.
        values: module path whose output is V of the same layout, or None where V is not a projection of its own.
        tokens: query tokens at the model's own image size.
    """

    index: int
    name: str
    projection: str
    values: str | None
    heads: int
    head_dim: int
    tokens: int
    kind: Literal["self", "cross"]
    stream: Literal["image", "text"] = "image"


def find_sites(denoiser: Denoiser) -> tuple[AttentionLayer, ...]:
    """The attention layers of a denoiser in execution order.

    Every layer is proved on the model at hand: a head zeroed at the site must give what the same head zeroed inside the attention
    kernel gives.

    Raises:
        ModelError: the model has no attention, or a block this version does not know; it names the block.
    """
    candidates = {name: m for name, m in denoiser.network.named_modules() if _is_attention(m)}
    if not candidates:
        raise ModelError(f"{type(denoiser.network).__name__} has no attention layers to intervene on")
    projections = {_projection(name, module): name for name, module in candidates.items()}
    x, t, labels = _probe_input(denoiser)
    with capture_inputs(denoiser.network, list(projections)) as seen:
        clean = denoiser(x, t, labels).target
    layers: list[AttentionLayer] = []
    for path, activation in seen.items():
        name = projections[path]
        module = candidates[name]
        heads = int(module.heads)
        if activation.dim() != 3 or activation.shape[-1] % heads:
            raise ModelError(
                f"block {name} ({type(module).__name__}): the input of {path} has shape {tuple(activation.shape)}, "
                f"expected [rows, tokens, {heads} heads x dim]"
            )
        layers.append(
            AttentionLayer(
                index=len(layers),
                name=name,
                projection=path,
                values=f"{name}.to_v" if isinstance(getattr(module, "to_v", None), nn.Linear) else None,
                heads=heads,
                head_dim=activation.shape[-1] // heads,
                tokens=activation.shape[1],
                kind="cross" if getattr(module, "is_cross_attention", False) else "self",
            )
        )
    for layer in layers:
        _self_test(denoiser, layer, (x, t, labels), clean)
    return tuple(layers)


def _is_attention(module: nn.Module) -> bool:
    return hasattr(module, "to_q") and hasattr(module, "heads")


def _projection(name: str, module: nn.Module) -> str:
    to_out = getattr(module, "to_out", None)
    if isinstance(to_out, nn.ModuleList) and len(to_out) and isinstance(to_out[0], nn.Linear):
        return f"{name}.to_out.0"
    if isinstance(to_out, nn.Linear):
        return f"{name}.to_out"
    raise ModelError(f"block {name} ({type(module).__name__}) is not supported: it has no output projection to_out")


def _probe_input(denoiser: Denoiser) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn((2, denoiser.channels, denoiser.size, denoiser.size), generator=generator)
    t = torch.tensor([denoiser.train_timesteps // 2, denoiser.train_timesteps // 4])
    labels = torch.arange(2) % denoiser.classes if denoiser.classes else None
    return x, t, labels


def _self_test(
    denoiser: Denoiser,
    layer: AttentionLayer,
    probe: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
    clean: torch.Tensor,
) -> None:
    head = layer.heads - 1

    def zero_last(activation: torch.Tensor) -> torch.Tensor:
        weight = torch.zeros(len(activation), layer.heads, device=activation.device)
        weight[:, head] = 1
        return replace_heads(activation, 0.0, weight)

    with edit_inputs(denoiser.network, {layer.projection: zero_last}):
        at_site = denoiser(*probe).target
    with head_zeroed_inside_attention(denoiser.network, layer.name, head):
        inside = denoiser(*probe).target
    scale = clean.abs().max().item() or 1.0
    difference = (at_site - inside).abs().max().item() / scale
    tolerance = 1e-4 if next(denoiser.network.parameters()).dtype == torch.float32 else 2e-2
    if not difference <= tolerance:
        raise ModelError(
            f"block {layer.name}: zeroing head {head} at {layer.projection} differs from zeroing it inside attention "
            f"by {difference:.1e} of the output (expected <= {tolerance:.0e}); this kind of block is not supported"
        )
