"""The models that ship with the project: their architecture, their training data, and where their weights lie."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel

from circuits.data.lfw_faces import lfw_faces
from circuits.data.synthetic_faces import synthetic_faces
from circuits.training import TrainingProgress, TrainingSettings, train

ASSETS = Path(__file__).parent / "assets"
SHIPPED = ("tiny_faces",)
IMAGE_SIZE = 32


def shipped_path(name: str) -> Path:
    """Folder of a shipped model, in the diffusers layout."""
    return ASSETS / name


def new_tiny_faces(seed: int = 0) -> tuple[DiTTransformer2DModel, DDPMScheduler]:
    """An untrained tiny_faces: a DiT of 4 layers, 8 heads of 24 dimensions, 64 tokens of 4x4 pixels; 3.1M parameters.

    Classes: 0 synthetic, 1 natural. The modulation of each block starts at zero (adaLN-Zero, Peebles & Xie, arXiv
    2212.09748), which diffusers leaves to the caller.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DiTTransformer2DModel(
            num_attention_heads=8,
            attention_head_dim=24,
            in_channels=1,
            out_channels=1,
            num_layers=4,
            sample_size=IMAGE_SIZE,
            patch_size=4,
            num_embeds_ada_norm=2,
            norm_type="ada_norm_zero",
            norm_elementwise_affine=False,
        )
    for layer in (
        *(block.norm1.linear for block in network.transformer_blocks),
        network.proj_out_1,
        network.proj_out_2,
    ):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=True)
    return network, scheduler


def train_tiny_faces(
    settings: TrainingSettings, directory: Path, report: Callable[[TrainingProgress], None] = lambda _: None
) -> Path:
    """Train (or go on training) and export in the diffusers layout to ``directory/tiny_faces``; returns that folder."""
    network, scheduler = new_tiny_faces(settings.seed)
    drawn = synthetic_faces(range(settings.synthetic_images), size=IMAGE_SIZE, colour="gray")
    natural = lfw_faces(IMAGE_SIZE, 1, "train")
    train(network, scheduler, torch.from_numpy(drawn.images), natural.images, settings, directory, report)
    return export(network, scheduler, directory / "tiny_faces")


def export(network: DiTTransformer2DModel, scheduler: DDPMScheduler, target: Path) -> Path:
    """Write a diffusers pipeline folder with 16-bit weights (half the download; its effects differ by under 1e-3).

    ``network`` itself keeps its 32 bits. An older folder is replaced.
    """
    if target.exists():
        shutil.rmtree(target)
    copy.deepcopy(network).half().save_pretrained(target / "transformer", safe_serialization=True)
    scheduler.save_pretrained(target / "scheduler")
    index = {
        "_class_name": "DiTPipeline",
        "scheduler": ["diffusers", type(scheduler).__name__],
        "transformer": ["diffusers", type(network).__name__],
        "vae": [None, None],
    }
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    for file in target.rglob("*.safetensors"):
        file.chmod(0o644)  # written for the owner alone, which a container's user is not
    return target
