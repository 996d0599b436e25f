"""Seeds: one function, pinned for ever, without collisions; and the nearest valid name in messages."""

from pathlib import Path

import numpy as np
import pytest
import torch

from circuits.naming import nearest, nearest_folder
from circuits.seeds import derive_seed, normal_per_index, numpy_generator, torch_generator


def test_pinned() -> None:
    """Every measurement that was ever stored depends on these."""
    assert derive_seed(0, "noise/natural", 0) == 6158562383132127928
    assert derive_seed(7, "latents/synthetic", 3) == 6974376744370003515
    assert torch.randn((), generator=torch_generator(0, "noise/natural", 0)).item() == pytest.approx(0.3463950455188751)
    assert numpy_generator(0, "donors", 0).integers(10**9) == 271972136


def test_seeds_purposes_and_indices_do_not_collide() -> None:
    purposes = ["noise/natural", "noise/synthetic", "reference noise/natural", "latents/natural", "training", "donors"]
    seeds = [derive_seed(seed, p, i) for seed in range(5) for p in purposes for i in range(200)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)
    assert derive_seed(1, "a", 2, 3) != derive_seed(1, "a", 3, 2)


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1)])
def test_negative_seeds_are_refused(seed: int, index: int) -> None:
    with pytest.raises(ValueError, match="must be >= 0"):
        derive_seed(seed, "a", index)


def test_noise_of_an_index_ignores_its_neighbours_and_is_normal() -> None:
    noise = normal_per_index(3, "test", [5, 2, 11], (2, 50, 50))
    assert torch.equal(noise[1], normal_per_index(3, "test", [2], (2, 50, 50))[0])
    assert noise.mean().abs() < 0.05
    assert (noise.std() - 1).abs() < 0.05
    assert np.corrcoef(noise.flatten(1))[0, 1:] == pytest.approx(0, abs=0.06)


def test_global_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    normal_per_index(0, "test", [0], (3,))
    assert torch.equal(before, torch.random.get_rng_state())


def test_nearest_valid_name() -> None:
    assert nearest("maen", ["zero", "mean"]) == "; did you mean 'mean'? valid: zero, mean"
    assert nearest("qqq", ["zero", "mean"]) == "; valid: zero, mean"
    assert nearest("13", range(20), limit=2) == "; did you mean '13'? valid: 0, 1, ... (20 in all)"


def test_nearest_folder(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    (tmp_path / "facts.txt").touch()
    assert nearest_folder(tmp_path / "face") == f"; did you mean '{tmp_path / 'faces'}'?"
    assert nearest_folder(tmp_path / "tiny", ["tiny_faces"]) == "; did you mean 'tiny_faces'?"
    assert nearest_folder(tmp_path / "qqqq") == ""
    assert nearest_folder(tmp_path / "no" / "such") == ""
