"""Types of heads on heads built by hand: all are recovered, noise is not typed, and equal heads are not told apart."""

import numpy as np
import pytest
from scipy.stats import binom

from circuits.attention_types import FEATURES, TYPES, assign_attention_types, type_scores, with_types
from circuits.profiles import POSITION, HeadProfiles, profile_heads
from circuits.sites import AttentionLayer
from circuits.statistics import UNASSIGNED
from tests.circuits.planted_heads import NOISE, PLANTED, planted_denoiser

IMAGES = 48


@pytest.fixture(scope="module", params=[1.0, 1.5])
def planted(request: pytest.FixtureRequest) -> tuple[list[str], HeadProfiles]:
    """Every kind in the first layer, backwards in the second, with three heads of noise more."""
    first, second = list(PLANTED), [*reversed(PLANTED), NOISE, NOISE, NOISE]
    denoiser, data = planted_denoiser([first, second], IMAGES, request.param)
    return [*first, *second], profile_heads(denoiser, data, timesteps=[20, 0], rows=16)


def test_planted_types_are_recovered_and_noise_is_not_typed(planted: tuple[list[str], HeadProfiles]) -> None:
    kinds, profiles = planted
    for seed in range(3):
        found = assign_attention_types(profiles, "synthetic", np.random.default_rng(seed))
        assert dict(zip(kinds, found.names, strict=True)) == PLANTED
        assert found.names == [PLANTED[kind] for kind in kinds]
        sure = found.type != UNASSIGNED
        assert (found.probability[sure] >= 0.9).all()
        assert found.probabilities[sure, found.type[sure]] == pytest.approx(found.probability[sure])
    frame = with_types(profiles, found)
    assert len(frame) == 2 * len(kinds)
    for layer, head, name in (("blocks.0", 2, "semantic_part"), ("blocks.1", 0, "unassigned")):
        rows = frame[(frame["layer"] == layer) & (frame["head"] == head)]
        assert rows["type"].tolist() == [name] * 2
    assert (frame.groupby(["layer", "head"])["type_probability"].nunique() == 1).all()


def test_scores_are_shares_of_what_a_head_can_show(planted: tuple[list[str], HeadProfiles]) -> None:
    kinds, profiles = planted
    scores = type_scores(profiles, "synthetic").mean(axis=1)
    assert (scores <= 1 + 1e-6).all()
    own = {name: i for i, (name, _, sign) in enumerate(FEATURES) if sign > 0}
    for kind, name in (("uniform", "uniform_share"), ("diagonal", "local_share")):
        assert scores[kinds.index(kind), own[name]] == pytest.approx(1.0, abs=0.03)
    noise = scores[[kind == NOISE for kind in kinds]]
    assert np.abs(np.delete(noise, own["uniform_share"], axis=1)).max() < 0.1


def test_heads_of_noise_alone_get_no_type() -> None:
    denoiser, data = planted_denoiser([[NOISE] * 5], 16)
    profiles = profile_heads(denoiser, data, timesteps=[0])
    found = assign_attention_types(profiles, "synthetic", np.random.default_rng(0))
    assert found.names == ["unassigned"] * 5
    assert found.statistics is None
    assert (found.probabilities == 0).all()


def equal_heads(rng: np.random.Generator, heads: int, pairs: int, level: float) -> HeadProfiles:
    """Heads of one distribution, near the score from which on a head is put down for a type; images differ."""
    layer = AttentionLayer(0, "a", "a.to_out.0", None, heads, 4, 64, "self")

    def drawn(mean: float, units: int) -> np.ndarray:
        shared = rng.standard_normal((1, 1, units))
        return mean + 0.2 * shared + 0.2 * rng.standard_normal((heads, 1, units))

    values = {name: drawn(level if name == "attends_edges_score" else 0.1, pairs) for name, _, _ in FEATURES}
    values |= {name: drawn(0.1, 2 * pairs) for name in ("symmetry", "local_share", "uniform_share")}
    values |= {f"{name}_null": np.zeros((heads, 1, 2 * pairs)) for name in ("symmetry", "local_share")}
    values |= {POSITION: np.zeros((heads, 1, pairs))}
    return HeadProfiles((layer,), (0,), {"synthetic": values}, {"synthetic": {}})


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_equal_heads_split_into_types_in_at_most_5_percent_of_runs(level: float) -> None:
    runs, split = 150, 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        found = assign_attention_types(equal_heads(rng, 16, 24, level), "synthetic", rng, draws=99)
        split += len(set(found.names)) > 1
    assert split <= binom.ppf(1 - 1e-6, runs, 0.05)


def test_too_few_images_are_refused(planted: tuple[list[str], HeadProfiles]) -> None:
    _, profiles = planted
    few = {name: values[:, :, :3] for name, values in profiles.values["synthetic"].items()}
    with pytest.raises(ValueError, match="expected 8 images, got 6"):
        assign_attention_types(
            HeadProfiles(profiles.layers, profiles.timesteps, {"synthetic": few}, {}),
            "synthetic",
            np.random.default_rng(0),
        )


def test_every_type_has_a_score_and_was_planted() -> None:
    assert {found for _, found, _ in FEATURES} == set(TYPES)
    assert set(TYPES) == set(PLANTED.values()) - {"unassigned"}
    assert len(TYPES) == 8
