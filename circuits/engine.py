"""Run interventions on a denoiser, under two protocols, many interventions as rows of one forward.

``denoise``: an image is noised to a timestep of the window with its own fixed noise; the prediction is measured.
``sample``: an image is generated from its own fixed seed, with the intervention during the window's sampler steps.

What interventions share is computed once: the clean pass, what comes before the first site of an ablated forward, and
the trajectory before a window's first step. The numbers are those of separate forwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int

from circuits.data.sources import DataSet
from circuits.denoisers import Denoiser
from circuits.denoising import Denoising, Paired, timesteps_of
from circuits.extra_metrics import ExtraMetrics
from circuits.forwards import Forwards
from circuits.guidance import Guidance
from circuits.interventions import Intervention, Mode
from circuits.naming import nearest
from circuits.references import MeanReferences, donors
from circuits.row_count import best_rows, forward_seconds
from circuits.sampling import Generated, Sampling, Seeds
from circuits.sites import AttentionLayer

__all__ = ["Engine", "Generated", "Paired", "Window"]

REFERENCE_ROWS = 32


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


class Engine:
    """A denoiser, its data sets, and what the interventions on them share.

    Args:
        data: data sets by name, at the denoiser's size.
        steps: steps of the sampler; windows are sets of these steps in both protocols.
        rows: rows of a forward, halved, for good, when the device runs out of memory. With 0, as many as make the best
            use of the device are measured; the numbers do not depend on it.
        guidance: of generated images. The errors that ``denoise`` measures are those of the conditional branch.
        extra: what ``denoise`` measures beside its own metrics.

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
        guidance: Guidance | None = None,
        extra: ExtraMetrics | None = None,
    ) -> None:
        self.denoiser = denoiser
        self.layers = {layer.name: layer for layer in layers}
        self.data = data
        self.seed = seed
        self.sampler = denoiser.sampler(steps)
        self.timesteps = [int(t) for t in self.sampler.timesteps]
        for data_set in data.values():
            _check_fits(denoiser, data_set)
        rows = rows or best_rows(forward_seconds(denoiser))
        self._forwards = Forwards(denoiser, layers, rows)
        means = MeanReferences(denoiser, layers, seed, min(rows, REFERENCE_ROWS))
        self._denoising = Denoising(self._forwards, means, seed, extra)
        self._sampling = Sampling(self._forwards, means, self.sampler, seed, guidance)

    @property
    def rows(self) -> int:
        """Rows of a forward, at most."""
        return self._forwards.batches.rows

    @property
    def rows_run(self) -> int:
        """Rows that went through the network so far, without those of mean references and of the self-test of replay.

        A row that begins at a site counts as a whole one.
        """
        return self._forwards.batches.rows_run

    @property
    def replayable(self) -> dict[str, bool]:
        """By layer, whether forwards that change nothing before it begin at its site; the self-test says which."""
        return {name: self._forwards.plans[name] is not None for name in self.layers}

    def unit_timesteps(self, window: Window, units: Sequence[int]) -> Int[torch.Tensor, " n"]:
        """Timestep of each unit: the window's steps in turn, so that each is used equally often.

        Raises:
            ValueError: the window holds no step of the sampler.
        """
        return timesteps_of(self._steps(window), units)

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
        steps = self._steps(window)
        units = range(n) if units is None else units
        if not (len(units) and 0 <= units[0] <= units[-1] < n):
            raise ValueError(f"units: expected some of 0 to {n - 1}, got {units}")

        def donor(mode: Mode) -> tuple[DataSet, dict[int, int]]:
            lent = donors(n, len(steps), self.seed).tolist()
            return self._source(data, mode), {first + unit: first + other for unit, other in enumerate(lent)}

        found = self._denoising.measure(data, steps, interventions, [first + unit for unit in units], donor)
        for name, pair in found.items():
            _check_finite(f"metric {name} of the unablated model", pair.baseline)
            _check_finite(f"metric {name}", pair.ablated)
        return found

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
        together = Seeds(data, first_seed, seeds)
        found = self._sampling.generate(
            together, self._steps(window), interventions, lambda mode: self._source(data, mode)
        )
        _check_finite("pixels generated by the unablated model", found.baseline)
        _check_finite("generated pixels", found.ablated)
        return found

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
    expected = tuple(denoiser.sample_shape)
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
