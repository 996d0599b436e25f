"""Measuring in a notebook: tables, tests of what was measured, and metrics of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import t as student

from circuits import (
    Intervention,
    Measured,
    Site,
    Window,
    data_set_of,
    effects,
    find_sites,
    load_denoiser,
    measure,
)
from circuits.data.sources import DataSet
from circuits.denoisers import Denoiser
from circuits.metrics import Images, PerImage
from circuits.vocabulary import DENOISE_METRICS
from tests.circuits.conftest import IMAGES, SIZE, STEPS, make_engine, two_data_sets

WINDOW = Window(999, 400)


@pytest.fixture(scope="module")
def loaded(model_folders: dict[str, Path]) -> Denoiser:
    return load_denoiser(model_folders["dit"])


@pytest.fixture(scope="module")
def data(loaded: Denoiser) -> dict[str, DataSet]:
    return two_data_sets(loaded)


def zeroed(denoiser: Denoiser, *heads: int, layer: int = 1) -> list[Intervention]:
    name = find_sites(denoiser)[layer].name
    return [Intervention("zero", (Site(name, head),)) for head in heads]


@pytest.fixture(scope="module")
def measured(loaded: Denoiser, data: dict[str, DataSet]) -> Measured:
    return measure(loaded, data, zeroed(loaded, 0, 3, -1), dataset="natural", window=WINDOW, steps=STEPS, seed=3)


def test_the_numbers_are_the_engines(measured: Measured, loaded: Denoiser) -> None:
    expected = make_engine(loaded).denoise("natural", WINDOW, zeroed(loaded, 0, 3, -1), IMAGES)
    assert tuple(measured) == tuple(expected) == DENOISE_METRICS
    assert len(measured) == len(DENOISE_METRICS)
    for name, pair in expected.items():
        torch.testing.assert_close(measured[name].ablated, pair.ablated, rtol=1e-5, atol=0)
        torch.testing.assert_close(measured[name].baseline, pair.baseline, rtol=1e-5, atol=0)
    with pytest.raises(KeyError, match="no metric 'noise_mes'; did you mean 'noise_mse'"):
        measured["noise_mes"]


def test_the_frame_has_every_number_once_in_its_place(measured: Measured) -> None:
    frame = measured.frame()
    assert len(frame) == 3 * IMAGES * len(DENOISE_METRICS)
    assert set(frame["dataset"]) == {"natural"}
    assert set(zip(frame["t_start"], frame["t_end"], strict=True)) == {(999, 400)}
    assert set(frame["layer_index"]) == {1}
    for metric in DENOISE_METRICS:
        for place, head in enumerate((0, 3, -1)):
            rows = frame[(frame["metric"] == metric) & (frame["head"] == head)].sort_values("unit")
            assert rows["unit"].tolist() == list(range(IMAGES))
            np.testing.assert_array_equal(rows["ablated"], measured[metric].ablated[place])
            np.testing.assert_array_equal(rows["baseline"], measured[metric].baseline)


def test_effects_are_paired_and_have_students_interval(measured: Measured) -> None:
    table = effects(measured)
    assert len(table) == 3 * len(DENOISE_METRICS)
    row = table[(table["metric"] == "edge") & (table["head"] == 3)].iloc[0]
    g = np.log(measured["edge"].ablated[1].double().numpy() / measured["edge"].baseline.double().numpy())
    half = student.ppf(0.975, IMAGES - 1) * g.std(ddof=1) / np.sqrt(IMAGES)
    assert row["n"] == IMAGES
    assert row["percent"] == pytest.approx(100 * (np.exp(g.mean()) - 1), rel=1e-4)
    assert row["ci_low"] == pytest.approx(100 * (np.exp(g.mean() - half) - 1), rel=1e-4)
    assert row["ci_high"] == pytest.approx(100 * (np.exp(g.mean() + half) - 1), rel=1e-4)
    assert row["d_z"] == pytest.approx(g.mean() / g.std(ddof=1), rel=1e-4)
    assert (table["q"] >= table["p"]).all()
    assert (table["q_by"] >= table["q"] - 1e-12).all()


def test_what_is_tested_together_is_corrected_together(measured: Measured, loaded: Denoiser, data: dict) -> None:
    other = measure(loaded, data, zeroed(loaded, 1, 2), dataset="synthetic", steps=STEPS, seed=3)
    both = effects([measured, other], families=[])
    assert len(both) == 5 * len(DENOISE_METRICS)
    assert list(dict.fromkeys(both["metric"])) == list(DENOISE_METRICS)
    p = both.loc[both["metric"] == "noise_mse", "p"].to_numpy()
    ranked = np.sort(p) * len(p) / np.arange(1, len(p) + 1)  # Benjamini and Hochberg, one family of one window
    expected = np.minimum.accumulate(ranked[::-1])[::-1][p.argsort().argsort()]
    np.testing.assert_allclose(both.loc[both["metric"] == "noise_mse", "q"], np.minimum(expected, 1), rtol=1e-9)
    # Apart, by data set: the hierarchical correction of two families is another one.
    apart = effects([measured, other], families=["dataset"])
    pd.testing.assert_series_equal(apart["p"], both["p"])
    assert (apart["q"] != both["q"]).any()


def test_a_strength_of_nothing_changes_nothing(loaded: Denoiser, data: dict[str, DataSet]) -> None:
    nothing = Intervention("zero", (Site(find_sites(loaded)[0].name, 2),), strength=0.0)
    table = effects(measure(loaded, data["natural"], [nothing], steps=STEPS))
    assert set(table["verdict"]) == {"negligible"}
    assert table["percent"].abs().max() < 1e-3


def test_sets_and_factors_are_told_apart(loaded: Denoiser, data: dict[str, DataSet]) -> None:
    first, second = (layer.name for layer in find_sites(loaded))
    chosen = [
        Intervention("zero", (Site(second, 1), Site(first, 0))),
        Intervention("zero", (Site(first, 0), Site(first, 1))),
        Intervention("scale", (Site(first, 0),), factor=3.0),
    ]
    trials = measure(loaded, data["natural"], chosen, images=4, steps=STEPS).trials()
    assert trials["layer"].tolist() == [f"{first} + {second}", first, first]
    assert trials["layer_index"].tolist() == [-1, 0, 0]
    assert trials["head"].tolist() == [-1, -1, 0]
    assert trials["mode"].tolist() == ["zero", "zero", "scale x3"]
    assert trials["sites"][0] == [f"{second}:1", f"{first}:0"]


# Metrics of one's own.


def mean_absolute(predicted: Images, truth: Images) -> PerImage:
    return (predicted - truth).abs().mean(dim=(1, 2, 3))


def test_an_own_metric_sees_the_clamped_prediction_and_the_true_image(loaded: Denoiser, data: dict) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def spy(predicted: Images, truth: Images) -> PerImage:
        seen.append((predicted, truth))
        return mean_absolute(predicted, truth)

    chosen = zeroed(loaded, 0, 2)
    found = measure(loaded, data["natural"], chosen, metrics={"mae": mean_absolute, "spied": spy}, steps=STEPS)
    assert tuple(found) == (*DENOISE_METRICS, "mae", "spied")
    torch.testing.assert_close(found["mae"].ablated, found["spied"].ablated, rtol=0, atol=0)
    assert max(float(predicted.abs().max()) for predicted, _ in seen) <= 1
    shown = {tuple(image.flatten().tolist()) for _, truth in seen for image in truth}
    assert shown == {tuple(image.flatten().tolist()) for image in data["natural"].measured.images}
    # Squared and clamped it lies below the unclamped x0_mse, image by image (Jensen).
    assert (found["mae"].ablated.square() <= found["x0_mse"].ablated + 1e-6).all()
    table = effects(found)
    assert set(table["metric"]) == set(found)


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (lambda a, b: (a - b).abs().mean(), r"metric 'mine': expected one number an image, shape \(\d+,\), got \(\)"),
        (lambda a, b: 1.0, "metric 'mine': expected one number an image, shape .*, got float"),
        (lambda a, b: -mean_absolute(a, b), "metric 'mine': expected numbers of 0 or more, got -"),
        (lambda a, b: mean_absolute(a, b) * torch.nan, "metric 'mine': expected numbers of 0 or more, got nan"),
    ],
    ids=["one for all", "no tensor", "negative", "nan"],
)
def test_a_metric_that_is_none_is_refused(loaded: Denoiser, data: dict, function: object, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        measure(loaded, data["natural"], zeroed(loaded, 0), metrics={"mine": function}, steps=STEPS)


def test_the_name_of_a_metric_is_taken_once(loaded: Denoiser, data: dict) -> None:
    with pytest.raises(ValueError, match="metric 'edge' is there already"):
        measure(loaded, data["natural"], zeroed(loaded, 0), metrics={"edge": mean_absolute})


# What a notebook gets wrong.


def test_what_is_not_there_is_named(loaded: Denoiser, data: dict[str, DataSet], measured: Measured) -> None:
    with pytest.raises(ValueError, match="no data set 'naturel'; did you mean 'natural'"):
        measure(loaded, data, zeroed(loaded, 0), dataset="naturel")
    with pytest.raises(ValueError, match=r"no layer 'transformer_blocks\.1\.attn'; did you mean"):
        measure(loaded, data, [Intervention("zero", (Site("transformer_blocks.1.attn", 0),))])
    with pytest.raises(ValueError, match="has heads 0 to 4"):
        measure(loaded, data, zeroed(loaded, 5))
    with pytest.raises(ValueError, match="got n=0"):
        measure(loaded, data, zeroed(loaded, 0), images=0)
    with pytest.raises(ValueError, match="no intervention 'zeor'; did you mean 'zero'"):
        Intervention("zeor", (Site("a"),))
    with pytest.raises(ValueError, match="families: unknown 'layr'; did you mean 'layer'"):
        effects(measured, families=["layr"])
    with pytest.raises(ValueError, match="expected at least one measured intervention, got none"):
        effects([])


def test_a_data_set_of_tensors(loaded: Denoiser) -> None:
    images = torch.rand(11, 1, SIZE, SIZE) * 2 - 1
    made = data_set_of("mine", images, label=1)
    assert (len(made.measured), len(made.reference), made.label) == (6, 6, 1)  # too few are left for a reference
    assert torch.equal(made.measured.images, images[:6])
    apart = data_set_of("mine", torch.rand(30, 1, SIZE, SIZE), label=1, measured=10)
    assert not set(apart.measured.ids) & set(apart.reference.ids)
    found = measure(loaded, made, zeroed(loaded, 0), steps=STEPS)
    assert found.dataset == "mine"
    assert found["noise_mse"].baseline.shape == (6,)
    for wrong, line in (
        (images[:1], "expected finite images"),
        (images[0], "expected finite images"),
        (images * torch.nan, "with values that are not finite"),
    ):
        with pytest.raises(ValueError, match=line):
            data_set_of("mine", wrong)
    with pytest.raises(ValueError, match="expected 2 to 11 images to measure, got 12"):
        data_set_of("mine", images, measured=12)
    with pytest.raises(ValueError, match=r"expected floating-point images, got torch\.uint8"):
        data_set_of("mine", (images > 0).byte())
    with pytest.raises(ValueError, match=r"expected images in \[-1, 1\], got 0 to 255"):
        data_set_of("mine", (images > 0) * 255.0, denoiser=loaded)
    assert data_set_of("latents", images * 5, label=1).measured.images.abs().max() > 1
