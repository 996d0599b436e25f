"""Data sets in a model's own space: its size and colour mode, latents of its autoencoder, the empty prompt for text."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from circuits.data.prompts import prompt_set, prompted_data_set, takes_text, unprompted
from circuits.data.source_spec import SourceSpec
from circuits.data.sources import DataError, DataSet, load_data_set
from circuits.denoisers import Denoiser
from circuits.guidance import Guidance
from circuits.latents import encoded
from circuits.vocabulary import PROMPTS


def data_set_for(
    denoiser: Denoiser,
    spec: SourceSpec,
    images: int,
    *,
    at_most: bool = False,
    steps: int = 10,
    seed: int = 0,
    guidance: Guidance | None = None,
) -> DataSet:
    """Images of a source as the model takes them.

    Args:
        images: to measure. With ``at_most`` a data set that has fewer gives all it has.
        steps: with ``seed`` and ``guidance``, of the images that a model of text makes of prompts.

    Raises:
        DataError: it cannot be had, or its images cannot be brought into the model's space.
    """
    if spec.source == PROMPTS:
        try:
            prompts = prompt_set(spec.name, spec.prompts or spec.root or "")
        except (OSError, ValueError) as error:
            raise DataError(f"data.root: {error}") from error
        return prompted_data_set(denoiser, prompts, images, steps=steps, seed=seed, guidance=guidance)
    channels, height, width = denoiser.image_shape
    if denoiser.pixels > 1 and denoiser.codec is None:
        raise DataError(
            f"data set {spec.name!r}: {denoiser.name} works on latents and comes without an autoencoder for images; "
            "expected a whole pipeline folder, or data=prompts"
        )
    if height != width:
        raise DataError(f"data set {spec.name!r}: expected a model of square images, got {height} x {width}")
    label_mode: Literal["class", "none"] = "class" if denoiser.classes else "none"
    data = load_data_set(spec, images=images, size=height, channels=channels, label_mode=label_mode, at_most=at_most)
    return in_space_of(denoiser, data)


def in_space_of(denoiser: Denoiser, data: DataSet) -> DataSet:
    """Images as the model takes them: encoded for a model of latents, with the empty prompt for one of text."""
    if (codec := denoiser.codec) is not None:
        data = replace(data, measured=encoded(data.measured, codec), reference=encoded(data.reference, codec))
    return unprompted(denoiser, data) if takes_text(denoiser) else data
