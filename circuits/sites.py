"""Where to intervene: the attention layers of a denoiser in execution order, found and verified on the loaded model.

The site is the input of the output projection, which holds the concatenated heads; zeroing a head there equals zeroing
it inside attention. Zeroing columns of the projection's *output* is a different and wrong thing, since it mixes the
heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import nn

from circuits.denoisers import Denoiser, ModelError
from circuits.hooks import capture_inputs, capture_outputs, edit_attention_kernels, edit_inputs
from circuits.interventions import replace_heads

Probe = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer and the site of its heads.

    Attributes:
        index: position in execution order.
        name: module path of the attention, e.g. ``transformer_blocks.0.attn1``; the layer's name in every table.
        projection: module path whose input is the concatenated heads.
        values: module path whose output is V in the layout of the site, or None where there is no such module.
        heads: number of heads; head h is the columns [h * head_dim, (h + 1) * head_dim) of the site.
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

    Proved on the model at hand, for all layers and heads: heads scaled at the sites, each by its own factor, give what
    the same heads give when scaled inside the attention kernels.

    Raises:
        ModelError: the model has no attention, or a block this version does not know; it names the block.
    """
    network = denoiser.network
    candidates = {name: m for name, m in network.named_modules() if _is_attention(m)}
    if not candidates:
        raise ModelError(f"{type(network).__name__} has no attention layers to intervene on")
    projections = {_projection(name, module): name for name, module in candidates.items()}
    probe = _probe_input(denoiser)
    try:
        with capture_inputs(network, list(projections)) as seen, edit_attention_kernels(network, {}) as callers:
            denoiser(*probe)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"{denoiser.name} ({type(network).__name__}) cannot be swept: {error}") from error
    for caller in callers:
        if not any(caller == name or caller.startswith(f"{name}.") for name in candidates):
            block = type(network.get_submodule(caller)).__name__
            raise ModelError(f"block {caller} ({block}) computes attention in a way that is not supported")
    found = [
        _describe(index, projections[path], path, candidates[projections[path]], activation)
        for index, (path, activation) in enumerate(seen.items())
    ]
    _check_sites(denoiser, found, probe)
    return _with_checked_values(denoiser, found, probe)


def _is_attention(module: nn.Module) -> bool:
    return hasattr(module, "to_q") and hasattr(module, "heads")


def _projection(name: str, module: nn.Module) -> str:
    to_out = getattr(module, "to_out", None)
    if isinstance(to_out, nn.ModuleList) and len(to_out) and isinstance(to_out[0], nn.Linear):
        return f"{name}.to_out.0"
    if isinstance(to_out, nn.Linear):
        return f"{name}.to_out"
    raise ModelError(f"block {name} ({type(module).__name__}) is not supported: it has no output projection to_out")


def _describe(
    index: int, name: str, projection: str, module: nn.Module, activation: Float[torch.Tensor, "rows tokens width"]
) -> AttentionLayer:
    heads = int(module.heads)  # type: ignore[arg-type]
    if activation.dim() != 3 or activation.shape[-1] % heads:
        raise ModelError(
            f"block {name} ({type(module).__name__}): the input of {projection} has shape {tuple(activation.shape)}, "
            f"expected [rows, tokens, {heads} heads x dim]"
        )
    cross = bool(getattr(module, "is_cross_attention", False))
    own_values = not cross and isinstance(getattr(module, "to_v", None), nn.Linear)
    return AttentionLayer(
        index=index,
        name=name,
        projection=projection,
        values=f"{name}.to_v" if own_values else None,
        heads=heads,
        head_dim=activation.shape[-1] // heads,
        tokens=activation.shape[1],
        kind="cross" if cross else "self",
    )


