"""Statistics of attention against the explicit map; memory that grows with tokens, not with their square."""

import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from circuits.attention import (
    AttentionStatistics,
    affordable_queries,
    attention_statistics,
    chosen_queries,
)
from circuits.hooks import KernelCall, observing_kernels
from circuits.token_grids import TokenGrid, token_grid

IMAGES, HEADS, WIDTH, COLUMNS = 4, 3, 7, 2
GRID = TokenGrid(5, 11)
TIGHT = {"rtol": 1e-5, "atol": 1e-5}


def queries_and_keys(tokens: int, keys: int, sharpness: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens + keys)
    query = torch.randn((IMAGES, HEADS, tokens, WIDTH), generator=generator) * sharpness
    return query, torch.randn((IMAGES, HEADS, keys, WIDTH), generator=generator)


def explicit_map(query: torch.Tensor, key: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    scale = WIDTH**-0.5 if scale is None else scale
    return (query.double() @ key.double().transpose(2, 3) * scale).softmax(dim=3)


def entropy_of(maps: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(maps).sum(dim=3).mean(dim=2).float()


@pytest.mark.parametrize("elements", [None, 1])
@pytest.mark.parametrize("sharpness", [0.1, 2.0, 20.0])
def test_statistics_equal_those_of_the_explicit_map(sharpness: float, elements: int | None) -> None:
    query, key = queries_and_keys(GRID.tokens, GRID.tokens, sharpness)
    columns = torch.randn((IMAGES, GRID.tokens, COLUMNS), generator=torch.Generator().manual_seed(0))
    value = torch.randn((IMAGES, HEADS, GRID.tokens, WIDTH + 1), generator=torch.Generator().manual_seed(1))
    found = attention_statistics(query, key, grid=GRID, columns=columns, value=value, elements=elements)
    maps = explicit_map(query, key)
    assert found.output is not None
    torch.testing.assert_close(found.output, (maps @ value.double()).float(), **TIGHT)
    tokens = GRID.tokens
    torch.testing.assert_close(found.entropy, entropy_of(maps), **TIGHT)
    torch.testing.assert_close(found.keys, torch.full((IMAGES,), float(tokens)))
    square = maps.square().sum(dim=3)
    torch.testing.assert_close(found.uniform_share, (1 / (tokens * square)).mean(dim=2).float(), **TIGHT)
    torch.testing.assert_close(found.power, (tokens * square).mean(dim=2).float(), **TIGHT)
    overlap = tokens * (maps[0::2] * maps[1::2]).sum(dim=3).mean(dim=2)
    torch.testing.assert_close(found.overlap, overlap.float(), **TIGHT)
    torch.testing.assert_close(found.received, maps.mean(dim=2).float(), **TIGHT)
    pooled = torch.einsum("ihqk,ikc->ihqc", maps, columns.double())
    torch.testing.assert_close(found.pooled, pooled.float(), **TIGHT)
    assert torch.equal(found.queries, torch.arange(tokens))
    assert found.spatial is not None
    places = torch.cartesian_prod(torch.arange(GRID.rows), torch.arange(GRID.columns)).double() / GRID.columns
    distance = torch.cdist(places, places)
    torch.testing.assert_close(
        found.spatial.squared_distance, (maps * distance.square()).sum(dim=3).mean(dim=2).float(), **TIGHT
    )
    diagonal = maps.diagonal(dim1=2, dim2=3).mean(dim=2)
    torch.testing.assert_close(found.spatial.self_share, diagonal.float(), **TIGHT)
    for name, centres in (
        ("local_share", lambda r, c: (r, c)),
        ("symmetry", lambda r, c: (r, GRID.columns - 1 - c)),
        ("symmetry_other", lambda r, c: (GRID.rows - 1 - r, c)),
    ):
        expected = torch.zeros(IMAGES, HEADS, dtype=torch.float64)
        for q in range(tokens):
            row, column = centres(q // GRID.columns, q % GRID.columns)
            for k in range(tokens):
                if max(abs(k // GRID.columns - row), abs(k % GRID.columns - column)) <= GRID.radius:
                    expected += maps[:, :, q, k] / tokens
        torch.testing.assert_close(getattr(found.spatial, name), expected.float(), **TIGHT)


@pytest.mark.parametrize("kind", ["boolean", "additive", "infinite", "of queries"])
def test_masked_keys_count_for_nothing(kind: str) -> None:
    query, key = queries_and_keys(13, 17)
    keep = torch.rand((IMAGES, 1, 1, 17), generator=torch.Generator().manual_seed(1)) < 0.6
    if kind == "of queries":
        keep = keep.expand(-1, -1, 13, -1)
    closed = {"additive": -10000.0, "infinite": -math.inf}.get(kind)
    mask = keep if closed is None else torch.zeros(keep.shape).masked_fill(~keep, closed)
    found = attention_statistics(query, key, mask=mask)
    for image in range(IMAGES):
        kept = keep[image, 0, 0]
        alone = attention_statistics(query[image, None], key[image, None][:, :, kept])
        assert found.keys[image] == kept.sum() == alone.keys[0]
        for name in ("entropy", "power", "uniform_share"):
            torch.testing.assert_close(getattr(found, name)[image], getattr(alone, name)[0], **TIGHT)
        torch.testing.assert_close(found.received[image][:, kept], alone.received[0], **TIGHT)
        assert (found.received[image][:, ~kept] == 0).all()


def test_an_additive_mask_is_part_of_the_logits() -> None:
    query, key = queries_and_keys(13, 17)
    mask = torch.randn((HEADS, 13, 17), generator=torch.Generator().manual_seed(2))
    found = attention_statistics(query, key, mask=mask, scale=0.3)
    maps = (query.double() @ key.double().transpose(2, 3) * 0.3 + mask.double()).softmax(dim=3)
    torch.testing.assert_close(found.entropy, entropy_of(maps), **TIGHT)


def test_known_maps() -> None:
    """Uniform attention, and attention to oneself alone."""
    tokens = GRID.tokens
    uniform = attention_statistics(*(torch.zeros(2, 1, tokens, 1),) * 2, grid=GRID)
    identity = attention_statistics(*(torch.eye(tokens).expand(2, 1, -1, -1) * 20,) * 2, grid=GRID)
    assert uniform.spatial is not None
    assert identity.spatial is not None
    found = {
        name: [getattr(x, name).flatten().tolist() for x in (uniform, identity)]
        for name in ("entropy", "uniform_share", "power", "overlap")
    }
    assert found["entropy"][0] == pytest.approx([math.log(tokens)] * 2)
    assert found["entropy"][1] == pytest.approx([0.0] * 2, abs=1e-5)
    assert found["uniform_share"] == [pytest.approx([1.0] * 2), pytest.approx([1 / tokens] * 2)]
    assert found["power"] == [pytest.approx([1.0] * 2), pytest.approx([tokens] * 2)]
    assert found["overlap"] == [pytest.approx([1.0]), pytest.approx([tokens])], "two images of the same map"
    assert identity.spatial.self_share.flatten().tolist() == pytest.approx([1.0] * 2)
    assert identity.spatial.squared_distance.flatten().tolist() == pytest.approx([0.0] * 2, abs=1e-6)


def test_a_sample_of_queries_is_the_statistic_over_those_queries() -> None:
    query, key = queries_and_keys(GRID.tokens, GRID.tokens)
    found = attention_statistics(query, key, grid=GRID, queries=23)
    chosen = chosen_queries(GRID.tokens, 23)
    assert torch.equal(found.queries, chosen)
    assert len(set(chosen.tolist())) == 23
    maps = explicit_map(query, key)[:, :, chosen]
    assert found.output is None, "no values were given"
    torch.testing.assert_close(found.entropy, entropy_of(maps), **TIGHT)
    torch.testing.assert_close(found.received, maps.mean(dim=2).float(), **TIGHT)
    assert found.spatial is not None
    own = maps.gather(3, chosen[:, None].expand(IMAGES, HEADS, -1, 1)).mean(dim=(2, 3))
    torch.testing.assert_close(found.spatial.self_share, own.float(), **TIGHT)


def test_a_profile_looks_at_all_queries_up_to_1024_tokens() -> None:
    assert [affordable_queries(keys) for keys in (77, 1024, 4096, 1 << 20)] == [13617, 1024, 256, 64]
    assert affordable_queries(1 << 20, None) is None


def test_an_odd_image_is_left_out_of_pairs_alone() -> None:
    query, key = queries_and_keys(13, 13)
    found, all_ = attention_statistics(query[:3], key[:3], elements=1), attention_statistics(query, key)
    torch.testing.assert_close(found.entropy, all_.entropy[:3])
    torch.testing.assert_close(found.overlap, all_.overlap[:1])


def test_a_grid_of_other_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="5 x 11 tokens needs as many queries and keys, got 13 and 17"):
        attention_statistics(*queries_and_keys(13, 17), grid=GRID)


class LiveBytes(TorchDispatchMode):
    """Memory of all tensors made inside and still alive, and its peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.seen:
                    self.seen.add(storage.data_ptr())
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage.data_ptr(), storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _freed(self, pointer: int, size: int) -> None:
        self.seen.discard(pointer)
        self.live -= size


def peak_bytes(side: int, queries: int | None) -> int:
    tokens, heads, width = side * side, 2, 8
    query = torch.randn(2, heads, tokens, width)
    with LiveBytes() as memory:
        attention_statistics(query, query, grid=TokenGrid(side, side), queries=queries)
    return memory.peak


@pytest.mark.parametrize("queries", [None, 512])
def test_memory_at_4096_tokens_grows_with_tokens_and_not_with_their_square(queries: int | None) -> None:
    maps = 2 * 2 * 4096**2 * 4
    peaks = {side: peak_bytes(side, queries) for side in (32, 64)}
    assert peaks[64] < maps / 8
    assert peaks[64] < 4 * 1.1 * peaks[32], "4 times the tokens"


def test_memory_of_whole_maps_would_show() -> None:
    query = torch.randn(2, 2, 1024, 8)
    with LiveBytes() as memory:
        (query @ query.transpose(2, 3)).softmax(dim=3)
    assert memory.peak == pytest.approx(2 * (2 * 2 * 1024**2 * 4), rel=0.02), "logits and their softmax"
    del query


def test_kernels_are_observed_within_their_scope() -> None:
    query, key = queries_and_keys(13, 17)
    value = torch.randn(IMAGES, HEADS, 17, 5)
    mask = torch.ones(13, 17, dtype=torch.bool)
    real, seen = F.scaled_dot_product_attention, list[KernelCall]()
    expected = real(query, key, value), real(query, key, value, mask, scale=0.3)
    with observing_kernels(seen.append):
        found = (
            F.scaled_dot_product_attention(query, key, value),
            F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3),
        )
        grouped = F.scaled_dot_product_attention(query, key[:, :1], value[:, :1], enable_gqa=True)
    assert F.scaled_dot_product_attention is real
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [call.ordinal for call in seen] == [0, 1, 2]
    assert seen[0].scale == WIDTH**-0.5
    assert (seen[1].scale, seen[1].mask is mask, seen[0].mask) == (0.3, True, None)
    assert torch.equal(seen[1].output, expected[1])
    assert torch.equal(seen[2].key, key[:, :1].expand(-1, HEADS, -1, -1))
    assert torch.equal(grouped, seen[2].output)

    def replaced(call: KernelCall) -> torch.Tensor | None:
        return call.value * 2 if call.ordinal else None

    counted, ran = F.scaled_dot_product_attention, list[int]()
    F.scaled_dot_product_attention = lambda *args, **kwargs: ran.append(0) or counted(*args, **kwargs)
    try:
        with observing_kernels(replaced):
            first, second = (F.scaled_dot_product_attention(query, key, value) for _ in range(2))
    finally:
        F.scaled_dot_product_attention = counted
    assert torch.equal(first, expected[0])
    assert torch.equal(second, value * 2)
    assert len(ran) == 1, "the kernel runs only where nobody has its output"

    with pytest.raises(ValueError, match="causal"), observing_kernels(seen.append):
        F.scaled_dot_product_attention(query, query, query, is_causal=True)
    assert F.scaled_dot_product_attention is real


def test_statistics_of_half_precision_are_computed_in_float32() -> None:
    query, key = (x.bfloat16() for x in queries_and_keys(13, 17))
    found: AttentionStatistics = attention_statistics(query, key)
    torch.testing.assert_close(found.entropy, entropy_of(explicit_map(query, key)), **TIGHT)


@pytest.mark.parametrize(
    ("tokens", "height", "width", "grid"),
    [
        (64, 32, 32, (8, 8)),
        (54, 6, 9, (6, 9)),
        (6, 6, 9, (2, 3)),
        (55, 7, 7, None),
        (3, 64, 64, None),
        (8, 32, 32, None),
    ],
)
def test_the_grid_of_tokens_has_the_shape_of_the_image(
    tokens: int, height: int, width: int, grid: tuple[int, int] | None
) -> None:
    found = token_grid(tokens, height, width)
    assert (None if found is None else (found.rows, found.columns)) == grid


def test_neighbourhoods_lie_about_the_token_and_its_mirror_images() -> None:
    grid = TokenGrid(4, 5)
    distance, own, near, mirrored, upside_down = grid.weighings(torch.tensor([5])).unbind(2)
    assert distance[0, 19].item() == pytest.approx((2**2 + 4**2) / 5**2)
    assert own.nonzero()[:, 1].tolist() == [5]
    assert near.nonzero()[:, 1].tolist() == [0, 1, 5, 6, 10, 11]
    assert mirrored.nonzero()[:, 1].tolist() == [3, 4, 8, 9, 13, 14]
    assert upside_down.nonzero()[:, 1].tolist() == [5, 6, 10, 11, 15, 16]
    assert (TokenGrid(64, 64).radius, TokenGrid(8, 8).radius) == (4, 1)
