"""Profiles of real networks against maps computed one image at a time in float64, and what they do not depend on."""

import copy
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from circuits.attention import ENTRIES
from circuits.conditioning import Conditioning, draw
from circuits.data.image_sets import ImageSet
from circuits.data.prompts import PromptedSet
from circuits.data.sources import DataSet
from circuits.data.synthetic_faces import synthetic_faces
from circuits.denoisers import Denoiser, Prediction
from circuits.hooks import (
    KernelCall,
    capture_outputs,
    count_hooks,
    edit_attention_kernels,
    observing_kernels,
    replaced_forwards,
)
from circuits.probes import Likeness, PairedProbe, attended, coupling, part_columns, pooling, pooling_columns
from circuits.probes import token_features as features_of
from circuits.profiles import IMAGE_PROBES, MEASURES, POSITION, PROBES, SWAPPED_PROBES, HeadProfiles, profile_heads
from circuits.seeds import normal_per_index
from circuits.sites import AttentionLayer, find_sites
from circuits.statistics import divergence_band
from circuits.token_grids import token_grid
from tests.circuits.architectures import ARCHITECTURES
from tests.circuits.conftest import IMAGES, SIZE, two_data_sets

STEPS = (799, 199)
SEED = 3
PAIRED = IMAGES // 2 * 2
REAL_KERNEL = F.scaled_dot_product_attention


