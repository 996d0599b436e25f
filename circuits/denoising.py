"""The ``denoise`` protocol: images noised to a timestep of the window, and the errors of what the model says there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int

from circuits.clean import CleanForward, Needs
from circuits.data.sources import DataSet
from circuits.denoisers import Denoiser, Prediction
from circuits.extra_metrics import ExtraMetrics
from circuits.forwards import Forwards, Rows
from circuits.gaussian_noise import GaussianNoise
from circuits.interventions import Intervention, Mode
from circuits.metrics import denoise_metrics
from circuits.references import MeanReferences
from circuits.rows import Replacement, Variants, intervened
from circuits.vocabulary import DENOISE_METRICS


@dataclass(frozen=True)
class Paired:
    """One metric without and with interventions, on the same images and noise."""

    baseline: Float[torch.Tensor, " units"]
    ablated: Float[torch.Tensor, "interventions units"]


@dataclass(frozen=True)
class Noised:
    """Images of a data set, each noised to its own timestep with its own noise; on the device.

    Attributes:
        image: which of the data set; with ``t``, of each image, on the CPU, where noise levels are looked up.
        x_t: what the network sees.
    """

    x0: Float[torch.Tensor, "units c h w"]
    noise: Float[torch.Tensor, "units c h w"]
    image: Int[torch.Tensor, " units"]
    t: Int[torch.Tensor, " units"]
    x_t: Float[torch.Tensor, "units c h w"]

    def rows(self, index: Int[torch.Tensor, " rows"]) -> Noised:
        place = index.to(self.x0.device)
        return Noised(self.x0[place], self.noise[place], self.image[index], self.t[index], self.x_t[place])


def timesteps_of(steps: Sequence[int], units: Sequence[int]) -> Int[torch.Tensor, " n"]:
    """Timestep of each unit: the window's steps in turn, so that each is used equally often."""
    return torch.tensor(steps)[torch.tensor(list(units), dtype=torch.long) % len(steps)]


