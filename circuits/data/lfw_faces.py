"""Real faces that ship inside scikit-image: 100 faces of 25x25 from Labeled Faces in the Wild.

Source: ``skimage.data.lfw_subset`` (Huang et al., "Labeled Faces in the Wild", 2007). The split is fixed for ever,
because a checkpoint that saw one part is measured on the other.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image

from circuits.data.image_sets import ImageSet, to_pixels

FACES = 100
HELD_OUT = 64
_SPLIT_SEED = 20060621


def lfw_split() -> tuple[list[int], list[int]]:
    """Indices of the 36 training faces, ascending, and of the 64 held-out faces, in a fixed random order."""
    order = np.random.Generator(np.random.PCG64(_SPLIT_SEED)).permutation(FACES)
    return sorted(order[HELD_OUT:].tolist()), order[:HELD_OUT].tolist()


def lfw_faces(size: int, channels: int, split: Literal["train", "held_out"] = "held_out") -> ImageSet:
    """The faces of one split; the held-out ones in random order, so that the first n are a fair sample of all."""
    from skimage.data import lfw_subset  # a second of import time that only this data set needs

    train, held_out = lfw_split()
    chosen = {"train": train, "held_out": held_out}[split]
    gray = (lfw_subset()[chosen] * 255).round().astype(np.uint8)
    pixels = np.stack([to_pixels(Image.fromarray(face), size, channels) for face in gray])
    return ImageSet(
        name="natural",
        images=torch.from_numpy(pixels),
        ids=tuple(f"lfw_{i:03d}" for i in chosen),
        held_out=split == "held_out",
        trained_on=f"tiny_faces was trained on {len(train)} of the {FACES} faces; "
        f"the {len(held_out)} measured here were held out.",
    )
