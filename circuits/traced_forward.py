"""A forward taken apart: which calls come before a layer's site, and which of their outputs are read after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_leaves

from circuits.hooks import Call, CallKey, trace_calls
from circuits.operations import Operation, OperationTrace, storage_of
from circuits.replay import OutputTemplate, ReplayPlan, TensorTemplate
from circuits.sites import AttentionLayer

_CONSTANTS = (type(None), bool, int, float, str, torch.dtype, torch.device)


class NotReplayable(Exception):
    """Why recorded outputs cannot stand for what a network computes before a site."""


@dataclass(frozen=True)
class TracedForward:
    """The calls and operations of a forward of 2 rows.

    Attributes:
        outputs: what the outputs of calls look like for any number of rows, where that can be told.
        sites: places of the output projections in ``calls``, by path.
    """

    calls: Sequence[Call]
    operations: Sequence[Operation]
    outputs: Mapping[CallKey, OutputTemplate]
    sites: Mapping[str, int]
    layers: Sequence[AttentionLayer]

    @classmethod
    def of(
        cls, network: nn.Module, layers: Sequence[AttentionLayer], forward: Callable[[int], object]
    ) -> TracedForward:
        """``forward(rows)`` runs the network once on that many rows, each time the first ones of the same, and computes
        something with its output.

        Raises:
            NotReplayable: the network makes other calls for 3 rows than for 2.
        """
        with trace_calls(network) as small, OperationTrace(small) as operations:
            forward(2)
        with trace_calls(network) as large:
            forward(3)
        if [call.key for call in small.calls] != [call.key for call in large.calls]:
            raise NotReplayable("the network makes other calls for 3 rows than for 2")
        outputs: dict[CallKey, OutputTemplate] = {}
        for two, three in zip(small.calls, large.calls, strict=True):
            template = _output_template(two.output, three.output)
            if template is not None:
                outputs[two.key] = template
        projections = {layer.projection for layer in layers}
        sites = {call.path: place for place, call in enumerate(small.calls) if call.path in projections}
        return cls(small.calls, operations.found, outputs, sites, layers)

    def plan(self, layer: AttentionLayer) -> ReplayPlan:
        """How a forward is computed that changes nothing before the layer's site.

        Raises:
            NotReplayable: no call can be replayed.
        """
        site = self.sites[layer.projection]
        replayed = self._replayed(site)
        reached: dict[str, list[CallKey | None]] = {}
        for place, call in enumerate(self.calls):
            if call.parent is None or not replayed[call.parent]:
                reached.setdefault(call.path, []).append(call.key if replayed[place] else None)
        keys = {key for sequence in reached.values() for key in sequence if key is not None}
        if not keys:
            raise NotReplayable(f"no call before {layer.projection} can be replayed")
        computed = [o for o in self.operations if o.call is None or not replayed[o.call]]
        needed = self._needed(computed, site)
        live = {
            (*call.key, leaf)
            for call in self.calls
            if call.key in keys
            for leaf, tensor in enumerate(tree_leaves(call.output))
            if isinstance(tensor, torch.Tensor) and storage_of(tensor) in needed
        }
        fixed = {call.path for call, gone in zip(self.calls, replayed, strict=True) if gone}
        total = sum(o.flops for o in self.operations)
        return ReplayPlan(
            layer=layer,
            calls={path: tuple(keys_) for path, keys_ in reached.items() if any(key is not None for key in keys_)},
            outputs={key: self.outputs[key] for key in keys},
            live=frozenset(live),
            fixed_values=frozenset(path for other in self.layers for path in other.value_modules if path in fixed),
            share=sum(o.flops for o in computed) / total if total else 1.0,
        )

    def _replayed(self, site: int) -> list[bool]:
        """For each call, whether it is replayed or lies inside one that is: the maximal ones that no edit reaches.

        Edits may be at the site and at all later ones. What ended before the site is out of their reach, and so is what
        depends on the timestep alone, wherever it stands.
        """
        began = self.calls[site].started
        reached = self._reached(site)
        replayed: list[bool] = []
        for place, call in enumerate(self.calls):
            inside = call.parent is not None and replayed[call.parent]
            out_of_reach = call.ended < began or (call.started > began and place not in reached)
            replayed.append(inside or (out_of_reach and call.key in self.outputs))
        return replayed

    def _reached(self, site: int) -> set[int]:
        """Calls after the site's beginning in which something depends on the input of this or of a later site."""
        began = self.calls[site].started
        edited = self._within({place for place in self.sites.values() if self.calls[place].started >= began})
        changed: set[int] = set()
        reached = set(edited)
        for operation in self.operations:
            if operation.time > began and (operation.call in edited or changed & operation.read):
                changed |= operation.written
                place = operation.call
                while place is not None and place not in reached:
                    reached.add(place)
                    place = self.calls[place].parent
        # A call without operations, such as dropout, hands on what it was given.
        handing_on = {
            place
            for place, call in enumerate(self.calls)
            if any(isinstance(t, torch.Tensor) and storage_of(t) in changed for t in tree_leaves(call.output))
        }
        return reached | handing_on

    def _within(self, calls: set[int]) -> set[int]:
        """These calls and all those inside them."""
        found = set(calls)
        for place, call in enumerate(self.calls):
            if call.parent in found:
                found.add(place)
        return found

    def _needed(self, computed: Sequence[Operation], site: int) -> set[int]:
        """Memory that whatever reads the network's output depends on, directly or not.

        Memory rather than tensors: views share it, and an operation in place changes what was there before. The site's
        own input does not count, since the recorded activation takes its place.
        """
        inside_site, site_input = self._within({site}), storage_of(self.calls[site].input)
        needed: set[int] = set()
        for operation in reversed(computed):
            # Outside of all calls stands what the caller does with the output. What returns no tensor (a number read by
            # Python) may decide what the model does next.
            if operation.call is None or not operation.written or needed & operation.written:
                needed |= operation.read - ({site_input} if operation.call in inside_site else set())
        return needed


def _output_template(two: Any, three: Any) -> OutputTemplate | None:
    """What a call's output looks like for one row, told from forwards of 2 and 3; None where it cannot be told."""
    (first, structure), (second, other) = tree_flatten(two), tree_flatten(three)
    if structure != other:
        return None
    leaves: list[TensorTemplate | Any] = []
    for a, b in zip(first, second, strict=True):
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            leaf = _tensor_template(a, b)
            if leaf is None:
                return None
            leaves.append(leaf)
        elif isinstance(a, _CONSTANTS) and type(a) is type(b) and a == b:
            leaves.append(a)
        else:
            return None
    return OutputTemplate(structure, tuple(leaves))


def _tensor_template(two: torch.Tensor, three: torch.Tensor) -> TensorTemplate | None:
    if two.dim() != three.dim() or two.dtype != three.dtype:
        return None
    changed = [axis for axis, (a, b) in enumerate(zip(two.shape, three.shape, strict=True)) if a != b]
    if not changed:
        # Rows share it only if it does not depend on them, as a mean over the batch would.
        return TensorTemplate(tuple(two.shape), None, two.dtype) if torch.equal(two, three) else None
    axis = changed[0]
    block = two.shape[axis] // 2
    if len(changed) > 1 or (two.shape[axis], three.shape[axis]) != (2 * block, 3 * block):
        return None
    return TensorTemplate((*two.shape[:axis], block, *two.shape[axis + 1 :]), axis, two.dtype)
