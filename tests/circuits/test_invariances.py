"""What a trial's numbers do not depend on: rows of a forward, order, grouping, other trials, memory."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest
import torch

from circuits.batches import Batches
from circuits.denoisers import Denoiser
from circuits.engine import Engine, Generated, Paired, Window
from circuits.interventions import ALL_HEADS, Intervention, Site
from circuits.vocabulary import ABLATIONS, Mode
from tests.circuits.conftest import IMAGES, STEPS, make_engine

WINDOW = Window(900, 300)
SEEDS = 3


def one_of_each_mode(engine: Engine) -> list[Intervention]:
    first, *_, last = engine.layers
    return [Intervention(mode, (Site(first, 1), Site(last, ALL_HEADS))) for mode in ABLATIONS]


def measured(engine: Engine, interventions: list[Intervention], n: int = IMAGES, first: int = 0) -> torch.Tensor:
    """Every metric of every intervention, ``[metrics, interventions, n]``."""
    found: dict[str, Paired] = engine.denoise("natural", WINDOW, interventions, n, first)
    return torch.stack([pair.ablated for pair in found.values()])


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_rows_of_a_forward(denoiser: Denoiser) -> None:
    engines = [make_engine(denoiser, rows=rows) for rows in (1, 7, 32)]
    interventions = one_of_each_mode(engines[0])
    one, *others = [measured(engine, interventions) for engine in engines]
    for other in others:
        close(one, other)


def test_rows_of_a_forward_in_samples(dit: Denoiser) -> None:
    engines = [make_engine(dit, rows=rows) for rows in (1, 7, 32)]
    one, *others = [e.sample("natural", WINDOW, one_of_each_mode(e), SEEDS) for e in engines]
    for other in others:
        torch.testing.assert_close(one.baseline, other.baseline, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one.ablated, other.ablated, rtol=1e-5, atol=1e-5)


def test_order_and_grouping_of_interventions(dit: Denoiser) -> None:
    engine = make_engine(dit)
    interventions = one_of_each_mode(engine)
    together = measured(engine, interventions)
    close(measured(engine, interventions[::-1]).flip(1), together)
    close(torch.cat([measured(engine, [i]) for i in interventions], dim=1), together)
    close(measured(make_engine(dit), interventions[3:]), together[:, 3:])  # a fresh engine that never saw the others


def test_same_seed_same_numbers_another_seed_others(dit: Denoiser) -> None:
    interventions = one_of_each_mode(make_engine(dit))
    first, again, other = (measured(make_engine(dit, seed=seed), interventions) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert ((first - other).abs() > 1e-4 * first.abs()).float().mean() > 0.9


def test_an_image_does_not_depend_on_how_many_there_are(dit: Denoiser) -> None:
    """Holds for every mode whose replacement is not another measured image; donors are drawn among the n."""
    engine = make_engine(dit)
    interventions = one_of_each_mode(engine)
    few, last, every = (
        measured(engine, interventions, 6),
        measured(engine, interventions, 6, 1),
        measured(engine, interventions),
    )
    alone = [i for i, chosen in enumerate(interventions) if "resample" not in chosen.mode]
    resampled = [i for i in range(len(interventions)) if i not in alone]
    close(few[:, alone], every[:, alone, :6])
    close(last[:, alone], every[:, alone, 1:])
    assert (few[:, resampled] - every[:, resampled, :6]).abs().max() > 1e-3


def test_images_measured_in_pieces_equal_those_measured_at_once(dit: Denoiser) -> None:
    """Under every mode: donors are drawn for all n images, whichever of them are measured now."""
    engine = make_engine(dit)
    interventions = one_of_each_mode(engine)
    every = measured(engine, interventions, 6, 1)
    pieces = [
        torch.stack([pair.ablated for pair in engine.denoise("natural", WINDOW, interventions, 6, 1, units).values()])
        for units in (range(0, 1), range(1, 4), range(4, 6))
    ]
    close(torch.cat(pieces, dim=2), every)
    whole, part = (engine.denoise("natural", WINDOW, interventions, 6, 1, u)["x0_mse"] for u in (None, range(2, 5)))
    close(part.baseline, whole.baseline[2:5])
    for units in (range(0), range(4, 7), range(-1, 2)):
        with pytest.raises(ValueError, match="expected some of 0 to 5"):
            engine.denoise("natural", WINDOW, interventions, 6, 1, units)


def test_a_generated_image_depends_on_its_seed_alone(dit: Denoiser) -> None:
    engine = make_engine(dit)
    zero = [Intervention(Mode.zero, (Site(next(iter(engine.layers)), 1),))]
    three = engine.sample("natural", WINDOW, zero, 3, first_seed=4)
    last = engine.sample("natural", WINDOW, zero, 1, first_seed=6)
    torch.testing.assert_close(last.baseline[0], three.baseline[2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last.ablated[:, 0], three.ablated[:, 2], rtol=1e-5, atol=1e-5)


def test_an_intervention_of_strength_zero_changes_no_bit(dit: Denoiser) -> None:
    engine = make_engine(dit, rows=IMAGES)
    none = [Intervention(i.mode, i.sites, 0.0) for i in one_of_each_mode(engine)]
    for pair in engine.denoise("natural", WINDOW, none, IMAGES).values():
        assert torch.equal(pair.ablated, pair.baseline.expand(len(none), -1))


def test_scaling_by_zero_is_zeroing_and_by_one_is_nothing(dit: Denoiser) -> None:
    engine = make_engine(dit, rows=IMAGES)
    sites = (Site(next(iter(engine.layers)), 1), Site(list(engine.layers)[-1], ALL_HEADS))
    zero, none, once, half, thrice = (
        engine.denoise("natural", WINDOW, [chosen], IMAGES)["noise_mse"]
        for chosen in (
            Intervention(Mode.zero, sites),
            Intervention(Mode.scale, sites, factor=0.0),
            Intervention(Mode.scale, sites, factor=1.0),
            Intervention(Mode.scale, sites, 0.25, factor=5.0),
            Intervention(Mode.scale, sites, factor=2.0),
        )
    )
    assert torch.equal(none.ablated, zero.ablated)
    assert torch.equal(once.ablated[0], once.baseline)
    close(half.ablated, thrice.ablated)  # o + 1/4 (5 - 1) o = 2 o
    assert (thrice.ablated[0] / thrice.baseline - 1).abs().mean() > 1e-3


def test_samples_equal_the_baseline_until_the_window(dit: Denoiser) -> None:
    """An intervention at the last step moves the image less than at every step, and both move it."""
    engine = make_engine(dit)
    zero = [Intervention(Mode.zero, (Site(next(iter(engine.layers))),))]

    def moved(window: Window) -> float:
        found: Generated = engine.sample("natural", window, zero, SEEDS)
        return (found.ablated[0] - found.baseline).abs().mean().item()

    assert 0 < moved(Window(250, 0)) < moved(Window(999, 0))


@pytest.fixture
def small_device(dit: Denoiser, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Make forwards of more than so many rows run out of memory; returns the list of rows that went through."""
    real = dit.network.forward

    def limit(rows: int) -> list[int]:
        went_through: list[int] = []

        @wraps(real)
        def forward(sample: torch.Tensor, **kwargs: Any) -> Any:
            if len(sample) > rows:
                raise torch.OutOfMemoryError(f"simulated: {len(sample)} rows")
            output = real(sample, **kwargs)
            went_through.append(len(sample))
            return output

        monkeypatch.setattr(dit.network, "forward", forward)
        return went_through

    return limit


