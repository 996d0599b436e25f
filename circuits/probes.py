"""What heads respond to: edges, texture, light and colour, parts of the face; each against a permutation of images.

Faces are aligned, and attention is smooth over the image, so that almost any two maps correlate. The null is therefore
another image: images are taken two by two, and what a head does on one is compared with the features of the other.
Under "the head does not look at this image's features" the two may be swapped, which flips the sign of the difference:
an exact sign-flip test over pairs, whatever the maps look like. A head that always looks where edges usually are is no
edge head by this test; it is a positional one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int

from circuits.data.image_sets import ImageSet
from circuits.data.synthetic_faces import synthetic_faces
from circuits.metrics import high_pass, luminance_map, sobel
from circuits.statistics import signflip_test
from circuits.token_grids import TokenGrid

RESOLUTION = 1e-6
"""Differences below this are rounding of float32 and count as none."""

SELECTIVE = 0.1
"""Attention is hardly selective where it differs less between images, relative to what uniform attention gives a key;
and keys that get less than this all get about nothing."""

SCALARS = ("edges", "texture", "luminance")
"""Features that are one number a token."""

_COMPARED = 64
_SYNTHETIC_ID = re.compile(r"synthetic_(\d+)")


@dataclass(frozen=True)
class Likeness:
    """A feature by which tokens are alike: the inner product of their columns.

    Attributes:
        best: likeness of a token and the one most like it, which may be itself.
    """

    columns: Float[torch.Tensor, "images tokens columns"]
    best: Float[torch.Tensor, "images tokens"]

    @classmethod
    def of(cls, columns: Float[torch.Tensor, "images tokens columns"]) -> Likeness:
        """Some tokens at a time are compared with all."""
        blocks = [(block @ columns.mT).amax(dim=2) for block in columns.split(_COMPARED, dim=1)]
        return cls(columns, torch.cat(blocks, dim=1))


@dataclass(frozen=True)
class TokenFeatures:
    """What the image shows at each token.

    Attributes:
        scalars: one column each of ``SCALARS``, in standard deviations over the image's tokens about their mean, and 0
            where the image has none: gradient magnitude (Sobel), mean over the token's patch; root mean square of what
            a 5 x 5 binomial blur takes away, over the patch; luminance, mean over the patch.
        colour: luminance, and of colour images red and blue less it; centred, and scaled so that its mean square norm
            over tokens is 1.
        parts: share of the patch that belongs to each part; None where no masks are known.
    """

    scalars: Float[torch.Tensor, "images tokens scalars"]
    colour: Likeness
    parts: Likeness | None

    def of(self, images: slice, device: torch.device) -> TokenFeatures:
        """Those of some images."""
        return self._each(lambda values: values[images].to(device))

    def at(self, tokens: Int[torch.Tensor, " chosen"]) -> TokenFeatures:
        """Those of some tokens."""
        return self._each(lambda values: values[:, tokens])

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> TokenFeatures:
        def of(likeness: Likeness) -> Likeness:
            return Likeness(change(likeness.columns), change(likeness.best))

        return TokenFeatures(change(self.scalars), of(self.colour), None if self.parts is None else of(self.parts))


@dataclass(frozen=True)
class PairedProbe:
    """A probe on pairs of images 2j and 2j + 1, mean over the two.

    Attributes:
        own: with each image's own features.
        swapped: with those of the other image; its null.
        score: own less swapped as a share of what is attainable, at most 1; 0 where the head does not look at the
            image.
    """

    own: Float[torch.Tensor, "pairs heads"]
    swapped: Float[torch.Tensor, "pairs heads"]
    score: Float[torch.Tensor, "pairs heads"]


@dataclass(frozen=True)
class ProbeTest:
    """A probe against its null, per trial.

    Attributes:
        statistic, null_mean: means over units of the probe and of what its null expects.
        null_sd: of the statistic when each unit's difference from its null has a random sign.
        z: (statistic - null_mean) / null_sd; 0 where every difference is 0.
        p: of the sign-flip test, two-sided.
    """

    statistic: Float[np.ndarray, " trials"]
    null_mean: Float[np.ndarray, " trials"]
    null_sd: Float[np.ndarray, " trials"]
    z: Float[np.ndarray, " trials"]
    p: Float[np.ndarray, " trials"]


def token_features(
    images: Float[torch.Tensor, "images channels height width"],
    grid: TokenGrid,
    parts: Bool[torch.Tensor, "images parts height width"] | None = None,
) -> TokenFeatures:
    """Features of images in [-1, 1] on a grid of tokens."""

    def pooled(maps: Float[torch.Tensor, "images channels h w"]) -> Float[torch.Tensor, "images tokens channels"]:
        return F.adaptive_avg_pool2d(maps, (grid.rows, grid.columns)).flatten(2).transpose(1, 2)

    luminance = luminance_map(images)
    colour = [luminance]
    if images.shape[1] == 3:
        colour += [images[:, :1] - luminance, images[:, 2:] - luminance]
    centred = _centred(pooled(torch.cat(colour, dim=1)))
    norm = centred.square().sum(dim=2).mean(dim=1).sqrt()[:, None, None]
    scalars = [pooled(sobel(images)), pooled(high_pass(luminance).square()).sqrt(), pooled(luminance)]
    return TokenFeatures(
        scalars=_standardised(torch.cat(scalars, dim=2)),
        colour=Likeness.of(torch.where(norm > RESOLUTION, centred / norm.clamp_min(RESOLUTION), 0.0)),
        parts=None if parts is None else Likeness.of(pooled(parts.float())),
    )


def attended(
    received: Float[torch.Tensor, "images heads tokens"], scalars: Float[torch.Tensor, "images tokens scalars"]
) -> list[PairedProbe]:
    """Mean of each feature where a head attends, in its standard deviations over the image.

    The score is the correlation over tokens, of the logarithm of the received attention and the feature, both as the
    difference between the images of a pair: of a softmax it is the logarithm that is linear in what keys are chosen by.
    It is shrunk where the attention hardly differs (``SELECTIVE``).
    """
    received, scalars = _whole_pairs(received), _whole_pairs(scalars)
    own, other = _pair_mean(received @ scalars), _pair_mean(received @ _other(scalars))
    tokens = received.shape[2]
    level = (tokens * received + SELECTIVE).log()
    more = level[0::2] - level[1::2]
    shown = scalars[0::2] - scalars[1::2]
    size = (more.square().mean(dim=2) + SELECTIVE**2)[..., None] * shown.square().mean(dim=1)[:, None]
    product = more @ shown / tokens
    score = torch.where(size > RESOLUTION**2, product / size.clamp_min(RESOLUTION**2).sqrt(), 0.0)
    return [PairedProbe(*three) for three in zip(own.unbind(2), other.unbind(2), score.unbind(2), strict=True)]


def pooling_columns(features: Sequence[Float[torch.Tensor, "images tokens columns"]]) -> torch.Tensor:
    """Columns that :func:`pooling` needs averaged under attention: the image's own and those of its pair's other.

    Those of an odd last image, which has no other, are 0.
    """
    both = torch.cat([_own_and_other(feature) for feature in features], dim=2)
    missing = len(features[0]) - len(both)
    return torch.cat([both, both.new_zeros(missing, *both.shape[1:])]) if missing else both


def pooling(
    pooled: Float[torch.Tensor, "images heads queries all_columns"], features: Sequence[Likeness]
) -> list[PairedProbe]:
    """Likeness of a query and what it attends to, mean over queries of <feature of q, feature under q's attention>.

    For shares of parts it is the attention mass within the same part; for centred colours of mean square 1 their
    autocorrelation under attention. The score is what it exceeds its null by, over the most that it could: a head on
    the tokens most like its queries.

    Args:
        pooled: :func:`pooling_columns` averaged under attention.
        features: at the queries.
    """
    pooled, columns = _whole_pairs(pooled), [feature.columns for feature in features]
    widths = [values.shape[2] for values in columns for _ in range(2)]
    halves = [half for values in columns for half in _own_and_other(values).chunk(2, dim=2)]
    # One product for all: each feature is weighed by itself in a column of its own.
    weighing = [F.pad(half, (sum(widths[:i]), sum(widths[i + 1 :]))).flatten(1) for i, half in enumerate(halves)]
    alike = _pair_mean(pooled.flatten(2) @ torch.stack(weighing, dim=2) / pooled.shape[2])
    found = []
    for feature, (own, other) in zip(features, (pair.unbind(2) for pair in alike.split(2, dim=2)), strict=True):
        best = _pair_mean(_whole_pairs(feature.best).mean(dim=1))[:, None]
        found.append(PairedProbe(own, other, (own - other) / (best - other).clamp_min(SELECTIVE)))
    return found


def coupling(
    outputs: Float[torch.Tensor, "images heads tokens head_dim"],
    features: Sequence[Float[torch.Tensor, "images tokens columns"]],
) -> list[PairedProbe]:
    """Share of a head output's variance over tokens that each feature explains, in a direction that both images share.

    With b = covariance over tokens of output and feature, <b_i, b_j> of the two images over the root of the product of
    their output variances: cross-validated, hence without the bias of a variance explained within one image, and 0 in
    expectation where there is no common direction. Swapped, each output meets the other image's feature.

    Args:
        features: of one or more columns each, centred and of mean square 1; see :func:`part_columns` for parts.
    """
    outputs = _whole_pairs(outputs).float()
    images, heads, tokens, width = outputs.shape
    joined = outputs.transpose(1, 2).reshape(images, tokens, heads * width)
    columns = torch.cat([_own_and_other(feature) for feature in features], dim=2)
    covariance = (columns.transpose(1, 2) @ joined / tokens).unflatten(2, (heads, width))
    variance = joined.sub(joined.mean(dim=1, keepdim=True)).square().mean(dim=1).unflatten(1, (heads, width)).sum(dim=2)
    size = (variance[0::2] * variance[1::2]).sqrt()[:, None]
    product = (covariance[0::2] * covariance[1::2]).sum(dim=3)
    shares = torch.where(size > 0, product / size.clamp_min(torch.finfo(size.dtype).tiny), 0.0)
    found = []
    for part in shares.split([2 * feature.shape[2] for feature in features], dim=1):
        own, other = (half.sum(dim=1) for half in part.chunk(2, dim=1))
        found.append(PairedProbe(own, other, own - other))
    return found


def part_columns(parts: Float[torch.Tensor, "images tokens parts"]) -> Float[torch.Tensor, "images tokens parts"]:
    """Parts for :func:`coupling`: scaled so that together they explain the variance between parts (exact if no token
    has two parts)."""
    share = parts.mean(dim=1, keepdim=True)
    return torch.where(share > 0, (parts - share) / share.clamp_min(RESOLUTION).sqrt(), 0.0)


def permutation_test(own: Float[np.ndarray, "trials units"], null: Float[np.ndarray, "trials units"]) -> ProbeTest:
    """Test probes against their nulls; trials with a value that is not finite get NaN throughout.

    For probes on pairs a sign flip is a swap of features between the two images: exact. For probes on single images the
    null is the mean over permutations of the keys, and the test is that of the mean difference from it.

    Args:
        own, null: the probe and what its null expects, per unit: a pair of images, or an image.
    """
    own, null = np.asarray(own, dtype=np.float64), np.asarray(null, dtype=np.float64)
    if own.shape != null.shape or own.ndim != 2 or own.shape[1] < 2:
        raise ValueError(f"expected two arrays [trials, units >= 2] of one shape, got {own.shape} and {null.shape}")
    known = np.isfinite(own).all(axis=1) & np.isfinite(null).all(axis=1)
    difference = (own - null)[known]
    difference[np.abs(difference) < RESOLUTION] = 0.0
    columns = np.full((5, own.shape[0]), np.nan)
    if known.any():
        spread = np.sqrt((difference**2).sum(axis=1)) / own.shape[1]
        mean = difference.mean(axis=1)
        columns[:, known] = (
            own[known].mean(axis=1),
            null[known].mean(axis=1),
            spread,
            np.where(spread > 0, mean / np.where(spread > 0, spread, 1.0), 0.0),
            signflip_test(difference, "two-sided").p,
        )
    return ProbeTest(*columns)


def synthetic_part_masks(images: ImageSet) -> Bool[torch.Tensor, "images 8 height width"] | None:
    """Exact masks of the parts of generated faces (``synthetic_faces.PARTS``); None for any other images.

    The faces are drawn again by their ids and must come out the same.
    """
    found = [_SYNTHETIC_ID.fullmatch(name) for name in images.ids]
    indices = [int(match[1]) for match in found if match is not None]
    channels, height, width = images.images.shape[-3:]
    if images.images.dim() != 4 or len(indices) < len(found) or height != width or channels not in (1, 3):
        return None
    drawn = synthetic_faces(indices, size=height, colour="gray" if channels == 1 else "rgb")
    same = torch.allclose(torch.from_numpy(drawn.images), images.images, atol=1e-5)
    return torch.from_numpy(drawn.parts) if same else None


def _whole_pairs(values: torch.Tensor) -> torch.Tensor:
    return values[: len(values) // 2 * 2]


def _other(values: torch.Tensor) -> torch.Tensor:
    """Of each image the values of its pair's other."""
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _own_and_other(values: Float[torch.Tensor, "images tokens columns"]) -> torch.Tensor:
    even = _whole_pairs(values)
    return torch.cat([even, _other(even)], dim=2)


def _pair_mean(values: Float[torch.Tensor, "images heads ..."]) -> Float[torch.Tensor, "pairs heads ..."]:
    return values.unflatten(0, (-1, 2)).mean(dim=1)


def _centred(values: torch.Tensor) -> torch.Tensor:
    return values - values.mean(dim=1, keepdim=True)


def _standardised(values: Float[torch.Tensor, "images tokens n"]) -> Float[torch.Tensor, "images tokens n"]:
    centred = _centred(values)
    spread = centred.square().mean(dim=1, keepdim=True).sqrt()
    # Of a flat image a gradient magnitude of 1e-6 is all there is: no edges, not faint ones.
    return torch.where(spread > 10 * RESOLUTION, centred / spread.clamp_min(RESOLUTION), 0.0)
