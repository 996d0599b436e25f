"""What takes a head's place: means against brute force, donors against their definition."""

import numpy as np
import pytest
import torch

from circuits.denoisers import Denoiser
from circuits.references import MeanReferences, donors
from circuits.sites import find_sites
from tests.circuits.brute_force import BruteForce
from tests.circuits.conftest import STEPS, two_data_sets


@pytest.mark.parametrize("rows", [1, 3, 32])
def test_means_equal_an_average_over_images_one_by_one(denoiser: Denoiser, rows: int) -> None:
    layers, data = find_sites(denoiser), two_data_sets(denoiser)
    references = MeanReferences(denoiser, layers, seed=3, rows=rows)
    brute_force = BruteForce(denoiser, data, STEPS, seed=3)
    for name, t in (("synthetic", 799), ("natural", 399)):
        expected = brute_force.mean_outputs(data[name], t)
        for layer in layers:
            found = references.mean(data[name], t, layer)
            assert found.shape == (layer.tokens, layer.heads * layer.head_dim)
            joined = torch.cat([expected[layer.name, head] for head in range(layer.heads)], dim=1)
            torch.testing.assert_close(found.double(), joined, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("rows", [3, 32])
def test_moments_equal_those_of_images_one_by_one(denoiser: Denoiser, rows: int) -> None:
    layers, data = find_sites(denoiser), two_data_sets(denoiser)
    references = MeanReferences(denoiser, layers, seed=3, rows=rows)
    outputs = BruteForce(denoiser, data, STEPS, seed=3).reference_outputs(data["natural"], 399)
    for layer in layers:
        by_head = [torch.stack(outputs[layer.name, head]) for head in range(layer.heads)]
        joined = torch.cat(by_head, dim=2)
        found = references.moments(data["natural"], 399, layer)
        torch.testing.assert_close(found.mean.double(), joined.mean(0), rtol=1e-5, atol=5e-6)
        torch.testing.assert_close(found.deviation.double(), joined.std(0, correction=0), rtol=1e-5, atol=5e-6)
        assert torch.equal(found.mean, references.mean(data["natural"], 399, layer)), "of the same forwards"
        assert found.deviation.min() > 0


def test_means_and_moments_share_their_forwards(dit: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    layers, data = find_sites(dit), two_data_sets(dit)
    references = MeanReferences(dit, layers, seed=3, rows=32)
    moments = references.moments(data["natural"], 399, layers[0])
    monkeypatch.setattr(Denoiser, "__call__", lambda *_: pytest.fail("computed again"))
    assert references.mean(data["natural"], 399, layers[0]) is moments.mean
    assert references.moments(data["natural"], 399, layers[1]).mean is references.mean(data["natural"], 399, layers[1])


def test_means_are_computed_once_per_data_set_and_timestep(dit: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    layers, data = find_sites(dit), two_data_sets(dit)
    references = MeanReferences(dit, layers, seed=3, rows=32)
    first = references.mean(data["natural"], 399, layers[0])
    others = [references.mean(data["synthetic"], 399, layers[0]), references.mean(data["natural"], 199, layers[0])]
    monkeypatch.setattr(Denoiser, "__call__", lambda *_: pytest.fail("computed again"))
    assert references.mean(data["natural"], 399, layers[0]) is first
    references.mean(data["natural"], 399, layers[1])
    assert all((first - other).abs().max() > 1e-3 for other in others)


@pytest.mark.parametrize(("n", "groups"), [(2, 1), (3, 1), (64, 1), (64, 2), (11, 3), (20, 10), (97, 7)])
def test_donors_are_a_cycle_within_the_images_of_a_timestep(n: int, groups: int) -> None:
    donor = donors(n, groups, seed=0)
    assert sorted(donor.tolist()) == list(range(n)), "every image gives once"
    assert (donor != torch.arange(n)).all(), "never its own"
    assert torch.equal(donor % groups, torch.arange(n) % groups), "same timestep"
    left, cycles = set(range(n)), []
    while left:
        unit, seen = min(left), set()
        while unit not in seen:
            seen.add(unit)
            unit = int(donor[unit])
        cycles.append(seen)
        left -= seen
    # A block holds 16 images, or two a timestep; a rest too short for a block of its own joins the last one.
    size = max(16, 2 * groups)
    blocks = max(1, n // size + (n % size >= 2 * groups))
    assert len(cycles) == blocks * groups, "one cycle a block and timestep"
    assert all(max(seen) - min(seen) < size + 2 * groups for seen in cycles)
    assert torch.equal(donor, donors(n, groups, seed=0))
    if n // groups > 3:
        assert not torch.equal(donor, donors(n, groups, seed=1))


def test_donors_of_whole_blocks_do_not_depend_on_the_images_that_follow() -> None:
    assert torch.equal(donors(256, 2, seed=4)[:64], donors(64, 2, seed=4))
    assert torch.equal(donors(67, 2, seed=4)[:48], donors(256, 2, seed=4)[:48])


def test_donors_are_drawn_evenly() -> None:
    """Over seeds, unit 0 of 5 gets each of the other four; chi-square of 3 degrees of freedom, 21 is its 1e-4 tail."""
    counts = np.bincount([int(donors(5, 1, seed)[0]) for seed in range(400)], minlength=5)
    assert counts[0] == 0
    assert ((counts[1:] - 100) ** 2 / 100).sum() < 21


@pytest.mark.parametrize(("n", "groups"), [(1, 1), (3, 2), (5, 5), (4, 7)])
def test_a_timestep_with_a_single_image_has_no_donor(n: int, groups: int) -> None:
    with pytest.raises(ValueError, match=f"at least 2 images per timestep, got {n} images over {groups} timesteps"):
        donors(n, groups, seed=0)
