"""Tiny random models in the diffusers layout and data sets to go with them; every axis has another prime length."""

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel, UNet2DModel

from circuits.data.image_sets import ImageSet
from circuits.data.sources import DataSet
from circuits.denoisers import Denoiser, load_denoiser
from circuits.engine import Engine
from circuits.head_functions import register_intervention
from circuits.interventions import Mode
from circuits.sites import find_sites

SIZE = 14
IMAGES = 7
REFERENCES = 11
STEPS = 5
MODELS = ("dit", "unet")
EVERY_MODE = (
    *(mode for mode in Mode if mode is not Mode.own),
    register_intervention("tokens turned", lambda heads: heads.roll(1, dims=1)),
)
"""As interventions name them; of mode ``own`` a function that mixes tokens."""


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pipeline folders of a DiT and a U-Net.

    The DiT is class-conditional and gray, has 5 heads x 4 over 49 tokens, and predicts v. The U-Net is unconditional
    and rgb, its layers differ in heads (3, 5, 3, 3) and tokens, and it predicts epsilon.
    """
    root = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dit = DiTTransformer2DModel(
            num_attention_heads=5, attention_head_dim=4, in_channels=1, out_channels=1, num_layers=2,
            sample_size=SIZE, patch_size=2, num_embeds_ada_norm=2, norm_elementwise_affine=False,
        )  # fmt: skip
        unet = UNet2DModel(
            sample_size=SIZE, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(12, 20),
            down_block_types=("AttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "AttnUpBlock2D"),
            attention_head_dim=4, norm_num_groups=4,
        )  # fmt: skip
        sharpen_attention(dit, unet)
    v_prediction = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    return {
        "dit": save_pipeline(root / "dit", "transformer", dit, v_prediction),
        "unet": save_pipeline(root / "unet", "unet", unet, DDPMScheduler()),
    }


def sharpen_attention(*networks: torch.nn.Module) -> None:
    """Fresh networks attend almost uniformly, which would hide a transposed or misplaced attention map."""
    for network in networks:
        for name, parameter in network.named_parameters():
            if name.endswith(("to_q.weight", "to_k.weight")):
                parameter.data *= 4


def save_pipeline(folder: Path, part: str, network: torch.nn.Module, scheduler: DDPMScheduler) -> Path:
    network.save_pretrained(folder / part)  # type: ignore[operator]
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text("{}")
    return folder


def random_data(name: str, label: int | None, channels: int, seed: int) -> DataSet:
    """Images of noise: measured and reference ones differ."""
    generator = torch.Generator().manual_seed(seed)

    def images(n: int) -> ImageSet:
        pixels = torch.rand((n, channels, SIZE, SIZE), generator=generator) * 2 - 1
        return ImageSet(name, pixels, tuple(f"{name}_{i}" for i in range(n)), None, "")

    return DataSet(name, label, images(IMAGES), images(REFERENCES))


@pytest.fixture(params=MODELS)
def model_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def denoiser(model_folders: dict[str, Path], model_name: str) -> Denoiser:
    return load_denoiser(model_folders[model_name])


@pytest.fixture
def dit(model_folders: dict[str, Path]) -> Denoiser:
    return load_denoiser(model_folders["dit"])


@pytest.fixture
def unet(model_folders: dict[str, Path]) -> Denoiser:
    return load_denoiser(model_folders["unet"])


def two_data_sets(denoiser: Denoiser) -> dict[str, DataSet]:
    """Labels 1 and 0, so that a label taken for granted shows."""
    return {
        "synthetic": random_data("synthetic", 1, denoiser.channels, 1),
        "natural": random_data("natural", 0, denoiser.channels, 2),
    }


def make_engine(denoiser: Denoiser, rows: int = 13, seed: int = 3) -> Engine:
    return Engine(denoiser, find_sites(denoiser), two_data_sets(denoiser), steps=STEPS, seed=seed, rows=rows)
