"""What attention maps look like, from queries and keys, without maps in memory.

Maps are made for a block of queries of a few images at a time and reduced at once, so that memory grows with the number
of tokens, not with its square. What is linear in the map is a product with the keys, with the columns that the caller
wants pooled, or with the places of the tokens; the entropy is H = lse - scale q . (A K).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from jaxtyping import Float, Int

from circuits.seeds import torch_generator
from circuits.token_grids import TokenGrid

ENTRIES = 1 << 20
"""Entries of the map of a head and image that a profile looks at: all queries up to 1,024 tokens, else fewer."""

BLOCK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 27}
"""Entries of attention maps that exist at a time (2 MiB stays in a core's cache)."""

_MIN_BLOCK = 64
_CLOSED_BIAS = -1e30
_CLOSED = -1e3  # what additive masks put at keys that may not be attended to is below this


@dataclass(frozen=True)
class SpatialStatistics:
    """Where self-attention goes, mean over queries; shares of the attention mass in [0, 1].

    Attributes:
        squared_distance: mean square of the distance between query and key, in image sides.
        self_share: on the query's own token.
        local_share: on the query's neighbourhood (``TokenGrid.weighings``).
        symmetry: on the neighbourhood of the place across the vertical axis.
        symmetry_other: on that of the place across the horizontal axis; the distances are the same on a square grid.
    """

    squared_distance: Float[torch.Tensor, "images heads"]
    self_share: Float[torch.Tensor, "images heads"]
    local_share: Float[torch.Tensor, "images heads"]
    symmetry: Float[torch.Tensor, "images heads"]
    symmetry_other: Float[torch.Tensor, "images heads"]


@dataclass(frozen=True)
class AttentionStatistics:
    """Statistics of the attention maps A of some images, whose rows are queries and sum to 1.

    Attributes:
        entropy: mean over queries of H = -sum_k A log A, in nats.
        keys: number K of keys that may be attended to.
        uniform_share: mean over queries of 1 / (K sum_k A^2), the participation ratio over the number of keys: 1 where
            attention is uniform, m / K where it is uniform over m keys.
        power: K times the mean over queries of sum_k A^2; 1 where attention is uniform, K where it is on one key.
        overlap: of images 2j and 2j + 1, K times the mean over queries of sum_k A_2j A_2j+1. Its mean over pairs is
            without bias the power of the map's mean over images, which a mean of I maps exceeds by its noise.
        received: attention that a key gets, mean over queries; sums to 1.
        pooled: columns averaged under the attention of each query.
        queries: which queries were looked at; all means are over these.
        spatial: where keys are the queries' own tokens on a grid.
        output: A V of these queries, where values were given.
    """

    entropy: Float[torch.Tensor, "images heads"]
    keys: Float[torch.Tensor, " images"]
    uniform_share: Float[torch.Tensor, "images heads"]
    power: Float[torch.Tensor, "images heads"]
    overlap: Float[torch.Tensor, "pairs heads"]
    received: Float[torch.Tensor, "images heads keys"]
    pooled: Float[torch.Tensor, "images heads queries columns"]
    queries: Int[torch.Tensor, " queries"]
    spatial: SpatialStatistics | None
    output: Float[torch.Tensor, "images heads queries head_dim"] | None


def attention_statistics(
    query: Float[torch.Tensor, "images heads tokens width"],
    key: Float[torch.Tensor, "images heads keys width"],
    *,
    scale: float | None = None,
    mask: torch.Tensor | None = None,
    grid: TokenGrid | None = None,
    columns: Float[torch.Tensor, "images keys columns"] | None = None,
    value: Float[torch.Tensor, "images heads keys head_dim"] | None = None,
    queries: int | None = None,
    elements: int | None = None,
) -> AttentionStatistics:
    """Statistics of softmax(scale q k^T + mask) per image and head, in float32 whatever the inputs are.

    Args:
        scale: of the logits; 1 / sqrt(width) by default.
        mask: boolean (True: attend) or additive, broadcast over images, heads and queries.
        grid: of the tokens, where keys are the queries' own tokens.
        columns: numbers at the keys to be averaged under attention.
        value: for the output of attention itself, which is then a by-product.
        queries: looked at, at most, the same for every head and image; all by default.
        elements: of the map in memory at a time; by default what suits the device.

    Raises:
        ValueError: the grid has other tokens than there are queries or keys.
    """
    images, heads, tokens, width = query.shape
    count = key.shape[2]
    if grid is not None and not grid.tokens == tokens == count:
        raise ValueError(f"a grid of {grid.rows} x {grid.columns} tokens needs as many queries and keys, "
                         f"got {tokens} and {count}")  # fmt: skip
    scale = width**-0.5 if scale is None else scale
    columns = key.new_zeros(images, count, 0) if columns is None else columns
    chosen = chosen_queries(tokens, queries).to(query.device)
    budget = elements or BLOCK_ELEMENTS.get(query.device.type, BLOCK_ELEMENTS["cpu"])
    block = min(len(chosen), max(_MIN_BLOCK, budget // (2 * heads * count)))
    block = math.ceil(len(chosen) / math.ceil(len(chosen) / block))  # no small last one
    together = 2 * max(1, budget // (2 * heads * count * block))  # whole pairs
    bias = None if mask is None else _as_bias(mask)
    if len(chosen) < tokens:
        query = query[:, :, chosen]
        bias = bias if bias is None or bias.shape[2] == 1 else bias[:, :, chosen]
    parts = []
    for start in range(0, images, together):
        some = slice(start, start + together)
        own = bias if bias is None or len(bias) == 1 else bias[some]
        q, k = query[some].float().contiguous(), key[some].float()
        # Keys and values side by side, so that both are weighed in one product.
        weighed = k.contiguous() if value is None else torch.cat([k, value[some].float()], dim=3)
        maps = _Maps(q, weighed, width, scale, own, columns[some].float(), grid, chosen)
        parts.append(maps.reduced(block))
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    output = joined.pop("output")
    names = {field.name for field in fields(SpatialStatistics)}
    spatial = SpatialStatistics(**{name: joined.pop(name) for name in names}) if grid is not None else None
    return AttentionStatistics(**joined, queries=chosen, spatial=spatial, output=None if value is None else output)


def affordable_queries(keys: int, entries: int | None = ENTRIES) -> int | None:
    """How many queries to look at, for at most so many entries of each map (but 64 queries in any case).

    Means over queries need no more: what a profile then costs no longer grows with the square of the tokens.
    """
    return None if entries is None else max(_MIN_BLOCK, entries // keys)


def chosen_queries(tokens: int, most: int | None) -> Int[torch.Tensor, " queries"]:
    """All tokens, or ``most`` of them drawn without replacement, always the same ones; in order.

    Drawn rather than evenly spaced, which on a grid would mean the same columns in every row.
    """
    if most is None or tokens <= most:
        return torch.arange(tokens)
    return torch.randperm(tokens, generator=torch_generator(0, "queries", tokens))[:most].sort().values


def _as_bias(mask: torch.Tensor) -> Float[torch.Tensor, "images_or_1 heads_or_1 queries_or_1 keys"]:
    """What a mask adds to the logits; finite, since it is averaged under weights of which some are 0."""
    mask = mask.view(*(1,) * (4 - mask.dim()), *mask.shape)
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, _CLOSED_BIAS)
    return mask.float().clamp(min=_CLOSED_BIAS)


@dataclass(frozen=True)
class _Maps:
    """The maps of some images, an even number unless they are the last.

    Attributes:
        query: of the chosen queries.
        weighed: keys, in the first ``width`` columns, and what else is to be averaged under each head's attention.
        chosen: their places among the tokens.
    """

    query: Float[torch.Tensor, "images heads queries width"]
    weighed: Float[torch.Tensor, "images heads keys weighed"]
    width: int
    scale: float
    bias: Float[torch.Tensor, "images_or_1 heads_or_1 queries_or_1 keys"] | None
    columns: Float[torch.Tensor, "images keys columns"]
    grid: TokenGrid | None
    chosen: Int[torch.Tensor, " queries"]

    @property
    def key(self) -> Float[torch.Tensor, "images heads keys width"]:
        return self.weighed[..., : self.width]

    def reduced(self, block: int) -> dict[str, torch.Tensor]:
        """Every statistic, by the name of its field; ``block`` queries at a time."""
        shared = torch.cat([self.columns.new_ones(*self.columns.shape[:2], 1), self.columns], dim=2)
        per_query: dict[str, list[torch.Tensor]] = {}
        received = self.key.new_zeros(self.key.shape[:3])
        for start in range(0, len(self.chosen), block):
            found = self._block(slice(start, min(start + block, len(self.chosen))), shared)
            received += found.pop("received")
            for name, values in found.items():
                per_query.setdefault(name, []).append(values)
        joined = {name: torch.cat(blocks, dim=2) for name, blocks in per_query.items()}
        kept = {name: joined.pop(name) for name in ("pooled", "output")}
        count = self._keys()
        means = {name: values.mean(dim=2) for name, values in joined.items()}
        pairs = len(means["overlap"])
        means["uniform_share"] = (1 / joined["power"]).mean(dim=2) / count[:, None]
        means["power"] = means["power"] * count[:, None]
        means["overlap"] = means["overlap"] * count[: 2 * pairs : 2, None]
        return means | {"keys": count, "received": received / len(self.chosen)} | kept

    def _keys(self) -> Float[torch.Tensor, " images"]:
        """Keys that may be attended to; masks of denoisers are the same for all heads and queries."""
        images, keys = len(self.key), self.key.shape[2]
        if self.bias is None:
            return self.key.new_full((images,), keys)
        return (self.bias[:, 0, 0] > _CLOSED).sum(dim=1).to(self.key.dtype).expand(images)

    def _block(self, some: slice, shared: torch.Tensor) -> dict[str, torch.Tensor]:
        """Statistics of some queries, ``[images, heads, block]``, and the attention that keys receive from them.

        The map is left unnormalised, as exp(s - max s); what is reduced is divided by its row sums instead.
        """
        query = self.query[:, :, some] * self.scale
        logits = query @ self.key.transpose(2, 3)
        bias = self.bias
        if bias is not None:
            bias = bias if bias.shape[2] == 1 else bias[:, :, some]
            logits += bias
        peak = logits.amax(dim=3, keepdim=True)
        weights = logits.sub_(peak).exp_()
        # All heads of an image share these columns: one product of more rows.
        averaged = (weights.flatten(1, 2) @ shared).unflatten(1, weights.shape[1:3])
        total = averaged[..., 0]
        averaged = averaged[..., 1:] / total[..., None]
        weighed = weights @ self.weighed
        mean_logit = torch.linalg.vecdot(query, weighed[..., : self.width]) / total
        if bias is not None:
            mean_logit = mean_logit + torch.linalg.vecdot(weights, bias.expand_as(weights)) / total
        pairs = len(weights) // 2
        found = {
            "entropy": (peak[..., 0] + total.log() - mean_logit).clamp(min=0),
            "power": torch.linalg.vector_norm(weights, dim=3).square() / total.square(),
            "overlap": torch.linalg.vecdot(weights[0::2][:pairs], weights[1::2]) / (total[0::2][:pairs] * total[1::2]),
            "received": (total.reciprocal()[..., None, :] @ weights)[..., 0, :],
            "pooled": averaged,
            "output": weighed[..., self.width :] / total[..., None],
        }
        if self.grid is not None:
            # Queries first: what each one's attention is weighed by, times its row in the maps of all images and heads.
            weighings = _weighings(self.grid, self.chosen, some).transpose(1, 2)
            shares = weighings @ weights.flatten(0, 1).permute(1, 2, 0)
            places = (shares.permute(1, 2, 0).unflatten(1, weights.shape[:2]) / total).unbind(0)
            found |= {field.name: values for field, values in zip(fields(SpatialStatistics), places, strict=True)}
        return found


def _weighings(
    grid: TokenGrid, chosen: Int[torch.Tensor, " queries"], some: slice
) -> Float[torch.Tensor, "block tokens 5"]:
    """``TokenGrid.weighings`` of some of the chosen queries, kept where there is room for those of all."""
    if len(chosen) * grid.tokens > ENTRIES:
        return grid.weighings(chosen[some])
    return _kept_weighings(grid, len(chosen), chosen.device)[some]


@lru_cache(maxsize=4)
def _kept_weighings(grid: TokenGrid, queries: int, device: torch.device) -> Float[torch.Tensor, "queries tokens 5"]:
    return grid.weighings(chosen_queries(grid.tokens, queries).to(device))
