"""Blocks and stages of every architecture, by name, with the layers they hold."""

import pytest

from circuits.interventions import ALL_HEADS, Site
from circuits.levels import block_of, layer_groups, stage_of, stream_of
from circuits.sites import AttentionLayer
from tests.circuits.architectures import ARCHITECTURES


def layers_of(architecture: str) -> list[AttentionLayer]:
    """As ``find_sites`` names them, which test_architectures proves."""
    return [
        AttentionLayer(index, name, "", None, heads, 4, 9, kind, stream)  # type: ignore[arg-type]
        for index, (name, heads, kind, stream) in enumerate(ARCHITECTURES[architecture].sites)
    ]


BLOCKS = {
    "unet": {"down_blocks.0.attentions.0": 1, "mid_block.attentions.0": 1, "up_blocks.1.attentions.0": 1,
             "up_blocks.1.attentions.1": 1},
    "sd15": {"down_blocks.0.attentions.0": 2, "mid_block.attentions.0": 2, "up_blocks.1.attentions.0": 2,
             "up_blocks.1.attentions.1": 2},
    "sdxl": {"down_blocks.1.attentions.0": 4, "mid_block.attentions.0": 4, "up_blocks.0.attentions.0": 4,
             "up_blocks.0.attentions.1": 4},
    "dit": {"transformer_blocks.0": 1, "transformer_blocks.1": 1},
    "pixart": {"transformer_blocks.0": 2, "transformer_blocks.1": 2},
    "hunyuan": {f"blocks.{i}": 2 for i in range(4)},
    "sd3": {"transformer_blocks.0": 2, "transformer_blocks.1": 1},
    "sd35": {"transformer_blocks.0": 3, "transformer_blocks.1": 1},
    "flux": {"transformer_blocks.0": 2, "single_transformer_blocks.0": 1, "single_transformer_blocks.1": 1},
    "chroma": {"transformer_blocks.0": 2, "single_transformer_blocks.0": 1, "single_transformer_blocks.1": 1},
    "qwen": {"transformer_blocks.0": 2, "transformer_blocks.1": 2},
    "auraflow": {"joint_transformer_blocks.0": 2, "single_transformer_blocks.0": 1, "single_transformer_blocks.1": 1},
    "cogvideox": {"transformer_blocks.0": 1, "transformer_blocks.1": 1},
}  # fmt: skip
STAGES = {
    "unet": {"down_blocks.0": 1, "mid_block": 1, "up_blocks.1": 2},
    "sd15": {"down_blocks.0": 2, "mid_block": 2, "up_blocks.1": 4},
    "sdxl": {"down_blocks.1": 4, "mid_block": 4, "up_blocks.0": 8},
    "dit": {"transformer_blocks": 2},
    "pixart": {"transformer_blocks": 4},
    "hunyuan": {"blocks": 8},
    "sd3": {"transformer_blocks": 3},
    "sd35": {"transformer_blocks": 4},
    "flux": {"transformer_blocks": 2, "single_transformer_blocks": 2},
    "chroma": {"transformer_blocks": 2, "single_transformer_blocks": 2},
    "qwen": {"transformer_blocks": 4},
    "auraflow": {"joint_transformer_blocks": 2, "single_transformer_blocks": 2},
    "cogvideox": {"transformer_blocks": 2},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_and_stages(architecture: str) -> None:
    layers = layers_of(architecture)
    for level, expected in (("block", BLOCKS), ("stage", STAGES)):
        groups = layer_groups(layers, level)  # type: ignore[arg-type]
        assert {group.name: len(group.layers) for group in groups} == expected[architecture]
        assert [layer for group in groups for layer in group.layers] == layers, "each layer once, in order"
        assert all(group.level == level for group in groups)
    for block in layer_groups(layers, "block"):
        assert len({stage_of(layer) for layer in block.layers}) == 1, "a block lies in one stage"


def test_a_group_intervenes_on_all_heads_of_all_streams() -> None:
    double, *singles = layer_groups(layers_of("flux"), "block")
    name = "transformer_blocks.0.attn"
    assert double.sites == (Site(name, ALL_HEADS), Site(f"{name}:text", ALL_HEADS))
    assert stream_of(double.layers) == "joint"
    assert [stream_of(single.layers) for single in singles] == ["joint", "joint"]
    assert [stream_of(group.layers) for group in layer_groups(layers_of("sd15"), "stage")] == ["image"] * 3


@pytest.mark.parametrize(
    ("path", "block", "stage"),
    [
        ("mid_block.attentions.0.transformer_blocks.11.attn2", "mid_block.attentions.0", "mid_block"),
        ("up_blocks.12.attentions.3", "up_blocks.12.attentions.3", "up_blocks.12"),
        ("context_embedder.token_refiner.refiner_blocks.0.attn", "context_embedder.token_refiner.refiner_blocks.0",
         "context_embedder.token_refiner.refiner_blocks"),
        ("down_blocks.0.3.attention", "down_blocks.0.3.attention", "down_blocks.0"),
        ("middle.attention", "middle.attention", "middle.attention"),
        ("transformer_blocks.0.attn:text", "transformer_blocks.0", "transformer_blocks"),
    ],
)  # fmt: skip
def test_paths(path: str, block: str, stage: str) -> None:
    layer = AttentionLayer(0, path, "", None, 2, 4, 9, "self")
    assert (block_of(layer), stage_of(layer)) == (block, stage)
