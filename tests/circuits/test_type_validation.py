"""Do heads of a type do what it says? Where what every head carries is known: one type does, one does not."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import nn

from circuits.attention_types import TYPES, AssignedTypes, AttentionType
from circuits.data.image_sets import ImageSet
from circuits.data.sources import DataSet
from circuits.data.synthetic_faces import synthetic_faces
from circuits.denoisers import Denoiser
from circuits.engine import Engine, Window
from circuits.face_metrics import FACE_METRICS
from circuits.interventions import Intervention, Mode, Site
from circuits.sites import find_sites
from circuits.statistics import UNASSIGNED, bh
from circuits.type_validation import (
    ASSIGNED,
    LEADING,
    OWN_METRIC,
    SetOutcome,
    corrected,
    dissociations,
    head_sets,
    type_effects,
)
from circuits.vocabulary import DENOISE_METRICS

IMAGES, HEADS, PATCH = 24, 8, 4
WINDOW = Window(99, 0)
LUMINANCE_HEAD, DETAIL_HEAD, EDGE_HEAD = 0, 1, 2  # the last is called an edge head, and writes nothing


class KnownAttention(nn.Module):
    """Every token attends to itself. Head 0 carries the mean of its patch, head 1 the rest, the others copies that
    nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, width = HEADS, PATCH**2
        self.to_q = nn.Linear(1, 1)  # by which attention is known
        self.to_out = nn.ModuleList([nn.Linear(HEADS * width, width)])
        weight = torch.zeros(width, HEADS * width)
        for head in (LUMINANCE_HEAD, DETAIL_HEAD):
            weight[:, head * width : (head + 1) * width] = torch.eye(width)
        with torch.no_grad():
            self.to_out[0].weight.copy_(weight)
            self.to_out[0].bias.zero_()

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        n, tokens, _ = patches.shape
        mean = patches.mean(dim=2, keepdim=True).expand_as(patches)
        kinds = [mean, patches - mean, *([patches] * (HEADS - 2))]
        place = 50 * torch.eye(tokens).expand(n, HEADS, -1, -1)
        seen = F.scaled_dot_product_attention(place, place, torch.stack(kinds, dim=1), scale=1.0)
        return self.to_out[0](seen.transpose(1, 2).flatten(2))


class KnownNetwork(nn.Module):
    """Takes what it sees for the clean image, through the heads; at little noise that is nearly right."""

    def __init__(self) -> None:
        super().__init__()
        self.block = KnownAttention()

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> SimpleNamespace:
        patches = F.unfold(x, PATCH, stride=PATCH).transpose(1, 2)
        seen = F.fold(self.block(patches).transpose(1, 2), x.shape[2:], PATCH, stride=PATCH)
        return SimpleNamespace(sample=seen)


@pytest.fixture(scope="module")
def engine() -> Engine:
    faces = torch.from_numpy(synthetic_faces(range(IMAGES), size=16).images)
    measured = ImageSet("synthetic", faces, tuple(f"synthetic_{i}" for i in range(IMAGES)), None, "")
    denoiser = Denoiser(
        name="known", network=KnownNetwork().eval().requires_grad_(False), scheduler=DDPMScheduler(),
        prediction_type="sample", channels=1, size=16, classes=0, revision="", device=torch.device("cpu"),
    )  # fmt: skip
    data = {"synthetic": DataSet("synthetic", None, measured, measured)}
    return Engine(denoiser, find_sites(denoiser), data, steps=20, seed=0, rows=16)


def assigned(types: dict[int, AttentionType], scores: np.ndarray | None = None) -> AssignedTypes:
    codes = np.array([TYPES.index(types[h]) if h in types else UNASSIGNED for h in range(HEADS)])
    scores = np.zeros((HEADS, len(TYPES))) if scores is None else scores
    return AssignedTypes(codes, np.ones(HEADS), np.zeros((HEADS, len(TYPES))), scores, None)


@pytest.fixture(scope="module")
def outcomes(engine: Engine) -> dict[AttentionType, SetOutcome]:
    """A luminance head that is one, an edge head that nothing reads; every other single head is a random set."""
    types = assigned({LUMINANCE_HEAD: AttentionType.luminance, EDGE_HEAD: AttentionType.edge})
    found = {}
    for chosen in head_sets(types, ["block"] * HEADS, np.random.default_rng(0), draws=200):
        assert chosen.basis == ASSIGNED
        assert sorted(np.flatnonzero(chosen.matched)) == sorted(
            HEADS * row + h for row, h in enumerate(chosen.matched.argmax(axis=1))
        )
        members = [chosen.member, *chosen.matched]
        sets = [Intervention(Mode.zero, tuple(Site("block", int(h)) for h in np.flatnonzero(m))) for m in members]
        errors = engine.denoise("synthetic", WINDOW, sets, IMAGES)
        g = {
            name: np.log(np.maximum(pair.ablated, 1e-12) / np.maximum(pair.baseline, 1e-12)).double().numpy()
            for name, pair in errors.items()
        }
        found[chosen.type] = SetOutcome({n: v[0] for n, v in g.items()}, {n: v[1:] for n, v in g.items()})
    return found


