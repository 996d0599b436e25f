"""Sites are found in execution order, and a block whose input of the projection is not its heads is refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import nn

from circuits.denoisers import Denoiser, ModelError, load_denoiser
from circuits.hooks import count_hooks
from circuits.shipped import new_tiny_faces
from circuits.sites import AttentionLayer, find_sites
from tests.circuits.conftest import SIZE

Joined = torch.Tensor  # [rows, tokens, heads * head_dim]


class Sabotaged:
    """Self-attention that changes its joined heads before the projection, or its values before the kernel."""

    def __init__(
        self,
        joined: Callable[[Joined, int], Joined] = lambda heads, _: heads,
        values: Callable[[Joined], Joined] = lambda values: values,
    ) -> None:
        self.joined, self.values = joined, values

    def __call__(self, attn: Attention, hidden_states: torch.Tensor, **_: object) -> torch.Tensor:
        q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), self.values(attn.to_v(hidden_states))
        split = [x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v)]
        heads = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        return attn.to_out[0](self.joined(heads, attn.heads))


def attention(denoiser: Denoiser, path: str) -> Any:
    return denoiser.network.get_submodule(path)


def test_dit_layers_in_full(dit: Denoiser) -> None:
    assert find_sites(dit) == tuple(
        AttentionLayer(
            index=i,
            name=f"transformer_blocks.{i}.attn1",
            projection=f"transformer_blocks.{i}.attn1.to_out.0",
            values=f"transformer_blocks.{i}.attn1.to_v",
            heads=5,
            head_dim=4,
            tokens=49,
            kind="self",
            key_values=((f"transformer_blocks.{i}.attn1.to_v", 0),),
        )
        for i in range(2)
    )


def test_unet_layers_in_the_order_in_which_they_run(unet: Denoiser) -> None:
    """The mid block runs between the down and the up blocks, wherever it stands in the list of modules."""
    expected = [
        ("down_blocks.0.attentions.0", 3, 196),
        ("mid_block.attentions.0", 5, 49),
        ("up_blocks.1.attentions.0", 3, 196),
        ("up_blocks.1.attentions.1", 3, 196),
    ]
    layers = find_sites(unet)
    assert [(layer.name, layer.heads, layer.tokens) for layer in layers] == expected
    assert [layer.index for layer in layers] == [0, 1, 2, 3]
    registered = [name for name, m in unet.network.named_modules() if isinstance(m, Attention)]
    assert registered != [layer.name for layer in layers], "the order of modules would do, so this test shows nothing"


def test_half_precision_passes_the_self_test(model_folders: dict, model_name: str) -> None:
    layers = find_sites(load_denoiser(model_folders[model_name], dtype="bfloat16"))
    assert layers == find_sites(load_denoiser(model_folders[model_name]))


def test_no_hooks_are_left(denoiser: Denoiser) -> None:
    find_sites(denoiser)
    assert count_hooks(denoiser.network) == 0


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(
    "joined",
    [
        lambda heads, n: heads.flip(2),
        lambda heads, n: heads.unflatten(2, (n, -1))[:, :, [0, 2, 1, *range(3, n)]].flatten(2),  # two heads swapped
        lambda heads, n: heads.unflatten(2, (n, -1)).transpose(2, 3).flatten(2),  # head_dim first
        lambda heads, n: heads * torch.sigmoid(heads.sum(2, keepdim=True)),  # a gate that hears all heads
        lambda heads, n: F.layer_norm(heads, heads.shape[2:]),
        lambda heads, n: heads + 1,
    ],
    ids=["flipped", "swapped", "transposed", "gated", "normalised", "shifted"],
)
def test_a_sabotaged_block_is_named(dit: Denoiser, joined: Callable[[Joined, int], Joined], layer: int) -> None:
    attention(dit, f"transformer_blocks.{layer}.attn1").set_processor(Sabotaged(joined))
    message = rf"^block transformer_blocks\.{layer}\.attn1 \(Attention\): editing its heads at .* is not supported$"
    with pytest.raises(ModelError, match=message):
        find_sites(dit)
    assert count_hooks(dit.network) == 0


def test_a_faithful_processor_passes(dit: Denoiser) -> None:
    """The control of the test above: the same processor without the sabotage."""
    plain = find_sites(dit)
    for layer in plain:
        attention(dit, layer.name).set_processor(Sabotaged())
    assert find_sites(dit) == plain


def test_sabotage_shows_in_a_model_whose_attention_has_no_effect_yet(dit: Denoiser) -> None:
    """Fresh adaLN-Zero models close every attention's gate, so a comparison of outputs alone would pass anything."""
    network, scheduler = new_tiny_faces()
    fresh = Denoiser("fresh", network.eval(), scheduler, "v_prediction", 1, 32, 2, "", torch.device("cpu"))
    assert [layer.heads for layer in find_sites(fresh)] == [8, 8, 8, 8]
    attention(fresh, "transformer_blocks.2.attn1").set_processor(Sabotaged(lambda heads, _: heads.flip(2)))
    with pytest.raises(ModelError, match=r"block transformer_blocks\.2\.attn1"):
        find_sites(fresh)


