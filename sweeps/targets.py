"""Where the grid intervenes: heads, layers, blocks and stages as sets of sites, each set once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from circuits.interventions import Site
from circuits.levels import LayerGroup, layer_groups
from circuits.sites import AttentionLayer
from circuits.vocabulary import GROUP_LEVELS
from sweeps.config import Config, as_indices, as_list


@dataclass(frozen=True)
class Target:
    """Sites that a trial intervenes on at once."""

    level: str
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class Targets:
    """The targets of a grid.

    Attributes:
        at: by chosen layer its heads, itself, then the blocks and stages of which it is the first chosen layer.
        repeated: by level, the number of blocks and stages left out, since a target before them has the same sites.
    """

    at: Mapping[str, tuple[Target, ...]]
    repeated: Mapping[str, int]

    @property
    def layers(self) -> frozenset[str]:
        """Layers in which any target has a site."""
        return frozenset(site.layer for found in self.at.values() for target in found for site in target.sites)


def find_targets(config: Config, layers: Sequence[AttentionLayer], chosen: Sequence[AttentionLayer]) -> Targets:
    """Blocks and stages are whole, whichever of their layers were chosen.

    What has the same sites as a target before it is left out, so that nothing is measured twice: a block of one layer
    where layers are measured, a stage of one block.
    """
    levels = as_list(config.sweep.levels, "sweep.levels")
    names = {layer.name for layer in chosen}
    groups: dict[str, list[LayerGroup]] = {}
    for level in GROUP_LEVELS:
        for group in layer_groups(layers, level) if level in levels else ():
            first = next((layer.name for layer in group.layers if layer.name in names), None)
            if first is not None:
                groups.setdefault(first, []).append(group)
    at: dict[str, tuple[Target, ...]] = {}
    repeated: dict[str, int] = {}
    for layer in chosen:
        heads = as_indices(config.sweep.heads, layer.heads, "sweep.heads") if "head" in levels else []
        here = [Target("head", (Site(layer.name, head),)) for head in heads]
        if "layer" in levels:
            here.append(Target("layer", (Site(layer.name),)))
        for group in groups.get(layer.name, ()):
            if any(target.sites == group.sites for target in here):
                repeated[group.level] = repeated.get(group.level, 0) + 1
            else:
                here.append(Target(group.level, group.sites))
        at[layer.name] = tuple(here)
    return Targets(at, repeated)
