"""What mode ``noise`` puts in a head's place: Gaussian noise with the moments of the reference set.

It keeps of a head what the mean keeps and as much variation as it has over images, and nothing that its entries share:
neither what they say about this image nor their correlations, which a resampled activation has.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int

from circuits.data.sources import DataSet
from circuits.references import MeanReferences
from circuits.rows import Replacement
from circuits.seeds import torch_generator
from circuits.sites import AttentionLayer

KEPT_BYTES = 1 << 26
"""Memory for draws that further rows of the same image may ask for."""

Draw = tuple[str, str, int, int]
"""Data set, layer, image, timestep."""


class GaussianNoise:
    """Draws fixed by (run seed, data set, layer, image, timestep), whatever rows a forward has.

    Every head of a layer has its own; the branches of guidance share theirs.
    """

    def __init__(self, means: MeanReferences, seed: int) -> None:
        self._means = means
        self._seed = seed
        self._kept: OrderedDict[Draw, Float[torch.Tensor, "tokens width"]] = OrderedDict()
        self._bytes = 0

    def replacement(
        self, data: DataSet, layers: Iterable[AttentionLayer], units: Sequence[tuple[int, int]]
    ) -> Replacement:
        """Mean plus standard deviation times the draw; the moments are computed here, before forwards that use them.

        Args:
            units: image (or seed) and timestep of each.
        """
        timesteps = sorted({t for _, t in units})
        moments = {(layer.name, t): self._means.moments(data, t, layer) for layer in layers for t in timesteps}

        def noise(layer: AttentionLayer, rows: Int[torch.Tensor, " rows"]) -> torch.Tensor:
            asked, place = rows.unique(return_inverse=True)
            drawn = []
            for image, t in (units[unit] for unit in asked.tolist()):
                of = moments[layer.name, t]
                z = self._normal((data.name, layer.name, image, t), of.mean.shape)
                drawn.append(of.mean + of.deviation * z.to(of.mean.device))
            return torch.stack(drawn)[place.to(drawn[0].device)]

        return noise

    def _normal(self, key: Draw, shape: torch.Size) -> Float[torch.Tensor, "tokens width"]:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        data, layer, image, t = key
        drawn = torch.randn(shape, generator=torch_generator(self._seed, f"noise ablation/{data}/{layer}", image, t))
        self._kept[key] = drawn
        self._bytes += drawn.numel() * drawn.itemsize
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            _, gone = self._kept.popitem(last=False)
            self._bytes -= gone.numel() * gone.itemsize
        return drawn
