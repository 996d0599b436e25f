"""The models that the project trains: their architecture, their training data, and where the weights that ship lie."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel, ModelMixin, UNet2DModel

from circuits.data.lfw_faces import lfw_faces
from circuits.data.synthetic_faces import synthetic_faces
from circuits.training import TrainingProgress, train
from circuits.training_settings import TrainingSettings

ASSETS = Path(__file__).parent / "assets"
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
    return network, _scheduler()


def new_tiny_unet(seed: int = 0) -> tuple[UNet2DModel, DDPMScheduler]:
    """An untrained tiny_unet: 2.6M parameters, 4 attention layers of 8 heads of 16 dimensions over 64 tokens (8x8).

    Classes as in tiny_faces. Full resolution has few channels: most of a U-Net's time would go there.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet2DModel(
            sample_size=IMAGE_SIZE,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(16, 64, 128),
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            attention_head_dim=16,
            norm_num_groups=8,
            num_class_embeds=2,
        )
    return network, _scheduler()


def new_paper_262m(
    seed: int = 0, widths: tuple[int, int, int, int] = (160, 256, 1024, 1152), heads: int = 8
) -> tuple[UNet2DModel, DDPMScheduler]:
    """An untrained U-Net with the figures that the paper (arXiv 2506.17237) gives; 262.0M parameters.

    The paper's: 262M parameters, 3 attention layers of 8 heads on 256-dimensional hidden states, 1,000 training
    timesteps. Ours, since theirs are not known: attention over 256 tokens (16x16, the second level, as in Ho et al.
    2020), once on the way down and twice on the way up; classes and 32x32 gray images as in tiny_faces, the real faces
    that ship being of 25x25 pixels; and the widths of the other levels, which make up the 262M.

    Args:
        widths: channels of the four levels; attention is at the second.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet2DModel(
            sample_size=IMAGE_SIZE,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=widths,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            add_attention=False,
            attention_head_dim=widths[1] // heads,
            num_class_embeds=2,
        )
    return network, _scheduler()


def _scheduler() -> DDPMScheduler:
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=True)


_NEW: dict[str, Callable[[int], tuple[ModelMixin, DDPMScheduler]]] = {
    "tiny_faces": new_tiny_faces,
    "tiny_unet": new_tiny_unet,
    "paper_262m": new_paper_262m,
}

TRAINABLE = tuple(_NEW)
SHIPPED = ("tiny_faces", "tiny_unet")
"""Those whose weights lie in ``ASSETS``."""


def train_new(
    name: str,
    settings: TrainingSettings,
    directory: Path,
    report: Callable[[TrainingProgress], None] = lambda _: None,
    device: str = "cpu",
) -> Path:
    """Train (or go on training) one of ``TRAINABLE`` and export it in the diffusers layout to ``directory/name``.

    Returns:
        that folder.
    """
    network, scheduler = _NEW[name](settings.seed)
    drawn = synthetic_faces(range(settings.synthetic_images), size=IMAGE_SIZE, colour="gray")
    natural = lfw_faces(IMAGE_SIZE, 1, "train")
    network = network.to(device)
    trained = network.to(memory_format=torch.channels_last) if isinstance(network, UNet2DModel) else network
    train(trained, scheduler, torch.from_numpy(drawn.images), natural.images, settings, directory, report)
    return export(trained, scheduler, directory / name)


def export(network: ModelMixin, scheduler: DDPMScheduler, target: Path) -> Path:
    """Write a diffusers pipeline folder with 16-bit weights (half the download; its effects differ by under 1e-3).

    ``network`` itself keeps its 32 bits. An older folder is replaced.
    """
    if target.exists():
        shutil.rmtree(target)
    component, pipeline = (
        ("unet", "DDPMPipeline") if isinstance(network, UNet2DModel) else ("transformer", "DiTPipeline")
    )
    halved = copy.deepcopy(network).half().to(memory_format=torch.contiguous_format)
    halved.save_pretrained(target / component, safe_serialization=True)
    scheduler.save_pretrained(target / "scheduler")
    index: dict[str, object] = {
        "_class_name": pipeline,
        "scheduler": ["diffusers", type(scheduler).__name__],
        component: ["diffusers", type(network).__name__],
    }
    if pipeline == "DiTPipeline":
        index["vae"] = [None, None]
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    for file in target.rglob("*.safetensors"):
        file.chmod(0o644)  # written for the owner alone, which a container's user is not
    return target
