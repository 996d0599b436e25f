"""The ``sample`` protocol: images generated from their own seeds, with interventions during a window's steps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int

from circuits.clean import CleanForward, Needs
from circuits.data.sources import DataSet
from circuits.denoising import lent_by
from circuits.forwards import Forwards, Rows
from circuits.gaussian_noise import GaussianNoise
from circuits.guidance import Guidance
from circuits.interventions import Intervention, Mode
from circuits.references import MeanReferences, donors
from circuits.rows import Replacement, Variants, intervened
from circuits.seeds import normal_per_index
from circuits.sites import AttentionLayer
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
        guidance: every image then has two rows, and what is called a place below counts the seeds in the conditional
            branch and, behind them, once more in the unconditional one.
    """

    def __init__(
        self, forwards: Forwards, means: MeanReferences, sampler: Any, seed: int, guidance: Guidance | None = None
    ) -> None:
        self._forwards = forwards
        self._means = means
        self._gaussian = GaussianNoise(means, seed)
        self._sampler = sampler
        self._seed = seed
        self._guidance = guidance
        self._branches = 1 if guidance is None else 2
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
        clean = self._clean(seeds, first, needs, len(inside)) if needs else None
        places, device = torch.arange(seeds.count * self._branches), self._forwards.denoiser.device

        def forward(rows: Rows) -> torch.Tensor:
            state = trajectory.states[first].rows(rows.unit)
            rows = self._in_branches(rows, seeds.count)
            chosen = rows.unit.tolist()
            for step in range(first, len(self._timesteps)):
                ablated: AbstractContextManager[None] = nullcontext()
                if (found := replacements.get(self._timesteps[step])) is not None:
                    start = rows.start(clean, places, device) if step == first else None
                    denoiser = self._forwards.denoiser
                    ablated = intervened(denoiser, variants, rows.variant, rows.unit, found, start)
                with ablated:
                    state = state.next(step, lambda x, t: self._predicted(seeds, chosen, x, t))
            return state.x.cpu()

        images = self._forwards.ablated(variants, seeds.count, forward, len(self._timesteps) - first, self._branches)
        return Generated(trajectory.images.cpu(), images)

    def latents(self, seeds: Seeds) -> Float[torch.Tensor, "seeds c h w"]:
        """Where the seeds begin: their own noise."""
        indices = list(range(seeds.first, seeds.first + seeds.count))
        return normal_per_index(self._seed, f"latents/{seeds.data.name}", indices, self._forwards.denoiser.sample_shape)

    def _in_branches(self, rows: Rows, count: int) -> Rows:
        """Rows of the network: all rows in the conditional branch, then all in the unconditional one."""
        if self._guidance is None:
            return rows
        return Rows(rows.variant.repeat(2), torch.cat([rows.unit, rows.unit + count]), rows.plan)

    def _predicted(self, seeds: Seeds, places: Sequence[int], x: torch.Tensor, t: Any) -> torch.Tensor:
        """The prediction that the sampler is given, for as many rows as ``x`` has."""
        if self._guidance is None:
            return self._predict(seeds, places, x, t)
        return self._guidance.guided(self._predict(seeds, places, torch.cat([x, x]), t))

    def _predict(self, seeds: Seeds, places: Sequence[int], x: torch.Tensor, t: Any) -> torch.Tensor:
        """Rows whose seeds are those at ``places``; a seed is conditioned as the image of the same number."""
        known, denoiser = len(seeds.data.measured), self._forwards.denoiser
        conditional = [(seeds.first + place) % known for place in places if place < seeds.count]
        condition = seeds.data.condition(conditional)
        if self._guidance is not None:
            condition = self._guidance.both(denoiser.conditioning(condition), len(places) - len(conditional))
        return denoiser(x, torch.full((len(x),), int(t)), condition).target

    def _trajectory(self, seeds: Seeds, needs: Needs) -> Trajectory:
        """The unablated generation; every step's forward is recorded on the way where memory allows."""
        if seeds.key in self._trajectories:
            self._trajectories.move_to_end(seeds.key)
            return self._trajectories[seeds.key]
        clean = self._forwards.clean
        units = seeds.count * self._branches
        held = (clean.everything(units, len(self._timesteps)) or Needs()) if needs else needs

        def predict(step: int, x: torch.Tensor, t: Any) -> torch.Tensor:
            forward = self._recorded(seeds, x, t, held)
            if held:
                clean.keep((*seeds.key, step), forward)
            target = forward.measured["target"]
            return target if self._guidance is None else self._guidance.guided(target)

        start = SamplerState(self.latents(seeds).to(self._forwards.denoiser.device), self._sampler)
        trajectory = Trajectory.run(start, predict)
        self._trajectories[seeds.key] = trajectory
        while len(self._trajectories) > _TRAJECTORIES_KEPT:
            self._trajectories.popitem(last=False)
        return trajectory

    def _clean(self, seeds: Seeds, step: int, needs: Needs, steps: int) -> CleanForward:
        """The unablated forward of a step, from the trajectory's latents; so many steps are to be kept at a time."""
        clean, trajectory = self._forwards.clean, self._trajectory(seeds, needs)
        kept = clean.get((*seeds.key, step), needs)
        if kept is None:
            x, t = trajectory.states[step].copied().model_input(step)
            kept = self._recorded(seeds, x, t, clean.widened(needs, seeds.count * self._branches, steps))
            clean.keep((*seeds.key, step), kept)
        return kept

    def _recorded(self, seeds: Seeds, x: torch.Tensor, t: Any, needs: Needs) -> CleanForward:
        """A row a place; each seed's latents in every branch."""
        clean, x = self._forwards.clean, torch.cat([x] * self._branches)

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
        for t in inside if Mode.noise in modes else ():  # before the means, which come with its moments
            replacements[t][Mode.noise] = self._by_branch(seeds, partial(self._noise, seeds, t))
        for t in inside if Mode.mean in modes else ():
            replacements[t][Mode.mean] = self._by_branch(seeds, partial(self._mean, t))
        for mode in modes & {Mode.resample, Mode.resample_across}:
            lends = Needs(frozenset(name for name, by_mode in variants.weights.items() if mode in by_mode))
            lender = Seeds(source(mode), seeds.first, seeds.count)
            donor = donors(seeds.count, 1, self._seed)
            donor = torch.cat([donor + branch * seeds.count for branch in range(self._branches)])
            for t in inside:
                clean = self._clean(lender, self._timesteps.index(t), lends, len(inside))
                replacements[t][mode] = lent_by(clean, donor)
        return replacements

    def _by_branch(self, seeds: Seeds, of: Callable[[DataSet], Replacement]) -> Replacement:
        """A replacement that is another one in each branch; each is made for seeds, from 0."""
        if self._guidance is None:
            return of(seeds.data)
        conditional, unconditional = of(seeds.data), of(self._guidance.unconditional_set(seeds.data))

        def replacement(layer: AttentionLayer, units: Int[torch.Tensor, " rows"]) -> torch.Tensor:
            behind = units[units >= seeds.count] - seeds.count
            return torch.cat([conditional(layer, units[units < seeds.count]), unconditional(layer, behind)])

        return replacement

    def _noise(self, seeds: Seeds, t: int, data: DataSet) -> Replacement:
        at = [(seeds.first + place, t) for place in range(seeds.count)]
        return self._gaussian.replacement(data, self._forwards.layers.values(), at)

    def _mean(self, t: int, data: DataSet) -> Replacement:
        return _same_for_all({name: self._means.mean(data, t, layer) for name, layer in self._forwards.layers.items()})


def _same_for_all(means: dict[str, Float[torch.Tensor, "tokens width"]]) -> Replacement:
    def replacement(layer: Any, units: Int[torch.Tensor, " rows"]) -> torch.Tensor:
        return means[layer.name].expand(len(units), -1, -1)

    return replacement
