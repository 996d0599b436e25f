"""What ablations put in a head's place: moments over a reference set, and activations of other images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int

from circuits.batches import Batches
from circuits.data.sources import DataSet
from circuits.denoisers import Denoiser
from circuits.hooks import capture_inputs
from circuits.seeds import normal_per_index, numpy_generator
from circuits.sites import AttentionLayer

DONOR_BLOCK = 16
"""Images among which resample ablation draws donors."""


@dataclass(frozen=True)
class Moments:
    """Of a site's activation over reference images, entry by entry."""

    mean: Float[torch.Tensor, "tokens width"]
    deviation: Float[torch.Tensor, "tokens width"]


class MeanReferences:
    """Mean site activations per (data set = class, branch, timestep, layer, token) over a data set's reference images.

    Each reference image has its own fixed noise, the same in both branches of guidance. Computed when first asked for
    and kept; summed in float64, so that the number of rows changes the last float32 digit at most. Standard deviations
    (of the population) come from the same forwards, where they are asked for before the means.
    """

    def __init__(self, denoiser: Denoiser, layers: Sequence[AttentionLayer], seed: int, rows: int) -> None:
        self._denoiser = denoiser
        self._layers = {layer.projection: layer for layer in layers}
        self._seed = seed
        self._batches = Batches(rows)
        self._means: dict[tuple[str, str, int], dict[str, Float[torch.Tensor, "tokens width"]]] = {}
        self._deviations: dict[tuple[str, str, int], dict[str, Float[torch.Tensor, "tokens width"]]] = {}

    def mean(self, data: DataSet, t: int, layer: AttentionLayer) -> Float[torch.Tensor, "tokens width"]:
        """Mean over the reference images, all noised to timestep ``t``; float32."""
        key = (data.name, data.branch, t)
        if key not in self._means:
            self._means[key] = _rounded(self._powers(data, t, (1,))[0])
        return self._means[key][layer.name]

    def moments(self, data: DataSet, t: int, layer: AttentionLayer) -> Moments:
        """Mean and standard deviation over the reference images, all noised to timestep ``t``; float32."""
        key = (data.name, data.branch, t)
        if key not in self._deviations:
            mean, square = self._powers(data, t, (1, 2))
            self._means.setdefault(key, _rounded(mean))
            variance = {name: (square[name] - mean[name] ** 2).clamp_min(0) for name in mean}
            self._deviations[key] = _rounded({name: found.sqrt() for name, found in variance.items()})
        return Moments(self._means[key][layer.name], self._deviations[key][layer.name])

    def _powers(self, data: DataSet, t: int, exponents: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """For each exponent, the mean of the activations raised to it, by layer; float64."""
        images = data.reference.images
        noise = normal_per_index(self._seed, f"reference noise/{data.name}", list(range(len(images))), images.shape[1:])

        def forward(chosen: list[int]) -> list[dict[str, torch.Tensor]]:
            steps = torch.full((len(chosen),), t)
            noised = self._denoiser.add_noise(images[chosen], noise[chosen], steps)
            with capture_inputs(self._denoiser.network, list(self._layers)) as seen:
                self._denoiser(noised, steps, data.reference_condition(chosen))
            return [
                {self._layers[path].name: (activation.double() ** power).sum(0) for path, activation in seen.items()}
                for power in exponents
            ]

        parts = self._batches.run(range(len(images)), forward)
        return [
            {name: torch.stack([part[name] for part in sums]).sum(0) / len(images) for name in sums[0]}
            for sums in zip(*parts, strict=True)
        ]


def _rounded(tables: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: table.float() for name, table in tables.items()}


def donors(n: int, groups: int, seed: int) -> Int[torch.Tensor, " n"]:
    """For each unit another unit of its group (unit mod ``groups``), by a fixed random cycle within the group.

    Units of one group share their timestep, so the donor's activation exists at the receiver's timestep, and a unit is
    never its own donor. Cycles stay within blocks of consecutive units (16, or two a group), so that images measured a
    block at a time need no activations of other blocks; what is too short for a block joins the one before.

    Raises:
        ValueError: a group of a single unit.
    """
    size = max(DONOR_BLOCK, 2 * groups)
    starts = [start for start in range(0, n, size) if start == 0 or n - start >= 2 * groups]
    chosen = torch.empty(n, dtype=torch.long)
    for index, start in enumerate(starts):
        end = n if index + 1 == len(starts) else starts[index + 1]
        for group in range(min(groups, end - start)):
            members = numpy_generator(seed, f"donors/{start}", group).permutation(range(start + group, end, groups))
            if len(members) < 2:
                raise ValueError(
                    f"resample needs at least 2 images per timestep, got {n} images over {groups} timesteps of a window"
                )
            drawn = torch.from_numpy(members)
            chosen[drawn] = drawn.roll(1)
    return chosen
