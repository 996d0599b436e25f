"""Run interventions on a denoiser, under two protocols, many interventions as rows of one forward.

``denoise``: an image is noised to a timestep of the window with its own fixed noise; the prediction is measured.
``sample``: an image is generated from its own fixed seed, with the intervention during the window's sampler steps.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int

from circuits.batches import Batches
from circuits.data.sources import DataSet
from circuits.denoisers import Denoiser
from circuits.hooks import capture_inputs
from circuits.interventions import Intervention, Mode
from circuits.metrics import denoise_metrics
from circuits.naming import nearest
from circuits.references import MeanReferences, donors
from circuits.rows import Replacement, intervened
from circuits.seeds import normal_per_index
from circuits.sites import AttentionLayer

REFERENCE_ROWS = 32
_CLEAN_PASSES_KEPT = 4

Activations = dict[str, Float[torch.Tensor, "units tokens width"]]
"""Clean inputs of the sites by layer name."""


@dataclass(frozen=True)
class Window:
    """A range of training timesteps, from the noisier ``t_start`` down to ``t_end``, both included."""

    t_start: int
    t_end: int

    def __post_init__(self) -> None:
        if not self.t_start >= self.t_end >= 0:
            raise ValueError(f"a window runs from t_start down to t_end >= 0, got [{self.t_start}, {self.t_end}]")

    def __contains__(self, t: int) -> bool:
        return self.t_end <= t <= self.t_start

    def select(self, timesteps: Sequence[int]) -> list[int]:
        """The sampler's timesteps that lie inside."""
        return [t for t in timesteps if t in self]


@dataclass(frozen=True)
class Paired:
    """One metric without and with interventions, on the same images and noise."""

    baseline: Float[torch.Tensor, " units"]
    ablated: Float[torch.Tensor, "interventions units"]


@dataclass(frozen=True)
class Generated:
    """Images of the same seeds without and with interventions; pixels in about [-1, 1]."""

    baseline: Float[torch.Tensor, "seeds c h w"]
    ablated: Float[torch.Tensor, "interventions seeds c h w"]


@dataclass(frozen=True)
class _CleanPass:
    """Unablated predictions of images in a window: metrics and sites' activations, and the place of each image."""

    metrics: dict[str, torch.Tensor]
    activations: Activations
    place: Mapping[int, int]

    def places(self, units: Sequence[int]) -> list[int]:
        return [self.place[unit] for unit in units]


@dataclass(frozen=True)
class _Trajectory:
    """Unablated generation: the images and, where they were asked for, the sites' activations at every step."""

    images: torch.Tensor
    activations: list[Activations] | None


