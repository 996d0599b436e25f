"""Settings of training the project's own denoisers; light, since configurations are made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class TrainingSettings:
    """How one of the project's own models is trained (not frozen, because Hydra fills it key by key)."""

    steps: int = 11_000  # optimiser steps in all; the learning rate warms up, then decays to a hundredth by a cosine
    batch_size: int = 48  # images of a step
    natural_fraction: float = 0.4  # share of each batch drawn from the real faces
    blended: float = 0.5  # share of the real faces that are blended with another one
    focus_from: int = 5_000  # step from which the next two hold: faces are learned by then, real ones are harder
    focus_natural_fraction: float = 0.65  # natural_fraction from there on
    focus_blended: float = 0.2  # blended from there on
    learning_rate: float = 5e-4  # at its peak
    warmup_steps: int = 300  # steps until the learning rate is at its peak
    weight_decay: float = 0.01  # of AdamW
    ema_decay: float = 0.999  # of the averaged weights that ship; ramps up as (1 + step) / (10 + step)
    min_snr_gamma: float = 5.0  # clamp of the signal-to-noise weight (Hang et al., arXiv 2303.09556)
    gradient_clip: float = 1.0  # largest norm of a step's gradient
    synthetic_images: int = 20_000  # generated faces to train on
    save_every: int = 500  # steps between what an interrupted training goes on from
    autocast: bool = True  # forward and backward in bfloat16, loss in float32; twice as fast on a CPU with AVX512-BF16
    seed: int = 0  # of the initial weights, the batches and the noise
    folder: str | None = None  # of mode=train: where its state and the trained model lie; null: training/<model>


_COUNTS = {
    "steps": 1,
    "batch_size": 1,
    "focus_from": 0,
    "warmup_steps": 0,
    "synthetic_images": 1,
    "save_every": 1,
    "seed": 0,
}
_SHARES = ("natural_fraction", "blended", "focus_natural_fraction", "focus_blended", "ema_decay")
_ABOVE_ZERO = ("learning_rate", "min_snr_gamma", "gradient_clip")


def training_problem(settings: TrainingSettings) -> str | None:
    """What cannot be used, in one line; None where all can."""
    for name, least in _COUNTS.items():
        if getattr(settings, name) < least:
            return f"model.training.{name}: expected at least {least}, got {getattr(settings, name)}"
    for name in _SHARES:
        if not 0 <= getattr(settings, name) <= 1:
            return f"model.training.{name}: expected a number from 0 to 1, got {getattr(settings, name)}"
    for name in _ABOVE_ZERO:
        if not 0 < getattr(settings, name) < math.inf:
            return f"model.training.{name}: expected a number above 0, got {getattr(settings, name)}"
    if not 0 <= settings.weight_decay < math.inf:
        return f"model.training.weight_decay: expected at least 0, got {settings.weight_decay}"
    return None
