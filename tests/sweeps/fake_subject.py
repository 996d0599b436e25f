"""A model and data sets that only a plan needs: no weights, named layers, pixels counted up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from circuits.data.image_sets import ImageSet
from circuits.data.sources import DataSet
from circuits.denoisers import Denoiser
from circuits.sites import AttentionLayer
from sweeps.plan import Subject


@dataclass(frozen=True)
class FakeDenoiser:
    """What a plan reads of a denoiser; a sampler has evenly spaced timesteps."""

    name: str = "fake"
    revision: str = "r0"
    train_timesteps: int = 1000
    classes: int = 2

    def timesteps(self, steps: int) -> tuple[int, ...]:
        return tuple(trailing_timesteps(self.train_timesteps, steps))


def trailing_timesteps(train_timesteps: int, steps: int) -> list[int]:
    """Those of DDIM with "trailing" spacing."""
    return (np.round(np.arange(train_timesteps, 0, -train_timesteps / steps))[:steps].astype(int) - 1).tolist()


def image_set(name: str, first: float, count: int) -> ImageSet:
    pixels = first + torch.arange(count * 4, dtype=torch.float32).view(count, 1, 2, 2) / 1000
    return ImageSet(name, pixels, tuple(f"{name}_{i}" for i in range(count)), None, "Nothing is known.")


def data_set(name: str, label: int | None, first: float, count: int = 70) -> DataSet:
    return DataSet(name, label, image_set(name, first, count), image_set(name, first + 10, 8))


def fake_subject(layers: int = 4, heads: int = 8, **changes: Any) -> Subject:
    """``changes`` are fields of FakeDenoiser."""
    found = tuple(
        AttentionLayer(
            i, f"blocks.{i}.attn1", f"blocks.{i}.attn1.to_out.0", f"blocks.{i}.attn1.to_v", heads, 2, 4, "self"
        )
        for i in range(layers)
    )
    data = {"synthetic": data_set("synthetic", 0, 0.0), "natural": data_set("natural", 1, 1.0)}
    return Subject(cast(Denoiser, FakeDenoiser(**changes)), found, data)


def with_data(subject: Subject, **data: DataSet) -> Subject:
    return Subject(subject.denoiser, subject.layers, dict(subject.data) | data)


def moved(data: DataSet, index: int) -> DataSet:
    """The data set with one pixel of one measured image changed by the smallest amount."""
    pixels = data.measured.images.clone()
    pixels[index, 0, 0, 0] = torch.nextafter(pixels[index, 0, 0, 0], torch.tensor(9.0))
    return replace(data, measured=replace(data.measured, images=pixels))