def _probe_input(denoiser: Denoiser) -> Probe:
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn((2, denoiser.channels, denoiser.size, denoiser.size), generator=generator)
    t = torch.tensor([denoiser.train_timesteps // 2, denoiser.train_timesteps // 4])
    labels = torch.arange(2) % denoiser.classes if denoiser.classes else None
    return x, t, labels


def _check_sites(denoiser: Denoiser, layers: Sequence[AttentionLayer], probe: Probe) -> None:
    """Scale every head by its own factor (head 0 is zeroed) at all sites, and inside all kernels: each site must agree.

    Compared are the inputs of the projections, so that a layer is tested even where it hardly moves the model's output.
    """
    network = denoiser.network
    paths = [layer.projection for layer in layers]

    def at_site(layer: AttentionLayer, activation: torch.Tensor) -> torch.Tensor:
        shrunk = (1 - _factors(layer)).expand(len(activation), -1).to(activation.device)
        return replace_heads(activation, 0.0, shrunk)

    def inside(layer: AttentionLayer, output: torch.Tensor) -> torch.Tensor:
        if output.dim() != 4 or output.shape[1] != layer.heads:
            return output  # not this layer's heads: the comparison below then fails and names the block
        return output * _factors(layer).to(output).view(1, -1, 1, 1)

    edits = {layer.projection: lambda a, layer=layer: at_site(layer, a) for layer in layers}
    with edit_inputs(network, edits), capture_inputs(network, paths) as edited:
        expected = denoiser(*probe).target
    kernels = {layer.name: lambda output, _, layer=layer: inside(layer, output) for layer in layers}
    with edit_attention_kernels(network, kernels), capture_inputs(network, paths) as reference:
        output = denoiser(*probe).target
    tolerance = _tolerance(denoiser)
    for layer in layers:
        difference = _relative_difference(edited[layer.projection], reference[layer.projection])
        if not difference <= tolerance:
            raise ModelError(
                f"block {layer.name} ({type(network.get_submodule(layer.name)).__name__}): editing its heads at "
                f"{layer.projection} differs from editing them inside attention by {difference:.1e} of their size "
                f"(expected <= {tolerance:.0e}); this kind of block is not supported"
            )
    difference = _relative_difference(expected, output)
    if not difference <= tolerance:
        raise ModelError(
            f"{denoiser.name} ({type(network).__name__}): heads reach the output past {', '.join(paths)} "
            f"({difference:.1e} of it, expected <= {tolerance:.0e}); this kind of model is not supported"
        )


def _factors(layer: AttentionLayer) -> Float[torch.Tensor, " heads"]:
    """h / 2^k in [0, 1): exact in every dtype, so that both ways round alike."""
    return torch.arange(layer.heads) / 2 ** math.ceil(math.log2(layer.heads))


def _with_checked_values(
    denoiser: Denoiser, layers: Sequence[AttentionLayer], probe: Probe
) -> tuple[AttentionLayer, ...]:
    """Keep ``values`` only where an attention map set to the identity inside the kernel gives them at the site."""
    network = denoiser.network
    own = [layer for layer in layers if layer.values is not None]
    modules = [layer.values for layer in own if layer.values is not None]

    def identity(output: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value if value.shape == output.shape else output

    with (
        edit_attention_kernels(network, {layer.name: identity for layer in own}),
        capture_inputs(network, [layer.projection for layer in own]) as seen,
        capture_outputs(network, modules) as values,
    ):
        denoiser(*probe)
    proved = {
        layer.name
        for layer in own
        if seen[layer.projection].shape == values[layer.values or ""].shape
        and _relative_difference(values[layer.values or ""], seen[layer.projection]) <= _tolerance(denoiser)
    }
    return tuple(layer if layer.name in proved else replace(layer, values=None) for layer in layers)


def _relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference over the largest magnitude of ``b``; NaN where either is not finite."""
    return (a.float() - b.float()).abs().max().item() / (b.float().abs().max().item() or 1.0)


def _tolerance(denoiser: Denoiser) -> float:
    return 1e-4 if next(denoiser.network.parameters()).dtype == torch.float32 else 2e-2
