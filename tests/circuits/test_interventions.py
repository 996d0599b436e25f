"""The arithmetic of replacing heads, with numbers small enough to see."""

import pytest
import torch

from circuits.interventions import (
    ALL_HEADS,
    Intervention,
    Mode,
    Site,
    mean_value,
    random_basis,
    replace_heads,
    rows_touched,
    without_subspace,
)
from circuits.rows import head_weights
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


def test_each_mode_has_the_weights_of_its_interventions() -> None:
    layers = {"a": layer("a", 3), "b": layer("b", 2)}
    interventions = [
        Intervention(Mode.zero, (Site("a", 1),)),
        Intervention(Mode.zero, (Site("b", 1),)),
        Intervention(Mode.mean, (Site("b", 0), Site("a", ALL_HEADS)), 0.5),
        Intervention(Mode.zero, (Site("a", 2), Site("a", 0))),
    ]
    a, b = (head_weights(layers[name], interventions, layers) for name in ("a", "b"))
    assert a[Mode.zero].tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 1]]
    assert a[Mode.mean].tolist() == [[0, 0, 0], [0, 0, 0], [0.5, 0.5, 0.5], [0, 0, 0]]
    assert set(b) == {Mode.zero, Mode.mean}
    assert b[Mode.zero].tolist() == [[0, 0], [0, 1], [0, 0], [0, 0]]
    assert b[Mode.mean].tolist() == [[0, 0], [0, 0], [0.5, 0], [0, 0]]


def test_sites_of_one_layer_are_united() -> None:
    chosen = Intervention(Mode.zero, (Site("a", 2), Site("a", 0), Site("a", 2), Site("b", ALL_HEADS)))
    assert chosen.heads_by_layer({"a": 3, "b": 2}) == {"a": [0, 2], "b": [0, 1]}
    with pytest.raises(ValueError, match="no attention layer 'c'"):
        Intervention(Mode.zero, (Site("c"),)).heads_by_layer({"a": 3})


@pytest.mark.parametrize("factor", [-1.0, float("inf"), float("nan")])
def test_a_factor_is_finite_and_not_negative(factor: float) -> None:
    with pytest.raises(ValueError, match=f"expected a finite number >= 0, got {factor}"):
        Intervention(Mode.scale, (Site("a"),), factor=factor)


def test_the_mean_value_is_over_all_keys_wherever_they_lie() -> None:
    image = torch.tensor([[[9.0, 1, 2], [9, 3, 4], [9, 5, 6]]])  # V behind a column of something else
    text = torch.tensor([[[7.0, 12.0]]])
    assert mean_value(2, [(image, 1)]).tolist() == [[[3, 4]]]
    assert mean_value(2, [(image, 1), (text, 0)]).tolist() == [[[4, 6]]]


def test_a_random_subspace_takes_as_much_as_the_head_has() -> None:
    generator = torch.Generator().manual_seed(1)
    activation = torch.randn((3, 5, 4 * 2), generator=generator)
    basis = torch.stack([random_basis("layer", 8, 2, draw) for draw in (0, 1, 2)])
    weight = torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]])
    removed = activation - without_subspace(activation, basis, weight)
    heads = torch.stack([activation[0, :, 2:4], activation[1, :, 6:8], activation[2, :, 0:2]])
    torch.testing.assert_close(removed.norm(dim=2), heads.norm(dim=2), rtol=1e-5, atol=1e-6)
    inside = removed @ basis @ basis.transpose(1, 2)
    torch.testing.assert_close(inside, removed, rtol=1e-4, atol=1e-6)  # all of it lies in the subspace
    towards = (removed * activation).sum(2)
    assert (towards > 0).all(), "it removes and does not add"
    half = activation - without_subspace(activation, basis, 0.5 * weight)
    torch.testing.assert_close(half, 0.5 * removed)


def test_removing_the_heads_own_subspace_is_zeroing_the_head() -> None:
    activation = torch.randn((2, 3, 6), generator=torch.Generator().manual_seed(2))
    basis = torch.eye(6)[:, 2:4].expand(2, -1, -1)
    weight = torch.tensor([[0.0, 1, 0]]).expand(2, -1)
    expected = replace_heads(activation, 0.0, weight)
    torch.testing.assert_close(without_subspace(activation, basis, weight), expected, rtol=1e-6, atol=1e-6)


def test_random_bases_are_orthonormal_uniform_and_repeatable() -> None:
    bases = torch.stack([random_basis("layer", 6, 2, draw) for draw in range(600)])
    torch.testing.assert_close(bases.transpose(1, 2) @ bases, torch.eye(2).expand(600, -1, -1), rtol=0, atol=1e-5)
    # The mean projector of a uniform subspace is (head_dim / width) I; entries scatter by about .3 / sqrt(600).
    projector = (bases @ bases.transpose(1, 2)).mean(0)
    assert (projector - torch.eye(6) / 3).abs().max() < 0.06
    assert torch.equal(random_basis("layer", 6, 2, 5), bases[5])
    assert not torch.equal(random_basis("other", 6, 2, 5), bases[5])


def test_a_subspace_is_the_control_of_a_head() -> None:
    with pytest.raises(ValueError, match="expected a head at every site, got a whole layer"):
        Intervention(Mode.subspace, (Site("layer", ALL_HEADS),))
