"""One forward carries many interventions: a row is one image under one intervention, and each row has its own edits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int

from circuits.denoisers import Denoiser
from circuits.hooks import Edit, capture_outputs, edit_inputs
from circuits.interventions import Intervention, Mode, random_basis, replace_heads, rows_touched, without_subspace
from circuits.sites import AttentionLayer

Activation = Float[torch.Tensor, "rows tokens width"]

Replacement = Callable[[AttentionLayer, Int[torch.Tensor, " rows"]], Activation]
"""(layer, unit of each row) -> the replacement for those units at the current timestep(s)."""


def row_weights(
    layer: AttentionLayer, interventions: Sequence[Intervention | None], layers: Mapping[str, AttentionLayer]
) -> dict[Mode, Float[torch.Tensor, "rows heads"]]:
    """Weights of each mode's replacement at one layer; a row of None is left alone.

    Raises:
        ValueError: a site that the model does not have.
    """
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
    """Inside, one forward applies to row r ``interventions[r]``, whose image is ``units[r]``.

    Args:
        replacements: for each mode in use that takes its replacement from elsewhere (mean, resample, resample_across).

    Raises:
        ValueError: a site that the model does not have, or ``identity`` at a layer without V of the same layout.
    """
    assert len(units) == len(interventions), f"{len(interventions)} rows need as many units, got {len(units)}"
    row_units = torch.tensor(list(units), dtype=torch.long)
    weights = {name: found for name, layer in layers.items() if (found := row_weights(layer, interventions, layers))}
    values = [_values(layers[name]) for name, by_mode in weights.items() if Mode.identity in by_mode]
    with capture_outputs(denoiser.network, values) as captured:
        edits = {
            layers[name].projection: _edit(layers[name], by_mode, interventions, row_units, replacements, captured)
            for name, by_mode in weights.items()
        }
        with edit_inputs(denoiser.network, edits):
            yield


def _bases(layer: AttentionLayer, draws: Sequence[int]) -> Float[torch.Tensor, "rows width head_dim"]:
    """The random subspace of each row; drawn once a distinct one."""
    width = layer.heads * layer.head_dim
    found = {draw: random_basis(layer.name, width, layer.head_dim, draw) for draw in set(draws)}
    return torch.stack([found[draw] for draw in draws])


def _values(layer: AttentionLayer) -> str:
    if layer.values is None:
        raise ValueError(f"identity needs self-attention with its own value projection; layer {layer.name} has none")
    return layer.values


def _edit(
    layer: AttentionLayer,
    weights: Mapping[Mode, torch.Tensor],
    interventions: Sequence[Intervention | None],
    units: torch.Tensor,
    replacements: Mapping[Mode, Replacement],
    values: Mapping[str, torch.Tensor],
) -> Edit:
    """The edit of one layer's site; only the rows that a mode touches are computed."""

    def edit(activation: torch.Tensor) -> torch.Tensor:
        assert len(activation) == len(units), f"expected a forward of {len(units)} rows, got {len(activation)}"
        edited = activation.clone()
        for mode, weight in weights.items():
            rows = rows_touched(weight).nonzero().squeeze(1)
            there = rows.to(activation.device)
            if mode is Mode.subspace:
                draws = [found.draw for row in rows.tolist() if (found := interventions[row]) is not None]
                basis = _bases(layer, draws).to(activation)
                edited[there] = without_subspace(activation[there], basis, weight[rows].to(activation.device))
                continue
            replacement: torch.Tensor | float
            if mode is Mode.zero:
                replacement = 0.0
            elif mode is Mode.identity:
                replacement = values[_values(layer)][there]
            else:
                replacement = replacements[mode](layer, units[rows])
            edited[there] = replace_heads(activation[there], replacement, weight[rows].to(activation.device))
        return edited

    return edit
