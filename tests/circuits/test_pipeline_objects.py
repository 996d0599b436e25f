"""A pipeline that a notebook holds is the denoiser that its folder is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, DiTPipeline, UNet2DModel
from diffusers.utils import logging

from circuits import Intervention, ModelError, Site, data_set_of, denoiser_of, find_sites, load_denoiser, measure
from tests.circuits.conftest import SIZE, two_data_sets


@pytest.fixture(autouse=True)
def _no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "_tqdm_active", False)


def folder_of(root: Path, pipeline: Any) -> Path:
    pipeline.save_pretrained(root)
    return root


def small_unet(channels: int) -> UNet2DModel:
    return UNet2DModel(
        sample_size=SIZE, in_channels=channels, out_channels=channels, layers_per_block=1,
        block_out_channels=(12, 20), down_block_types=("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D"), attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip


@pytest.fixture
def latent_pipeline(model_folders: dict[str, Path]) -> DiTPipeline:
    torch.manual_seed(2)
    parts = load_denoiser(model_folders["dit"])
    vae = AutoencoderKL(
        block_out_channels=(4, 4), norm_num_groups=2, latent_channels=1, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return DiTPipeline(transformer=parts.network, vae=vae, scheduler=parts.scheduler)


def test_a_pipeline_in_memory_measures_what_its_folder_measures(tmp_path: Path) -> None:
    torch.manual_seed(1)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    pipeline = DDPMPipeline(unet=small_unet(3), scheduler=scheduler)
    ours, saved = denoiser_of(pipeline), load_denoiser(folder_of(tmp_path / "saved", pipeline))
    assert ours.network is pipeline.unet
    assert not ours.network.training
    for name in ("prediction_type", "channels", "size", "classes", "sample_shape", "parameters", "pixels"):
        assert getattr(ours, name) == getattr(saved, name), name
    assert torch.equal(ours.alphas_cumprod, saved.alphas_cumprod)
    chosen = [Intervention("zero", (Site(layer.name, 0),)) for layer in find_sites(saved)]
    data = two_data_sets(saved)["natural"]
    for mine, theirs in zip(
        measure(ours, data, chosen, steps=5).values(), measure(saved, data, chosen, steps=5).values(), strict=True
    ):
        assert torch.equal(mine.ablated, theirs.ablated)
    # Loaded from a folder, it is named after it; other weights are another revision.
    loaded = denoiser_of(DDPMPipeline.from_pretrained(tmp_path / "saved"))
    assert (loaded.name, loaded.folder, loaded.revision) == ("saved", tmp_path / "saved", ours.revision)
    with torch.no_grad():
        pipeline.unet.conv_in.weight[0, 0, 0, 0] += 1
    assert denoiser_of(pipeline).revision != ours.revision


def test_a_number_among_the_weights_is_part_of_the_revision() -> None:
    """As a batch norm counts its batches, or a layer keeps its scale."""
    revisions = []
    for number in (1, 2):
        torch.manual_seed(0)
        pipeline = DDPMPipeline(unet=small_unet(3), scheduler=DDPMScheduler())
        pipeline.unet.register_buffer("counted", torch.tensor(number))
        revisions.append(denoiser_of(pipeline).revision)
    assert revisions[0] != revisions[1]


def test_a_latent_pipeline_keeps_its_autoencoder(latent_pipeline: DiTPipeline) -> None:
    ours = denoiser_of(latent_pipeline, name="mine")
    assert (ours.name, ours.classes, ours.prediction_type) == ("mine", 2, "v_prediction")
    assert ours.codec is not None
    assert (ours.codec.autoencoder, ours.pixels) == (latent_pipeline.vae, 2)
    pictures = torch.rand(5, *ours.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    data = data_set_of("mine", pictures, label=1, denoiser=ours)
    assert torch.equal(data.measured.images, ours.codec.encode(pictures[:3]))
    chosen = [Intervention("zero", (Site(find_sites(ours)[1].name, 0),))]
    assert measure(ours, data, chosen, steps=5)["noise_mse"].ablated.shape == (1, 3)


def test_what_is_no_pipeline_of_a_denoiser_is_refused(model_folders: dict[str, Path]) -> None:
    with pytest.raises(
        ModelError, match="expected a diffusers pipeline with a transformer or unet and a scheduler, go"
    ):
        denoiser_of(load_denoiser(model_folders["dit"]).network)
    with pytest.raises(ModelError, match=r"expected a diffusers pipeline .* got str"):
        denoiser_of("tiny_faces")
