"""Beginning in the middle of a trajectory equals having taken every step, for schedulers with any kind of memory."""

from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import pytest
import torch

from circuits.trajectories import SamplerState, Trajectory

STEPS, SEEDS, SHAPE = 7, 3, (2, 5, 3)

SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddim": diffusers.DDIMScheduler,
    "ddpm": diffusers.DDPMScheduler,
    "pndm": diffusers.PNDMScheduler,
    "dpm++ 2m": diffusers.DPMSolverMultistepScheduler,
    "dpm++ 2m sde": lambda: diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    "unipc": diffusers.UniPCMultistepScheduler,
    "lms": diffusers.LMSDiscreteScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "flow": diffusers.FlowMatchEulerDiscreteScheduler,
}
DRAWING = {"ddpm", "dpm++ 2m sde", "euler ancestral"}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(100 + seed)


def begin(name: str, seeds: list[int]) -> SamplerState:
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(STEPS)
    x = torch.stack([torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    return SamplerState(x * getattr(scheduler, "init_noise_sigma", 1.0), scheduler, tuple(map(generator, seeds)))


def network(x: torch.Tensor, t: Any) -> torch.Tensor:
    """Something not linear, row by row, so that a row has the same bits in every batch."""
    return (x.roll(1, dims=2) * 0.7 + float(t) / 1000).tanh()


@cache
def alone(name: str, seed: int, variant: int, first: int) -> torch.Tensor:
    """One row from its noise to its image, by the scheduler itself; the prediction is changed from ``first`` on."""
    state = begin(name, [seed])
    assert state.generators is not None
    scheduler, x = state.scheduler, state.x
    for step, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = network(scaled, t) + (0.2 * variant if step >= first else 0.0)
        drawing = {"generator": state.generators[0]} if name in DRAWING else {}
        x = scheduler.step(output, t, x, **drawing).prev_sample
    return x[0]


def steps_of(name: str) -> int:
    return len(begin(name, [0]).scheduler.timesteps)  # some take a timestep twice


@pytest.mark.parametrize("name", SCHEDULERS)
def test_rows_that_begin_in_the_middle_equal_whole_trajectories(name: str) -> None:
    start = begin(name, list(range(SEEDS)))
    trajectory = Trajectory.run(start, lambda _, x, t: network(x, t))
    steps = steps_of(name)
    assert len(trajectory.states) == steps
    for seed in range(SEEDS):
        assert torch.equal(trajectory.images[seed], alone(name, seed, 0, 0))
    unit, variant = torch.tensor([2, 0, 0, 1, 2]), torch.tensor([1, 0, 2, 1, 2])
    for first in range(steps):
        for _ in range(2):  # the stored state is not used up
            state = trajectory.states[first].rows(unit)
            for step in range(first, steps):
                change = 0.2 * variant.view(-1, 1, 1, 1)
                state = state.next(step, lambda x, t, change=change: network(x, t) + change)
            for row in range(len(unit)):
                assert torch.equal(state.x[row], alone(name, int(unit[row]), int(variant[row]), first)), (first, row)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_start_is_left_as_it_is(name: str) -> None:
    start = begin(name, [0, 1])
    before = start.x.clone()
    first = Trajectory.run(start, lambda _, x, t: network(x, t)).images
    assert torch.equal(Trajectory.run(start, lambda _, x, t: network(x, t)).images, first)
    assert torch.equal(start.x, before)
    assert start.generators is not None
    assert torch.equal(start.generators[1].get_state(), generator(1).get_state())


@pytest.mark.parametrize("name", sorted(DRAWING))
def test_what_is_drawn_belongs_to_the_seed(name: str) -> None:
    """The same latents with other generators are other images, and another row's generator changes nothing."""
    state = begin(name, [0, 1])
    swapped = SamplerState(state.x, state.scheduler, (generator(0), generator(9)))
    a, b = (Trajectory.run(start, lambda _, x, t: network(x, t)).images for start in (state, swapped))
    assert torch.equal(a[0], b[0])
    assert not torch.equal(a[1], b[1])


def test_the_network_is_told_the_step_the_scaled_latents_and_the_timestep() -> None:
    start = begin("euler", [0])
    told: list[tuple[int, float, float]] = []

    def predict(step: int, x: torch.Tensor, t: Any) -> torch.Tensor:
        told.append((step, float(t), float(x.abs().max())))
        return network(x, t)

    trajectory = Trajectory.run(start, predict)
    assert [step for step, _, _ in told] == list(range(STEPS))
    assert [t for _, t, _ in told] == start.scheduler.timesteps.tolist()
    assert told[0][2] < 5 < trajectory.states[0].x.abs().max(), "sigma is 14.6 at the start, its scale 1"
