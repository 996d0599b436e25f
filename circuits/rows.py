"""One forward carries many interventions: a row is one image under one intervention, and every row has its own edits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch

from circuits.denoisers import Denoiser
from circuits.hooks import Edit, capture_outputs, edit_inputs
from circuits.interventions import Intervention, Mode, replace_heads
from circuits.sites import AttentionLayer

Replacement = Callable[[AttentionLayer, torch.Tensor], torch.Tensor]
"""(layer, units) -> the replacement ``[len(units), tokens, width]`` for those units at the current timestep(s)."""


def row_weights(
    layer: AttentionLayer, interventions: Sequence[Intervention | None], layers: Mapping[str, AttentionLayer]
) -> dict[Mode, torch.Tensor]:
    """Weights ``[rows, heads]`` of each mode's replacement at one layer; a row of None is left alone."""
    heads = {name: known.heads for name, known in layers.items()}
    weights: dict[Mode, torch.Tensor] = {}
    for row, intervention in enumerate(interventions):
        if intervention is None:
            continue
        chosen = intervention.heads_by_layer(heads).get(layer.name)
        if chosen:
            weight = weights.setdefault(intervention.mode, torch.zeros(len(interventions), layer.heads))
            weight[row, chosen] = intervention.strength
    return weights


@contextmanager
def intervened(
    denoiser: Denoiser,
    layers: Mapping[str, AttentionLayer],
    interventions: Sequence[Intervention | None],
    units: Sequence[int],
    replacements: Mapping[Mode, Replacement],
) -> Iterator[None]:
    """Inside, a forward of ``len(interventions)`` rows applies to row r ``interventions[r]``, whose image is ``units[r]``."""
    touched = {site.layer for i in interventions if i is not None for site in i.sites}
    row_units = torch.tensor(list(units))
    with ExitStack() as stack:
        edits: dict[str, Edit] = {}
        needs_values = [
            layers[name].values or ""
            for name in touched
            if any(i is not None and i.mode is Mode.identity for i in interventions)
        ]
        values = stack.enter_context(capture_outputs(denoiser.network, needs_values))
        for name in touched:
            layer = layers[name]
            weights = row_weights(layer, interventions, layers)
            edits[layer.projection] = _edit(layer, weights, row_units, replacements, values, denoiser.device)
        stack.enter_context(edit_inputs(denoiser.network, edits))
        yield


def _edit(
    layer: AttentionLayer,
    weights: dict[Mode, torch.Tensor],
    units: torch.Tensor,
    replacements: Mapping[Mode, Replacement],
    values: Mapping[str, torch.Tensor],
    device: torch.device,
) -> Edit:
    def edit(activation: torch.Tensor) -> torch.Tensor:
        edited = activation.clone()
        for mode, weight in weights.items():
            rows = (weight != 0).any(dim=1).nonzero().squeeze(1)
            there = rows.to(device)
            replacement: torch.Tensor | float
            if mode is Mode.zero:
                replacement = 0.0
            elif mode is Mode.identity:
                replacement = values[layer.values or ""][there]
            else:
                replacement = replacements[mode](layer, units[rows]).to(activation)
            edited[there] = replace_heads(activation[there], replacement, weight[rows].to(device))
        return edited

    return edit
