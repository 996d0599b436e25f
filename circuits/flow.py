"""Flow matching on integer timesteps: x_t = (1 - s) x_0 + s eps with s = (t + 1) / T, and its Euler sampler.

Lipman et al., arXiv 2210.02747; the straight path as in Stable Diffusion 3, arXiv 2403.03206, eq. 13.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float, Int


def flow_sigmas(train_timesteps: int) -> Float[torch.Tensor, " t"]:
    """Share of noise at each integer timestep, float64: 1/T at 0, 1 (pure noise) at T - 1."""
    return torch.arange(1, train_timesteps + 1, dtype=torch.float64) / train_timesteps


@dataclass(frozen=True)
class FlowStep:
    """One step of the sampler."""

    prev_sample: torch.Tensor


@dataclass(frozen=True)
class FlowSampler:
    """Deterministic Euler steps along the velocity; it keeps no place, so that any step can be taken at any time.

    Attributes:
        timesteps: from pure noise down, integers of the model's own noise levels.
        train_timesteps: number of noise levels.
    """

    timesteps: Int[torch.Tensor, " steps"]
    train_timesteps: int

    def step(self, velocity: torch.Tensor, t: int | torch.Tensor, sample: torch.Tensor) -> FlowStep:
        """From timestep ``t`` to the next one, or to the clean image.

        Raises:
            ValueError: ``t`` is none of the sampler's timesteps.
        """
        place = (self.timesteps == int(t)).nonzero()
        if not len(place):
            raise ValueError(f"timestep {t} is none of the sampler's {self.timesteps.tolist()}")
        following = int(place[0]) + 1
        arrives = (int(self.timesteps[following]) + 1) / self.train_timesteps if following < len(self.timesteps) else 0
        return FlowStep(sample + (arrives - (int(t) + 1) / self.train_timesteps) * velocity)


def flow_sampler(scheduler: Any, steps: int, image_tokens: int) -> FlowSampler:
    """The noise levels that the checkpoint's scheduler would visit, each at the nearest integer timestep.

    Args:
        image_tokens: length of the image sequence, which the shift of Flux's and Qwen's levels grows with.

    Raises:
        ValueError: so many steps that two of them share an integer timestep.
    """
    config = scheduler.config
    total = config.num_train_timesteps
    fresh = FlowMatchEulerDiscreteScheduler.from_config(config)
    fresh.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), mu=_shift(config, image_tokens))
    timesteps = (fresh.sigmas[:-1].double() * total).round().long().clamp(1, total) - 1
    if len(set(timesteps.tolist())) < steps:
        raise ValueError(f"{steps} steps are too many: some share one of the {total} noise levels")
    return FlowSampler(timesteps, total)


def _shift(config: Any, image_tokens: int) -> float | None:
    """``mu``: linear in the number of image tokens, as in the Flux pipeline; None where the shift is fixed."""
    if not config.use_dynamic_shifting:
        return None
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    mu = config.base_shift + slope * (image_tokens - config.base_image_seq_len)
    assert math.isfinite(mu)
    return mu
