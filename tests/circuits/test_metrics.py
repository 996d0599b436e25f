"""Metrics against closed forms."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from circuits import metrics
from circuits.metrics import X0_METRICS, Images
from circuits.vocabulary import DENOISE_METRICS, SAMPLE_DISTANCES, SAMPLE_METRICS

N, SIZE = 3, 17


def gray(*values: float) -> Images:
    """Constant images."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, SIZE, SIZE).contiguous()


def ramp(across: float, down: float) -> Images:
    """An image that rises by so much a pixel."""
    y, x = torch.meshgrid(torch.arange(float(SIZE)), torch.arange(float(SIZE)), indexing="ij")
    return (across * x + down * y)[None, None]


def noise(channels: int = 1, seed: int = 0, n: int = N) -> Images:
    return torch.rand((n, channels, SIZE, SIZE), generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("metric", X0_METRICS.values(), ids=X0_METRICS)
def test_identical_images_have_no_error_and_different_ones_have(
    metric: Callable[[Images, Images], torch.Tensor], channels: int
) -> None:
    a, b = noise(channels), noise(channels, seed=1)
    assert metric(a, a).shape == (N,)
    torch.testing.assert_close(metric(a, a), torch.zeros(N), rtol=0, atol=1e-6)
    assert (metric(a, b) > 1e-3).all()
    torch.testing.assert_close(metric(a, b), torch.cat([metric(a[i : i + 1], b[i : i + 1]) for i in range(N)]))
    torch.testing.assert_close(metric(a, b), metric(b, a))


def test_constant_images_differ_in_luminance_alone() -> None:
    a, b = gray(0.5, -0.25, 1.0), gray(0.25, 0.25, 1.0)
    expected = torch.tensor([0.0625, 0.25, 0.0])
    torch.testing.assert_close(metrics.mean_square(a - b), expected)
    torch.testing.assert_close(metrics.luminance_error(a, b), expected)
    for error in (metrics.edge_error(a, b), metrics.high_frequency_error(a, b)):
        torch.testing.assert_close(error, torch.zeros(3), rtol=0, atol=1e-12)


def test_luma_of_rgb_is_rec_601() -> None:
    colours = torch.eye(3)[:, :, None, None].expand(-1, -1, 2, 2)
    expected = torch.tensor([0.299, 0.587, 0.114])[:, None, None, None].expand(-1, 1, 2, 2)
    assert torch.equal(metrics.luminance_map(colours), expected)
    assert torch.equal(metrics.luminance_map(noise()), noise())
    # All metrics of luminance see a gray rgb image as the gray image.
    a, b = noise(), noise(seed=1)
    for name in ("edge", "luminance"):
        expanded = X0_METRICS[name](a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1))
        torch.testing.assert_close(expanded, X0_METRICS[name](a, b))


@pytest.mark.parametrize(("across", "down"), [(0.03, 0.0), (0.0, -0.05), (0.03, 0.04)])
def test_sobel_gives_the_slope_of_a_ramp(across: float, down: float) -> None:
    inner = metrics.sobel(ramp(across, down))[0, 0, 1:-1, 1:-1]
    torch.testing.assert_close(inner, torch.full_like(inner, float(np.hypot(across, down))), rtol=1e-4, atol=1e-6)
    flat = metrics.edge_error(ramp(across, down)[..., 1:-1, 1:-1], torch.zeros(1, 1, SIZE - 2, SIZE - 2))
    assert 0 < flat.item() <= across**2 + down**2 + 1e-6


def test_the_high_pass_removes_ramps_and_keeps_a_checkerboard() -> None:
    torch.testing.assert_close(
        metrics.high_pass(ramp(0.03, 0.04))[..., 2:-2, 2:-2], torch.zeros(1, 1, 13, 13), rtol=0, atol=1e-6
    )
    board = (torch.arange(SIZE)[:, None] + torch.arange(SIZE)) % 2 * 2.0 - 1
    # The binomial filter (1 4 6 4 1) / 16 has a zero at the highest frequency.
    torch.testing.assert_close(metrics.high_pass(board[None, None])[..., 2:-2, 2:-2], board[None, None, 2:-2, 2:-2])
    stripes = board[:1].expand(1, 1, SIZE, SIZE)
    torch.testing.assert_close(metrics.high_pass(stripes)[..., 2:-2, 2:-2], stripes[..., 2:-2, 2:-2])


