"""Data sets by name: which images are measured, and which serve as the reference that mean ablation averages over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int

from circuits.conditioning import Conditioning
from circuits.data.folders import celeba, image_folder
from circuits.data.image_sets import ImageSet
from circuits.data.lfw_faces import lfw_faces
from circuits.data.source_spec import SourceSpec
from circuits.data.synthetic_faces import synthetic_faces
from circuits.naming import nearest
from circuits.seeds import normal_per_index

# Synthetic faces are drawn by index: training takes the first ones, measurements take indices from here on.
SYNTHETIC_HELD_OUT_FROM = 1_000_000
REFERENCE_IMAGES = 64


class DataError(ValueError):
    """A data set that cannot be used; the message is one line for the user."""


@dataclass(frozen=True)
class DataSet:
    """Images to measure on and images to average over, disjoint wherever the source has enough.

    Attributes:
        branch: of classifier-free guidance, in which what the images are conditioned on is used.
    """

    branch: ClassVar[str] = "conditional"
    name: str
    label: int | None
    measured: ImageSet
    reference: ImageSet

    def labels(self, n: int) -> Int[torch.Tensor, " n"] | None:
        """The class label, n times; None if the data set has none."""
        return None if self.label is None else torch.full((n,), self.label)

    def condition(self, units: Sequence[int]) -> Int[torch.Tensor, " n"] | Conditioning | None:
        """What these measured images are conditioned on, a row each: here the class label."""
        return self.labels(len(units))

    def noise(self, units: Sequence[int], seed: int) -> Float[torch.Tensor, "n c h w"]:
        """The fixed noise of each of these measured images, whatever is measured on them."""
        return normal_per_index(seed, f"noise/{self.name}", list(units), self.measured.images.shape[1:])

    def reference_condition(self, units: Sequence[int]) -> Int[torch.Tensor, " n"] | Conditioning | None:
        """What these reference images are conditioned on."""
        return self.labels(len(units))


def _synthetic(spec: SourceSpec, images: int, size: int, channels: int) -> tuple[ImageSet, ImageSet]:
    first = SYNTHETIC_HELD_OUT_FROM
    indices = range(first, first + images + REFERENCE_IMAGES)
    drawn = synthetic_faces(indices, size=size, colour="gray" if channels == 1 else "rgb")
    every = ImageSet(
        name=spec.name,
        images=torch.from_numpy(drawn.images),
        ids=tuple(f"synthetic_{i}" for i in indices),
        held_out=True,
        trained_on=f"tiny_faces was trained on generated faces below index {first}; "
        "the ones measured here lie above it.",
    )
    return every.take(range(images)), every.take(range(images, len(every)))


def _lfw(spec: SourceSpec, images: int, size: int, channels: int) -> tuple[ImageSet, ImageSet]:
    held_out = lfw_faces(size, channels, "held_out")
    return held_out.take(range(min(images, len(held_out)))), lfw_faces(size, channels, "train")


def split(every: ImageSet, images: int) -> tuple[ImageSet, ImageSet]:
    """The first images are measured, the next ones are the reference; if fewer than 8, the measured ones are."""
    images = min(images, len(every))
    rest = range(images, min(len(every), images + REFERENCE_IMAGES))
    return every.take(range(images)), every.take(rest if len(rest) >= 8 else range(images))


def _folder(spec: SourceSpec, images: int, size: int, channels: int) -> tuple[ImageSet, ImageSet]:
    return split(image_folder(_root(spec), size, channels, limit=images + REFERENCE_IMAGES), images)


def _celeba(spec: SourceSpec, images: int, size: int, channels: int) -> tuple[ImageSet, ImageSet]:
    return split(celeba(_root(spec), size, channels, limit=images + REFERENCE_IMAGES), images)


def _root(spec: SourceSpec) -> str:
    if not spec.root:
        raise DataError(f"data set {spec.name!r} ({spec.source}) needs data.root=DIR, the folder with its images")
    return spec.root


SOURCES: dict[str, Callable[[SourceSpec, int, int, int], tuple[ImageSet, ImageSet]]] = {
    "synthetic_faces": _synthetic,
    "lfw_faces": _lfw,
    "image_folder": _folder,
    "celeba": _celeba,
}


def load_data_set(
    spec: SourceSpec,
    *,
    images: int,
    size: int,
    channels: int,
    label_mode: Literal["class", "none"] = "class",
    at_most: bool = False,
) -> DataSet:
    """Load a data set at a model's size and colour mode.

    Args:
        images: to measure. With ``at_most`` a data set that has fewer gives all it has.

    Raises:
        DataError: unknown source, missing folder, or fewer images than asked for.
    """
    if spec.source not in SOURCES:
        raise DataError(f"data set {spec.name!r}: unknown source {spec.source!r}{nearest(spec.source, SOURCES)}")
    try:
        measured, reference = SOURCES[spec.source](spec, images, size, channels)
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"data set {spec.name!r} ({spec.source}): {error}") from error
    if len(measured) < (2 if at_most else images):
        raise DataError(
            f"sweep.images={images}, but data set {spec.name!r} has {len(measured)} images to measure; "
            f"ask for at most {len(measured)}"
        )
    label = spec.label if label_mode == "class" else None
    return DataSet(spec.name, label, replace(measured, name=spec.name), replace(reference, name=spec.name))
