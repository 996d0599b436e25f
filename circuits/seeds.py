"""Every random number of the project comes from (run seed, purpose, index), through this one function."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, *index: int) -> int:
    """Return a 63-bit seed for one draw.

    Args:
        seed: the run's seed, >= 0.
        purpose: what the numbers are for, e.g. ``"noise/natural"``; different purposes never share a stream.
        index: position within the purpose (an image index, a step, ...), each >= 0; always as many for one purpose
            (numpy pads with zeros, so ``(p,)`` and ``(p, 0)`` are one stream).

    Raises:
        ValueError: a negative seed or index.
    """
    entropy = [seed, zlib.crc32(purpose.encode()), *index]
    if min(entropy) < 0:
        raise ValueError(f"seeds and indices must be >= 0, got seed={seed}, index={index}")
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)


def torch_generator(seed: int, purpose: str, *index: int) -> torch.Generator:
    """A CPU generator, so that the numbers are the same whatever device computes with them."""
    return torch.Generator("cpu").manual_seed(derive_seed(seed, purpose, *index))


def numpy_generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """As :func:`torch_generator`, for numpy."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, purpose, *index)))


def normal_per_index(seed: int, purpose: str, indices: list[int], shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise ``[len(indices), *shape]``; row i depends on ``indices[i]`` alone."""
    return torch.stack([torch.randn(shape, generator=torch_generator(seed, purpose, i)) for i in indices])
