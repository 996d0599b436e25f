"""The arithmetic of replacing heads, with numbers small enough to see."""

import pytest
import torch

from circuits.interventions import ALL_HEADS, Intervention, Mode, Site, replace_heads, rows_touched
from circuits.rows import row_weights
from circuits.sites import AttentionLayer


def test_each_head_of_each_row_gets_its_share() -> None:
    activation = torch.tensor([[[1.0, 2, 3, 4, 5, 6]], [[7.0, 8, 9, 10, 11, 12]]])  # 2 rows, 1 token, 3 heads x 2
    replacement = torch.full_like(activation, 100.0)
    weight = torch.tensor([[0.0, 1.0, 0.5], [0.25, 0.0, 0.0]])
    expected = torch.tensor([[[1.0, 2, 100, 100, 52.5, 53]], [[30.25, 31, 9, 10, 11, 12]]])
    assert torch.equal(replace_heads(activation, replacement, weight), expected)
    assert torch.equal(replace_heads(activation, 0.0, weight)[0], torch.tensor([[1.0, 2, 0, 0, 2.5, 3]]))
    assert torch.equal(rows_touched(weight), torch.tensor([True, True]))
    assert torch.equal(rows_touched(torch.tensor([[0.0, 0.0], [0.0, 0.1]])), torch.tensor([False, True]))


def test_whole_and_no_replacement_are_exact_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    activation, replacement = (torch.randn((5, 7, 3 * 2), generator=generator) * 1e3 for _ in range(2))
    weight = torch.tensor([[1.0, 0.0, 1.0]]).expand(5, -1)
    mixed = replace_heads(activation, replacement, weight)
    assert torch.equal(mixed[..., :2], replacement[..., :2])
    assert torch.equal(mixed[..., 2:4], activation[..., 2:4])
    # An activation that overflowed is replaced too, and one that is left alone does not spoil its neighbours.
    activation[..., :4] = torch.inf
    assert torch.equal(replace_heads(activation, 0.0, weight)[..., :2], torch.zeros(5, 7, 2))
    assert torch.equal(replace_heads(activation, 0.0, weight)[..., 4:], torch.zeros(5, 7, 2))


def test_the_dtype_of_the_activation_stays() -> None:
    activation = torch.ones((2, 3, 4), dtype=torch.bfloat16)
    assert replace_heads(activation, torch.zeros(2, 3, 4), torch.ones(2, 2)).dtype == torch.bfloat16


def layer(name: str, heads: int) -> AttentionLayer:
    return AttentionLayer(0, name, f"{name}.to_out.0", None, heads, 2, 5, "self")


def test_row_weights_put_each_mode_in_its_rows() -> None:
    layers = {"a": layer("a", 3), "b": layer("b", 2)}
    interventions = [
        Intervention(Mode.zero, (Site("a", 1),)),
        None,
        Intervention(Mode.mean, (Site("b", 0), Site("a", ALL_HEADS)), 0.5),
        Intervention(Mode.zero, (Site("a", 2), Site("a", 0))),
    ]
    a, b = (row_weights(layers[name], interventions, layers) for name in ("a", "b"))
    assert a[Mode.zero].tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 1]]
    assert a[Mode.mean].tolist() == [[0, 0, 0], [0, 0, 0], [0.5, 0.5, 0.5], [0, 0, 0]]
    assert set(b) == {Mode.mean}
    assert b[Mode.mean].tolist() == [[0, 0], [0, 0], [0.5, 0], [0, 0]]


def test_sites_of_one_layer_are_united() -> None:
    chosen = Intervention(Mode.zero, (Site("a", 2), Site("a", 0), Site("a", 2), Site("b", ALL_HEADS)))
    assert chosen.heads_by_layer({"a": 3, "b": 2}) == {"a": [0, 2], "b": [0, 1]}
    with pytest.raises(ValueError, match="no attention layer 'c'"):
        Intervention(Mode.zero, (Site("c"),)).heads_by_layer({"a": 3})
