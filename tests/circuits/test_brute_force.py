"""Every mode at every level, under both protocols, against separate float64 forwards with the edit inside attention."""

from dataclasses import replace

import pytest
import torch

from circuits.denoisers import Denoiser
from circuits.engine import Engine, Window
from circuits.interventions import ALL_HEADS, Intervention, Site
from circuits.vocabulary import ABLATIONS, Mode
from tests.circuits.brute_force import BruteForce
from tests.circuits.conftest import IMAGES, STEPS, make_engine

SEED = 3
WINDOW = Window(900, 300)  # the steps 799, 599, 399 of 999 ... 199
SEEDS = 3


def all_interventions(engine: Engine) -> list[Intervention]:
    """Each mode on a head, a layer, and a set over two layers that holds a layer; whole and in part."""
    layers = list(engine.layers)
    first, last = layers[0], layers[-1]
    levels = (
        (Site(first, 1),),
        (Site(last, ALL_HEADS),),
        (Site(first, 2), Site(last, ALL_HEADS), Site(first, 0)),
    )
    whole = [Intervention(mode, sites) for mode in ABLATIONS for sites in levels]
    return [*whole, *(Intervention(mode, levels[2], 0.37) for mode in ABLATIONS)]


@pytest.fixture
def engine(denoiser: Denoiser) -> Engine:
    return make_engine(denoiser, seed=SEED)


@pytest.mark.parametrize(("dataset", "n", "first"), [("synthetic", IMAGES, 0), ("natural", IMAGES - 1, 1)])
def test_denoise_equals_edits_inside_attention(engine: Engine, dataset: str, n: int, first: int) -> None:
    brute_force = BruteForce(engine.denoiser, dict(engine.data), STEPS, SEED)
    interventions = all_interventions(engine)
    found = engine.denoise(dataset, WINDOW, interventions, n, first)
    clean = brute_force.denoise(dataset, WINDOW, None, n, first)
    expected = [brute_force.denoise(dataset, WINDOW, i, n, first) for i in interventions]
    for name, pair in found.items():
        torch.testing.assert_close(pair.baseline, clean[name], rtol=1e-5, atol=1e-7)
        ablated = torch.stack([e[name] for e in expected])
        torch.testing.assert_close(pair.ablated, ablated, rtol=1e-5, atol=1e-7)
    # The comparison would see a mistake: every intervention moves the metric by far more than the tolerance.
    change = found["noise_mse"].ablated / found["noise_mse"].baseline - 1
    assert change.abs().mean(dim=1).min() > 1e-3


def test_samples_equal_edits_inside_attention(denoiser: Denoiser) -> None:
    # A random network that predicts epsilon amplifies rounding fourfold a step, so both are read as predicting v.
    engine = make_engine(replace(denoiser, prediction_type="v_prediction"), seed=SEED)
    brute_force = BruteForce(engine.denoiser, dict(engine.data), STEPS, SEED)
    interventions = all_interventions(engine)
    found = engine.sample("natural", WINDOW, interventions, SEEDS, first_seed=2)
    clean = brute_force.sample("natural", WINDOW, None, SEEDS, 2)
    torch.testing.assert_close(found.baseline.double(), clean, rtol=1e-5, atol=1e-5)
    for intervention, images in zip(interventions, found.ablated, strict=True):
        expected = brute_force.sample("natural", WINDOW, intervention, SEEDS, 2)
        torch.testing.assert_close(images.double(), expected, rtol=1e-5, atol=1e-5)
    assert (found.ablated - found.baseline).abs().amax(dim=(1, 2, 3, 4)).min() > 1e-3


def test_columns_zeroed_after_the_projection_are_another_thing(engine: Engine) -> None:
    """Must fail to agree: the projection mixes the heads, so its output has no columns of a head."""
    layer = next(iter(engine.layers.values()))
    projection = engine.denoiser.network.get_submodule(layer.projection)
    site = engine.denoise("natural", WINDOW, [Intervention(Mode.zero, (Site(layer.name, 1),))], IMAGES)["noise_mse"]
    columns = slice(layer.head_dim, 2 * layer.head_dim)

    def zero_columns(_: torch.nn.Module, __: tuple, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[..., columns] = 0
        return output

    handle = projection.register_forward_hook(zero_columns)
    wrong = Engine(engine.denoiser, list(engine.layers.values()), engine.data, steps=STEPS, seed=SEED)
    after = wrong.denoise("natural", WINDOW, [], IMAGES)["noise_mse"].baseline
    handle.remove()
    effect, wrong_effect = site.ablated[0] - site.baseline, after - site.baseline
    assert (effect - wrong_effect).norm() > 0.5 * effect.norm()
