"""Measure interventions in a notebook: the same numbers as a sweep, without Hydra, Ray or W&B."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from circuits.data.sources import DataSet
from circuits.denoisers import Denoiser
from circuits.engine import Engine, Window
from circuits.extra_metrics import Metric, OwnMetrics
from circuits.interventions import Intervention
from circuits.measured import Measured
from circuits.naming import nearest
from circuits.sites import AttentionLayer, find_sites


def measure(
    denoiser: Denoiser,
    data: DataSet | Mapping[str, DataSet],
    interventions: Sequence[Intervention],
    *,
    dataset: str | None = None,
    window: Window | None = None,
    images: int | None = None,
    layers: Sequence[AttentionLayer] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    steps: int = 10,
    seed: int = 0,
    rows: int = 32,
) -> Measured:
    """Errors of the denoiser on a data set's images, without and with each intervention, on the same noise.

    Args:
        data: a data set, or several by name (``resample_across`` needs two), as ``load_data_set`` returns them.
        dataset: the one to measure on; the first by default.
        window: timesteps during which the intervention acts; all of them by default.
        images: how many, from the first; all by default.
        layers: from ``find_sites``, if at hand.
        metrics: of your own, by name: ``f(predicted, true)`` of clean images ``[n, c, h, w]`` in [-1, 1] (latents, of a
            latent model) gives one number an image, 0 or more.
        steps: of the sampler; timesteps of a window are among its steps.

    Returns:
        Per metric the baseline ``[images]`` and the ablated values ``[interventions, images]``; ``effects`` tests them.

    Raises:
        ValueError: an unknown data set, layer or head, or a metric that is none.
    """
    layers = tuple(layers if layers is not None else find_sites(denoiser))
    data = {data.name: data} if isinstance(data, DataSet) else data
    dataset = dataset if dataset is not None else next(iter(data))
    if dataset not in data:
        raise ValueError(f"no data set {dataset!r}{nearest(dataset, data)}")
    heads = {layer.name: layer.heads for layer in layers}
    for site in (site for i in interventions for site in i.sites):
        if site.layer not in heads:
            raise ValueError(f"no layer {site.layer!r}{nearest(site.layer, heads)}")
        if not -1 <= site.head < heads[site.layer]:
            raise ValueError(f"layer {site.layer} has heads 0 to {heads[site.layer] - 1} (-1 for all), got {site.head}")
    pixels = denoiser.pixels == 1
    own = OwnMetrics(metrics, clamped=pixels) if metrics else None
    engine = Engine(denoiser, layers, data, steps=steps, seed=seed, rows=rows, extra=own)
    window = window or Window(denoiser.train_timesteps - 1, 0)
    count = len(data[dataset].measured) if images is None else images
    found = engine.denoise(dataset, window, interventions, count)
    return Measured(dataset, window, tuple(interventions), layers, found)
