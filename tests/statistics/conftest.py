"""Shared by the statistics tests: bands of simulated rates, and a seeded generator per test."""

import zlib
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

Band = Callable[[int, float], tuple[float, float]]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Pinned by the test's own name: adding a test changes no other."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@pytest.fixture
def band() -> Band:
    """The rates that M independent trials at a true rate leave with probability 2e-6 only."""

    def limits(trials: int, rate: float) -> tuple[float, float]:
        return float(binom.ppf(1e-6, trials, rate)) / trials, float(binom.ppf(1 - 1e-6, trials, rate)) / trials

    return limits