class Denoising:
    """Measures interventions on images of data sets."""

    def __init__(self, forwards: Forwards, means: MeanReferences, seed: int, extra: ExtraMetrics | None = None) -> None:
        self._forwards = forwards
        self._extra = extra
        self._means = means
        self._gaussian = GaussianNoise(means, seed)
        self._seed = seed
        self._drawn: dict[str, dict[int, torch.Tensor]] = {}

    @property
    def _denoiser(self) -> Denoiser:
        return self._forwards.denoiser

    def measure(
        self,
        data: DataSet,
        steps: Sequence[int],
        interventions: Sequence[Intervention],
        units: Sequence[int],
        donor: Callable[[Mode], tuple[DataSet, Mapping[int, int]]],
    ) -> dict[str, Paired]:
        """Every metric of the interventions on these images.

        Args:
            steps: of the window.
            units: images of the data set.
            donor: of the resample modes, the data set that lends and by image the one that lends to it.
        """
        variants = Variants(interventions, self._forwards.layers)
        modes = {i.mode for i in interventions}
        lending = {mode: donor(mode) for mode in modes & {Mode.resample, Mode.resample_across}}
        needs = self._forwards.clean.needs(interventions)
        lends = Needs(frozenset(name for name, found in variants.weights.items() if found.keys() & lending.keys()))
        own = {other for source, lent in lending.values() if source is data for other in map(lent.get, units)}
        passed = sorted({*units} | {image for image in own if image is not None})
        clean = self._clean_pass(data, steps, passed, needs | lends if own else needs)
        places = torch.tensor([passed.index(unit) for unit in units])
        replacements = self._replacements(data, steps, units, modes, lending, lends, clean, passed)
        noised = self._noised(data, steps, units)
        names = DENOISE_METRICS + (self._extra.names(data.name) if self._extra else ())

        def forward(rows: Rows) -> torch.Tensor:
            start = rows.start(clean, places, self._denoiser.device)
            with intervened(self._denoiser, variants, rows.variant, rows.unit, replacements, start):
                found = self._metrics(data, noised.rows(rows.unit))
            return torch.stack([found[name] for name in names], dim=1)

        baseline = {name: clean.measured[name][places] for name in names}
        if not interventions:
            return {name: Paired(values, values.new_empty(0, len(units))) for name, values in baseline.items()}
        found = self._forwards.ablated(variants, len(units), forward)
        return {name: Paired(baseline[name], found[..., i]) for i, name in enumerate(names)}

    def _metrics(self, data: DataSet, noised: Noised) -> dict[str, Float[torch.Tensor, " rows"]]:
        prediction: Prediction = self._denoiser(noised.x_t, noised.t, data.condition(noised.image.tolist()))
        error = self._denoiser.noise_error(prediction, noised.x0, noised.noise, noised.t)
        measured = denoise_metrics(error, prediction.x0, noised.x0)
        if self._extra is not None:
            measured |= self._extra.measure(data.name, noised.image, prediction.x0, noised.x0)
        return {name: values.cpu() for name, values in measured.items()}

    def _noised(self, data: DataSet, steps: Sequence[int], units: Sequence[int]) -> Noised:
        t, device = timesteps_of(steps, units), self._denoiser.device
        x0 = data.measured.images[list(units)].to(device)
        noise = self._noise(data, units).to(device)
        return Noised(x0, noise, torch.tensor(list(units)), t, self._denoiser.add_noise(x0, noise, t))

    def _noise(self, data: DataSet, units: Sequence[int]) -> torch.Tensor:
        """The fixed noise of each image; drawn once and kept, since every trial asks for it."""
        drawn = self._drawn.setdefault(data.name, {})
        missing = sorted(set(units) - drawn.keys())
        if missing:
            drawn.update(zip(missing, data.noise(missing, self._seed), strict=True))
        return torch.stack([drawn[unit] for unit in units])

    def _clean_pass(self, data: DataSet, steps: Sequence[int], units: Sequence[int], needs: Needs) -> CleanForward:
        clean = self._forwards.clean
        key = (data.name, tuple(steps), tuple(units))
        kept = clean.get(key, needs)
        if kept is not None:
            return kept
        held = clean.widened(needs, len(units)) if needs else needs
        noised = self._noised(data, steps, units)

        def forward(places: list[int]) -> CleanForward:
            with clean.recording(held) as recorded:
                measured = self._metrics(data, noised.rows(torch.tensor(places)))
            return recorded(measured)

        found = clean.joined(self._forwards.batches.run(range(len(units)), forward))
        clean.keep(key, found)
        return found

    def _replacements(
        self,
        data: DataSet,
        steps: Sequence[int],
        units: Sequence[int],
        modes: set[Mode],
        lending: Mapping[Mode, tuple[DataSet, Mapping[int, int]]],
        lends: Needs,
        clean: CleanForward,
        passed: Sequence[int],
    ) -> dict[Mode, Replacement]:
        """What each mode in use puts in place, computed before the forwards that use it."""
        replacements: dict[Mode, Replacement] = {}
        if Mode.noise in modes:  # before the means, which come with its moments
            at = zip(units, timesteps_of(steps, units).tolist(), strict=True)
            replacements[Mode.noise] = self._gaussian.replacement(data, self._forwards.layers.values(), list(at))
        if Mode.mean in modes:
            tables = {
                name: torch.stack([self._means.mean(data, step, layer) for step in steps])
                for name, layer in self._forwards.layers.items()
            }
            step = torch.tensor(list(units), dtype=torch.long) % len(steps)  # as in timesteps_of
            replacements[Mode.mean] = lambda layer, rows: rows_of(tables[layer.name], step[rows])
        for mode, (source, lent) in lending.items():
            needed = [lent[unit] for unit in units]
            others = passed if source is data else sorted(set(needed))
            lender = clean if source is data else self._clean_pass(source, steps, others, lends)
            replacements[mode] = lent_by(lender, torch.tensor([others.index(unit) for unit in needed]))
        return replacements


def lent_by(lender: CleanForward, donor: Int[torch.Tensor, " units"]) -> Replacement:
    """The site's activation of each unit's donor, by its place in the clean forward."""
    return lambda layer, rows: rows_of(lender.activations[layer.name], donor[rows])


def rows_of(table: torch.Tensor, rows: Int[torch.Tensor, " rows"]) -> torch.Tensor:
    return table[rows.to(table.device)]
