"""What the benchmarks of the engine run on: models, and data of noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel

from circuits.data.image_sets import ImageSet
from circuits.data.sources import DataSet
from circuits.denoisers import Denoiser, load_denoiser
from circuits.engine import Engine, Window
from circuits.interventions import Intervention, Mode, Site
from circuits.shipped import SHIPPED
from circuits.sites import AttentionLayer, all_heads, find_sites

STEPS = 10


def small_dit(layers: int = 6, heads: int = 8, width: int = 192, tokens: int = 64) -> Denoiser:
    """A DiT with random weights, class-conditional and gray; tokens are patches of 4 x 4 pixels."""
    side = 4 * round(tokens**0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DiTTransformer2DModel(
            num_attention_heads=heads, attention_head_dim=width // heads, in_channels=1, out_channels=1,
            num_layers=layers, sample_size=side, patch_size=4, num_embeds_ada_norm=2, norm_elementwise_affine=False,
        )  # fmt: skip
    return Denoiser(
        name=f"dit_{layers}x{heads}x{width}",
        network=network.eval().requires_grad_(False),
        scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
        prediction_type="v_prediction",  # a random network that predicts noise amplifies rounding fourfold a step
        channels=1,
        size=side,
        classes=2,
        revision="random",
        device=torch.device("cpu"),
    )


def shipped(name: str) -> Denoiser:
    """A shipped model.

    Raises:
        ValueError: none of that name ships.
    """
    if name not in SHIPPED:
        raise ValueError(f"no shipped model {name!r}; there are {', '.join(SHIPPED)}")
    return load_denoiser(name)


def data_of_noise(denoiser: Denoiser, images: int) -> dict[str, DataSet]:
    """Two data sets of uniform noise: what a forward costs does not depend on what is in the image."""
    generator = torch.Generator().manual_seed(1)

    def drawn(name: str) -> ImageSet:
        pixels = torch.rand((images, *denoiser.sample_shape), generator=generator) * 2 - 1
        return ImageSet(name, pixels, tuple(f"{name}_{i}" for i in range(images)), None, "")

    return {
        name: DataSet(name, label if denoiser.classes else None, drawn(name), drawn(name))
        for label, name in enumerate(("synthetic", "natural"))
    }


def build_engine(denoiser: Denoiser, images: int, rows: int) -> Engine:
    return Engine(denoiser, find_sites(denoiser), data_of_noise(denoiser, images), steps=STEPS, seed=0, rows=rows)


def zeroed_heads(layers: Sequence[AttentionLayer]) -> list[Intervention]:
    """Every head set to zero, one at a time."""
    return [Intervention(Mode.zero, (Site(layer.name, head),)) for layer, head in all_heads(layers)]


def windows_of(engine: Engine, count: int) -> list[Window]:
    """The sampler's steps in equal parts."""
    size = len(engine.timesteps) // count
    parts = [engine.timesteps[i * size : (i + 1) * size] for i in range(count)]
    return [Window(part[0], part[-1]) for part in parts]
