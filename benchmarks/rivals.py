"""The same measurements without the engine: one forward per head, with a hook, or through nnsight."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from circuits.denoisers import Denoiser
from circuits.denoising import Noised
from circuits.engine import Engine, Window
from circuits.metrics import denoise_metrics
from circuits.sampling import Seeds
from circuits.sites import AttentionLayer

Head = tuple[AttentionLayer, int]
Target = Callable[[torch.Tensor, torch.Tensor, "torch.Tensor | None", "Head | None"], torch.Tensor]
"""(x_t, t, labels, head to zero) -> the network's output."""


def by_hook(denoiser: Denoiser) -> Target:
    """How it is done by hand: a forward pre-hook on the output projection."""

    def target(x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, head: Head | None) -> torch.Tensor:
        if head is None:
            return denoiser(x, t, labels).target
        with _zeroed(denoiser, *head):
            return denoiser(x, t, labels).target

    return target


@contextmanager
def _zeroed(denoiser: Denoiser, layer: AttentionLayer, head: int) -> Iterator[None]:
    columns = slice(head * layer.head_dim, (head + 1) * layer.head_dim)

    def hook(_: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        edited = args[0].clone()
        edited[..., columns] = 0
        return (edited,)

    handle = denoiser.network.get_submodule(layer.projection).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def by_nnsight(denoiser: Denoiser) -> Target | None:
    """Through nnsight, or None, with the reason on standard error, where it is not installed."""
    try:
        from nnsight import NNsight
    except ImportError as error:
        print(f"nnsight is not measured: {error}", file=sys.stderr)
        return None
    model: Any = NNsight(denoiser.network)

    def target(x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, head: Head | None) -> torch.Tensor:
        with torch.no_grad(), model.trace(x, timestep=t, class_labels=labels):
            if head is not None:
                layer, index = head
                columns = slice(index * layer.head_dim, (index + 1) * layer.head_dim)
                projection = model.get(layer.projection)
                projection.input[..., columns] = 0
            output = model.output.sample.save()
        return output.float()

    return target


def denoise(
    engine: Engine, target: Target, noised: Noised, labels: torch.Tensor, heads: Sequence[Head]
) -> torch.Tensor:
    """Metrics of each head's ablation, ``[heads, metrics, images]``, baseline last."""
    found = []
    for head in (*heads, None):
        output = target(noised.x_t, noised.t, labels, head)
        prediction = engine.denoiser.as_prediction(output, noised.x_t, noised.t)
        error = engine.denoiser.noise_error(prediction, noised.x0, noised.noise, noised.t)
        found.append(torch.stack([*denoise_metrics(error, prediction.x0, noised.x0).values()]))
    return torch.stack(found)


def sample(
    engine: Engine, target: Target, seeds: Seeds, windows: Sequence[Window], heads: Sequence[Head]
) -> torch.Tensor:
    """Images of each head's ablation in each window, ``[windows, heads, seeds, ...]``."""
    start, labels = engine._sampling.latents(seeds), seeds.data.labels(seeds.count)
    found = []
    for window in windows:
        for head in heads:
            x = start
            for t in engine.timesteps:
                output = target(x, torch.full((len(x),), t), labels, head if t in window else None)
                x = engine.sampler.step(output, t, x).prev_sample
            found.append(x)
    return torch.stack(found).unflatten(0, (len(windows), len(heads)))
