"""The ``sample`` protocol: images generated from their own seeds, with interventions during a window's steps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int

from circuits.clean import CleanForward, Needs
from circuits.data.sources import DataSet
from circuits.denoising import lent_by
from circuits.forwards import Forwards, Rows
from circuits.interventions import Intervention, Mode
from circuits.references import MeanReferences, donors
from circuits.rows import Replacement, Variants, intervened
from circuits.seeds import normal_per_index
from circuits.trajectories import SamplerState, Trajectory

_TRAJECTORIES_KEPT = 4


@dataclass(frozen=True)
class Generated:
    """Images of the same seeds without and with interventions; pixels in about [-1, 1]."""

    baseline: Float[torch.Tensor, "seeds c h w"]
    ablated: Float[torch.Tensor, "interventions seeds c h w"]


@dataclass(frozen=True)
class Seeds:
    """Images of a data set's class that are generated together."""

    data: DataSet
    first: int
    count: int

    @property
    def key(self) -> tuple[str, int, int]:
        return self.data.name, self.first, self.count


class Sampling:
    """Generates images with interventions.

    Args:
        sampler: a scheduler with its timesteps set; it is copied, never stepped.
    """

    def __init__(self, forwards: Forwards, means: MeanReferences, sampler: Any, seed: int) -> None:
        self._forwards = forwards
        self._means = means
        self._sampler = sampler
        self._seed = seed
        self._timesteps = [int(t) for t in sampler.timesteps]
        self._trajectories: OrderedDict[tuple[str, int, int], Trajectory] = OrderedDict()

    def generate(
        self,
        seeds: Seeds,
        inside: Sequence[int],
        interventions: Sequence[Intervention],
        source: Callable[[Mode], DataSet],
    ) -> Generated:
        """Generate images per intervention, intervening at some timesteps only.

        Args:
            inside: timesteps of the sampler, at least one.
            source: of the resample modes, the data set that lends.
        """
        variants = Variants(interventions, self._forwards.layers)
        needs = self._forwards.clean.needs(interventions)
        first = self._timesteps.index(inside[0])
        trajectory = self._trajectory(seeds, needs)
        if not interventions:
            return Generated(trajectory.images.cpu(), torch.empty(0, *trajectory.images.shape))
        replacements = self._replacements(seeds, inside, variants, source)
        clean = self._clean(seeds, first, needs) if needs else None
        places, device = torch.arange(seeds.count), self._forwards.denoiser.device

        def forward(rows: Rows) -> torch.Tensor:
            state, chosen = trajectory.states[first].rows(rows.unit), rows.unit.tolist()
            for step in range(first, len(self._timesteps)):
                ablated: AbstractContextManager[None] = nullcontext()
                if (found := replacements.get(self._timesteps[step])) is not None:
                    start = rows.start(clean, places, device) if step == first else None
                    denoiser = self._forwards.denoiser
                    ablated = intervened(denoiser, variants, rows.variant, rows.unit, found, start)
                with ablated:
                    state = state.next(step, lambda x, t: self._predict(seeds, chosen, x, t))
            return state.x.cpu()

        images = self._forwards.ablated(variants, seeds.count, forward, len(self._timesteps) - first)
        return Generated(trajectory.images.cpu(), images)

    def latents(self, seeds: Seeds) -> Float[torch.Tensor, "seeds c h w"]:
        """Where the seeds begin: their own noise."""
        indices = list(range(seeds.first, seeds.first + seeds.count))
        return normal_per_index(self._seed, f"latents/{seeds.data.name}", indices, self._forwards.denoiser.sample_shape)

    def _predict(self, seeds: Seeds, places: Sequence[int], x: torch.Tensor, t: Any) -> torch.Tensor:
        """Rows whose seeds are those at ``places``; a seed is conditioned as the image of the same number."""
        known = len(seeds.data.measured)
        condition = seeds.data.condition([(seeds.first + place) % known for place in places])
        return self._forwards.denoiser(x, torch.full((len(x),), int(t)), condition).target

    def _trajectory(self, seeds: Seeds, needs: Needs) -> Trajectory:
        """The unablated generation; every step's forward is recorded on the way where memory allows."""
        if seeds.key in self._trajectories:
            self._trajectories.move_to_end(seeds.key)
            return self._trajectories[seeds.key]
        clean = self._forwards.clean
        held = (clean.everything(seeds.count, len(self._timesteps)) or Needs()) if needs else needs

        def predict(step: int, x: torch.Tensor, t: Any) -> torch.Tensor:
            forward = self._recorded(seeds, x, t, held)
            if held:
                clean.keep((*seeds.key, step), forward)
            return forward.measured["target"]

        start = SamplerState(self.latents(seeds).to(self._forwards.denoiser.device), self._sampler)
        trajectory = Trajectory.run(start, predict)
        self._trajectories[seeds.key] = trajectory
        while len(self._trajectories) > _TRAJECTORIES_KEPT:
            self._trajectories.popitem(last=False)
        return trajectory

    def _clean(self, seeds: Seeds, step: int, needs: Needs) -> CleanForward:
        """The unablated forward of a step, from the trajectory's latents."""
        clean, trajectory = self._forwards.clean, self._trajectory(seeds, needs)
        kept = clean.get((*seeds.key, step), needs)
        if kept is None:
            x, t = trajectory.states[step].copied().model_input(step)
            kept = self._recorded(seeds, x, t, clean.everything(seeds.count) or needs)
            clean.keep((*seeds.key, step), kept)
        return kept

    def _recorded(self, seeds: Seeds, x: torch.Tensor, t: Any, needs: Needs) -> CleanForward:
        clean = self._forwards.clean

        def forward(places: list[int]) -> CleanForward:
            with clean.recording(needs) as recorded:
                target = self._predict(seeds, places, x[places], t)
            return recorded({"target": target})

        return clean.joined(self._forwards.batches.run(range(len(x)), forward))

    def _replacements(
        self, seeds: Seeds, inside: Sequence[int], variants: Variants, source: Callable[[Mode], DataSet]
    ) -> dict[int, dict[Mode, Replacement]]:
        """What each mode in use puts in place at each step, computed before the forwards that use it."""
        modes = {mode for by_mode in variants.weights.values() for mode in by_mode}
        replacements: dict[int, dict[Mode, Replacement]] = {t: {} for t in inside}
        for t in inside if Mode.mean in modes else ():
            means = {name: self._means.mean(seeds.data, t, layer) for name, layer in self._forwards.layers.items()}
            replacements[t][Mode.mean] = _same_for_all(means)
        for mode in modes & {Mode.resample, Mode.resample_across}:
            lends = Needs(frozenset(name for name, by_mode in variants.weights.items() if mode in by_mode))
            lender = Seeds(source(mode), seeds.first, seeds.count)
            donor = donors(seeds.count, 1, self._seed)
            for t in inside:
                clean = self._clean(lender, self._timesteps.index(t), lends)
                replacements[t][mode] = lent_by(clean, donor)
        return replacements


def _same_for_all(means: dict[str, Float[torch.Tensor, "tokens width"]]) -> Replacement:
    def replacement(layer: Any, units: Int[torch.Tensor, " rows"]) -> torch.Tensor:
        return means[layer.name].expand(len(units), -1, -1)

    return replacement