def test_values_are_offered_only_where_the_kernel_gets_them_unchanged(dit: Denoiser) -> None:
    first, second = (layer.name for layer in find_sites(dit))
    attention(dit, first).set_processor(Sabotaged(values=lambda values: values * 2))
    found = find_sites(dit)
    assert [layer.values for layer in found] == [None, f"{second}.to_v"]
    assert [layer.key_values for layer in found] == [(), ((f"{second}.to_v", 0),)]


def test_attention_without_a_kernel_is_refused(dit: Denoiser) -> None:
    def softmax_spelled_out(attn: Attention, hidden_states: torch.Tensor, **_: object) -> torch.Tensor:
        projected = [project(hidden_states) for project in (attn.to_q, attn.to_k, attn.to_v)]
        q, k, v = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in projected)
        heads = torch.softmax(q @ k.mT / q.shape[3] ** 0.5, dim=-1) @ v
        return attn.to_out[0](heads.transpose(1, 2).flatten(2))

    attention(dit, "transformer_blocks.1.attn1").set_processor(softmax_spelled_out)
    with pytest.raises(ModelError, match=r"^block transformer_blocks\.1\.attn1"):
        find_sites(dit)


class Foreign(nn.Module):
    """Attention that looks like nothing this program knows."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.inner(F.scaled_dot_product_attention(x, x, x), *args, **kwargs)


def test_an_unknown_kind_of_attention_is_named_not_skipped(dit: Denoiser) -> None:
    block: Any = dit.network.get_submodule("transformer_blocks.1")
    block.ff = Foreign(block.ff)
    with pytest.raises(ModelError, match=r"^block transformer_blocks\.1\.ff \(Foreign\) computes attention in a way"):
        find_sites(dit)


def test_attention_without_an_output_projection_is_named(dit: Denoiser) -> None:
    attention(dit, "transformer_blocks.0.attn1").to_out = None
    with pytest.raises(ModelError, match=r"block transformer_blocks\.0\.attn1 \(Attention\) .* no output projection"):
        find_sites(dit)


def test_a_layer_that_runs_twice_is_named(dit: Denoiser) -> None:
    blocks: Any = dit.network.get_submodule("transformer_blocks")
    blocks[1] = blocks[0]
    with pytest.raises(ModelError, match=r"transformer_blocks\.0\.attn1\.to_out\.0 runs more than once"):
        find_sites(dit)


def test_a_model_without_attention_is_refused(unet: Denoiser) -> None:
    class Plain(nn.Module):
        def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> None: ...

    unet.network = Plain()
    with pytest.raises(ModelError, match="Plain has no attention layers"):
        find_sites(unet)


def test_a_model_that_fails_says_why(dit: Denoiser) -> None:
    dit.sample_shape = (3, SIZE, SIZE)
    with pytest.raises(ModelError, match=r"^dit \(DiTTransformer2DModel\) cannot be swept: ."):
        find_sites(dit)
