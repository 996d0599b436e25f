"""What unablated forwards leave behind for the ablated ones: activations, values, and recordings to replay."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float

from circuits.denoisers import Denoiser
from circuits.hooks import LeafKey, capture_inputs, capture_leaves, capture_outputs
from circuits.interventions import READING_V, Intervention
from circuits.replay import TensorTemplate
from circuits.replay_plans import ReplayPlans
from circuits.sites import AttentionLayer

KEPT_BYTES = 1 << 30
KEPT_SHARE = 4


def kept_bytes(free: int) -> int:
    """Memory for clean forwards on a device with so many bytes free: a quarter of it, at least 1 GiB."""
    return max(KEPT_BYTES, free // KEPT_SHARE)


def free_bytes(device: torch.device) -> int:
    """Of a GPU. 0 elsewhere: there the least that is kept will do, and other workers share the memory."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


@dataclass(frozen=True)
class Needs:
    """What is to be kept of a forward, by layer.

    Attributes:
        activations: the inputs of these layers' sites.
        values: outputs of the modules that hold V at these layers.
        replayed: recordings to begin a forward at these layers' sites, if they can be replayed.
    """

    activations: frozenset[str] = frozenset()
    values: frozenset[str] = frozenset()
    replayed: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.activations or self.values or self.replayed)

    def __le__(self, other: Needs) -> bool:
        return self.activations <= other.activations and self.values <= other.values and self.replayed <= other.replayed

    def __or__(self, other: Needs) -> Needs:
        return Needs(self.activations | other.activations, self.values | other.values, self.replayed | other.replayed)


@dataclass(frozen=True)
class CleanForward:
    """An unablated forward of some units, one row a unit.

    Attributes:
        held: what was kept of it.
        activations: by layer name.
        values: outputs of the modules that hold V, by path.
        leaves: outputs of calls, for replay.
        measured: what was computed from the prediction, per unit.
    """

    held: Needs
    activations: Mapping[str, Float[torch.Tensor, "units tokens width"]]
    values: Mapping[str, Float[torch.Tensor, "units tokens width"]]
    leaves: Mapping[LeafKey, torch.Tensor]
    measured: Mapping[str, Float[torch.Tensor, "units ..."]]

    @property
    def bytes(self) -> int:
        tensors = [*self.activations.values(), *self.values.values(), *self.leaves.values(), *self.measured.values()]
        return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


