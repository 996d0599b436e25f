"""Nested circuits, measured: the error with only the first k heads of a ranking left, every other head ablated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from circuits.complexity import SHARE, faithful_sizes, ranked_circuits
from circuits.engine import Engine, Window
from circuits.interventions import Intervention, Mode, Site
from circuits.sites import all_heads

SIZES = 64
"""Circuits measured, at most, beside that of no head; of more heads than these, evenly spaced sizes."""


@dataclass(frozen=True)
class NestedCircuits:
    """Circuits of one data set.

    Attributes:
        order: heads from the one whose ablation does most harm, numbered through layer by layer.
        sizes: heads of each circuit, from 0 to all.
        images: of the data set, that the circuits are measured on; none of those that the heads were ranked on.
        baseline: error of the whole model.
    """

    order: Int[np.ndarray, " heads"]
    sizes: Int[np.ndarray, " circuits"]
    images: Int[np.ndarray, " images"]
    baseline: Float[np.ndarray, " images"]
    errors: Float[np.ndarray, "circuits images"]

    def faithful(self, share: float = SHARE) -> Int[np.ndarray, " images"]:
        """Heads that each image needs for ``share`` of faithfulness (``complexity.faithful_sizes``)."""
        return self.sizes[faithful_sizes(self.baseline, self.errors, share)]


def nested_circuits(
    engine: Engine, dataset: str, images: int, mode: Mode = Mode.mean, metric: str = "noise_mse"
) -> NestedCircuits:
    """Rank all heads on one half of the images, each ablated alone, and measure nested circuits on the other half.

    Every image is noised to one of the sampler's timesteps, in turn; all of them at once are the window.

    Args:
        images: of both halves, from the first of the data set.

    Raises:
        ValueError: fewer than 4 images.
    """
    if images < 4:
        raise ValueError(f"data set {dataset!r}: expected at least 4 images to rank heads and measure circuits, "
                         f"got {images}")  # fmt: skip
    window = Window(engine.denoiser.train_timesteps - 1, 0)
    sites = [Site(layer.name, head) for layer, head in all_heads(engine.layers.values())]
    ranking = images // 2
    alone = engine.denoise(dataset, window, [Intervention(mode, (site,)) for site in sites], ranking)[metric]
    order = ranked_circuits((alone.ablated - alone.baseline).double().numpy())
    sizes = np.unique(np.linspace(0, len(sites), min(len(sites), SIZES) + 1).round().astype(np.int64))
    without = [tuple(sites[head] for head in order[size:]) for size in sizes[:-1]]
    found = engine.denoise(
        dataset, window, [Intervention(mode, chosen) for chosen in without], images - ranking, first=ranking
    )[metric]
    errors = torch.cat([found.ablated, found.baseline[None]]).double().numpy()
    return NestedCircuits(order, sizes, np.arange(ranking, images), found.baseline.double().numpy(), errors)
