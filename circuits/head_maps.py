"""Attention maps of a few heads on an image, to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float

from circuits.data.sources import DataSet
from circuits.denoisers import Denoiser
from circuits.hooks import KernelCall, observing_kernels
from circuits.layer_kernels import LayerKernel, layer_kernels
from circuits.sites import AttentionLayer

Head = tuple[AttentionLayer, int]


@dataclass(frozen=True)
class HeadMap:
    """Where a head attends to on one image at one timestep.

    Attributes:
        head: as it was asked for.
        received: attention that each place of the image gets, mean over the queries of the image.
        from_query: attention of one query, by place.
        query: row and column of that query.
    """

    head: Head
    t: int
    received: Float[torch.Tensor, "rows columns"]
    from_query: Float[torch.Tensor, "rows columns"]
    query: tuple[int, int]


def head_maps(
    denoiser: Denoiser,
    data: DataSet,
    heads: Sequence[Head],
    timesteps: Sequence[int],
    *,
    image: int = 0,
    query: tuple[float, float] = (0.4, 0.35),
    seed: int = 0,
) -> list[HeadMap]:
    """Maps of the heads, by head and then timestep, with the noise that sweeps give the image.

    Heads whose keys are not the image's own places, as in cross-attention and of video, have none and are left out.

    Args:
        query: where the one query lies, from the top and from the left, as shares of the image; by default about the
            left eye of an aligned face.
    """
    layers = list(dict.fromkeys(layer for layer, _ in heads))
    x0, noise = data.measured.images[image : image + 1], data.noise([image], seed)
    found: dict[tuple[str, int, int], HeadMap] = {}
    kernels: tuple[LayerKernel, ...] | None = None
    for t in timesteps:
        times = torch.tensor([t])
        inputs = (denoiser.add_noise(x0, noise, times), times, data.condition([image]))
        kernels = kernels if kernels is not None else layer_kernels(denoiser, layers, *inputs)
        by_call: dict[int, list[LayerKernel]] = {}
        for kernel in kernels:
            if kernel.grid is not None and kernel.image_keys is not None:
                by_call.setdefault(kernel.ordinal, []).append(kernel)

        def observe(call: KernelCall, t: int = t, by_call: dict[int, list[LayerKernel]] = by_call) -> None:
            for kernel in by_call.get(call.ordinal, ()):
                for layer, head in heads:
                    if layer == kernel.layer:
                        found[layer.name, head, t] = _map_of(call, kernel, head, t, query)

        with observing_kernels(observe):
            denoiser(*inputs)
    keys = [(layer.name, head, t) for layer, head in heads for t in timesteps]
    return [found[key] for key in keys if key in found]


def _map_of(call: KernelCall, kernel: LayerKernel, head: int, t: int, query: tuple[float, float]) -> HeadMap:
    """Of the attention that stays within the image."""
    assert kernel.grid is not None
    assert kernel.image_keys is not None
    rows, columns = kernel.grid.rows, kernel.grid.columns
    queries, keys = call.query[0, head, kernel.queries].float(), call.key[0, head, kernel.image_keys].float()
    own = min(int(query[0] * rows), rows - 1), min(int(query[1] * columns), columns - 1)
    place = own[0] * columns + own[1]
    received = torch.zeros(rows * columns, device=queries.device)
    for block in queries.split(1024):
        received += (block @ keys.T * call.scale).softmax(dim=1).sum(dim=0)
    from_query = (queries[place] @ keys.T * call.scale).softmax(dim=0)
    shape = (rows, columns)
    return HeadMap(
        (kernel.layer, head), t, (received / len(queries)).view(shape).cpu(), from_query.view(shape).cpu(), own
    )
