"""The checkpoints that ship: small, loadable, with heads that do work; and the paper's model, which does not ship."""

import json

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention

from benchmarks.model_card import build_engine, loss_per_timestep, working_parts, zero_ablation
from circuits.engine import Engine
from circuits.shipped import SHIPPED, TRAINABLE, new_paper_262m, shipped_path

IMAGES = 16


@pytest.fixture(scope="module")
def engine() -> Engine:
    return build_engine("tiny_faces", IMAGES)


def test_it_is_as_small_as_promised_and_has_the_papers_heads(engine: Engine) -> None:
    assert engine.denoiser.parameters < 8_000_000
    assert len(engine.layers) >= 3
    assert {(layer.heads, layer.tokens) for layer in engine.layers.values()} == {(8, 64)}


@pytest.mark.parametrize(("name", "part"), [("tiny_faces", "transformer"), ("tiny_unet", "unet")])
def test_it_lies_in_the_diffusers_layout_as_safetensors(name: str, part: str) -> None:
    assert name in SHIPPED
    folder = shipped_path(name)
    assert json.loads((folder / "model_index.json").read_text())[part][0] == "diffusers"
    assert [f.suffix for f in (folder / part).iterdir() if f.suffix != ".json"] == [".safetensors"]


def test_the_u_net_is_as_small_and_has_as_many_heads() -> None:
    engine = build_engine("tiny_unet", 2)
    assert engine.denoiser.parameters < 8_000_000
    assert [(layer.heads, layer.head_dim, layer.tokens) for layer in engine.layers.values()] == [(8, 16, 64)] * 4


def test_the_papers_model_has_the_papers_figures() -> None:
    """262M parameters, 3 attention layers of 8 heads, 256-dimensional hidden states, 1,000 training timesteps."""
    with torch.device("meta"):
        network, scheduler = new_paper_262m()
    parameters = list(network.parameters())
    assert {p.device.type for p in parameters} == {"meta"}
    assert sum(p.numel() for p in parameters) == 262_035_041
    layers = [module for module in network.modules() if isinstance(module, Attention)]
    assert [(layer.heads, layer.inner_dim, layer.query_dim) for layer in layers] == [(8, 256, 256)] * 3
    assert scheduler.config.num_train_timesteps == 1_000
    assert set(SHIPPED) == set(TRAINABLE) - {"paper_262m"}
    assert all(shipped_path(name).is_dir() for name in SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_it_predicts_held_out_images_far_better_than_their_mean(name: str) -> None:
    # Measured: 0.35 (DiT) and 0.38 (U-Net) of it on real faces, less on generated ones.
    engine = build_engine(name, IMAGES)
    # Predicting a constant image leaves the noise error at alpha^2 / sigma^2 times the images' variance.
    losses = loss_per_timestep(engine)
    for data_set, data in engine.data.items():
        variance = float((data.measured.images - data.measured.images.mean(0)).square().mean())
        bar = float(engine.denoiser.alphas_cumprod[450])
        assert losses[data_set][450] < 0.4 * variance * bar / (1 - bar)


@pytest.mark.run
def test_its_layers_and_heads_do_work(engine: Engine) -> None:
    found = zero_ablation(engine, IMAGES)
    for name, effects in found.items():
        assert working_parts(effects)[0] >= effects.shape[1] / 2, (name, np.round(effects[:, :, 0]))
    strongest = np.max(list(found.values()), axis=0)
    assert working_parts(strongest)[1] >= 6, np.round(strongest[:, :, 1:].max(axis=0))