def test_a_causal_type_holds_and_one_that_is_not_fails(outcomes: dict[AttentionType, SetOutcome]) -> None:
    table = type_effects(outcomes).set_index(["type", "metric"])
    luminance, edge = table.loc["luminance", "luminance"], table.loc["edge", "edge"]
    assert luminance["own"]
    assert edge["own"]
    assert luminance["controls"] == edge["controls"] == HEADS - 1
    # Worse than each of seven random sets, and on every image.
    assert luminance["p_controls"] == 1 / HEADS
    assert luminance["p"] < 1e-4
    assert luminance["ci_low"] > 0
    # What nothing reads does nothing, to the last bit, and random heads are worse on average.
    assert edge["effect"] == edge["effect_low"] == edge["effect_high"] == 0
    assert edge["excess"] < 0
    assert edge["p"] > 0.5
    assert edge["p_controls"] > 0.5


def test_the_causal_type_is_dissociated_from_the_other_and_not_the_other_way(
    outcomes: dict[AttentionType, SetOutcome],
) -> None:
    table = dissociations(outcomes).set_index(["type", "other"])
    assert set(table.index) == {("luminance", "edge"), ("edge", "luminance")}
    forth, back = table.loc[("luminance", "edge")], table.loc[("edge", "luminance")]
    assert forth["metric"] == "luminance"
    assert back["metric"] == "edge"
    assert forth["ci_low"] > 0
    assert forth["p"] < 1e-4
    own = outcomes[AttentionType.luminance].excess("luminance") - outcomes[AttentionType.edge].excess("luminance")
    assert forth["estimate"] == pytest.approx(own.mean())
    assert back["p"] > 0.05


def test_effects_are_those_of_plain_numbers(outcomes: dict[AttentionType, SetOutcome]) -> None:
    outcome = outcomes[AttentionType.luminance]
    row = type_effects(outcomes).set_index(["type", "metric"]).loc["luminance", "structure"]
    own, random = outcome.own["structure"], outcome.matched["structure"]
    assert row["effect"] == pytest.approx(own.mean())
    assert row["excess"] == pytest.approx((own - random.mean(axis=0)).mean())
    assert row["p_controls"] == (1 + (random.mean(axis=1) >= own.mean() - 1e-12).sum()) / (1 + len(random))


def test_leading_heads_stand_in_where_a_type_has_none() -> None:
    scores = np.full((HEADS, len(TYPES)), -0.1)
    code = TYPES.index(AttentionType.symmetry)
    scores[[5, 2, 7], code] = [0.3, 0.2, 0.1]
    types = assigned({1: AttentionType.edge}, scores)
    layers = ["a"] * 4 + ["b"] * 4
    found = {s.type: s for s in head_sets(types, layers, np.random.default_rng(0), draws=50, leading=2)}
    assert set(found) == {AttentionType.edge, AttentionType.symmetry}  # no head scores above 0 for any other
    leading = found[AttentionType.symmetry]
    assert leading.basis == LEADING
    assert np.flatnonzero(leading.member).tolist() == [2, 5]
    for member in leading.matched:
        assert member[:4].sum() == member[4:].sum() == 1
        assert (member != leading.member).any()
    assert len(np.unique(leading.matched, axis=0)) == len(leading.matched) == 15  # of 4 x 4 sets, all but the own


def test_a_type_that_is_all_of_its_layer_has_no_random_set() -> None:
    types = assigned(dict.fromkeys(range(4), AttentionType.edge))
    (chosen,) = head_sets(types, ["a"] * 4 + ["b"] * 4, np.random.default_rng(0))
    assert chosen.matched.shape == (0, HEADS)
    g = np.array([0.1, 0.2, 0.3])
    outcome = SetOutcome({"edge": g}, {"edge": np.empty((0, 3))})
    table = type_effects({AttentionType.edge: outcome})
    assert table.loc[0, "effect"] == pytest.approx(0.2)
    assert table.loc[0, ["excess", "p", "p_controls"]].isna().all()
    assert dissociations({AttentionType.edge: outcome, AttentionType.symmetry: outcome}).empty


def test_types_with_one_metric_are_not_set_against_each_other() -> None:
    rng = np.random.default_rng(0)
    outcome = SetOutcome({"high_frequency": rng.normal(size=9)}, {"high_frequency": rng.normal(size=(4, 9))})
    same = {AttentionType.texture: outcome, AttentionType.local_detail: outcome, AttentionType.positional: outcome}
    found = dissociations(same)
    assert list(zip(found["type"], found["other"], strict=True)) == [
        ("texture", "positional"), ("local_detail", "positional"),
    ]  # fmt: skip


def test_own_metrics_are_measured_and_cover_every_type() -> None:
    assert set(OWN_METRIC) == set(TYPES)
    assert set(OWN_METRIC.values()) - {None} <= {*DENOISE_METRICS, *FACE_METRICS}


def test_missing_values_are_not_corrected() -> None:
    p = pd.Series([0.01, np.nan, 0.04])
    assert corrected(p)[[0, 2]] == pytest.approx(bh(np.array([0.01, 0.04])))
    assert np.isnan(corrected(p)[1])