class Engine:
    """A denoiser, its data sets, and what the interventions on them share.

    Args:
        data: data sets by name, at the denoiser's size.
        steps: steps of the sampler; windows are sets of these steps in both protocols.
        rows: rows of a forward; halved, for good, when the device runs out of memory.

    Raises:
        ValueError: a data set that does not fit the model: size, colour mode or label.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        layers: Sequence[AttentionLayer],
        data: Mapping[str, DataSet],
        *,
        steps: int,
        seed: int,
        rows: int = 32,
    ) -> None:
        self.denoiser = denoiser
        self.layers = {layer.name: layer for layer in layers}
        self.data = data
        self.seed = seed
        self.sampler = denoiser.sampler(steps)
        self.timesteps = [int(t) for t in self.sampler.timesteps]
        self._batches = Batches(rows)
        self._names = {layer.projection: layer.name for layer in layers}
        self._means = MeanReferences(denoiser, layers, seed, min(rows, REFERENCE_ROWS))
        self._drawn: dict[str, dict[int, torch.Tensor]] = {}
        self._clean: OrderedDict[tuple[str, Window, tuple[int, ...]], _CleanPass] = OrderedDict()
        self._trajectories: OrderedDict[tuple[str, int, int], _Trajectory] = OrderedDict()
        for data_set in data.values():
            _check_fits(denoiser, data_set)

    @property
    def rows(self) -> int:
        """Rows of a forward, at most."""
        return self._batches.rows

    @property
    def rows_run(self) -> int:
        """Rows that went through the network so far, without those of mean references."""
        return self._batches.rows_run

    # denoise

    def unit_timesteps(self, window: Window, units: Sequence[int]) -> Int[torch.Tensor, " n"]:
        """Timestep of each unit: the window's steps in turn, so that each is used equally often.

        Raises:
            ValueError: the window holds no step of the sampler.
        """
        steps = torch.tensor(self._steps(window))
        return steps[torch.tensor(list(units), dtype=torch.long) % len(steps)]

    def denoise(
        self,
        dataset: str,
        window: Window,
        interventions: Sequence[Intervention],
        n: int,
        first: int = 0,
        units: range | None = None,
    ) -> dict[str, Paired]:
        """Errors of the one-step prediction for images of the data set; every metric, per image.

        Unit i is image ``first + i``. It has the same timestep, noise and numbers whatever n and ``units`` are, except
        that under the two resample modes donors are drawn among the n units (see :func:`references.donors`).

        Args:
            units: those measured now, of the n; all of them by default.

        Raises:
            ValueError: a data set, site, mode or number of images that is not there.
            FloatingPointError: a metric is not finite.
        """
        data = self._checked(dataset, interventions, n, first)
        units = range(n) if units is None else units
        if not (len(units) and 0 <= units[0] <= units[-1] < n):
            raise ValueError(f"units: expected some of 0 to {n - 1}, got {units}")
        measured = [first + unit for unit in units]
        donor = self._donors(window, interventions, n, first)
        clean = self._clean_pass(data, window, sorted({*measured, *(donor[unit] for unit in measured if donor)}))
        replacements = self._denoise_replacements(data, window, clean, measured, donor, interventions)

        def forward(pairs: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
            rows = [unit for _, unit in pairs]
            chosen = [interventions[variant] for variant, _ in pairs]
            with intervened(self.denoiser, self.layers, chosen, rows, replacements):
                return self._predict(data, window, rows)

        pairs = [(variant, unit) for variant in range(len(interventions)) for unit in measured]
        parts = self._batches.run(pairs, forward)
        shape = (len(interventions), len(measured))
        baseline = {name: values[clean.places(measured)] for name, values in clean.metrics.items()}
        found = {
            name: Paired(values, torch.cat([values[:0], *(part[name] for part in parts)]).view(shape))
            for name, values in baseline.items()
        }
        for name, pair in found.items():
            _check_finite(f"metric {name} of the unablated model", pair.baseline)
            _check_finite(f"metric {name}", pair.ablated)
        return found

    def _predict(self, data: DataSet, window: Window, units: Sequence[int]) -> dict[str, Float[torch.Tensor, " rows"]]:
        """Metrics of the prediction for these images, each with its own timestep and noise."""
        t = self.unit_timesteps(window, units)
        x0 = data.measured.images[list(units)]
        noise = self._noise(data, units)
        prediction = self.denoiser(self.denoiser.add_noise(x0, noise, t), t, data.labels(len(t)))
        error = self.denoiser.noise_error(prediction, x0, noise, t)
        measured = denoise_metrics(error, prediction.x0, x0.to(prediction.x0.device))
        return {name: values.cpu() for name, values in measured.items()}

    def _noise(self, data: DataSet, units: Sequence[int]) -> torch.Tensor:
        """The fixed noise of each image; drawn once and kept, since every trial asks for it."""
        drawn = self._drawn.setdefault(data.name, {})
        missing = sorted(set(units) - drawn.keys())
        if missing:
            noise = normal_per_index(self.seed, f"noise/{data.name}", missing, data.measured.images.shape[1:])
            drawn.update(zip(missing, noise, strict=True))
        return torch.stack([drawn[unit] for unit in units])

    def _clean_pass(self, data: DataSet, window: Window, units: Sequence[int]) -> _CleanPass:
        key = (data.name, window, tuple(units))
        if key in self._clean:
            self._clean.move_to_end(key)
            return self._clean[key]

        def forward(rows: list[int]) -> tuple[dict[str, torch.Tensor], Activations]:
            with capture_inputs(self.denoiser.network, list(self._names)) as seen:
                measured = self._predict(data, window, rows)
            return measured, self._by_name(seen)

        parts = self._batches.run(units, forward)
        metrics, activations = _concatenated([m for m, _ in parts]), _concatenated([a for _, a in parts])
        clean = _CleanPass(metrics, activations, {unit: place for place, unit in enumerate(units)})
        _keep(self._clean, key, clean)
        return clean

    def _donors(self, window: Window, interventions: Sequence[Intervention], n: int, first: int) -> dict[int, int]:
        """The image whose activation each image is given by the resample modes; empty where none is in use."""
        if not {i.mode for i in interventions} & {Mode.resample, Mode.resample_across}:
            return {}
        chosen = donors(n, len(self._steps(window)), self.seed)
        return {first + unit: first + int(donor) for unit, donor in enumerate(chosen)}

    def _denoise_replacements(
        self,
        data: DataSet,
        window: Window,
        clean: _CleanPass,
        units: Sequence[int],
        donor: Mapping[int, int],
        interventions: Sequence[Intervention],
    ) -> dict[Mode, Replacement]:
        """What each mode in use puts in place, computed before the forwards that use it."""
        modes = {i.mode for i in interventions}
        replacements: dict[Mode, Replacement] = {}
        steps = self._steps(window)
        if Mode.mean in modes:
            tables = {
                name: torch.stack([self._means.mean(data, step, layer) for step in steps])
                for name, layer in self.layers.items()
            }
            # Image i is at step i mod len(steps), as in unit_timesteps.
            replacements[Mode.mean] = lambda layer, rows: _rows_of(tables[layer.name], rows % len(steps))
        for mode in modes & {Mode.resample, Mode.resample_across}:
            source = self._source(data, mode)
            lender = clean if source is data else self._clean_pass(source, window, sorted({donor[u] for u in units}))
            replacements[mode] = _lent(lender, donor)
        return replacements

    # sample

    def sample(
        self, dataset: str, window: Window, interventions: Sequence[Intervention], seeds: int, first_seed: int = 0
    ) -> Generated:
        """Generate ``seeds`` images per intervention, intervening at the window's steps only.

        Image i depends on seed ``first_seed + i`` alone, except under the two resample modes, whose donors are drawn
        among the images generated together.

        Raises:
            ValueError: a data set, site or mode that is not there, no seeds, or a window without a step of the sampler.
            FloatingPointError: a generated pixel is not finite.
        """
        if seeds < 1:
            raise ValueError(f"at least 1 image is generated, got seeds={seeds}")
        data = self._checked(dataset, interventions)
        inside = self._steps(window)
        replacements = self._sample_replacements(data, inside, seeds, first_seed, interventions)
        clean = self._trajectory(data, seeds, first_seed)
        start = self._latents(data, seeds, first_seed)

        def forward(pairs: list[tuple[int, int]]) -> torch.Tensor:
            units = [unit for _, unit in pairs]
            chosen = [interventions[variant] for variant, _ in pairs]
            x = start[units].to(self.denoiser.device)
            for t in self.timesteps:
                if t in window:
                    with intervened(self.denoiser, self.layers, chosen, units, replacements[t]):
                        x = self._step(data, x, t)
                else:
                    x = self._step(data, x, t)
            return x.cpu()

        parts = self._batches.run(_variant_major(len(interventions), seeds), forward, forwards=len(self.timesteps))
        images = torch.cat([start[:0], *parts]).view(len(interventions), *start.shape)
        _check_finite("pixels generated by the unablated model", clean.images)
        _check_finite("generated pixels", images)
        return Generated(clean.images, images)

    def _step(self, data: DataSet, x: torch.Tensor, t: int) -> torch.Tensor:
        prediction = self.denoiser(x, torch.full((len(x),), t), data.labels(len(x)))
        return self.sampler.step(prediction.target, t, x).prev_sample

    def _latents(self, data: DataSet, seeds: int, first_seed: int) -> torch.Tensor:
        shape = (self.denoiser.channels, self.denoiser.size, self.denoiser.size)
        return normal_per_index(self.seed, f"latents/{data.name}", list(range(first_seed, first_seed + seeds)), shape)

    def _trajectory(self, data: DataSet, seeds: int, first_seed: int, activations: bool = False) -> _Trajectory:
        key = (data.name, seeds, first_seed)
        kept = self._trajectories.get(key)
        if kept is not None and (kept.activations is not None or not activations):
            self._trajectories.move_to_end(key)
            return kept
        start = self._latents(data, seeds, first_seed)
        # Activations of every step are large, so they are kept for the modes that need them only.
        paths = list(self._names) if activations else []

        def forward(units: list[int]) -> tuple[torch.Tensor, list[Activations]]:
            x, per_step = start[units].to(self.denoiser.device), []
            for t in self.timesteps:
                with capture_inputs(self.denoiser.network, paths) as seen:
                    x = self._step(data, x, t)
                per_step.append(self._by_name(seen))
            return x.cpu(), per_step

        parts = self._batches.run(range(seeds), forward, forwards=len(self.timesteps))
        steps = [_concatenated([p[step] for _, p in parts]) for step in range(len(self.timesteps))]
        trajectory = _Trajectory(torch.cat([x for x, _ in parts]), steps if activations else None)
        _keep(self._trajectories, key, trajectory)
        return trajectory

    def _sample_replacements(
        self, data: DataSet, steps: Sequence[int], seeds: int, first_seed: int, interventions: Sequence[Intervention]
    ) -> dict[int, dict[Mode, Replacement]]:
        """What each mode in use puts in place at each step, computed before the forwards that use it."""
        modes = {i.mode for i in interventions}
        replacements: dict[int, dict[Mode, Replacement]] = {t: {} for t in steps}
        for t in steps if Mode.mean in modes else ():
            means = {name: self._means.mean(data, t, layer) for name, layer in self.layers.items()}
            replacements[t][Mode.mean] = _same_for_all(means)
        for mode in modes & {Mode.resample, Mode.resample_across}:
            trajectory = self._trajectory(self._source(data, mode), seeds, first_seed, activations=True)
            assert trajectory.activations is not None
            donor = donors(seeds, 1, self.seed)
            for t in steps:
                replacements[t][mode] = _from_donors(trajectory.activations[self.timesteps.index(t)], donor)
        return replacements

    # both

    def _steps(self, window: Window) -> list[int]:
        steps = window.select(self.timesteps)
        if not steps:
            raise ValueError(f"window [{window.t_start}, {window.t_end}] holds none of the steps {self.timesteps}")
        return steps

    def _source(self, data: DataSet, mode: Mode) -> DataSet:
        """The data set that a resample mode borrows from: itself, or across, the next one in the configuration."""
        if mode is Mode.resample:
            return data
        names = list(self.data)
        return self.data[names[(names.index(data.name) + 1) % len(names)]]

    def _by_name(self, seen: Mapping[str, torch.Tensor]) -> Activations:
        return {self._names[path]: activation for path, activation in seen.items()}

    def _checked(
        self, dataset: str, interventions: Sequence[Intervention], n: int | None = None, first: int = 0
    ) -> DataSet:
        if dataset not in self.data:
            raise ValueError(f"no data set {dataset!r}{nearest(dataset, self.data)}")
        data = self.data[dataset]
        heads = {name: layer.heads for name, layer in self.layers.items()}
        for intervention in interventions:
            intervention.heads_by_layer(heads)
        across = any(i.mode is Mode.resample_across for i in interventions)
        if across and len(self.data) < 2:
            raise ValueError(f"resample_across needs two data sets, there is {dataset!r} only")
        for source in [data, *([self._source(data, Mode.resample_across)] if across else [])]:
            if n is not None and not (n >= 1 and first >= 0 and first + n <= len(source.measured)):
                raise ValueError(
                    f"data set {source.name!r} has {len(source.measured)} images to measure, got n={n}, first={first}"
                )
        return data


def _check_fits(denoiser: Denoiser, data: DataSet) -> None:
    expected = (denoiser.channels, denoiser.size, denoiser.size)
    for images in (data.measured.images, data.reference.images):
        if tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"data set {data.name!r} has images of {tuple(images.shape[1:])}, {denoiser.name} takes {expected}"
            )
    if denoiser.classes and not (data.label is not None and 0 <= data.label < denoiser.classes):
        raise ValueError(
            f"data set {data.name!r} has label {data.label}, {denoiser.name} knows 0 to {denoiser.classes - 1}"
        )


def _check_finite(what: str, values: torch.Tensor) -> None:
    bad = int((~values.isfinite()).sum())
    if bad:
        raise FloatingPointError(f"{what}: {bad} of {values.numel()} are not finite")


def _variant_major(variants: int, units: int) -> list[tuple[int, int]]:
    """(variant, unit) of every row, so that the rows of all results are ``[variants, units]``, flat."""
    return [(variant, unit) for variant in range(variants) for unit in range(units)]


def _concatenated(parts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _rows_of(table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return table[rows.to(table.device)]


def _same_for_all(means: Mapping[str, Float[torch.Tensor, "tokens width"]]) -> Replacement:
    return lambda layer, units: means[layer.name].expand(len(units), -1, -1)


def _from_donors(activations: Activations, donor: Int[torch.Tensor, " units"]) -> Replacement:
    return lambda layer, units: _rows_of(activations[layer.name], donor[units])


def _lent(clean: _CleanPass, donor: Mapping[int, int]) -> Replacement:
    def replacement(layer: AttentionLayer, units: torch.Tensor) -> torch.Tensor:
        places = clean.places([donor[unit] for unit in units.tolist()])
        return _rows_of(clean.activations[layer.name], torch.tensor(places, dtype=torch.long))

    return replacement


def _keep(cache: OrderedDict, key: object, value: object) -> None:
    """Put into a cache that forgets the least recently used."""
    cache[key] = value
    cache.move_to_end(key)
    while len(cache) > _CLEAN_PASSES_KEPT:
        cache.popitem(last=False)
