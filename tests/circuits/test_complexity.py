"""Complexity: closed forms, an independent computation, and ratios with intervals."""

import numpy as np
import pytest
import torch

from circuits.complexity import (
    activation_energy,
    circuit_sizes,
    complexity_ratio,
    complexity_ratios,
    effective_rank,
    faithful_sizes,
    head_complexity,
    ranked_circuits,
)
from circuits.denoisers import Denoiser
from circuits.sites import find_sites
from tests.circuits.brute_force import BruteForce
from tests.circuits.conftest import IMAGES, STEPS, two_data_sets


def test_effective_rank_of_known_singular_values() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator).double()).Q for n in (7, 5))
    for values, expected in (
        ([3.0, 3, 3, 3, 3], 5.0),
        ([2.0, 2, 2, 0, 0], 3.0),
        ([1e-30, 0, 0, 0, 0], 1.0),
        ([0.0] * 5, 0.0),
        ([2.0, 1, 0, 0, 0], np.exp(-0.8 * np.log(0.8) - 0.2 * np.log(0.2))),
    ):
        matrix = left[:, :5] @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right
        assert effective_rank(matrix).item() == pytest.approx(expected, abs=1e-6)
        assert effective_rank(matrix.mT).item() == pytest.approx(expected, abs=1e-6)


def test_effective_rank_equals_the_one_from_singular_values() -> None:
    matrices = torch.randn(2, 3, 11, 5, generator=torch.Generator().manual_seed(1))
    shares = torch.linalg.svdvals(matrices.double()).square()
    shares = shares / shares.sum(dim=-1, keepdim=True)
    expected = (-(shares * shares.log()).sum(dim=-1)).exp()
    torch.testing.assert_close(effective_rank(matrices), expected.float())
    torch.testing.assert_close(effective_rank(matrices * 1e-12), expected.float())
    torch.testing.assert_close(activation_energy(matrices), matrices.square().mean(dim=(2, 3)))


@pytest.mark.parametrize("rows", [3, 32])
def test_complexity_of_heads_equals_that_of_images_one_by_one(denoiser: Denoiser, rows: int) -> None:
    data, layers = two_data_sets(denoiser), find_sites(denoiser)
    found = head_complexity(denoiser, data, timesteps=[799, 199], images=5, seed=3, rows=rows)
    brute_force = BruteForce(denoiser, data, STEPS, seed=3)
    assert found.effective_rank["natural"].shape == (sum(layer.heads for layer in layers), 2, 5)
    image = data["natural"].measured.images[4]
    noised = brute_force.noised(image, brute_force.normal("noise/natural", 4, shape=image.shape), 199)
    outputs = brute_force.outputs(noised, 199, data["natural"].label)
    rank = [effective_rank(outputs[layer.name, head]).item() for layer in layers for head in range(layer.heads)]
    assert found.effective_rank["natural"][:, 1, 4] == pytest.approx(rank, rel=1e-4)
    assert (found.activation_energy["natural"] > 0).all()
    assert len(head_complexity(denoiser, data, timesteps=1).effective_rank["natural"][0, 0]) == IMAGES


def test_sizes_of_circuits_by_hand() -> None:
    effects = np.array([[1.0, -5.0, 0.0], [6.0, 1.0, 0.0], [3.0, 1.0, -1.0]])
    assert circuit_sizes(effects).tolist() == [2, 2, 0]
    assert circuit_sizes(effects, share=0.5).tolist() == [1, 1, 0]
    assert circuit_sizes(effects, share=1.0).tolist() == [3, 2, 0]
    assert ranked_circuits(effects).tolist() == [1, 2, 0]


def test_sizes_of_faithful_circuits_by_hand() -> None:
    baseline = np.array([1.0, 1.0, 1.0, 1.0])
    errors = np.array(
        [
            [2.0, 2.0, 0.9, 2.0],  # no head; of the third image the model does better without any
            [1.3, 1.1, 0.9, 1.9],
            [1.2, 1.5, 0.9, 1.8],  # of the second, what one head reached is lost again
            [1.0, 1.0, 1.0, 1.0],
        ]
    )
    assert faithful_sizes(baseline, errors).tolist() == [2, 3, 0, 3]
    assert faithful_sizes(baseline, errors, share=0.7).tolist() == [1, 3, 0, 3]


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="share: expected a number above 0 and up to 1, got 0"):
        circuit_sizes(np.ones((2, 2)), share=0)
    with pytest.raises(ValueError, match=r"effects: expected finite numbers of shape \[n, images\]"):
        circuit_sizes(np.array([[np.nan]]))
    with pytest.raises(ValueError, match="baseline: expected 3 images"):
        faithful_sizes(np.ones(2), np.ones((4, 3)))


def test_the_ratio_of_two_data_sets_has_its_interval(dit: Denoiser) -> None:
    rng = np.random.default_rng(0)
    layers = find_sites(dit)
    heads = sum(layer.heads for layer in layers)
    per_image = rng.normal(1.0, 0.05, (1, 1, 131))
    natural = 1.1 * (per_image[..., :67] + rng.normal(0, 0.01, (heads, 3, 67)))
    synthetic = per_image[..., 67:] + rng.normal(0, 0.01, (heads, 3, 64))
    frame = complexity_ratios(layers, natural, synthetic, rng)
    assert frame["layer"].tolist() == ["all", *(layer.name for layer in layers)]
    assert ((frame["ci_low"] < frame["estimate"]) & (frame["estimate"] < frame["ci_high"])).all()
    assert (frame["ci_low"] < 1.1).all()
    assert (frame["ci_high"] > 1.1).all()
    assert (frame["p"] < 0.001).all()
    assert frame["estimate"][0] == pytest.approx(natural.mean() / synthetic.mean())
    assert frame["heads_p"][0] < 0.01
    same = complexity_ratio(per_image[0, 0, :67], per_image[0, 0, 67:], rng)
    assert same.p > 0.05
    assert (same.n_a, same.n_b, same.kind) == (67, 64, "bounded")
