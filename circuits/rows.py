"""One forward carries many interventions: a row is one image under one intervention, and each row has its own edits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int

from circuits.clean import CleanForward
from circuits.denoisers import Denoiser
from circuits.head_functions import apply_function
from circuits.hooks import Edit, capture_outputs, edit_inputs
from circuits.interventions import (
    READING_V,
    Intervention,
    Mode,
    mean_value,
    random_basis,
    replace_heads,
    rows_touched,
    without_subspace,
)
from circuits.replay import ReplayPlan, replaying
from circuits.sites import AttentionLayer

Activation = Float[torch.Tensor, "rows tokens width"]

Replacement = Callable[[AttentionLayer, Int[torch.Tensor, " rows"]], Activation]
"""(layer, unit of each row) -> the replacement for those units at the current timestep(s)."""

Values = Callable[[str, Int[torch.Tensor, " rows"]], Activation]
"""(path of a module that holds V, rows of the forward) -> its output for those rows."""


def head_weights(
    layer: AttentionLayer, interventions: Sequence[Intervention], layers: Mapping[str, AttentionLayer]
) -> dict[Mode, Float[torch.Tensor, "interventions heads"]]:
    """Weights of each mode's replacement at one layer, for each intervention.

    Raises:
        ValueError: a site that the model does not have.
    """
    heads = {name: known.heads for name, known in layers.items()}
    weights: dict[Mode, torch.Tensor] = {}
    for place, intervention in enumerate(interventions):
        chosen = intervention.heads_by_layer(heads).get(layer.name)
        if chosen:
            weight = weights.setdefault(intervention.mode, torch.zeros(len(interventions), layer.heads))
            weight[place, chosen] = intervention.strength
    return weights


def why_not(mode: Mode, layer: AttentionLayer) -> str:
    """Why a mode cannot be used at a layer; "" where it can."""
    if mode is Mode.identity and layer.values is None:
        return f"identity needs self-attention with its own value projection; layer {layer.name} has none"
    if mode is Mode.uniform and not layer.key_values:
        return f"uniform needs value projections of all keys, and no attention mask; not so at layer {layer.name}"
    return ""


class Variants:
    """Interventions made ready for forwards: the weights of every mode at every layer, one row a variant.

    Raises:
        ValueError: a site that the model does not have, or a mode that :func:`why_not` gives a reason against.
    """

    def __init__(self, interventions: Sequence[Intervention], layers: Mapping[str, AttentionLayer]) -> None:
        self.interventions = interventions
        self.layers = layers
        weights = {name: head_weights(layer, interventions, layers) for name, layer in layers.items()}
        self.weights = {name: by_mode for name, by_mode in weights.items() if by_mode}
        for name, by_mode in self.weights.items():
            for mode in by_mode:
                if reason := why_not(mode, layers[name]):
                    raise ValueError(reason)
        self.draws = torch.tensor([i.draw for i in interventions], dtype=torch.long)
        self.factors = torch.tensor([i.factor for i in interventions])


@dataclass(frozen=True)
class Start:
    """Where a forward begins: what the clean forward left behind stands for all that comes before a layer's site.

    Attributes:
        places: of the rows' units in the clean forward; on the device.
    """

    plan: ReplayPlan
    clean: CleanForward
    places: Int[torch.Tensor, " rows"]

    def activation(self) -> Activation:
        """What reached the site in the clean forward, row by row."""
        return self.clean.activations[self.plan.layer.name].index_select(0, self.places)


@contextmanager
def intervened(
    denoiser: Denoiser,
    variants: Variants,
    variant: Int[torch.Tensor, " rows"],
    unit: Int[torch.Tensor, " rows"],
    replacements: Mapping[Mode, Replacement],
    start: Start | None = None,
) -> Iterator[None]:
    """Inside, one forward applies to row r the intervention ``variant[r]``, whose image is ``unit[r]``.

    Args:
        replacements: for each mode in use that takes its replacement from elsewhere (mean, noise, resample,
            resample_across).
        start: the rows' clean forward, to compute only what comes after the first site; no row may change an earlier
            one.
    """
    assert len(unit) == len(variant), f"{len(variant)} rows need as many units, got {len(unit)}"
    tables = dict(variants.weights)
    if start:
        tables.setdefault(start.plan.layer.name, {})
    chosen = {name: _chosen(by_mode, variant) for name, by_mode in tables.items()}
    fixed = start.plan.fixed_values if start else frozenset()
    reading = [variants.layers[name] for name, found in chosen.items() if READING_V & found.keys()]
    read = {path for layer in reading for path in layer.value_modules}
    with ExitStack() as stack:
        captured = stack.enter_context(capture_outputs(denoiser.network, sorted(read - fixed)))

        def values(path: str, rows: torch.Tensor) -> Activation:
            if start and path in fixed:
                return start.clean.values[path].index_select(0, start.places[rows])
            return captured[path][rows]

        edits: dict[str, Edit] = {}
        for name, weights in chosen.items():
            layer = variants.layers[name]
            begins = start is not None and start.plan.layer is layer
            if weights or begins:
                site = _Site(layer, unit, variants, variant, start if begins else None)
                edits[layer.projection] = _edit(site, weights, replacements, values)
        if start:
            stack.enter_context(replaying(denoiser.network, start.plan, start.clean.leaves, start.places))
        stack.enter_context(edit_inputs(denoiser.network, edits))
        yield


def _chosen(by_mode: Mapping[Mode, torch.Tensor], variant: Int[torch.Tensor, " rows"]) -> dict[Mode, torch.Tensor]:
    """Weights of the rows, of the modes that touch any."""
    return {mode: weight for mode, table in by_mode.items() if (weight := table[variant]).any()}


@lru_cache(maxsize=256)
def _basis(layer: str, width: int, head_dim: int, draw: int) -> Float[torch.Tensor, "width head_dim"]:
    return random_basis(layer, width, head_dim, draw)


@dataclass(frozen=True)
class _Site:
    """A layer's site in one forward.

    Attributes:
        unit, variant: of each row.
        start: where the recorded activation comes from, if the forward begins here.
    """

    layer: AttentionLayer
    unit: Int[torch.Tensor, " rows"]
    variants: Variants
    variant: Int[torch.Tensor, " rows"]
    start: Start | None


def _edit(
    site: _Site,
    weights: Mapping[Mode, torch.Tensor],
    replacements: Mapping[Mode, Replacement],
    values: Values,
) -> Edit:
    """The edit of one layer's site; only the rows that a mode touches are computed."""
    layer, unit = site.layer, site.unit
    columns = slice(0, layer.width)

    def new(mode: Mode, rows: torch.Tensor, there: torch.Tensor, old: Activation, weight: torch.Tensor) -> Activation:
        replacement: torch.Tensor | float
        if mode is Mode.subspace:
            draws = site.variants.draws[site.variant[rows]].tolist()
            bases = {draw: _basis(layer.name, layer.width, layer.head_dim, draw).to(old) for draw in set(draws)}
            return without_subspace(old, torch.stack([bases[draw] for draw in draws]), weight)
        if mode is Mode.zero:
            replacement = 0.0
        elif mode is Mode.identity:
            assert layer.values is not None
            replacement = values(layer.values, there)[..., layer.values_from : layer.values_from + layer.width]
        elif mode is Mode.uniform:
            parts = [(values(path, there), start) for path, start in layer.key_values]
            replacement = mean_value(layer.width, parts).expand_as(old)
        elif mode is Mode.own:
            replacement = torch.empty_like(old)
            names = [site.variants.interventions[variant].function for variant in site.variant[rows].tolist()]
            for name in sorted(set(names)):
                own = torch.tensor([given == name for given in names], device=old.device)
                replacement[own] = apply_function(name, old[own], layer.heads)
        elif mode is Mode.scale:
            replacement = old * site.variants.factors[site.variant[rows]].to(old)[:, None, None]
        else:
            replacement = replacements[mode](layer, unit[rows])[..., columns]
        return replace_heads(old, replacement, weight)

    def edit(activation: Activation) -> Activation:
        assert len(activation) == len(unit), f"expected a forward of {len(unit)} rows, got {len(activation)}"
        edited = activation.clone() if site.start is None else site.start.activation()
        heads = edited[..., columns]
        for mode, weight in weights.items():
            rows = rows_touched(weight).nonzero().squeeze(1)
            there = rows.to(activation.device)
            on_device = weight.to(activation.device)
            if len(rows) == len(weight):
                heads.copy_(new(mode, rows, there, heads, on_device))
            else:
                heads[there] = new(mode, rows, there, heads[there], on_device[there])
        return edited

    return edit
