"""Types of heads: prototypes from one half of the images, probabilities from the other, and no label below .9."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.cluster.vq import kmeans

from circuits.statistics.validation import check_count, check_fraction

UNASSIGNED = -1
"""Type of a head whose probability does not reach the threshold, or of all heads where none can be told apart."""

DRAW_BLOCK = 64
RESTARTS = 20


@dataclass(frozen=True)
class Prototypes:
    """Centres of the types, in units of `scale` about `location` (mean and sd over the heads of fold A).

    Ordered by their first feature, so that type 0 has the smallest (the lowest entropy, say).
    """

    centres: Float[np.ndarray, "types features"]
    location: Float[np.ndarray, " features"]
    scale: Float[np.ndarray, " features"]

    def nearest(self, means: Float[np.ndarray, "*draws heads features"]) -> Int[np.ndarray, "*draws heads"]:
        """Index of the nearest centre."""
        scaled = (means - self.location) / self.scale
        # |x|^2 is common to all centres: compare -2 x.c + |c|^2 only.
        return np.argmin((self.centres**2).sum(axis=1) - 2.0 * scaled @ self.centres.T, axis=-1)


@dataclass(frozen=True)
class HeadTypes:
    """Per head: its type or UNASSIGNED.

    type_a: nearest prototype on fold A, which fitted them. probabilities: share of bootstrap draws of fold B's images
    that are nearest each prototype. probability: that of the most probable type. type: that type where the probability
    is at least `threshold`, it equals type_a, and `p_separation` <= alpha; UNASSIGNED otherwise.
    reliability: correlation over heads of the two halves (all features, standardised); p_separation: its permutation
    p-value, "the heads differ at all".
    """

    type: Int[np.ndarray, " heads"]
    probability: Float[np.ndarray, " heads"]
    probabilities: Float[np.ndarray, "heads types"]
    type_a: Int[np.ndarray, " heads"]
    prototypes: Prototypes
    reliability: float
    p_separation: float
    threshold: float
    draws: int


def fit_prototypes(
    features: Float[np.ndarray, "heads images features"],
    types: int | Sequence[int] | np.ndarray,
    rng: np.random.Generator,
) -> Prototypes:
    """Prototypes of head means over images: k-means if `types` is a count, else the means of the given types.

    `types` as labels, one per head (from a rule applied to these same images), are numbered 0 .. k-1. k-means may
    return fewer than `types` centres where heads coincide.
    """
    features = _check_features(features)
    means = features.mean(axis=1)
    location, spread = means.mean(axis=0), means.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    scaled = (means - location) / scale
    if np.ndim(types) == 0:
        count = check_count(int(np.asarray(types)), "types")
        if count > means.shape[0]:
            raise ValueError(f"types: expected at most {means.shape[0]} (the heads), got {count}")
        centres, _ = kmeans(scaled, count, iter=RESTARTS, rng=rng)
        centres = centres[np.argsort(centres[:, 0], kind="stable")]
    else:
        labels = np.asarray(types)
        if labels.shape != (means.shape[0],) or not np.array_equal(np.unique(labels), np.arange(labels.max() + 1)):
            raise ValueError(f"types: expected {means.shape[0]} labels that use all of 0 .. k-1, got {labels!r}")
        centres = np.stack([scaled[labels == code].mean(axis=0) for code in range(int(labels.max()) + 1)])
    return Prototypes(centres=centres, location=location, scale=scale)


def assign_types(
    features: Float[np.ndarray, "heads images features"],
    fold_a: Bool[np.ndarray, " images"],
    types: int | Sequence[int] | np.ndarray,
    rng: np.random.Generator,
    draws: int = 999,
    threshold: float = 0.9,
    alpha: float = 0.05,
) -> HeadTypes:
    """Fit prototypes on the images of fold A, and give every head a type only if fold B's images repeat it.

    Binning heads by a feature and testing that feature on the same images "finds" types among identical heads every
    time. Here three things guard a label: the heads must differ on images not used to sort them (split-half
    permutation of heads, exact when they do not), the label must be the same in both halves, and the bootstrap over
    fold B's images (shared by all heads) must give it with probability `threshold`. Images are the unit.
    """
    features = _check_features(features)
    fold_a = np.asarray(fold_a)
    if fold_a.dtype != np.bool_ or fold_a.shape != (features.shape[1],):
        raise ValueError(f"fold_a: expected {features.shape[1]} booleans, got {fold_a.dtype} {fold_a.shape}")
    if min(np.count_nonzero(fold_a), np.count_nonzero(~fold_a)) < 2:
        raise ValueError(f"fold_a: expected at least 2 images in each fold, got {fold_a.sum()} and {(~fold_a).sum()}")
    check_count(draws, "draws")
    check_fraction(threshold, "threshold")
    check_fraction(alpha, "alpha")
    a, b = features[:, fold_a], features[:, ~fold_a]
    prototypes = fit_prototypes(a, types, rng)
    type_a = prototypes.nearest(a.mean(axis=1))
    reliability, p_separation = _separation(a.mean(axis=1), b.mean(axis=1), rng, draws)
    probabilities = _bootstrap(b, prototypes, rng, draws)
    likely = probabilities.argmax(axis=1)
    probability = probabilities.max(axis=1)
    sure = (probability >= threshold) & (likely == type_a) & (p_separation <= alpha)
    return HeadTypes(
        type=np.where(sure, likely, UNASSIGNED),
        probability=probability,
        probabilities=probabilities,
        type_a=type_a,
        prototypes=prototypes,
        reliability=reliability,
        p_separation=p_separation,
        threshold=threshold,
        draws=draws,
    )


def _bootstrap(
    features: Float[np.ndarray, "heads images features"], prototypes: Prototypes, rng: np.random.Generator, draws: int
) -> Float[np.ndarray, "heads types"]:
    heads, images, width = features.shape
    flat = features.transpose(1, 0, 2).reshape(images, heads * width)
    counts = np.zeros((heads, prototypes.centres.shape[0]))
    for start in range(0, draws, DRAW_BLOCK):
        size = min(DRAW_BLOCK, draws - start)
        weights = rng.multinomial(images, np.full(images, 1.0 / images), size=size) / images
        nearest = prototypes.nearest((weights @ flat).reshape(size, heads, width))
        for code in range(counts.shape[1]):
            counts[:, code] += np.count_nonzero(nearest == code, axis=0)
    return counts / draws


def _separation(
    a: Float[np.ndarray, "heads features"], b: Float[np.ndarray, "heads features"], rng: np.random.Generator, draws: int
) -> tuple[float, float]:
    """Split-half correlation over heads, and its p-value from permuting the heads of one half."""
    a, b = _standardise(a), _standardise(b)
    norm = np.sqrt((a**2).sum() * (b**2).sum())
    if norm == 0:
        return 0.0, 1.0
    observed = float((a * b).sum())
    orders = rng.permuted(np.tile(np.arange(a.shape[0]), (draws, 1)), axis=1)
    permuted = np.array([(a * b[order]).sum() for order in orders])
    reached = int(np.count_nonzero(permuted >= observed - 1e-12 * norm))
    return observed / float(norm), (1.0 + reached) / (draws + 1.0)


def _standardise(means: Float[np.ndarray, "heads features"]) -> Float[np.ndarray, "heads features"]:
    centred = means - means.mean(axis=0)
    spread = centred.std(axis=0)
    return centred / np.where(spread > 0, spread, 1.0)


def _check_features(features: np.ndarray) -> Float[np.ndarray, "heads images features"]:
    array = np.asarray(features)
    if array.ndim != 3 or array.shape[0] < 2 or array.shape[1] < 2 or array.shape[2] < 1:
        raise ValueError(f"features: expected shape [heads >= 2, images >= 2, features >= 1], got {array.shape}")
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise ValueError(f"features: expected finite real numbers, got dtype {array.dtype} with NaN, inf or others")
    return array.astype(np.float64)
