"""Attention of a few heads as a table: what the report and the tracker draw, without the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Float

from circuits.data.sources import DataSet
from circuits.denoisers import Denoiser
from circuits.head_maps import Head, HeadMap
from circuits.metrics import luminance_map

MAP_COLUMNS = [
    "dataset", "layer", "layer_index", "head", "type", "t", "rows", "columns", "received", "from_query", "query_row",
    "query_column", "size", "picture",
]  # fmt: skip
PICTURE = 64
"""Side of the stored picture, at most: it lies faintly under a map of far fewer places."""


def map_table(
    dataset: str, denoiser: Denoiser, data: DataSet, maps: Sequence[HeadMap], types: Mapping[Head, str]
) -> pd.DataFrame:
    """A row a map, of the first image of the data set: where attention goes on the whole, and from one query.

    ``picture``: the image's luminance in [-1, 1], ``size`` x ``size``, row by row; empty where there are no pixels.
    """
    picture = _picture(denoiser, data)
    rows = []
    for found in maps:
        layer, head = found.head
        height, width = found.received.shape
        rows.append(
            {
                "dataset": dataset,
                "layer": layer.name,
                "layer_index": layer.index,
                "head": head,
                "type": types[found.head],
                "t": found.t,
                "rows": height,
                "columns": width,
                "received": found.received.flatten().tolist(),
                "from_query": found.from_query.flatten().tolist(),
                "query_row": found.query[0],
                "query_column": found.query[1],
                "size": 0 if picture is None else len(picture),
                "picture": [] if picture is None else picture.flatten().tolist(),
            }
        )
    return pd.DataFrame(rows, columns=MAP_COLUMNS)


def _picture(denoiser: Denoiser, data: DataSet) -> Float[torch.Tensor, "size size"] | None:
    image = data.measured.images[:1]
    if denoiser.codec is not None:
        image = denoiser.codec.decode(image)
    if image.dim() != 4 or image.shape[1] not in (1, 3):
        return None
    side = min(PICTURE, *image.shape[2:])
    return torch.nn.functional.adaptive_avg_pool2d(luminance_map(image.float().cpu()), side)[0, 0]
