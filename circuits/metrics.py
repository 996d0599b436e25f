"""Per-image measurements: one non-negative float32 an image, for pixels in [-1, 1]."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float

Images = Float[torch.Tensor, "n c h w"]
PerImage = Float[torch.Tensor, " n"]

# Part of every trial's id: raise it when a definition below changes, so that old and new measurements are not mixed.
VERSION = 2


def mean_square(difference: Images) -> PerImage:
    return difference.square().mean(dim=(1, 2, 3))


def luminance_map(images: Images) -> Float[torch.Tensor, "n 1 h w"]:
    """Rec. 601 luma of RGB images; gray images as they are."""
    if images.shape[1] == 3:
        weights = torch.tensor([0.299, 0.587, 0.114], device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
        return (images * weights).sum(1, keepdim=True)
    return images.mean(1, keepdim=True)


def sobel(images: Images) -> Float[torch.Tensor, "n 1 h w"]:
    """Gradient magnitude of the luminance (Sobel, replicated borders)."""
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=images.device) / 8
    padded = F.pad(luminance_map(images), (1, 1, 1, 1), mode="replicate")
    gradients = F.conv2d(padded, torch.stack([kernel, kernel.T])[:, None])
    # The constant keeps the magnitude smooth where the image is flat.
    return (gradients.square().sum(1, keepdim=True) + 1e-12).sqrt()


def high_pass(images: Images) -> Images:
    """The image minus its 5x5 binomial blur."""
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=images.device) / 16
    kernel = torch.outer(row, row).expand(images.shape[1], 1, 5, 5)
    blurred = F.conv2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), kernel, groups=images.shape[1])
    return images - blurred


def edge_error(predicted: Images, truth: Images) -> PerImage:
    """Mean square difference of the Sobel gradient magnitudes."""
    return mean_square(sobel(predicted) - sobel(truth))


def high_frequency_error(predicted: Images, truth: Images) -> PerImage:
    """Mean square of the high-passed difference."""
    return mean_square(high_pass(predicted - truth))


def luminance_error(predicted: Images, truth: Images) -> PerImage:
    """Mean square difference of the luminance averaged over an 8x8 raster: light and shade, without detail."""
    return mean_square(F.adaptive_avg_pool2d(luminance_map(predicted) - luminance_map(truth), 8))


def structure_error(predicted: Images, truth: Images) -> PerImage:
    """(1 - SSIM) / 2 in [0, 1], of pixels moved to [0, 1].

    SSIM is made for intensities: means below zero change the sign of its luminance term, and a negative looks like the
    image.
    """
    return ((1 - structural_similarity((predicted + 1) / 2, (truth + 1) / 2)) / 2).clamp(min=0)


def structural_similarity(a: Images, b: Images) -> PerImage:
    """SSIM of images in [0, 1], at least 6 pixels a side (Wang et al. 2004): Gaussian of sd 1.5 cut at 5 pixels,
    reflected borders, mean over pixels and channels. As torchmetrics has it, a tenth of its time on small images:
    every trial's every image is measured by it."""
    rows, columns = (_gaussian_blur(size).to(a) for size in a.shape[-2:])
    means = rows @ torch.cat([a, b, a * a, b * b, a * b]) @ columns.T
    mean_a, mean_b, square_a, square_b, product = means.chunk(5)
    variances = (square_a - mean_a.square()).clamp(min=0) + (square_b - mean_b.square()).clamp(min=0)
    luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a.square() + mean_b.square() + 1e-4)
    return (luminance * (2 * (product - mean_a * mean_b) + 9e-4) / (variances + 9e-4)).mean(dim=(1, 2, 3))


@lru_cache(maxsize=16)
def _gaussian_blur(size: int) -> Float[torch.Tensor, "size size"]:
    """The blur along one side, as a matrix: the product of two is the whole, and faster than a convolution."""
    weights = torch.exp(-torch.arange(-5.0, 6.0).square() / (2 * 1.5**2))
    padded = F.pad(torch.eye(size), (5, 5), mode="reflect")
    return F.conv1d(padded[:, None], (weights / weights.sum()).view(1, 1, -1)).squeeze(1).T.contiguous()


X0_METRICS: dict[str, Callable[[Images, Images], PerImage]] = {
    "edge": edge_error,
    "high_frequency": high_frequency_error,
    "luminance": luminance_error,
    "structure": structure_error,
}
"""Errors of the one-step clean image, which is clamped to the range of images first, as samplers do."""


def denoise_metrics(noise_error: Images, x0_predicted: Images, x0: Images) -> dict[str, PerImage]:
    """Every metric of the ``denoise`` protocol."""
    clamped = x0_predicted.clamp(-1, 1)
    measured = {"noise_mse": mean_square(noise_error), "x0_mse": mean_square(x0_predicted - x0)}
    return measured | {name: metric(clamped, x0) for name, metric in X0_METRICS.items()}


def sample_metrics(images: Images) -> dict[str, PerImage]:
    """Properties of generated images."""
    return {
        "edge_energy": mean_square(sobel(images)),
        "high_frequency_energy": mean_square(high_pass(images)),
        "contrast": luminance_map(images).var(dim=(1, 2, 3)),
    }


def sample_distances(images: Images, baseline: Images) -> dict[str, PerImage]:
    """How far each generated image is from the unablated image of the same seed."""
    return {"sample_mse": mean_square(images - baseline), "sample_structure": structure_error(images, baseline)}
