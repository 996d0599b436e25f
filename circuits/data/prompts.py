"""Prompts as a data set: what a text-conditioned model is asked for, and the images that it makes of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float

from circuits.conditioning import Conditioning, inputs_of
from circuits.data.image_sets import ImageSet
from circuits.data.sources import REFERENCE_IMAGES, DataSet
from circuits.denoisers import Denoiser
from circuits.guidance import Guidance
from circuits.naming import nearest_folder
from circuits.seeds import normal_per_index
from circuits.text_encoders import encode_prompts


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one data set.

    Attributes:
        name: the data set's name in every table.
        prompts: in order; a unit is a prompt with its own noise.
    """

    name: str
    prompts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, count: int) -> tuple[str, ...]:
        """The first ``count`` prompts, over again from the start where there are fewer: same words, other noise."""
        return tuple(self.prompts[i % len(self.prompts)] for i in range(count))

    def fingerprint(self) -> str:
        """Hash of the text: two sets with the same fingerprint are the same measurement."""
        return hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()[:16]


def prompt_set(name: str, source: str | Path | Sequence[str]) -> PromptSet:
    """Prompts from a text file, one a line (empty lines and those that begin with # are left out), or from a list.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no prompt in it, or a file that is no UTF-8 text.
    """
    if isinstance(source, str | Path):
        file = Path(source).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"no file {file}{nearest_folder(file)}")
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is no UTF-8 text ({error.reason} at byte {error.start})") from error
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    else:
        found = [prompt.strip() for prompt in source]
    if not found or not all(found):
        raise ValueError(f"data set {name!r}: expected at least one prompt and none of them empty, got {len(found)}")
    return PromptSet(name, tuple(found))


@dataclass(frozen=True)
class PromptedSet(DataSet):
    """A data set whose images each have a prompt of their own.

    Attributes:
        conditioning: of the measured images, a row each.
        reference_conditioning: of the reference images, a row each.
    """

    conditioning: Conditioning
    reference_conditioning: Conditioning

    def condition(self, units: Sequence[int]) -> Conditioning:
        """What these measured images are conditioned on."""
        return self.conditioning.rows(units)

    def reference_condition(self, units: Sequence[int]) -> Conditioning:
        """What these reference images are conditioned on."""
        return self.reference_conditioning.rows(units)


def takes_text(denoiser: Denoiser) -> bool:
    """Whether the network is conditioned on text."""
    return any(given.kind == "embedding" for given in inputs_of(denoiser.network))


def unprompted(denoiser: Denoiser, data: DataSet) -> PromptedSet:
    """Images without prompts, for a model of text: each is conditioned on the empty prompt.

    Raises:
        ModelError: the text encoders cannot be loaded.
    """
    empty = encode_prompts(denoiser, [""])
    measured, reference = (empty.rows([0] * len(images)) for images in (data.measured, data.reference))
    return PromptedSet(data.name, data.label, data.measured, data.reference, measured, reference)


def prompted_data_set(
    denoiser: Denoiser,
    prompts: PromptSet,
    images: int,
    *,
    steps: int,
    seed: int,
    rows: int = 8,
    guidance: Guidance | None = None,
) -> PromptedSet:
    """The model's own unablated images of the prompts, in its own space (latents of a latent model).

    Image i is of prompt i, counted round, and has its own seed, so that it is the same whatever ``images`` and ``rows``
    are. The reference images are of the same prompts with other seeds.

    Args:
        steps: of the sampler that makes the images.
        rows: images made at once.
        guidance: they are made with it, as the model's own pipeline would.

    Raises:
        ModelError: the model takes no text, or its text encoders cannot be loaded.
    """
    distinct = encode_prompts(denoiser, prompts.prompts)

    def made(purpose: str, count: int) -> tuple[ImageSet, Conditioning]:
        given = distinct.rows([i % len(prompts) for i in range(count)])
        noise = normal_per_index(seed, f"{purpose}/{prompts.name}", list(range(count)), denoiser.sample_shape)
        parts = [
            _sampled(denoiser, noise[i : i + rows], given.rows(range(i, min(i + rows, count))), steps, guidance)
            for i in range(0, count, rows)
        ]
        ids = tuple(f"{purpose}_{i}" for i in range(count))
        told = "The images are the model's own, of the prompts."
        return ImageSet(prompts.name, torch.cat(parts), ids, None, told), given

    measured, conditioning = made("prompt", images)
    reference, reference_conditioning = made("reference prompt", REFERENCE_IMAGES)
    return PromptedSet(prompts.name, None, measured, reference, conditioning, reference_conditioning)


def _sampled(
    denoiser: Denoiser, x: Float[torch.Tensor, "n c h w"], given: Conditioning, steps: int, guidance: Guidance | None
) -> Float[torch.Tensor, "n c h w"]:
    sampler, x = denoiser.sampler(steps), x.to(denoiser.device)
    given = given if guidance is None else guidance.both(given, len(x))
    for t in sampler.timesteps:
        seen = x if guidance is None else torch.cat([x, x])
        target = denoiser(seen, torch.full((len(seen),), int(t)), given).target
        x = sampler.step(target if guidance is None else guidance.guided(target), t, x).prev_sample
    return x.cpu()
