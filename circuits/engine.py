"""Run interventions on a denoiser, under two protocols, many interventions as rows of one forward.

``denoise``: an image is noised to a timestep of the window with its own fixed noise; the errors of the prediction are measured.
``sample``: an image is generated from its own fixed seed, with the intervention during the window's sampler steps.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float

from circuits.data.sources import DataSet
from circuits.denoisers import Denoiser
from circuits.hooks import capture_inputs
from circuits.interventions import Intervention, Mode
from circuits.metrics import denoise_metrics
from circuits.references import MeanReferences, donors
from circuits.rows import Replacement, intervened
from circuits.seeds import normal_per_index
from circuits.sites import AttentionLayer

REFERENCE_ROWS = 32
_CLEAN_PASSES_KEPT = 4


@dataclass(frozen=True)
class Window:
    """A range of training timesteps, from the noisier ``t_start`` down to ``t_end``, both included."""

    t_start: int
    t_end: int

    def __post_init__(self) -> None:
        if not self.t_start >= self.t_end >= 0:
            raise ValueError(f"a window runs from t_start down to t_end >= 0, got [{self.t_start}, {self.t_end}]")

    def __contains__(self, t: object) -> bool:
        return isinstance(t, int) and self.t_end <= t <= self.t_start

    def select(self, timesteps: Sequence[int]) -> list[int]:
        """The sampler's timesteps that lie inside."""
        return [t for t in timesteps if t in self]


@dataclass(frozen=True)
class Paired:
    """One metric, baseline ``[units]`` and ablated ``[interventions, units]``, on the same images and noise."""

    baseline: Float[torch.Tensor, " units"]
    ablated: Float[torch.Tensor, "interventions units"]


@dataclass(frozen=True)
class Generated:
    """Images of the same seeds without (``[seeds, c, h, w]``) and with interventions (``[interventions, seeds, c, h, w]``)."""

    baseline: torch.Tensor
    ablated: torch.Tensor


@dataclass(frozen=True)
class _CleanPass:
    """Unablated predictions of a data set in a window: the metrics, and the sites' activations ``[units, tokens, width]``."""

    metrics: dict[str, torch.Tensor]
    activations: dict[str, torch.Tensor]


@dataclass(frozen=True)
class _Trajectory:
    """Unablated generation: the image, and per step the activations of every layer."""

    images: torch.Tensor
    activations: list[dict[str, torch.Tensor]]


