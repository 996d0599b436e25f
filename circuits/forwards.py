"""Forwards of many rows: which interventions share one, where it begins, and how many rows it has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int

from circuits.batches import Batches
from circuits.clean import CleanForward, CleanForwards, first_layer
from circuits.denoisers import Denoiser
from circuits.replay import ReplayPlan
from circuits.replay_plans import ReplayPlans
from circuits.rows import Start, Variants
from circuits.sites import AttentionLayer

OVERHEAD = 1 / 16
"""What a forward costs besides its rows, in parts of the rows that make the best use of the device."""


@dataclass(frozen=True)
class Rows:
    """Some rows of one forward.

    Attributes:
        variant: which intervention, of each row.
        unit: place of its image among those measured.
        plan: where the forward may begin.
    """

    variant: Int[torch.Tensor, " rows"]
    unit: Int[torch.Tensor, " rows"]
    plan: ReplayPlan | None

    def start(
        self, clean: CleanForward | None, places: Int[torch.Tensor, " units"], device: torch.device
    ) -> Start | None:
        """The beginning at the plan's site, from a clean forward that holds each unit at its place."""
        if self.plan is None or clean is None:
            return None
        return Start(self.plan, clean, places[self.unit].to(device))


class Forwards:
    """A denoiser and what all forwards of it share.

    Args:
        rows: of a forward, at most.
    """

    def __init__(self, denoiser: Denoiser, layers: Sequence[AttentionLayer], rows: int) -> None:
        self.denoiser = denoiser
        self.layers: Mapping[str, AttentionLayer] = {layer.name: layer for layer in layers}
        self.batches = Batches(rows)
        self.plans = ReplayPlans(denoiser, layers)
        self.clean = CleanForwards(denoiser, layers, self.plans)

    def ablated(
        self,
        variants: Variants,
        units: int,
        forward: Callable[[Rows], torch.Tensor],
        forwards: int = 1,
        branches: int = 1,
    ) -> torch.Tensor:
        """Results of all variants on all units, ``[variants, units, ...]``.

        Args:
            forward: results of some rows, rows first.
            forwards: times each row goes through the network in it.
            branches: rows of the network that it makes of each row: 2 under guidance.
        """
        parts: list[torch.Tensor] = []
        order: list[int] = []
        for group in self._groups(variants, units * branches, forwards):
            plan, members = group.plan, torch.tensor(group.variants)

            def run(rows: list[int], plan: ReplayPlan | None = plan, members: torch.Tensor = members) -> torch.Tensor:
                flat = torch.tensor(rows)
                return forward(Rows(members[flat // units], flat % units, plan))

            parts += self.batches.run(range(len(group.variants) * units), run, forwards, branches)
            order += group.variants
        results = torch.cat(parts).unflatten(0, (len(order), units))
        return results[torch.tensor(order).argsort()]

    def _groups(self, variants: Variants, units: int, forwards: int) -> list[_Group]:
        """Variants by the first layer that they change.

        Where a layer has so few rows that a forward of their own would cost more than it saves, they join those of the
        layer before, whose forwards begin earlier.
        """
        members: dict[str, list[int]] = {}
        for variant, intervention in enumerate(variants.interventions):
            members.setdefault(first_layer(intervention, self.layers), []).append(variant)
        groups: list[_Group] = []
        for name in sorted(members, key=lambda name: self.layers[name].index):
            group = _Group(self.plans[name], members[name])
            if groups and self._joins(groups[-1], group, units, forwards):
                before = groups.pop()
                group = _Group(before.plan, before.variants + group.variants)
            groups.append(group)
        return groups

    def _joins(self, before: _Group, group: _Group, units: int, forwards: int) -> bool:
        first, second = len(before.variants) * units, len(group.variants) * units
        rows = self.batches.rows
        saved = math.ceil(first / rows) + math.ceil(second / rows) - math.ceil((first + second) / rows)
        return saved * OVERHEAD * rows * (group.share + forwards - 1) > second * (before.share - group.share)


@dataclass(frozen=True)
class _Group:
    """Variants whose forwards begin at the same site; ``plan`` is None where they begin at the network's input."""

    plan: ReplayPlan | None
    variants: list[int]

    @property
    def share(self) -> float:
        """Of a forward, what is left to compute in the first one."""
        return 1.0 if self.plan is None else self.plan.share
