"""What ablations put in a head's place: means over a reference set, and activations of other images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int

from circuits.data.sources import DataSet
from circuits.denoisers import Denoiser
from circuits.hooks import capture_inputs
from circuits.seeds import normal_per_index, numpy_generator
from circuits.sites import AttentionLayer

Activation = Float[torch.Tensor, "rows tokens width"]


class MeanReferences:
    """Mean site activations per (data set = class, timestep, layer, token) over a data set's reference images.

    Each reference image has its own fixed noise. Computed when first asked for and kept; always in forwards of the same rows, so
    that every worker computes the same numbers.
    """

    def __init__(self, denoiser: Denoiser, layers: Sequence[AttentionLayer], seed: int, rows: int) -> None:
        self._denoiser = denoiser
        self._layers = {layer.projection: layer for layer in layers}
        self._seed = seed
        self._rows = rows
        self._means: dict[tuple[str, int], dict[str, Float[torch.Tensor, "tokens width"]]] = {}

    def mean(self, data: DataSet, t: int, layer: AttentionLayer) -> Float[torch.Tensor, "tokens width"]:
        if (data.name, t) not in self._means:
            self._means[data.name, t] = self._compute(data, t)
        return self._means[data.name, t][layer.name]

    def _compute(self, data: DataSet, t: int) -> dict[str, Float[torch.Tensor, "tokens width"]]:
        images = data.reference.images
        noise = normal_per_index(self._seed, f"reference noise/{data.name}", list(range(len(images))), images.shape[1:])
        sums: dict[str, torch.Tensor] = {}
        for start in range(0, len(images), self._rows):
            chunk = slice(start, start + self._rows)
            n = len(images[chunk])
            steps = torch.full((n,), t)
            with capture_inputs(self._denoiser.network, list(self._layers)) as seen:
                self._denoiser(self._denoiser.add_noise(images[chunk], noise[chunk], steps), steps, data.labels(n))
            for path, activation in seen.items():
                name = self._layers[path].name
                total = activation.double().sum(0)
                sums[name] = sums[name] + total if name in sums else total
        return {name: (total / len(images)).float() for name, total in sums.items()}


def donors(n: int, groups: int, seed: int) -> Int[torch.Tensor, " n"]:
    """For each unit another unit of its group (unit mod ``groups``), by a fixed random cycle within the group.

    Units of one group share their timestep, so the donor's activation exists at the receiver's timestep, and a unit is never its
    own donor.
    """
    chosen = torch.empty(n, dtype=torch.long)
    for group in range(min(groups, n)):
        members = numpy_generator(seed, "donors", group).permutation(range(group, n, groups))
        if len(members) < 2:
            raise ValueError(
                f"resample ablation needs at least 2 images per timestep, got {n} images over {groups} timesteps of a window"
            )
        chosen[torch.from_numpy(members.copy())] = torch.from_numpy(members).roll(1)
    return chosen
