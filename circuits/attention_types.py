"""Types of attention: eight things that heads are known to do, found on one half of the images, confirmed on the other.

Every head has a score per type, at most 1: what it shows of that as a share of the most that a head can show, beyond
what its null has. On fold A a head is put down for the type with its highest score, if that is at least half; the heads
of each type give its prototype, and all others, which do nothing of the kind, one more. Fold B then says how surely a
head is nearest the prototype that fold A put it down for (``statistics.assign_types``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from circuits.profiles import POSITION, HeadProfiles
from circuits.statistics import UNASSIGNED, HeadTypes, assign_types

LEAST = 0.5
"""Score from which a head is put down for a type: half of what a head can show."""


class AttentionType(StrEnum):
    """What a head attends to."""

    edge = "edge"
    """Tokens of high gradient magnitude in this image, more than where edges are in others."""
    texture = "texture"
    """Likewise tokens with much energy in high spatial frequencies."""
    semantic_part = "semantic_part"
    """The part of the face (eyes, mouth, hair, ...) that the query belongs to, in this image's own outline."""
    symmetry = "symmetry"
    """The place across the face's vertical axis, more than the place across the horizontal axis."""
    positional = "positional"
    """Places, whatever the image shows: the map's mean over images explains it, and none of the simpler types does."""
    global_context = "global_context"
    """All tokens alike."""
    local_detail = "local_detail"
    """The query's own neighbourhood."""
    luminance = "luminance"
    """Bright tokens, dark tokens, or tokens of the query's own luminance or colour."""


TYPES = tuple(AttentionType)

FEATURES: tuple[tuple[str, AttentionType, int], ...] = (
    ("attends_edges_score", AttentionType.edge, 1),
    ("attends_texture_score", AttentionType.texture, 1),
    ("pools_parts_score", AttentionType.semantic_part, 1),
    ("symmetry", AttentionType.symmetry, 1),
    (f"{POSITION}_score", AttentionType.positional, 1),
    ("uniform_share", AttentionType.global_context, 1),
    ("local_share", AttentionType.local_detail, 1),
    ("attends_luminance_score", AttentionType.luminance, 1),
    ("attends_luminance_score", AttentionType.luminance, -1),
    ("pools_colour_score", AttentionType.luminance, 1),
)
"""Scores by which a head may be put down for a type: the measure, the type, and 1 for much or -1 for little of it."""


@dataclass(frozen=True)
class AssignedTypes:
    """Per head, in the order of the profiles.

    Attributes:
        type: index in ``TYPES``, or UNASSIGNED: no type on fold A, another one on fold B, a probability there below the
            threshold, or heads that are not told apart at all.
        probability: of the type that fold A put the head down for, on fold B; of "none of them" where it put it down
            for none.
        probabilities: of every type on fold B; what is missing to 1 is that of none.
        scores: mean over images and timesteps of every type's highest score.
        statistics: prototypes, split-half reliability and its p-value; None where fold A put all heads down for none.
    """

    type: Int[np.ndarray, " heads"]
    probability: Float[np.ndarray, " heads"]
    probabilities: Float[np.ndarray, "heads types"]
    scores: Float[np.ndarray, "heads types"]
    statistics: HeadTypes | None

    @property
    def names(self) -> list[str]:
        """Type of each head, or ``unassigned``."""
        return [TYPES[code].value if code != UNASSIGNED else "unassigned" for code in self.type]


def type_scores(profiles: HeadProfiles, dataset: str) -> Float[np.ndarray, "heads pairs features"]:
    """Scores of ``FEATURES`` per head and pair of images, mean over timesteps; 0 where there is nothing to measure.

    Timesteps of an image are not independent: they are averaged, and pairs of images are the unit.
    """
    values = profiles.values[dataset]

    def per_pair(name: str) -> Float[np.ndarray, "heads timesteps pairs"]:
        found = np.nan_to_num(values[name].astype(np.float64))
        pairs = values[POSITION].shape[2]
        return found if found.shape[2] == pairs else found.reshape(*found.shape[:2], pairs, 2).mean(axis=3)

    symmetry = per_pair("symmetry") - per_pair("symmetry_null")
    expected = per_pair("local_share_null")
    local = (per_pair("local_share") - expected) / (1 - expected)
    # A head that attends to itself or to its mirror image is at the same places in all images, too: what is called
    # positional is what these leave.
    simpler = np.clip(np.maximum(local, symmetry), 0, 1)
    special = {
        "symmetry": symmetry,
        "local_share": local,
        f"{POSITION}_score": per_pair(f"{POSITION}_score") * (1 - simpler),
    }
    features = [sign * (special[name] if name in special else per_pair(name)) for name, _, sign in FEATURES]
    return np.stack(features, axis=-1).mean(axis=1)


def assign_attention_types(
    profiles: HeadProfiles, dataset: str, rng: np.random.Generator, *, draws: int = 999, threshold: float = 0.9
) -> AssignedTypes:
    """The type of every head on a data set; fold A are pairs of images drawn at random, half of them.

    Args:
        threshold: least probability on fold B of the type that fold A gives.

    Raises:
        ValueError: fewer than 4 pairs of images.
    """
    scores = type_scores(profiles, dataset)
    heads, pairs, _ = scores.shape
    if pairs < 4:
        raise ValueError(f"types need 2 folds of at least 2 pairs of images each; expected 8 images, got {2 * pairs}")
    fold_a = rng.permutation(pairs) % 2 == 0
    on_a = scores[:, fold_a].mean(axis=1)
    rule = np.where(on_a.max(axis=1) >= LEAST, on_a.argmax(axis=1), UNASSIGNED)
    kinds, labels = np.unique(rule, return_inverse=True)
    of_feature = np.array([TYPES.index(found) for _, found, _ in FEATURES])
    summary = np.stack(
        [scores[:, :, of_feature == code].mean(axis=1).max(axis=1) for code in range(len(TYPES))], axis=1
    )
    if (rule == UNASSIGNED).all() or heads < 2:
        blank = np.zeros((heads, len(TYPES)))
        return AssignedTypes(np.full(heads, UNASSIGNED), np.ones(heads), blank, summary, None)
    found = assign_types(scores, fold_a, labels.reshape(-1), rng, draws=draws, threshold=threshold)
    of_kind = np.where(kinds == UNASSIGNED, UNASSIGNED, of_feature[kinds])
    # A type may have several prototypes, such as attending to bright and to dark tokens.
    probabilities = np.stack(
        [found.probabilities[:, of_kind == code].sum(axis=1) for code in range(len(TYPES))], axis=1
    )
    own = of_kind[labels.reshape(-1)]
    none = 1 - probabilities.sum(axis=1)
    probability = np.where(own == UNASSIGNED, none, probabilities[np.arange(heads), own])
    sure = (own != UNASSIGNED) & (probability >= threshold) & (of_kind[found.type_a] == own)
    sure &= found.p_separation <= 0.05
    return AssignedTypes(np.where(sure, own, UNASSIGNED), probability, probabilities, summary, found)


def with_types(profiles: HeadProfiles, types: AssignedTypes) -> pd.DataFrame:
    """The profiles' frame with the columns ``type`` and ``type_probability``, the same in all rows of a head."""
    frame = profiles.frame()
    place = {(layer.name, head): row for row, (layer, head) in enumerate(profiles.heads)}
    rows = [place[key] for key in zip(frame["layer"], frame["head"], strict=True)]
    return frame.assign(type=np.array(types.names)[rows], type_probability=types.probability[rows])
