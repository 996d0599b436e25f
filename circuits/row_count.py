"""How many rows of a forward make the best use of the device: measured, since it differs a hundredfold."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from circuits.conditioning import draw
from circuits.denoisers import Denoiser

FEWEST, MOST = 4, 4096
SECONDS = 2.0
_WORTH_HAVING = 0.98
_PAST_THE_BEST = 0.95
_REPETITIONS = 4


def best_rows(
    seconds: Callable[[int], float], *, fewest: int = FEWEST, most: int = MOST, budget: float = SECONDS
) -> int:
    """Of 4, 8, 16, ... rows, the fewest whose rate is within 2% of the best.

    A forward of a sweep begins at a site, half-way on average, and hooks, replay and metrics cost besides about what
    calling the modules of the other half would. So n rows are taken to need (seconds(n) + seconds(1)) / 2. More rows
    are tried until the rate was 5% below the best twice in a row, memory is out, or the next would take too long.

    Args:
        seconds: measures a whole forward of so many rows.
        budget: seconds that all measurements may take together.

    Raises:
        torch.OutOfMemoryError: not even the fewest rows fit.
    """
    rates: dict[int, float] = {}
    single = seconds(1)
    spent, rows = single * _REPETITIONS, fewest
    while rows <= most:
        try:
            taken = seconds(rows)
        except torch.OutOfMemoryError:
            if not rates:
                raise
            break
        rates[rows] = rows / (taken + single)
        spent += taken * _REPETITIONS
        past = [rate < _PAST_THE_BEST * max(rates.values()) for rate in rates.values()]
        if past[-2:] == [True, True] or spent + 2 * taken * _REPETITIONS > budget:
            break
        rows *= 2
    torch.cuda.empty_cache()
    best = max(rates.values())
    return next(rows for rows, rate in rates.items() if rate >= _WORTH_HAVING * best)


def forward_seconds(denoiser: Denoiser) -> Callable[[int], float]:
    """Measures forwards of a denoiser: the shortest of a few, after one that does not count."""

    def wait() -> float:
        if denoiser.device.type == "cuda":
            torch.cuda.synchronize(denoiser.device)
        return time.perf_counter()

    def seconds(rows: int) -> float:
        x = torch.zeros((rows, *denoiser.sample_shape), device=denoiser.device)
        t = torch.arange(rows) % denoiser.train_timesteps
        conditioning = draw(denoiser.network, rows, torch.Generator().manual_seed(0))
        found = []
        for _ in range(_REPETITIONS):
            began = wait()
            denoiser(x, t, conditioning)
            found.append(wait() - began)
        return min(found[1:])

    return seconds
