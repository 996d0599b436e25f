"""Do the heads of a type do what their type says? Ablated at once, beside random sets of heads, on every metric.

A type is read off attention; what it claims is causal: losing the heads that look at edges should hurt edges. So the
heads of a type are ablated together and set against random sets with as many heads in every layer, drawn from all heads
of these layers, on the same images. What the set does beyond the average random one is its *excess*. A type holds up if
its excess on its own metric is above 0, over images and over random sets, and larger than the excess of every other
type on that metric. Two types that do so to each other are doubly dissociated: each hurts its own metric more than the
other does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from circuits.attention_types import TYPES, AssignedTypes, AttentionType
from circuits.statistics import bh, control_contrast, effects, matched_random_circuits, signflip_test

OWN_METRIC: dict[AttentionType, str | None] = {
    AttentionType.edge: "edge",
    AttentionType.texture: "high_frequency",
    AttentionType.semantic_part: "parts",
    AttentionType.symmetry: "symmetry",
    AttentionType.positional: None,
    AttentionType.global_context: None,
    AttentionType.local_detail: "high_frequency",
    AttentionType.luminance: "luminance",
}
"""What a type should hurt most. Attention by place alone, or to everything alike, says where a head looks and not what
for: it predicts no metric, and nothing is claimed of it. Texture and local detail predict the same one, so neither is
asked to hurt it more than the other."""

ASSIGNED, LEADING = "assigned", "leading"


@dataclass(frozen=True)
class HeadSet:
    """Heads to ablate at once, and the random sets that they are compared with.

    Attributes:
        basis: ``assigned``: the heads of the type. ``leading``: no head has the type, and these have its highest
            scores; what comes of them is exploratory.
        member: per head, numbered through layer by layer.
        matched: other sets with as many heads in every layer, no two alike; none where there is no other.
    """

    type: AttentionType
    basis: str
    member: Bool[np.ndarray, " heads"]
    matched: Bool[np.ndarray, "sets heads"]


@dataclass(frozen=True)
class SetOutcome:
    """What a set and its random ones do to every image: log(ablated / baseline) by metric.

    Attributes:
        own: ``[images]`` by metric; matched: ``[sets, images]``.
    """

    own: Mapping[str, Float[np.ndarray, " images"]]
    matched: Mapping[str, Float[np.ndarray, "sets images"]]

    def excess(self, metric: str) -> Float[np.ndarray, " images"]:
        """What the set does beyond the average of its random ones."""
        return self.own[metric] - self.matched[metric].mean(axis=0)


def head_sets(
    types: AssignedTypes, layer_of: Sequence[object], rng: np.random.Generator, *, draws: int = 24, leading: int = 4
) -> Iterator[HeadSet]:
    """A set for every type: its heads, or where it has none the ``leading`` ones of a positive score.

    Args:
        layer_of: the layer of each head.
        draws: random sets wanted; repeated ones and the set itself are left out.
    """
    for code, kind in enumerate(TYPES):
        member, basis = types.type == code, ASSIGNED
        if not member.any():
            first = np.argsort(-types.scores[:, code], kind="stable")[:leading]
            member, basis = np.zeros(len(types.type), dtype=bool), LEADING
            member[first[types.scores[first, code] > 0]] = True
        if member.any():
            drawn = np.unique(matched_random_circuits(member, layer_of, rng, draws), axis=0)
            yield HeadSet(kind, basis, member, drawn[(drawn != member).any(axis=1)])


def type_effects(outcomes: Mapping[AttentionType, SetOutcome]) -> pd.DataFrame:
    """A row for each type and metric: the effect of its heads, and how it compares with random sets.

    Columns: ``type``, ``metric``, ``own`` (whether it is the type's own metric), ``effect``, ``effect_low``,
    ``effect_high`` (mean log ratio), ``excess``, ``ci_low``, ``ci_high``, ``p`` (paired sign-flip over images,
    one-sided), ``p_controls`` (share of random sets at least as bad, the set counted in), ``n``, ``controls``. Rows
    without random sets have NaN from ``excess`` on.
    """
    rows = []
    for kind, outcome in outcomes.items():
        for metric, own in outcome.own.items():
            plain = effects(own[None])
            row: dict[str, object] = {
                "type": kind.value,
                "metric": metric,
                "own": metric == OWN_METRIC[kind],
                "effect": plain.mean_log_ratio[0],
                "effect_low": plain.log_low[0],
                "effect_high": plain.log_high[0],
                "n": own.size,
                "controls": len(outcome.matched[metric]),
                "excess": np.nan,
                "ci_low": np.nan,
                "ci_high": np.nan,
                "p": np.nan,
                "p_controls": np.nan,
            }
            if len(outcome.matched[metric]):
                found = control_contrast(own[None], outcome.matched[metric])
                row |= {
                    "excess": found.estimate[0],
                    "ci_low": found.ci_low[0],
                    "ci_high": found.ci_high[0],
                    "p": found.p_images[0],
                    "p_controls": found.p[0],
                }
            rows.append(row)
    return pd.DataFrame(rows)


def dissociations(outcomes: Mapping[AttentionType, SetOutcome]) -> pd.DataFrame:
    """A row for each type with a metric of its own and each other type that does not have the same one.

    ``estimate``: mean over images of the excess of ``type`` less that of ``other``, on the metric of ``type``, with
    Student's interval; ``p``: paired sign-flip, one-sided.
    """
    rows = []
    for kind, outcome in outcomes.items():
        metric = OWN_METRIC[kind]
        if metric is None or metric not in outcome.own or not len(outcome.matched[metric]):
            continue
        for other, against in outcomes.items():
            if OWN_METRIC[other] == metric or not len(against.matched[metric]):
                continue
            difference = (outcome.excess(metric) - against.excess(metric))[None]
            found = effects(difference)
            rows.append(
                {
                    "type": kind.value,
                    "other": other.value,
                    "metric": metric,
                    "estimate": found.mean_log_ratio[0],
                    "ci_low": found.log_low[0],
                    "ci_high": found.log_high[0],
                    "p": signflip_test(difference, "greater").p[0],
                    "n": difference.shape[1],
                }
            )
    columns = ["type", "other", "metric", "estimate", "ci_low", "ci_high", "p", "n"]
    return pd.DataFrame(rows, columns=columns)


def corrected(p: pd.Series) -> np.ndarray:
    """Benjamini-Hochberg over the values that there are; NaN elsewhere."""
    q = np.full(len(p), np.nan)
    known = p.notna().to_numpy()
    q[known] = bh(p[known].to_numpy(dtype=float))
    return q