class Engine:
    """A denoiser, its data sets, and what the interventions on them share.

    Args:
        data: data sets by name, at the denoiser's size.
        steps: steps of the sampler; windows are sets of these steps in both protocols.
        rows: rows of a forward; halved, for good, when the device runs out of memory.
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
        self.rows = rows
        self.rows_run = 0
        self.sampler = denoiser.sampler(steps)
        self.timesteps = [int(t) for t in self.sampler.timesteps]
        self._means = MeanReferences(denoiser, layers, seed, min(rows, REFERENCE_ROWS))
        self._clean: OrderedDict[tuple[str, Window, int], _CleanPass] = OrderedDict()
        self._trajectories: OrderedDict[tuple[str, int, int], _Trajectory] = OrderedDict()

    # denoise

    def unit_timesteps(self, window: Window, n: int) -> torch.Tensor:
        """Timestep of each of n units: the window's sampler steps in turn, so that each is used equally often."""
        steps = window.select(self.timesteps)
        if not steps:
            raise ValueError(f"window [{window.t_start}, {window.t_end}] holds none of the steps {self.timesteps}")
        return torch.tensor(steps)[torch.arange(n) % len(steps)]

    def denoise(self, dataset: str, window: Window, interventions: Sequence[Intervention], n: int) -> dict[str, Paired]:
        """Errors of the one-step prediction for the data set's first n images; every metric, per image.

        Raises:
            FloatingPointError: a metric is not finite.
        """
        data = self.data[dataset]
        clean = self._clean_pass(data, window, n)
        t = self.unit_timesteps(window, n)
        x0 = data.measured.images[:n]
        noise = self._noise(data, n)
        replacements = self._denoise_replacements(data, window, n, interventions)
        pairs = [(v, u) for v in range(len(interventions)) for u in range(n)]
        found: dict[str, torch.Tensor] = {}

        def run(chunk: list[tuple[int, int]]) -> None:
            units = [u for _, u in chunk]
            chosen = [interventions[v] for v, _ in chunk]
            with intervened(self.denoiser, self.layers, chosen, units, replacements):
                measured = self._predict(data, x0[units], noise[units], t[units])
            variants = torch.tensor([v for v, _ in chunk])
            for name, values in measured.items():
                table = found.setdefault(name, torch.full((len(interventions), n), torch.nan))
                table[variants, torch.tensor(units)] = values.cpu()

        self._in_batches(pairs, run)
        for name, table in found.items():
            if not table.isfinite().all():
                raise FloatingPointError(
                    f"metric {name} is not finite for {int((~table.isfinite()).sum())} of {table.numel()} rows"
                )
        return {name: Paired(clean.metrics[name], table) for name, table in found.items()}

    def _predict(
        self, data: DataSet, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        prediction = self.denoiser(self.denoiser.add_noise(x0, noise, t), t, data.labels(len(t)))
        error = self.denoiser.noise_error(prediction, x0, noise, t)
        return denoise_metrics(error, prediction.x0, x0.to(prediction.x0.device))

    def _noise(self, data: DataSet, n: int) -> torch.Tensor:
        return normal_per_index(self.seed, f"noise/{data.name}", list(range(n)), data.measured.images.shape[1:])

    def _clean_pass(self, data: DataSet, window: Window, n: int) -> _CleanPass:
        key = (data.name, window, n)
        if key in self._clean:
            self._clean.move_to_end(key)
            return self._clean[key]
        t, x0, noise = self.unit_timesteps(window, n), data.measured.images[:n], self._noise(data, n)
        by_path = {layer.projection: layer.name for layer in self.layers.values()}
        metrics: dict[str, list[torch.Tensor]] = {}
        activations: dict[str, list[torch.Tensor]] = {}

        def run(chunk: list[int]) -> None:
            with capture_inputs(self.denoiser.network, list(by_path)) as seen:
                measured = self._predict(data, x0[chunk], noise[chunk], t[chunk])
            for name, values in measured.items():
                metrics.setdefault(name, []).append(values.cpu())
            for path, activation in seen.items():
                activations.setdefault(by_path[path], []).append(activation)

        self._in_batches(list(range(n)), run)
        clean = _CleanPass(
            {name: torch.cat(parts) for name, parts in metrics.items()},
            {name: torch.cat(parts) for name, parts in activations.items()},
        )
        self._clean[key] = clean
        if len(self._clean) > _CLEAN_PASSES_KEPT:
            self._clean.popitem(last=False)
        return clean

    def _denoise_replacements(
        self, data: DataSet, window: Window, n: int, interventions: Sequence[Intervention]
    ) -> dict[Mode, Replacement]:
        modes = {i.mode for i in interventions}
        replacements: dict[Mode, Replacement] = {}
        steps = window.select(self.timesteps)
        if Mode.mean in modes:
            # Before the forward that uses them: computing them is a forward of its own, without edits.
            tables = {
                name: torch.stack([self._means.mean(data, step, layer) for step in steps])
                for name, layer in self.layers.items()
            }

            def mean(layer: AttentionLayer, units: torch.Tensor) -> torch.Tensor:
                return tables[layer.name][(units % len(steps)).to(self.denoiser.device)]

            replacements[Mode.mean] = mean
        for mode, source in ((Mode.resample, data), (Mode.resample_across, self._other(data))):
            if mode in modes:
                clean, donor = self._clean_pass(source, window, n), donors(n, len(steps), self.seed)

                def resample(
                    layer: AttentionLayer,
                    units: torch.Tensor,
                    clean: _CleanPass = clean,
                    donor: torch.Tensor = donor,
                ) -> torch.Tensor:
                    activations = clean.activations[layer.name]
                    return activations[donor[units].to(activations.device)]

                replacements[mode] = resample
        return replacements

    def _other(self, data: DataSet) -> DataSet:
        """The data set that cross-resampling borrows from: the next one in the configuration."""
        names = list(self.data)
        return self.data[names[(names.index(data.name) + 1) % len(names)]]

    # sample

    def sample(
        self, dataset: str, window: Window, interventions: Sequence[Intervention], seeds: int, first_seed: int = 0
    ) -> Generated:
        """Generate ``seeds`` images per intervention, intervening at the window's steps only."""
        data = self.data[dataset]
        clean = self._trajectory(data, seeds, first_seed)
        start = self._latents(data, seeds, first_seed)
        pairs = [(v, u) for v in range(len(interventions)) for u in range(seeds)]
        images = torch.empty(len(interventions), *start.shape)

        def run(chunk: list[tuple[int, int]]) -> None:
            units = [u for _, u in chunk]
            chosen = [interventions[v] for v, _ in chunk]
            x = start[units].to(self.denoiser.device)
            for step, t in enumerate(self.timesteps):
                if t in window:
                    replacements = self._sample_replacements(data, step, seeds, first_seed, chosen)
                    with intervened(self.denoiser, self.layers, chosen, units, replacements):
                        x = self._step(data, x, t)
                else:
                    x = self._step(data, x, t)
            images[torch.tensor([v for v, _ in chunk]), torch.tensor(units)] = x.cpu()

        self._in_batches(pairs, run, forwards=len(self.timesteps))
        if not images.isfinite().all():
            raise FloatingPointError("a generated image is not finite")
        return Generated(clean.images, images)

    def _step(self, data: DataSet, x: torch.Tensor, t: int) -> torch.Tensor:
        prediction = self.denoiser(x, torch.full((len(x),), t), data.labels(len(x)))
        return self.sampler.step(prediction.target, t, x).prev_sample

    def _latents(self, data: DataSet, seeds: int, first_seed: int) -> torch.Tensor:
        shape = (self.denoiser.channels, self.denoiser.size, self.denoiser.size)
        return normal_per_index(self.seed, f"latents/{data.name}", list(range(first_seed, first_seed + seeds)), shape)

    def _trajectory(self, data: DataSet, seeds: int, first_seed: int) -> _Trajectory:
        key = (data.name, seeds, first_seed)
        if key not in self._trajectories:
            by_path = {layer.projection: layer.name for layer in self.layers.values()}
            x = self._latents(data, seeds, first_seed).to(self.denoiser.device)
            activations = []
            for t in self.timesteps:
                with capture_inputs(self.denoiser.network, list(by_path)) as seen:
                    x = self._step(data, x, t)
                activations.append({by_path[path]: activation for path, activation in seen.items()})
            self.rows_run += len(x) * len(self.timesteps)
            self._trajectories[key] = _Trajectory(x.cpu(), activations)
            if len(self._trajectories) > _CLEAN_PASSES_KEPT:
                self._trajectories.popitem(last=False)
        return self._trajectories[key]

    def _sample_replacements(
        self, data: DataSet, step: int, seeds: int, first_seed: int, interventions: Sequence[Intervention]
    ) -> dict[Mode, Replacement]:
        modes = {i.mode for i in interventions}
        replacements: dict[Mode, Replacement] = {}
        if Mode.mean in modes:
            means = {name: self._means.mean(data, self.timesteps[step], layer) for name, layer in self.layers.items()}

            def mean(layer: AttentionLayer, units: torch.Tensor) -> torch.Tensor:
                return means[layer.name].expand(len(units), -1, -1)

            replacements[Mode.mean] = mean
        for mode, source in ((Mode.resample, data), (Mode.resample_across, self._other(data))):
            if mode in modes:
                activations = self._trajectory(source, seeds, first_seed).activations[step]
                donor = donors(seeds, 1, self.seed)

                def resample(
                    layer: AttentionLayer,
                    units: torch.Tensor,
                    activations: dict[str, torch.Tensor] = activations,
                    donor: torch.Tensor = donor,
                ) -> torch.Tensor:
                    there = activations[layer.name]
                    return there[donor[units].to(there.device)]

                replacements[mode] = resample
        return replacements

    # rows

    def _in_batches(self, items: list, run: Callable[[list], None], forwards: int = 1) -> None:
        """Call ``run`` on consecutive pieces of at most ``rows`` items; out of memory halves the rows and repeats the piece."""
        start = 0
        while start < len(items):
            piece = items[start : start + self.rows]
            try:
                run(piece)
            except torch.OutOfMemoryError:
                if self.rows == 1:
                    raise
                self.rows = max(1, self.rows // 2)
                torch.cuda.empty_cache()
                continue
            self.rows_run += len(piece) * forwards
            start += len(piece)