def test_out_of_memory_halves_the_rows_and_loses_nothing(
    dit: Denoiser, small_device: Callable[[int], list[int]]
) -> None:
    interventions = one_of_each_mode(make_engine(dit))
    plain = make_engine(dit, rows=32)
    expected = measured(plain, interventions)
    samples = plain.sample("natural", WINDOW, interventions, SEEDS)
    halved = make_engine(dit, rows=32)
    assert all(halved.replayable.values())  # the self-test's own rows are not counted
    went_through = small_device(5)
    close(measured(halved, interventions), expected)
    found = halved.sample("natural", WINDOW, interventions, SEEDS)
    torch.testing.assert_close(found.ablated, samples.ablated, rtol=1e-5, atol=1e-5)
    assert halved.rows <= 5
    # A baseline pass and a trajectory per data set (resample_across needs the other), then a row per variant and image,
    # and per variant, seed and step from the window's first one, which is the second of all, to the last.
    variants = len(interventions)
    clean, ablated = 2 * (IMAGES + SEEDS * STEPS), variants * (IMAGES + SEEDS * (STEPS - 1))
    assert halved.rows_run == plain.rows_run == clean + ablated
    means = sum(len(d.reference) for d in [halved.data["natural"]]) * len(WINDOW.select(halved.timesteps))
    assert sum(went_through) == halved.rows_run + means


def test_out_of_memory_of_a_single_row_is_an_error(dit: Denoiser, small_device: Callable[[int], list[int]]) -> None:
    engine = make_engine(dit, rows=32)
    small_device(0)
    with pytest.raises(torch.OutOfMemoryError):
        measured(engine, one_of_each_mode(engine))


@pytest.mark.parametrize(("items", "rows", "fits"), [(1, 1, 1), (11, 32, 3), (11, 4, 4), (97, 64, 5), (7, 7, 1)])
def test_batches_cover_every_item_once_in_order(items: int, rows: int, fits: int) -> None:
    batches = Batches(rows)

    def forward(piece: list[int]) -> list[int]:
        if len(piece) > fits:
            raise torch.OutOfMemoryError
        return piece

    pieces = batches.run(range(items), forward, forwards=3)
    assert [item for piece in pieces for item in piece] == list(range(items))
    assert batches.rows_run == 3 * items
    assert batches.rows <= max(fits, 1) or rows <= fits


def test_a_forward_has_at_least_one_row() -> None:
    with pytest.raises(ValueError, match="at least 1 row, got rows=0"):
        Batches(0)
