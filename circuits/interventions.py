"""What replaces the activation at a site: frozen data and pure tensor functions.

Ablation misleads in known ways. Zeroing takes the model off its own distribution and overstates; a mean keeps what all
inputs share and hides what a head always contributes; a resampled activation keeps the marginal and breaks the pairing,
and is the closest to "this head says nothing about this image". Read them side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float

from circuits.head_functions import registered
from circuits.naming import nearest
from circuits.seeds import torch_generator
from circuits.vocabulary import ABLATIONS, Mode

Level = Literal["head", "layer", "block", "stage", "set"]
ALL_HEADS = -1


READING_V = frozenset({Mode.identity, Mode.uniform})
"""Modes whose replacement is made of the values of the same forward."""


@dataclass(frozen=True, order=True)
class Site:
    """Heads of an attention layer, before the output projection. ``head`` is -1 for all of them."""

    layer: str
    head: int = ALL_HEADS


@dataclass(frozen=True)
class Intervention:
    """Replace the activation at some sites.

    Attributes:
        mode: what is put there; by its name if need be, or by that of a function that was registered.
        sites: where; several sites are intervened on at once.
        strength: 1 replaces wholly, 0 leaves the activation; (1 - strength) old + strength new.
        draw: which random subspace, for mode ``subspace``.
        factor: of the activation, for mode ``scale``; 0 is mode ``zero``.
        function: name of the registered function, for mode ``own``.
    """

    mode: Mode
    sites: tuple[Site, ...]
    strength: float = 1.0
    draw: int = 0
    factor: float = 2.0
    function: str = ""

    def __post_init__(self) -> None:
        self._name_mode()
        if not self.sites:
            raise ValueError("an intervention needs at least one site")
        if not 0.0 <= self.strength <= 1.0:
            raise ValueError(f"strength is a share of the replacement in [0, 1], got {self.strength}")
        if not 0.0 <= self.factor < math.inf:
            raise ValueError(f"factor multiplies the activation; expected a finite number >= 0, got {self.factor}")
        if self.mode is Mode.subspace and any(site.head == ALL_HEADS for site in self.sites):
            raise ValueError("mode subspace is the control of a head; expected a head at every site, got a whole layer")

    def _name_mode(self) -> None:
        """``Intervention("zero", ...)`` and ``Intervention("my function", ...)`` as notebooks write them."""
        if not isinstance(self.mode, Mode):
            named = self.mode in [mode.value for mode in Mode]
            object.__setattr__(self, "function", self.function if named else self.mode)
            object.__setattr__(self, "mode", Mode(self.mode) if named else Mode.own)
        if self.mode is Mode.own and self.function not in registered():
            known = [*ABLATIONS, *registered()]
            raise ValueError(f"no intervention {self.function!r}{nearest(self.function, known)}")
        if self.mode is not Mode.own and self.function:
            raise ValueError(f"function is for mode own, got {self.function!r} with mode {self.mode}")

    def heads_by_layer(self, heads: Mapping[str, int]) -> dict[str, list[int]]:
        """Heads to replace in each layer; ``heads`` gives each layer's number of heads.

        Raises:
            ValueError: a site that the model does not have.
        """
        chosen: dict[str, set[int]] = {}
        for site in self.sites:
            if site.layer not in heads:
                raise ValueError(f"no attention layer {site.layer!r}{nearest(site.layer, heads)}")
            count = heads[site.layer]
            if site.head != ALL_HEADS and not 0 <= site.head < count:
                raise ValueError(f"layer {site.layer} has no head {site.head}; valid: 0 to {count - 1}, or -1 for all")
            every = range(count) if site.head == ALL_HEADS else (site.head,)
            chosen.setdefault(site.layer, set()).update(every)
        return {layer: sorted(indices) for layer, indices in chosen.items()}


def replace_heads(
    activation: Float[torch.Tensor, "rows tokens width"],
    replacement: Float[torch.Tensor, "rows tokens width"] | float,
    weight: Float[torch.Tensor, "rows heads"],
    head_dim: int | None = None,
) -> Float[torch.Tensor, "rows tokens width"]:
    """Mix ``replacement`` into the chosen heads of chosen rows.

    Args:
        activation: concatenated head outputs, head-major, and behind them whatever else shares the projection.
        weight: per row and head, 0 (untouched, bit for bit) to 1 (replaced, bit for bit).
        head_dim: columns of a head; columns behind the heads are left alone. By default all columns are heads.
    """
    width = weight.shape[1] * (head_dim or activation.shape[2] // weight.shape[1])
    if width < activation.shape[2]:
        new = replacement[..., :width] if isinstance(replacement, torch.Tensor) else replacement
        heads = replace_heads(activation[..., :width], new, weight)
        return torch.cat([heads, activation[..., width:]], dim=2)
    w = weight.to(activation.dtype).repeat_interleave(width // weight.shape[1], dim=1)[:, None, :]
    new = torch.as_tensor(replacement, dtype=activation.dtype, device=activation.device)
    mixed = torch.where(w == 1, new, (1 - w) * activation + w * new)
    return torch.where(w == 0, activation, mixed)


def mean_value(
    width: int, parts: Sequence[tuple[Float[torch.Tensor, "rows keys columns"], int]]
) -> Float[torch.Tensor, "rows 1 width"]:
    """Mean over all keys of V, of which each part holds some keys, from a column on: what uniform attention returns."""
    return torch.cat([part[..., start : start + width] for part, start in parts], dim=1).mean(1, keepdim=True)


def without_subspace(
    activation: Float[torch.Tensor, "rows tokens width"],
    basis: Float[torch.Tensor, "rows width head_dim"],
    weight: Float[torch.Tensor, "rows heads"],
) -> Float[torch.Tensor, "rows tokens width"]:
    """Remove each row's component in a random subspace, scaled to the norm that the chosen head has at each token.

    A reference for "zero": as much is removed, in a direction that means nothing. With several heads chosen in a row
    the norm is that of all of them together.

    Args:
        basis: orthonormal columns; of the width of the site.
        weight: per row and head, the strength at the chosen heads, else 0.
    """
    width, heads = activation.shape[2], weight.shape[1]
    chosen = weight.to(activation.dtype).repeat_interleave(width // heads, dim=1)[:, None, :]
    wanted = (activation * chosen).norm(dim=2, keepdim=True)
    inside = activation @ basis
    found = inside.norm(dim=2, keepdim=True)
    scale = wanted / found.clamp_min(torch.finfo(activation.dtype).tiny)
    return activation - scale * (inside @ basis.transpose(1, 2))


def random_basis(layer: str, width: int, head_dim: int, draw: int) -> Float[torch.Tensor, "width head_dim"]:
    """Orthonormal basis of a uniformly random subspace; the same for the same layer and draw, anywhere."""
    gaussian = torch.randn(
        width, head_dim, generator=torch_generator(0, f"subspace/{layer}", draw), dtype=torch.float64
    )
    return torch.linalg.qr(gaussian).Q.float()


def rows_touched(weight: Float[torch.Tensor, "rows heads"]) -> Bool[torch.Tensor, " rows"]:
    """Rows in which some head is replaced at least in part."""
    return (weight != 0).any(dim=1)
