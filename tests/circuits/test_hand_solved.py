"""The engine gets the exact effects of a denoiser solved by hand, and does not call the heads that do nothing."""

from functools import cache

import numpy as np
import pytest
import torch

from circuits.data.image_sets import ImageSet
from circuits.data.sources import DataSet
from circuits.engine import Engine, Window
from circuits.interventions import ALL_HEADS, Intervention, Site
from circuits.references import donors
from circuits.seeds import normal_per_index, torch_generator
from circuits.sites import find_sites
from circuits.statistics import bh, equivalence_test, hierarchical_fdr, log_ratio, signflip_test, verdicts
from circuits.vocabulary import ABLATIONS, DENOISE_METRICS, Mode
from tests.circuits import hand_solved
from tests.circuits.hand_solved import NULL, WEIGHTS, hand_solved_denoiser, head_output, head_value, prediction

SEED, STEPS, IMAGES, REFERENCES = 5, 10, 23, 19
WINDOWS = {"high": Window(999, 700), "low": Window(399, 0)}  # 999, 899, 799; 399, 299, 199, 99
HEADS = [(layer, head) for layer, weights in WEIGHTS.items() for head in range(len(weights))]


def images(name: str, n: int, seed: int) -> ImageSet:
    pixels = (
        torch.rand((n, 1, hand_solved.SIZE, hand_solved.SIZE), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    )
    return ImageSet(name, pixels, tuple(map(str, range(n))), None, "")


def data_sets() -> dict[str, DataSet]:
    return {
        name: DataSet(name, None, images(name, IMAGES, seed), images(name, REFERENCES, seed + 10))
        for seed, name in enumerate(["synthetic", "natural"])
    }


@pytest.fixture(scope="module")
def engine() -> Engine:
    denoiser = hand_solved_denoiser()
    return Engine(denoiser, find_sites(denoiser), data_sets(), steps=STEPS, seed=SEED, rows=IMAGES)


def noised(engine: Engine, name: str, purpose: str, pixels: torch.Tensor, unit: int, t: int) -> np.ndarray:
    bar = float(engine.denoiser.alphas_cumprod[t])
    noise = normal_per_index(SEED, f"{purpose}/{name}", [unit], pixels.shape[1:])[0]
    return (np.sqrt(bar) * pixels[unit].double() + np.sqrt(1 - bar) * noise.double()).numpy()[0]


@cache
def mean_reference(engine: Engine, dataset: str, t: int) -> np.ndarray:
    pool = engine.data[dataset].reference.images
    return np.mean([noised(engine, dataset, "reference noise", pool, i, t) for i in range(REFERENCES)], axis=0)


@cache
def reference_moments(engine: Engine, dataset: str, t: int, layer: str, head: int) -> tuple[np.ndarray, np.ndarray]:
    pool = engine.data[dataset].reference.images
    seen = [head_output(layer, head, noised(engine, dataset, "reference noise", pool, i, t)) for i in range(REFERENCES)]
    return np.mean(seen, axis=0), np.std(seen, axis=0)


def draw(dataset: str, layer: str, head: int, unit: int, t: int) -> np.ndarray:
    """Standard normal in the first column of the head, the only one that is read."""
    heads, tokens = len(WEIGHTS[layer]), hand_solved.SIZE**2
    generator = torch_generator(SEED, f"noise ablation/{dataset}/{layer}", unit, t)
    z = torch.randn((tokens, heads * hand_solved.HEAD_DIM), generator=generator)
    return z[:, head * hand_solved.HEAD_DIM].double().numpy().reshape(hand_solved.SIZE, hand_solved.SIZE)


def expected_mse(engine: Engine, dataset: str, window: Window, intervention: Intervention | None) -> np.ndarray:
    """Mean square of (x/4 + sum of weight * output) - noise, per image, in float64."""
    other = {"synthetic": "natural", "natural": "synthetic"}[dataset]
    steps = window.select(engine.timesteps)
    donor = donors(IMAGES, len(steps), SEED)
    found = []
    for unit in range(IMAGES):
        t = steps[unit % len(steps)]
        measured = engine.data[dataset].measured.images
        x = noised(engine, dataset, "noise", measured, unit, t)
        replaced = {}
        for site in intervention.sites if intervention else ():
            assert intervention is not None
            for head in range(len(WEIGHTS[site.layer])) if site.head == ALL_HEADS else [site.head]:
                old = head_output(site.layer, head, x)
                if intervention.mode is Mode.zero:
                    new = np.zeros_like(x)
                elif intervention.mode is Mode.identity:
                    new = head_value(site.layer, head, x)
                elif intervention.mode is Mode.uniform:
                    new = np.full_like(x, head_value(site.layer, head, x).mean())
                elif intervention.mode is Mode.scale:
                    new = intervention.factor * old
                elif intervention.mode is Mode.noise:
                    mean, deviation = reference_moments(engine, dataset, t, site.layer, head)
                    new = mean + deviation * draw(dataset, site.layer, head, unit, t)
                elif intervention.mode is Mode.mean:
                    # What a head sees is linear in x, so the mean of the outputs is the output of the mean image.
                    new = head_output(site.layer, head, mean_reference(engine, dataset, t))
                else:
                    source = dataset if intervention.mode is Mode.resample else other
                    pool = engine.data[source].measured.images
                    new = head_output(site.layer, head, noised(engine, source, "noise", pool, int(donor[unit]), t))
                replaced[site.layer, head] = old + intervention.strength * (new - old)
        noise = normal_per_index(SEED, f"noise/{dataset}", [unit], measured.shape[1:])[0, 0].double().numpy()
        found.append(np.mean((prediction(t, x, replaced) - noise) ** 2))
    return np.array(found)


def test_the_self_test_accepts_the_model(engine: Engine) -> None:
    found = [(layer.name, layer.heads, layer.head_dim, layer.tokens, layer.kind) for layer in engine.layers.values()]
    assert found == [("low", 3, 23, 121, "self"), ("high", 5, 23, 121, "self")]
    assert all(layer.values == f"{layer.name}.to_v" for layer in engine.layers.values())


@pytest.mark.parametrize("mode", list(ABLATIONS))
@pytest.mark.parametrize("window", list(WINDOWS))
def test_every_head_has_its_exact_effect(engine: Engine, mode: Mode, window: str) -> None:
    sites = [*((Site(*head),) for head in HEADS), (Site("high"),), (Site("low"),), (Site("high", 2), Site("low", 1))]
    interventions = [Intervention(mode, s, strength) for s in sites for strength in (1.0, 0.3)]
    found = engine.denoise("natural", WINDOWS[window], interventions, IMAGES)["noise_mse"]
    baseline = expected_mse(engine, "natural", WINDOWS[window], None)
    np.testing.assert_allclose(found.baseline, baseline, rtol=1e-5)
    for intervention, ablated in zip(interventions, found.ablated.numpy(), strict=True):
        expected = expected_mse(engine, "natural", WINDOWS[window], intervention)
        np.testing.assert_allclose(ablated, expected, rtol=1e-5, err_msg=str(intervention))


def test_heads_without_effect_change_no_bit(engine: Engine) -> None:
    """Unread and silent heads, and every head of the layer that is not heard at these timesteps, in every metric."""
    for window, heard in (("high", "high"), ("low", "low")):
        null = [head for head in HEADS if head in NULL or head[0] != heard]
        interventions = [Intervention(mode, (Site(*head),)) for head in null for mode in ABLATIONS]
        found = engine.denoise("natural", WINDOWS[window], interventions, IMAGES)
        assert set(found) == set(DENOISE_METRICS)
        for pair in found.values():
            assert torch.equal(pair.ablated, pair.baseline.expand(len(interventions), -1))


@pytest.mark.parametrize(
    ("head", "mode"),
    [
        (("high", 0), Mode.identity),  # already attends to itself
        (("low", 2), Mode.identity),
        (("high", 4), Mode.identity),  # says 1 whatever it attends to
        (("high", 4), Mode.mean),
        (("high", 4), Mode.resample),
        (("high", 4), Mode.resample_across),
        (("high", 4), Mode.noise),  # without spread
        (("high", 1), Mode.uniform),  # already looks at all alike
        (("high", 4), Mode.uniform),
    ],
)
def test_what_a_head_says_anyway_replaces_nothing(engine: Engine, head: tuple[str, int], mode: Mode) -> None:
    found = engine.denoise("natural", WINDOWS[head[0]], [Intervention(mode, (Site(*head),))], IMAGES)["noise_mse"]
    torch.testing.assert_close(found.ablated[0], found.baseline, rtol=1e-6, atol=0)
    zero = engine.denoise("natural", WINDOWS[head[0]], [Intervention(Mode.zero, (Site(*head),))], IMAGES)["noise_mse"]
    assert (zero.ablated[0] / zero.baseline - 1).abs().mean() > 1e-2


@pytest.mark.parametrize("rows", [IMAGES, 7])
def test_null_heads_are_not_called_and_the_others_are(rows: int) -> None:
    """End to end with the statistics, also where baseline and ablated rows meet different batch sizes."""
    denoiser = hand_solved_denoiser()
    engine = Engine(denoiser, find_sites(denoiser), data_sets(), steps=STEPS, seed=SEED, rows=rows)
    trials = [(window, head) for window in WINDOWS for head in HEADS]
    g = []
    for window, head in trials:
        pair = engine.denoise("synthetic", WINDOWS[window], [Intervention(Mode.zero, (Site(*head),))], IMAGES)[
            "noise_mse"
        ]
        g.append(log_ratio(pair.ablated.numpy(), pair.baseline.numpy()[None])[0])
    table = np.array(g)
    family = [f"{head[0]} in {window}" for window, head in trials]
    called = verdicts(
        hierarchical_fdr(signflip_test(table, "greater").p, family).q,
        hierarchical_fdr(signflip_test(table, "less").p, family).q,
        bh(equivalence_test(table).p),
    )
    for (window, head), verdict, effect in zip(trials, called, table.mean(axis=1), strict=True):
        if head in NULL or head[0] != window:
            assert verdict == "negligible", (window, head)
        elif head not in {("high", 1), ("high", 4)}:  # the mean of noise and a small constant are too little to call
            assert verdict == ("degraded" if effect > 0 else "improved"), (window, head)
