"""Which modules hold V, of a site's own tokens and of all keys; proved on the model at hand, inside its kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import nn

from circuits.conditioning import with_last_text_token_masked
from circuits.denoisers import Denoiser
from circuits.hooks import KernelCall, capture_inputs, capture_outputs, edit_attention_kernels, observing_kernels
from circuits.interventions import mean_value
from circuits.kernel_traces import Probe

if TYPE_CHECKING:
    from circuits.sites import AttentionLayer

VALUES = ("to_v", "to_qkv", "to_kv")
ADDED_VALUES = ("add_v_proj", "to_added_qkv")
"""Names of the linear modules that may make V; of the text's, where it has its own."""


def with_checked_values(
    denoiser: Denoiser, layers: Sequence[AttentionLayer], probe: Probe
) -> tuple[AttentionLayer, ...]:
    """Name the module that makes V, where attention maps set to the identity inside the kernels give it at the site."""
    network = denoiser.network
    own = [layer for layer in layers if layer.kind != "cross"]
    candidates = {layer.name: _value_modules(network, layer) for layer in own}

    def identity(output: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value if value.shape == output.shape else output

    with (
        edit_attention_kernels(network, {layer.module: identity for layer in own}),
        capture_inputs(network, [layer.projection for layer in own]) as seen,
        capture_outputs(network, sorted({path for paths in candidates.values() for path in paths})) as made,
    ):
        denoiser(probe.x, probe.t, probe.conditioning)

    def checked(layer: AttentionLayer) -> AttentionLayer:
        for path in candidates.get(layer.name, []):
            if path not in made:
                continue  # separate projections stay in place, unused, when they are fused
            site, start = seen[layer.projection][..., : layer.width], made[path].shape[-1] - layer.width
            values = made[path][..., max(start, 0) :]
            if values.shape == site.shape and relative_difference(values, site) <= tolerance_of(denoiser):
                return replace(layer, values=path, values_from=start)
        return layer

    return tuple(checked(layer) for layer in layers)


def _value_modules(network: nn.Module, layer: AttentionLayer) -> list[str]:
    """Linear modules that may make this layer's V, alone or behind Q and K."""
    return _linear(network, layer, ADDED_VALUES if layer.name.endswith(":text") else VALUES)


def _linear(network: nn.Module, layer: AttentionLayer, names: Sequence[str]) -> list[str]:
    attention = network.get_submodule(layer.module)
    return [f"{layer.module}.{name}" for name in names if isinstance(getattr(attention, name, None), nn.Linear)]


def with_checked_keys(denoiser: Denoiser, layers: Sequence[AttentionLayer], probe: Probe) -> tuple[AttentionLayer, ...]:
    """Name the modules that make V of all keys, where attention maps made uniform inside the kernels give its mean at
    the site. A layer whose kernel takes a mask that closes a key has none."""
    network = denoiser.network
    candidates = {layer.name: _key_value_modules(network, layer) for layer in layers}
    paths = sorted({path for found in candidates.values() for parts in found for path in parts})
    masks: list[torch.Tensor | None] = []

    def uniform(output: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        mean = value.mean(2, keepdim=True)
        return mean.expand_as(output) if mean.shape[:2] == output.shape[:2] else output

    def keep_mask(call: KernelCall) -> None:
        masks.append(call.mask)

    closed = with_last_text_token_masked(network, probe.conditioning)
    with (
        edit_attention_kernels(network, {layer.module: uniform for layer in layers}) as callers,
        observing_kernels(keep_mask),
        capture_inputs(network, [layer.projection for layer in layers]) as seen,
        capture_outputs(network, paths) as made,
    ):
        denoiser(probe.x, probe.t, closed)
    masked = {caller for caller, mask in zip(callers, masks, strict=True) if _closes_a_key(mask)}

    def checked(layer: AttentionLayer) -> AttentionLayer:
        site = seen[layer.projection][..., : layer.width]
        for parts in candidates[layer.name] if layer.module not in masked else ():
            if any(path not in made for path in parts):
                continue  # as for V of the site's own tokens
            columns = tuple((path, made[path].shape[-1] - layer.width) for path in parts)
            if min(start for _, start in columns) < 0:
                continue
            mean = mean_value(layer.width, [(made[path], start) for path, start in columns])
            if relative_difference(mean.expand_as(site), site) <= tolerance_of(denoiser):
                return replace(layer, key_values=columns)
        return layer

    return tuple(checked(layer) for layer in layers)


def _key_value_modules(network: nn.Module, layer: AttentionLayer) -> list[tuple[str, ...]]:
    """Linear modules that may together make V of the keys: those of one sequence, or of the image and the text."""
    own, added = _linear(network, layer, VALUES), _linear(network, layer, ADDED_VALUES)
    return [*((path,) for path in own), *product(own, added)]


def _closes_a_key(mask: torch.Tensor | None) -> bool:
    """A mask is True or 0 where a key may be attended to."""
    return mask is not None and bool((~mask if mask.dtype == torch.bool else mask != 0).any())


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference over the largest magnitude of ``b``; NaN where either is not finite."""
    return (a.float() - b.float()).abs().max().item() / (b.float().abs().max().item() or 1.0)


def tolerance_of(denoiser: Denoiser) -> float:
    return 1e-4 if denoiser.dtype == torch.float32 else 2e-2
