"""The number of rows is measured where none is given, and no number depends on it."""

from collections.abc import Callable

import pytest
import torch

from circuits.denoisers import Denoiser
from circuits.engine import Engine, Window
from circuits.interventions import Intervention, Mode, Site
from circuits.row_count import best_rows, forward_seconds
from circuits.sites import find_sites
from tests.circuits.conftest import IMAGES, STEPS, make_engine, two_data_sets


def device(overhead: float, slowed_from: int = 10**9, fits: int = 10**9) -> tuple[Callable[[int], float], list[int]]:
    """Seconds of a forward on a device with a fixed cost, 1 ms a row, and twice that from some number of rows on."""
    tried: list[int] = []

    def seconds(rows: int) -> float:
        tried.append(rows)
        if rows > fits:
            raise torch.OutOfMemoryError
        return overhead + rows * (2e-3 if rows >= slowed_from else 1e-3)

    return seconds, tried


@pytest.mark.parametrize(
    ("overhead", "slowed_from", "fits", "best", "tried"),
    [
        (0.0, 10**9, 10**9, 64, [1, 4, 8, 16, 32, 64, 128, 256]),  # 64/65 of what any number would reach
        (8e-3, 64, 10**9, 32, [1, 4, 8, 16, 32, 64, 128]),  # slower from 64 on, twice in a row
        (8e-3, 10**9, 20, 16, [1, 4, 8, 16, 32]),  # 32 do not fit
        (1.0, 10**9, 10**9, 4, [1, 4]),  # so slow that no more is tried
    ],
)
def test_the_best_rate_is_found(overhead: float, slowed_from: int, fits: int, best: int, tried: list[int]) -> None:
    seconds, found = device(overhead, slowed_from, fits)
    assert best_rows(seconds, budget=2.1) == best
    assert found == tried


def test_no_more_than_the_most_and_one_row_at_least_must_fit() -> None:
    seconds, tried = device(1.0)
    assert best_rows(seconds, most=16, budget=1e9) == 16
    assert tried == [1, 4, 8, 16]
    with pytest.raises(torch.OutOfMemoryError):
        best_rows(device(0.0, fits=3)[0])


def test_an_engine_measures_its_rows_where_none_are_given(dit: Denoiser) -> None:
    measured = Engine(dit, find_sites(dit), two_data_sets(dit), steps=STEPS, seed=3, rows=0)
    assert measured.rows in {4 * 2**i for i in range(11)}
    assert forward_seconds(dit)(4) > 0
    chosen = [Intervention(Mode.zero, (Site(name, 0),)) for name in measured.layers]
    found = measured.denoise("natural", Window(999, 500), chosen, IMAGES)["noise_mse"]
    expected = make_engine(dit).denoise("natural", Window(999, 500), chosen, IMAGES)["noise_mse"]
    torch.testing.assert_close(found.ablated, expected.ablated, rtol=1e-5, atol=1e-7)