def test_luminance_ignores_detail() -> None:
    fine = (torch.arange(16) % 2 * 2.0 - 1).expand(1, 1, 16, 16)
    assert metrics.luminance_error(fine, torch.zeros_like(fine)).item() == 0
    halves = torch.cat([torch.full((1, 1, 16, 8), -0.5), torch.full((1, 1, 16, 8), 0.5)], dim=3)
    assert metrics.luminance_error(halves, torch.zeros_like(halves)).item() == pytest.approx(0.25)


def test_structure_error_is_bounded_and_agrees_with_skimage() -> None:
    a, b = noise(), noise(seed=1)
    for error in (metrics.structure_error(a, b), metrics.structure_error(a, -a), metrics.structure_error(a, 0 * a)):
        assert ((error >= 0) & (error <= 1)).all()
    assert (metrics.structure_error(a, -a) > 0.9).all(), "a negative is as unlike as can be"
    found = metrics.structure_error(a, b)
    for i in range(N):
        # Reflected as torchmetrics does it; skimage's map is then read where its own border has no say.
        padded = [np.pad((x[i, 0].double().numpy() + 1) / 2, 5, mode="reflect") for x in (a, b)]
        settings = {"data_range": 1, "gaussian_weights": True, "use_sample_covariance": False, "full": True}
        ssim = structural_similarity(*padded, **settings)[1][5:-5, 5:-5].mean()
        assert found[i].item() == pytest.approx((1 - ssim) / 2, rel=1e-4)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 24, 40), (4, 8, 8)])
def test_structural_similarity_is_that_of_torchmetrics(shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    a, noise = torch.rand((5, *shape), generator=generator), torch.rand((5, *shape), generator=generator)
    b = (a + torch.linspace(0, 1, 5).view(-1, 1, 1, 1) * (noise - 0.5)).clamp(0, 1)
    expected = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(metrics.structural_similarity(a, b), expected, rtol=0, atol=1e-6)
    assert expected[0] == 1
    assert expected[-1] < 0.9


def test_structure_error_of_constant_images_in_closed_form() -> None:
    """SSIM of two flat images is (2 a b + c1) / (a^2 + b^2 + c1) with c1 = 0.01^2, a and b in [0, 1]."""
    a, b = 0.25, 0.6
    ssim = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    found = metrics.structure_error(gray(2 * a - 1), gray(2 * b - 1))
    assert found.item() == pytest.approx((1 - ssim) / 2, rel=1e-4)


def test_the_protocols_metrics_by_name() -> None:
    x0, predicted, error = noise(), noise(seed=1) * 3, noise(seed=2)
    found = metrics.denoise_metrics(error, predicted, x0)
    assert tuple(found) == DENOISE_METRICS
    assert all(values.shape == (N,) and (values >= 0).all() for values in found.values())
    torch.testing.assert_close(found["noise_mse"], error.square().mean(dim=(1, 2, 3)))
    torch.testing.assert_close(found["x0_mse"], (predicted - x0).square().mean(dim=(1, 2, 3)))
    for name, metric in X0_METRICS.items():  # of the image as it would be shown
        torch.testing.assert_close(found[name], metric(predicted.clamp(-1, 1), x0))


def test_sample_metrics_of_flat_and_striped_images() -> None:
    flat = metrics.sample_metrics(gray(0.3, -0.8))
    assert tuple(flat) == SAMPLE_METRICS
    for values in flat.values():
        torch.testing.assert_close(values, torch.zeros(2), rtol=0, atol=1e-8)
    board = ((torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1)[None, None]
    assert metrics.sample_metrics(board)["contrast"].item() == pytest.approx(256 / 255)
    assert metrics.sample_metrics(board)["high_frequency_energy"].item() == pytest.approx(1, abs=0.2)
    distances = metrics.sample_distances(noise(), noise())
    assert tuple(distances) == SAMPLE_DISTANCES
    torch.testing.assert_close(distances["sample_mse"], torch.zeros(N))
    assert metrics.sample_distances(gray(0.5), gray(0.2))["sample_mse"].item() == pytest.approx(0.09)
