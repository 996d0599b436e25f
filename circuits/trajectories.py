"""A sampler in the middle of its trajectory, so that what comes before a window's first step is computed once.

A scheduler may keep what earlier steps predicted, and random ones draw as they go. All of it is kept before every step,
beside the latents; a row that begins later starts from copies and goes on as if it had taken the steps before itself.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int

Predict = Callable[[torch.Tensor, Any], torch.Tensor]
"""(scaled latents, timestep) -> the network's output."""


@dataclass(frozen=True)
class SamplerState:
    """Where some rows stand before a step.

    Attributes:
        x: latents.
        scheduler: any diffusers scheduler, with the timesteps set; its own memory of the steps before is of these rows.
        generators: one a row, for schedulers that draw; the rows then do not depend on each other.
    """

    x: Float[torch.Tensor, "rows ..."]
    scheduler: Any
    generators: tuple[torch.Generator, ...] | None = None

    def rows(self, index: Int[torch.Tensor, " chosen"]) -> SamplerState:
        """A copy of the state of these rows, in this order; a row may appear many times.

        Nothing is shared with the original, so either may go on without the other.
        """
        place = index.to(self.x.device)
        # What is shaped like the latents was made of them, row by row; all else (noise levels, counters) is shared.
        scheduler = _copied(self.scheduler, self.x.shape, place)
        generators = None if self.generators is None else tuple(_cloned(self.generators[i]) for i in index.tolist())
        return SamplerState(self.x.index_select(0, place), scheduler, generators)

    def copied(self) -> SamplerState:
        """The same rows; nothing is shared."""
        return self.rows(torch.arange(len(self.x)))

    def model_input(self, step: int) -> tuple[Float[torch.Tensor, "rows ..."], Any]:
        """What the network sees at the scheduler's ``step``-th timestep, and that timestep."""
        t = self.scheduler.timesteps[step]
        scale = getattr(self.scheduler, "scale_model_input", None)
        return (self.x if scale is None else scale(self.x, t)), t

    def next(self, step: int, predict: Predict) -> SamplerState:
        """The state after the scheduler's ``step``-th timestep. The scheduler and generators of this one move on."""
        x, t = self.model_input(step)
        output = predict(x, t)
        drawing = self.generators is not None and "generator" in inspect.signature(self.scheduler.step).parameters
        given = {"generator": list(self.generators or ())} if drawing else {}
        x = self.scheduler.step(output, t, self.x, **given).prev_sample
        return SamplerState(x, self.scheduler, self.generators)


@dataclass(frozen=True)
class Trajectory:
    """Unablated generation: the state before every step, and the images at the end."""

    states: Sequence[SamplerState]
    images: Float[torch.Tensor, "rows ..."]

    @classmethod
    def run(cls, start: SamplerState, predict: Callable[[int, torch.Tensor, Any], torch.Tensor]) -> Trajectory:
        """All steps from the start, which is left as it is.

        Args:
            predict: (step, scaled latents, timestep) -> the network's output.
        """
        states, state = [], start.copied()
        for step in range(len(start.scheduler.timesteps)):
            states.append(state.copied())
            state = state.next(step, lambda x, t, step=step: predict(step, x, t))  # type: ignore[misc]
        return cls(states, state.x)


def _copied(scheduler: Any, shape: torch.Size, index: Int[torch.Tensor, " chosen"]) -> Any:
    """A deep copy in which every tensor of this shape, rows first, holds the chosen rows."""
    memo: dict[int, Any] = {}
    for value in _tensors(list(vars(scheduler).values())):
        if value.shape == shape:
            memo[id(value)] = value.index_select(0, index.to(value.device))
    return copy.deepcopy(scheduler, memo)


def _tensors(values: Any) -> list[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list | tuple):
        return [tensor for value in values for tensor in _tensors(value)]
    return []


def _cloned(generator: torch.Generator) -> torch.Generator:
    return torch.Generator(generator.device).set_state(generator.get_state())