def explicit_maps(
    denoiser: Denoiser, data: DataSet, layer: AttentionLayer, t: int, image: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Map ``[heads, tokens, tokens]`` and head outputs ``[heads, tokens, head_dim]`` of self-attention."""
    network = copy.deepcopy(denoiser.network).double()
    x0 = data.measured.images[image].double()
    noise = normal_per_index(SEED, f"noise/{data.name}", [image], x0.shape)[0].double()
    bar = denoiser.scheduler.alphas_cumprod.double()[t]
    noised = bar.sqrt() * x0 + (1 - bar).sqrt() * noise
    labels = {"class_labels": torch.tensor([data.label])} if denoiser.classes else {}
    paths = [f"{layer.module}.{name}" for name in ("to_q", "to_k", "to_v")]
    with torch.no_grad(), capture_outputs(network, paths) as seen:
        network(noised[None], timestep=torch.tensor([t]), **labels)
    q, k, v = (seen[path][0].unflatten(1, (layer.heads, layer.head_dim)).transpose(0, 1) for path in paths)
    maps = (q @ k.transpose(1, 2) / layer.head_dim**0.5).softmax(dim=2)
    return maps, maps @ v


@pytest.fixture(scope="module")
def masks() -> torch.Tensor:
    return torch.from_numpy(synthetic_faces(range(IMAGES), size=SIZE).parts)


def close(found: np.ndarray, expected: torch.Tensor) -> None:
    np.testing.assert_allclose(found, expected.numpy(), rtol=2e-4, atol=2e-5)


def test_profiles_equal_those_of_explicit_maps(denoiser: Denoiser, masks: torch.Tensor) -> None:
    data, layers = two_data_sets(denoiser), find_sites(denoiser)
    profiles = profile_heads(denoiser, data, timesteps=STEPS, seed=SEED, rows=4, parts={"natural": masks})
    assert profiles.layers == layers
    assert profiles.timesteps == STEPS
    first = 0
    for layer in layers:
        heads = slice(first, first + layer.heads)
        first = heads.stop
        grid = token_grid(layer.tokens, SIZE, SIZE)
        assert grid is not None
        for step, t in enumerate(STEPS):
            pairs = [explicit_maps(denoiser, data["natural"], layer, t, image) for image in range(PAIRED)]
            maps, outputs = (torch.stack(parts) for parts in zip(*pairs, strict=True))
            values = {name: v[heads, step].T for name, v in profiles.values["natural"].items()}
            entropy = torch.special.entr(maps).sum(dim=3).mean(dim=2)
            close(values["entropy_nats"], entropy)
            close(values["entropy_normalised"], entropy / math.log(layer.tokens))
            assert (values["keys"] == layer.tokens).all()
            close(values["self_share"], maps.diagonal(dim1=2, dim2=3).mean(dim=2))
            assert values["self_share_null"] == pytest.approx(1 / layer.tokens)
            close(values["output_energy"], outputs.square().mean(dim=(2, 3)))
            assert values["text_share"] == pytest.approx(0, abs=1e-5)
            # The mean over images of a map has power = mean over pairs of their products: here over each pair alone.
            centred = maps - 1 / layer.tokens
            shared = (centred[0::2] * centred[1::2]).sum(dim=(2, 3))
            own = centred.square().sum(dim=(2, 3)).unflatten(0, (-1, 2)).mean(dim=1)
            close(values[POSITION], shared / own)
            shown = features_of(data["natural"].measured.images[:PAIRED], grid, masks[:PAIRED])
            assert shown.parts is not None
            expected: dict[str, PairedProbe] = {}
            attends = attended(maps.mean(dim=2).float(), shown.scalars)
            expected |= dict(zip(("attends_edges", "attends_texture", "attends_luminance"), attends, strict=True))
            likenesses: list[Likeness] = [shown.colour, shown.parts]
            columns = pooling_columns([likeness.columns for likeness in likenesses])
            gathered = pooling(maps.float() @ columns[:, None], likenesses)
            expected |= dict(zip(("pools_colour", "pools_parts"), gathered, strict=True))
            named = dict(zip(("edges", "texture", "luminance"), shown.scalars.split(1, dim=2), strict=True))
            named["parts"] = part_columns(shown.parts.columns)
            for name, feature in named.items():
                expected[f"output_{name}"] = coupling(outputs, [feature])[0]
            assert expected.keys() == set(SWAPPED_PROBES)
            for name, probe in expected.items():
                close(values[name], probe.own)
                close(values[f"{name}_null"], probe.swapped)
                np.testing.assert_allclose(values[f"{name}_score"], probe.score.numpy(), rtol=1e-3, atol=1e-4)


def same(a: HeadProfiles, b: HeadProfiles, heads: slice = slice(None)) -> None:
    for dataset, values in a.values.items():
        for name, found in values.items():
            np.testing.assert_allclose(found, b.values[dataset][name][heads], rtol=2e-4, atol=2e-5, err_msg=name)


def test_profiles_do_not_depend_on_rows_nor_on_the_layers_profiled_with_them(denoiser: Denoiser) -> None:
    data, layers = two_data_sets(denoiser), find_sites(denoiser)
    whole = profile_heads(denoiser, data, timesteps=STEPS, seed=SEED)
    same(profile_heads(denoiser, data, layers, timesteps=STEPS, seed=SEED, rows=3), whole)
    last = profile_heads(denoiser, data, layers[-1:], timesteps=STEPS, seed=SEED)
    same(last, whole, slice(-layers[-1].heads, None))
    other = profile_heads(denoiser, data, timesteps=STEPS, seed=SEED + 1)
    assert np.abs(other.values["natural"]["entropy_nats"] - whole.values["natural"]["entropy_nats"]).max() > 1e-3


@pytest.mark.parametrize(
    ("dtype", "entries", "spared"),
    [(torch.float32, ENTRIES, True), (torch.float32, 1, False), (torch.bfloat16, ENTRIES, False)],
)
def test_profiling_leaves_the_network_its_numbers(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, entries: int, spared: bool
) -> None:
    """Attention that comes out of the statistics is the kernel's within rounding; nowhere else is it replaced."""
    model = replace(denoiser, network=copy.deepcopy(denoiser.network).to(dtype))
    layers, data = find_sites(model), two_data_sets(model)
    calls: list[tuple[tuple[Any, ...], torch.Tensor]] = []
    kernels: list[int] = []
    predict = Denoiser.__call__

    def seen(self: Denoiser, *given: Any) -> Prediction:
        prediction = predict(self, *given)
        calls.append((given, prediction.target))
        return prediction

    def counted(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        kernels.append(len(query))
        return REAL_KERNEL(query, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("circuits.attention._MIN_BLOCK", 2)
        patch.setattr(Denoiser, "__call__", seen)
        patch.setattr(F, "scaled_dot_product_attention", counted)
        profile_heads(model, data, layers, timesteps=[500], entries=entries)
    found = [(given, target) for given, target in calls if len(given[1]) > 2]  # those that find the kernels have two
    assert len(found) == len(data)
    for given, target in found:
        plain = model(*given).target
        if not spared:
            assert torch.equal(target, plain)
            continue
        exact = replace(model, network=copy.deepcopy(model.network).double())(*given).target
        assert (target - exact).norm() <= 2 * (plain - exact).norm(), "as far from float64 as the kernel is"
        assert (target - plain).norm() <= 3e-6 * plain.norm()
    assert sum(rows > 2 for rows in kernels) == (0 if spared else len(layers) * len(data))


def test_nothing_is_left_behind(dit: Denoiser) -> None:
    profile_heads(dit, two_data_sets(dit), timesteps=[5])
    assert count_hooks(dit.network) == 0
    assert replaced_forwards(dit.network) == []
    assert F.scaled_dot_product_attention is REAL_KERNEL


def test_the_frame_has_a_row_per_head_timestep_and_data_set(dit: Denoiser) -> None:
    data = two_data_sets(dit)
    profiles = profile_heads(dit, data, timesteps=3, images=6)
    frame = profiles.frame()
    assert profiles.timesteps == (999, 666, 332)
    assert len(frame) == 2 * 3 * 10
    assert not frame.duplicated(["layer", "head", "dataset", "t"]).any()
    alone = profile_heads(dit, data["natural"], timesteps=3, images=6).frame()
    pd.testing.assert_frame_equal(alone, frame[frame["dataset"] == "natural"].reset_index(drop=True))
    assert list(frame.columns[:5]) == ["layer", "layer_index", "head", "dataset", "t"]
    assert {*MEASURES, *PROBES, *(f"{name}_p" for name in PROBES), f"{POSITION}_score"} <= set(frame.columns)
    row = frame[(frame["layer"] == "transformer_blocks.1.attn1") & (frame["head"] == 3)]
    row = row[(row["dataset"] == "natural") & (row["t"] == 666)].iloc[0]
    values = profiles.values["natural"]
    assert row["layer_index"] == 1
    assert row["entropy_nats"] == pytest.approx(values["entropy_nats"][8, 1].mean())
    assert row["attends_edges_null"] == pytest.approx(values["attends_edges_null"][8, 1].mean())
    assert row["attends_edges_z"] * (row["attends_edges"] - row["attends_edges_null"]) >= 0
    assert frame.filter(like="parts").isna().all(axis=None), "random pictures have no parts"
    rest = frame.drop(columns=frame.filter(like="parts").columns)
    assert rest.notna().all(axis=None)
    assert rest.filter(regex="_p$").stack().between(0, 1).all()
    assert {len(values[name][0, 0]) for name in (*MEASURES, *IMAGE_PROBES)} == {6}
    assert {len(values[name][0, 0]) for name in SWAPPED_PROBES} == {3}
    band = divergence_band(
        profiles.per_image("natural", "entropy_nats"),
        profiles.per_image("synthetic", "entropy_nats"),
        np.random.default_rng(0),
        permutations=99,
    )
    means = frame.groupby(["dataset", "t"], sort=False)["entropy_nats"].mean()
    assert band.difference == pytest.approx((means["natural"] - means["synthetic"]).to_numpy(), abs=1e-6)


def test_parts_of_generated_faces_are_known(dit: Denoiser) -> None:
    drawn = synthetic_faces(range(40, 46), size=SIZE)
    faces = ImageSet(
        "synthetic", torch.from_numpy(drawn.images), tuple(f"synthetic_{i}" for i in range(40, 46)), None, ""
    )
    data = {"synthetic": DataSet("synthetic", 1, faces, faces)}
    found = profile_heads(dit, data, timesteps=[99])
    given = profile_heads(dit, data, timesteps=[99], parts={"synthetic": torch.from_numpy(drawn.parts)})
    same(found, given)
    assert (found.values["synthetic"]["pools_parts"] > 0).all()


def text_shares(
    denoiser: Denoiser, latents: torch.Tensor, conditioning: Conditioning, image: int, text_first: bool
) -> dict[str, torch.Tensor]:
    """By module, where the image's tokens attend to others too: how much, ``[images, heads]``."""
    calls: list[KernelCall] = []
    noise = normal_per_index(0, "noise/prompts", [0, 1, 2, 3], latents.shape[1:])
    times = torch.full((4,), 500)
    with edit_attention_kernels(denoiser.network, {}) as callers, observing_kernels(calls.append):
        denoiser(denoiser.add_noise(latents, noise, times), times, conditioning)
    found = {}
    for module, call in zip(callers, calls, strict=True):
        if call.key.shape[2] == call.query.shape[2] > image:
            maps = (call.query @ call.key.mT * call.scale).softmax(dim=3)
            from_image = maps[:, :, -image:, :-image] if text_first else maps[:, :, :image, image:]
            found[module] = from_image.sum(dim=3).mean(dim=2)
    return found


@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - {"unet", "dit"}))
def test_text_models(name: str) -> None:
    """Cross-attention gives each text token its mass; in joint attention the image has statistics of its own."""
    denoiser = ARCHITECTURES[name].denoiser(name)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn((4, *denoiser.sample_shape), generator=generator)
    images = ImageSet("prompts", latents, ("a", "b", "c", "d"), None, "")
    conditioning = draw(denoiser.network, 4, generator)
    data = {"prompts": PromptedSet("prompts", None, images, images, conditioning, conditioning)}
    profiles = profile_heads(denoiser, data, timesteps=[500])
    values = profiles.values["prompts"]
    text = sum(
        given.shape[1] for key, given in conditioning.tensors.items() if re.fullmatch("encoder.*states(_t5)?", key)
    )
    image = next(
        (layer.tokens for layer in profiles.layers if layer.stream == "image"), profiles.layers[0].tokens - text
    )
    shares = text_shares(denoiser, latents, conditioning, image, ARCHITECTURES[name].text_first)
    assert np.isnan(values["attends_edges"]).all(), "latents without their autoencoder show nothing"
    for row, (layer, head) in enumerate(profiles.heads):
        here = {key: found[row] for key, found in values.items()}
        assert (here["entropy_nats"] > 0).all()
        assert (here["entropy_nats"] <= np.log(here["keys"]) + 1e-5).all()
        if layer.kind == "cross":
            mass = profiles.token_mass["prompts"][layer.name]
            assert mass.shape == (layer.heads, 1, 4, text)
            assert mass[head].sum(axis=-1) == pytest.approx(1.0)
            assert (here["keys"] == text).all()
            assert (here["text_share"] == 1).all()
        elif layer.kind == "joint" and layer.stream != "text":
            assert here["text_share"][0] == pytest.approx(shares[layer.module][:, head].numpy(), abs=1e-5)
            assert (here["keys"] >= text + image).all()
        elif layer.kind == "self" and layer.stream == "image":
            assert here["text_share"] == pytest.approx(0, abs=1e-5)
        spatial = layer.stream != "text" and layer.kind != "cross" and name != "cogvideox"
        assert np.isfinite(here["self_share"]).all() == spatial
    assert len(profiles.token_mass["prompts"]) == sum(layer.kind == "cross" for layer in profiles.layers)
    assert len(profiles.frame()) == len(profiles.heads)
    assert len(profile_heads(denoiser, data, profiles.layers[:1], timesteps=2).timesteps) == 2


def test_bad_input_is_refused(dit: Denoiser) -> None:
    data = two_data_sets(dit)
    with pytest.raises(ValueError, match=r"timesteps: expected some of 0 to 999, got \[1000\]"):
        profile_heads(dit, data, timesteps=[1000])
    with pytest.raises(ValueError, match="expected at least 2, got 1"):
        profile_heads(dit, data, rows=1)
    with pytest.raises(ValueError, match="'synthetic': expected at least 4 images to profile, got 2"):
        profile_heads(dit, data, images=3)
