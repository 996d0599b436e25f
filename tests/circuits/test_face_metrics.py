"""Errors of faces against closed forms, and beside the metrics of the protocol."""

import pytest
import torch

from circuits import metrics
from circuits.data.synthetic_faces import synthetic_faces
from circuits.engine import Engine, Window
from circuits.face_metrics import FaceMetrics, part_error, symmetry_error
from circuits.interventions import Intervention, Mode, Site
from circuits.probes import synthetic_part_masks
from circuits.sites import find_sites
from circuits.vocabulary import DENOISE_METRICS
from tests.circuits.planted_heads import planted_denoiser

N, SIZE = 3, 10


def noise(seed: int, n: int = N) -> torch.Tensor:
    return torch.rand((n, 1, SIZE, SIZE), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_an_error_that_both_sides_have_is_none_of_symmetry() -> None:
    truth, error = noise(0), noise(1)
    even = (error + error.flip(3)) / 2
    torch.testing.assert_close(symmetry_error(truth + even, truth), torch.zeros(N), rtol=0, atol=1e-12)
    odd = error - even
    torch.testing.assert_close(symmetry_error(truth + error, truth), metrics.mean_square(odd))
    one_side = error.clone()
    one_side[..., SIZE // 2 :] = 0
    torch.testing.assert_close(symmetry_error(truth + one_side, truth), metrics.mean_square(one_side) / 2)


def test_parts_by_hand() -> None:
    truth = torch.zeros(2, 1, 2, 4)
    predicted = torch.tensor([[1.0, 1, 3, 3], [1, 1, 3, 3]])[None, None].repeat(2, 1, 1, 1)
    left = torch.tensor([[1, 1, 0, 0]] * 2, dtype=torch.bool)
    parts = torch.stack([torch.stack([left, ~left, 0 * left]), torch.stack([left | ~left, 0 * left, 0 * left])]).bool()
    # Means of the parts are 1 and 3, of the image 2: errors of 1 each; a part that is not there counts for nothing.
    torch.testing.assert_close(part_error(predicted, truth, parts), torch.tensor([1.0, 0.0]))
    # How light the whole image is, is no error of its parts.
    torch.testing.assert_close(part_error(predicted + 5, truth, parts), torch.tensor([1.0, 0.0]))
    # Nor is anything within a part.
    within = torch.tensor([[1.0, -1, 1, -1], [-1, 1, -1, 1]])[None, None]
    torch.testing.assert_close(part_error(truth + within, truth, parts), torch.zeros(2))


def test_they_are_measured_beside_the_others_and_change_none() -> None:
    denoiser, data = planted_denoiser([["uniform", "edges"]], 6)
    layers = find_sites(denoiser)
    masks = synthetic_part_masks(data["synthetic"].measured)
    assert masks is not None
    ablation = [Intervention(Mode.zero, (Site("blocks.0", 1),))]
    found = {}
    for faces in (None, FaceMetrics({"synthetic": masks}), FaceMetrics({"synthetic": None})):
        engine = Engine(denoiser, layers, data, steps=4, seed=0, rows=4, extra=faces)
        found[faces] = engine.denoise("synthetic", Window(999, 0), ablation, 5, first=1)
    plain, both, without = found.values()
    assert tuple(plain) == DENOISE_METRICS
    assert tuple(both) == (*DENOISE_METRICS, "symmetry", "parts")
    assert tuple(without) == (*DENOISE_METRICS, "symmetry")
    for name in DENOISE_METRICS:
        torch.testing.assert_close(both[name].ablated, plain[name].ablated, rtol=0, atol=0)
    # Image by image, from the prediction itself.
    x0 = data["synthetic"].measured.images[1:6]
    t = engine.unit_timesteps(Window(999, 0), range(1, 6))
    x_t = denoiser.add_noise(x0, data["synthetic"].noise(range(1, 6), 0), t)
    clamped = denoiser(x_t, t, None).x0.clamp(-1, 1)
    torch.testing.assert_close(both["parts"].baseline, part_error(clamped, x0, masks[1:6]))
    torch.testing.assert_close(both["symmetry"].baseline, symmetry_error(clamped, x0))


@pytest.mark.parametrize("size", [16, 32])
def test_a_shifted_face_has_errors_of_its_parts(size: int) -> None:
    drawn = synthetic_faces(range(4), size=size)
    faces, parts = torch.from_numpy(drawn.images), torch.from_numpy(drawn.parts)
    assert (part_error(faces, faces, parts) == 0).all()
    assert (part_error(faces.roll(3, dims=2), faces, parts) > 1e-4).all()
