"""What the engine refuses, and the bookkeeping of windows."""

from dataclasses import replace

import pytest
import torch

from circuits.denoisers import Denoiser
from circuits.engine import Engine, Window
from circuits.interventions import Intervention, Mode, Site
from circuits.sites import find_sites
from tests.circuits.conftest import IMAGES, STEPS, make_engine, random_data, two_data_sets

EVERYTHING = Window(999, 0)


@pytest.fixture
def engine(dit: Denoiser) -> Engine:
    return make_engine(dit)


def first(engine: Engine) -> str:
    return next(iter(engine.layers))


def test_windows_hold_their_ends() -> None:
    window = Window(799, 399)
    assert window.select([999, 799, 599, 399, 199]) == [799, 599, 399]
    assert 799 in window
    assert 800 not in window
    assert 398 not in window
    for wrong in ((399, 799), (5, -1)):
        with pytest.raises(ValueError, match="t_start down to t_end"):
            Window(*wrong)


def test_units_use_the_steps_of_a_window_in_turn(engine: Engine) -> None:
    assert engine.timesteps == [999, 799, 599, 399, 199]
    assert engine.unit_timesteps(Window(800, 390), range(7)).tolist() == [799, 599, 399, 799, 599, 399, 799]
    with pytest.raises(ValueError, match=r"window \[150, 10\] holds none of the steps \[999, 799, 599, 399, 199\]"):
        engine.unit_timesteps(Window(150, 10), range(7))
    with pytest.raises(ValueError, match="holds none of the steps"):
        engine.sample("natural", Window(150, 10), [], 2)


def test_no_interventions_give_the_baseline_alone(engine: Engine) -> None:
    for pair in engine.denoise("natural", EVERYTHING, [], IMAGES).values():
        assert pair.baseline.shape == (IMAGES,)
        assert pair.ablated.shape == (0, IMAGES)
    generated = engine.sample("natural", EVERYTHING, [], 2)
    assert generated.baseline.shape == (2, 1, 14, 14)
    assert generated.ablated.shape == (0, 2, 1, 14, 14)


@pytest.mark.parametrize(
    ("dataset", "site", "mode", "n", "message"),
    [
        ("naturel", ("", -1), Mode.zero, 4, "no data set 'naturel'; did you mean 'natural'"),
        ("natural", ("transformer_blocks.9.attn1", 0), Mode.zero, 4, "did you mean 'transformer_blocks.1.attn1'"),
        ("natural", ("", 5), Mode.zero, 4, "has no head 5; valid: 0 to 4, or -1 for all"),
        ("natural", ("", -2), Mode.zero, 4, "has no head -2"),
        ("natural", ("", 0), Mode.zero, 8, "has 7 images to measure, got n=8"),
        ("natural", ("", 0), Mode.zero, 0, "got n=0"),
        ("natural", ("", 0), Mode.resample, 7, "at least 2 images per timestep, got 7 images over 5 timesteps"),
    ],
)
def test_what_is_not_there_is_named(
    engine: Engine, dataset: str, site: tuple[str, int], mode: Mode, n: int, message: str
) -> None:
    chosen = Intervention(mode, (Site(site[0] or first(engine), site[1]),))
    with pytest.raises(ValueError, match=message):
        engine.denoise(dataset, EVERYTHING, [chosen], n)


def test_resample_across_needs_another_data_set(dit: Denoiser) -> None:
    data = {"natural": two_data_sets(dit)["natural"]}
    engine = Engine(dit, find_sites(dit), data, steps=STEPS, seed=0)
    across = Intervention(Mode.resample_across, (Site(first(engine)),))
    for run in (lambda: engine.denoise("natural", Window(999, 700), [across], 4),
                lambda: engine.sample("natural", Window(999, 700), [across], 3)):  # fmt: skip
        with pytest.raises(ValueError, match="resample_across needs two data sets, there is 'natural' only"):
            run()


def test_identity_needs_the_values_of_the_layer(dit: Denoiser) -> None:
    layers = [replace(layer, values=None) if layer.index == 0 else layer for layer in find_sites(dit)]
    engine = Engine(dit, layers, two_data_sets(dit), steps=STEPS, seed=0)
    names = list(engine.layers)
    with pytest.raises(ValueError, match=rf"identity needs .* layer {names[0]} has none"):
        engine.denoise("natural", EVERYTHING, [Intervention(Mode.identity, (Site(names[0]),))], IMAGES)
    # Beside it, in the same forwards, the layer can be ablated in other ways.
    mixed = [Intervention(Mode.identity, (Site(names[1]),)), Intervention(Mode.zero, (Site(names[0]),))]
    assert engine.denoise("natural", EVERYTHING, mixed, IMAGES)["noise_mse"].ablated.shape == (2, IMAGES)


@pytest.mark.parametrize(
    ("label", "channels", "message"),
    [
        (None, 1, "has label None, dit knows 0 to 1"),
        (2, 1, "has label 2, dit knows 0 to 1"),
        (0, 3, r"has images of \(3, 14, 14\), dit takes \(1, 14, 14\)"),
    ],
)
def test_data_sets_must_fit_the_model(dit: Denoiser, label: int | None, channels: int, message: str) -> None:
    data = {"odd": random_data("odd", label, channels, 0)}
    with pytest.raises(ValueError, match=message):
        Engine(dit, find_sites(dit), data, steps=STEPS, seed=0)


def test_numbers_that_are_not_finite_are_an_error(engine: Engine) -> None:
    engine.denoiser.network.proj_out_2.bias.data[0] = torch.nan  # type: ignore[union-attr,operator]
    with pytest.raises(FloatingPointError, match="noise_mse of the unablated model: 7 of 7 are not finite"):
        engine.denoise("natural", EVERYTHING, [], IMAGES)
    with pytest.raises(FloatingPointError, match="pixels generated by the unablated model"):
        engine.sample("natural", EVERYTHING, [], 2)


def test_an_intervention_is_checked_when_it_is_made() -> None:
    with pytest.raises(ValueError, match="at least one site"):
        Intervention(Mode.zero, ())
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"share of the replacement in \[0, 1\], got"):
            Intervention(Mode.zero, (Site("a"),), strength)


def test_controls_differ_by_draw_and_leave_other_rows_alone(dit: Denoiser) -> None:
    engine = make_engine(dit)
    name = next(iter(engine.layers))
    site = (Site(name, 2),)
    zero = Intervention(Mode.zero, site)
    controls = [Intervention(Mode.subspace, site, draw=draw) for draw in (0, 1)]
    together = engine.denoise("natural", Window(999, 0), [controls[0], zero, controls[1]], IMAGES)["noise_mse"].ablated
    assert (together[0] - together[2]).abs().min() > 0
    for chosen, row in ((zero, 1), (controls[0], 0)):
        alone = engine.denoise("natural", Window(999, 0), [chosen], IMAGES)["noise_mse"].ablated[0]
        torch.testing.assert_close(alone, together[row], rtol=1e-5, atol=1e-7)