class CleanForwards:
    """Makes clean forwards and keeps as many as fit into memory; the least recently used go first.

    Args:
        limit: bytes for all that are kept; by default :func:`kept_bytes` of what the device has free now.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        layers: Sequence[AttentionLayer],
        plans: ReplayPlans,
        limit: int | None = None,
    ) -> None:
        self._network = denoiser.network
        self._itemsize = next(denoiser.network.parameters()).itemsize
        self._layers = {layer.name: layer for layer in layers}
        self._plans = plans
        self._limit = kept_bytes(free_bytes(denoiser.device)) if limit is None else limit
        self._kept: OrderedDict[Hashable, CleanForward] = OrderedDict()

    def needs(self, interventions: Sequence[Intervention]) -> Needs:
        """What forwards that begin at the interventions' first layers need of the clean forward of the same images."""
        first = {first_layer(i, self._layers) for i in interventions}
        replayed = frozenset(name for name in first if self._plans[name] is not None)
        reading = {site.layer for i in interventions if i.mode in READING_V for site in i.sites}
        values = frozenset(name for name in reading if self._layers[name].value_modules)
        return Needs(replayed, values if replayed else frozenset(), replayed)

    def everything(self, units: int, forwards: int = 1) -> Needs | None:
        """All that any intervention could need; None where so many clean forwards would take half of the memory.

        Recorded at once it serves all layers, so that their trials share one clean forward.
        """
        everything = Needs()
        for name in self._layers:
            everything |= self._needed_at(name)
        return everything if self._fits(everything, units, forwards) else None

    def widened(self, needs: Needs, units: int, forwards: int = 1) -> Needs:
        """What is needed, and of what interventions could need as much as half of the memory takes.

        That is everything or else what the layers from the first needed one on need, as far as it goes: trials come
        layer by layer, so that a clean forward then serves a stretch of layers.
        """
        everything = self.everything(units, forwards)
        if everything is not None:
            return everything
        asked = needs.activations | needs.values | needs.replayed
        first = min(self._layers[name].index for name in asked)
        found = needs
        for layer in sorted(self._layers.values(), key=lambda layer: layer.index):
            if layer.index < first:
                continue
            more = self._needed_at(layer.name)
            wider = found | (more if needs.values else replace(more, values=frozenset()))
            if not self._fits(wider, units, forwards):
                break
            found = wider
        return found

    def _needed_at(self, layer: str) -> Needs:
        """By any intervention that begins at this layer."""
        name = frozenset({layer})
        return Needs(
            name,
            name if self._layers[layer].value_modules else frozenset(),
            name if self._plans[layer] is not None else frozenset(),
        )

    def _fits(self, needs: Needs, units: int, forwards: int) -> bool:
        """Whether recordings of so many clean forwards take at most half of the memory."""
        activations = [self._layers[name] for name in needs.activations]
        values = [self._layers[name] for name in needs.values if self._layers[name].values is not None]
        sites = sum(layer.tokens * layer.width for layer in [*activations, *values])
        per_unit = sum(leaf.bytes_per_row for leaf in self._live(needs).values()) + sites * self._itemsize
        return per_unit * units * forwards <= self._limit / 2

    @contextmanager
    def recording(self, needs: Needs) -> Iterator[Callable[[Mapping[str, torch.Tensor]], CleanForward]]:
        """Inside, one forward is recorded; the function then makes a clean forward of it and of what was measured."""
        projections = {self._layers[name].projection: name for name in needs.activations}
        modules = {path for name in needs.values for path in self._layers[name].value_modules}
        live = self._live(needs)  # before the hooks: a plan made for it would run through them
        with (
            capture_inputs(self._network, list(projections)) as inputs,
            capture_outputs(self._network, sorted(modules)) as outputs,
            capture_leaves(self._network, live) as leaves,
        ):
            yield lambda measured: CleanForward(
                needs,
                {projections[path]: tensor for path, tensor in inputs.items()},
                outputs,
                leaves,
                measured,
            )

    def joined(self, parts: Sequence[CleanForward]) -> CleanForward:
        """The forwards of consecutive units as one."""
        if len(parts) == 1:
            return parts[0]
        live = self._live(parts[0].held)
        leaves = {
            key: first
            if (axis := live[key].axis) is None
            else torch.cat([part.leaves[key] for part in parts], dim=axis)
            for key, first in parts[0].leaves.items()
        }
        return replace(
            parts[0],
            activations=_concatenated([part.activations for part in parts]),
            values=_concatenated([part.values for part in parts]),
            leaves=leaves,
            measured=_concatenated([part.measured for part in parts]),
        )

    def _live(self, needs: Needs) -> dict[LeafKey, TensorTemplate]:
        """The tensors to record for replay at these layers."""
        plans = [plan for name in needs.replayed if (plan := self._plans[name]) is not None]
        return {key: plan.template(key) for plan in plans for key in plan.live}

    def get(self, key: Hashable, needs: Needs) -> CleanForward | None:
        """The forward kept under this key, if it holds what is needed."""
        kept = self._kept.get(key)
        if kept is None or not needs <= kept.held:
            return None
        self._kept.move_to_end(key)
        return kept

    def keep(self, key: Hashable, forward: CleanForward) -> None:
        self._kept[key] = forward
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and sum(kept.bytes for kept in self._kept.values()) > self._limit:
            self._kept.popitem(last=False)


def first_layer(intervention: Intervention, layers: Mapping[str, AttentionLayer]) -> str:
    """The first layer in execution order that it changes."""
    return min((site.layer for site in intervention.sites), key=lambda name: layers[name].index)


def _concatenated(parts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
