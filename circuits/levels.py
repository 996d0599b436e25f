"""Which layers make up a block and a stage, read off their module paths.

A block is what a network repeats: a transformer block, or one attention of a U-Net's stage with the transformer blocks
inside it. A stage is ``down_blocks.i``, ``mid_block`` or ``up_blocks.i`` of a U-Net, and in a transformer the list that
its blocks are in: ``transformer_blocks``, ``single_transformer_blocks``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from circuits.interventions import Site
from circuits.sites import AttentionLayer
from circuits.vocabulary import GroupLevel

_STAGE_OF_A_U_NET = re.compile(r"(?:down|up)_blocks\.\d+|mid_block")
_ELEMENT = re.compile(r"(?P<list>.*?[^.])\.\d+(?=\.|$)")


@dataclass(frozen=True)
class LayerGroup:
    """Layers that are intervened on together, in execution order."""

    level: GroupLevel
    name: str
    layers: tuple[AttentionLayer, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        """All heads of all layers, of every stream."""
        return tuple(Site(layer.name) for layer in self.layers)


def layer_groups(layers: Sequence[AttentionLayer], level: GroupLevel) -> tuple[LayerGroup, ...]:
    """All blocks, or all stages, in the order of their first layers."""
    members: dict[str, list[AttentionLayer]] = {}
    for layer in sorted(layers, key=lambda layer: layer.index):
        members.setdefault(path_of(layer, level), []).append(layer)
    return tuple(LayerGroup(level, name, tuple(found)) for name, found in members.items())


def path_of(layer: AttentionLayer, level: str) -> str:
    """Module path of the layer's block or stage; of any other level, the layer's own name."""
    return block_of(layer) if level == "block" else stage_of(layer) if level == "stage" else layer.name


def stream_of(layers: Iterable[AttentionLayer]) -> str:
    """The stream of all these layers; ``joint`` where they differ."""
    streams = {layer.stream for layer in layers}
    return str(streams.pop()) if len(streams) == 1 else "joint"


def block_of(layer: AttentionLayer) -> str:
    """Module path of the block: ``transformer_blocks.3``, ``down_blocks.1.attentions.0``, ``mid_block.attentions.0``.

    An attention outside of every list is a block of its own.
    """
    stage = _STAGE_OF_A_U_NET.match(layer.module)
    prefix = f"{stage[0]}." if stage else ""
    element = _ELEMENT.match(layer.module[len(prefix) :])
    return prefix + element[0] if element else layer.module


def stage_of(layer: AttentionLayer) -> str:
    """Path of the stage: ``down_blocks.1``, ``mid_block``; ``transformer_blocks`` where there are no such stages."""
    stage = _STAGE_OF_A_U_NET.match(layer.module)
    if stage:
        return stage[0]
    element = _ELEMENT.match(layer.module)
    return element["list"] if element else layer.module
