"""Classifier-free guidance: the network runs with and without what it is conditioned on, and the difference is scaled.

Ho & Salimans, arXiv 2207.12598. A row of the network is an image under an intervention in a branch, conditional or
unconditional. Both branches of an image share a forward, interventions act in both, and what takes a head's place is
that of the same branch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers.models.embeddings import LabelEmbedding
from jaxtyping import Float

from circuits.checkpoints import ModelError
from circuits.conditioning import DISTILLED_GUIDANCE, Conditioning, inputs_of
from circuits.data.sources import DataSet
from circuits.denoisers import Denoiser
from circuits.text_encoders import RETURNED, UNCONDITIONAL, encode_unconditional


@dataclass(frozen=True)
class Guidance:
    """How a prediction is guided.

    Attributes:
        scale: w of uncond + w (cond - uncond); 1 is the conditional prediction itself.
        unconditional: what the unconditional branch is conditioned on, one row.
    """

    scale: float
    unconditional: Conditioning

    def guided(self, output: Float[torch.Tensor, "two_n ..."]) -> Float[torch.Tensor, "n ..."]:
        """The prediction, from that of the conditional rows and, behind them, of the unconditional ones."""
        conditional, unconditional = output.chunk(2)
        return unconditional + self.scale * (conditional - unconditional)

    def both(self, conditional: Conditioning, unconditional: int) -> Conditioning:
        """Rows of the conditional branch, and so many of the unconditional one behind them."""
        return conditional.followed_by(self.unconditional.rows([0] * unconditional))

    def unconditional_set(self, data: DataSet) -> UnconditionalSet:
        """The data set as the unconditional branch sees it."""
        return UnconditionalSet(data.name, data.label, data.measured, data.reference, self.unconditional)


@dataclass(frozen=True)
class UnconditionalSet(DataSet):
    """Images, with the same noise, under what the unconditional branch is conditioned on.

    Attributes:
        given: one row.
    """

    branch: ClassVar[str] = "unconditional"
    given: Conditioning

    def condition(self, units: Sequence[int]) -> Conditioning:
        return self.given.rows([0] * len(units))

    def reference_condition(self, units: Sequence[int]) -> Conditioning:
        return self.given.rows([0] * len(units))


def guidance_of(denoiser: Denoiser, scale: float | None) -> Guidance | None:
    """Guidance by the unconditional branch that the model's own pipeline uses; None where ``scale`` is None or 1.

    It is the null class of a model of classes, and of a model of text the empty prompt, or zeros where the pipeline
    says so.

    Raises:
        ModelError: no number of at least 1, a model without an unconditional branch, or text encoders that cannot be
            loaded.
    """
    if scale is None or scale == 1:
        return None
    if not 1 < scale < math.inf:
        raise ModelError(f"model.guidance: expected null or a finite number of at least 1, got {scale}")
    module: Any = denoiser.network
    network = type(module).__name__
    if network in UNCONDITIONAL:
        return Guidance(scale, encode_unconditional(denoiser))
    if network in RETURNED:
        distilled = module.config.get("guidance_embeds")
        why = f"is guidance-distilled, and told {DISTILLED_GUIDANCE}" if distilled else "is not guided by plain rows"
        raise ModelError(f"model.guidance: {denoiser.name} ({network}) {why}; expected null, got {scale}")
    null = _null_class(denoiser)
    if null is None:
        why = f"{denoiser.classes} classes and no null class" if denoiser.classes else "it is conditioned on nothing"
        has = f"{denoiser.name} ({network}) has no unconditional branch: {why}"
        raise ModelError(f"model.guidance: {has}; expected null, got {scale}")
    return Guidance(scale, Conditioning({"class_labels": torch.tensor([null])}))


def _null_class(denoiser: Denoiser) -> int | None:
    """The class behind the last one, which labels dropped in training stand for."""
    if not any(given.kind == "label" for given in inputs_of(denoiser.network)):
        return None
    tables = [module for module in denoiser.network.modules() if isinstance(module, LabelEmbedding)]
    return next((t.num_classes for t in tables if t.embedding_table.num_embeddings > t.num_classes), None)
