"""Probes against closed forms and planted dependence; their permutation nulls against theory."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

from circuits.data.image_sets import ImageSet
from circuits.data.synthetic_faces import PARTS, synthetic_faces
from circuits.probes import (
    SCALARS,
    Likeness,
    PairedProbe,
    attended,
    coupling,
    part_columns,
    permutation_test,
    pooling,
    pooling_columns,
    synthetic_part_masks,
    token_features,
)
from circuits.token_grids import TokenGrid

IMAGES, HEADS, TOKENS, WIDTH = 6, 5, 7, 3
OTHER = [1, 0, 3, 2, 5, 4]


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def maps(seed: int, queries: int = TOKENS) -> torch.Tensor:
    return (2 * normal(seed, IMAGES, HEADS, queries, TOKENS)).softmax(dim=3)


def scalars(seed: int) -> torch.Tensor:
    values = normal(seed, IMAGES, TOKENS, 2)
    return (values - values.mean(dim=1, keepdim=True)) / values.std(dim=1, keepdim=True, correction=0)


def test_features_of_pictures_whose_edges_are_known() -> None:
    """A vertical step in the picture's middle; a checkerboard of single pixels in its top left quarter; flat gray."""
    images = torch.zeros(3, 1, 12, 12)
    images[0, :, :, 6:] = 1
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    images[1, :, :6, :6] = ((rows + columns) % 2 * 2 - 1).float()
    found = token_features(images, TokenGrid(4, 4))
    by_name = dict(zip(SCALARS, found.scalars.unbind(2), strict=True))
    step = by_name["edges"][0].view(4, 4)
    assert (step[:, 1:3] > 0.9).all()
    assert (step[:, [0, 3]] < -0.9).all()
    assert by_name["luminance"][0].view(4, 4).tolist() == [pytest.approx([-1, -1, 1, 1])] * 4
    texture = by_name["texture"][1].view(4, 4)
    assert texture[:2, :2].min() > 1 > 0 > torch.cat([texture[2:].flatten(), texture[:2, 2:].flatten()]).max()
    assert (found.scalars[2] == 0).all(), "nothing in a flat picture, not even rounding"
    assert (found.colour.columns[2] == 0).all()
    known = found.scalars[0].T
    assert known.mean(dim=1).tolist() == pytest.approx([0.0] * 3, abs=1e-6)


def test_colours_are_luminance_and_what_red_and_blue_have_more() -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    colour = token_features(images, TokenGrid(4, 4)).colour.columns
    assert colour.shape == (2, 16, 3)
    assert colour.square().sum(dim=2).mean(dim=1).tolist() == pytest.approx([1.0, 1.0])
    gray = images[:, :1].expand(-1, 3, -1, -1)
    assert token_features(gray, TokenGrid(4, 4)).colour.columns[..., 1:].abs().max() < 1e-5


def test_attended_features_are_weighted_means() -> None:
    received, features = maps(0).mean(dim=2), scalars(1)
    for i, probe in enumerate(attended(received, features)):
        own = torch.stack([(received[n] * features[n, :, i]).sum(dim=1) for n in range(IMAGES)])
        other = torch.stack([(received[n] * features[OTHER[n], :, i]).sum(dim=1) for n in range(IMAGES)])
        torch.testing.assert_close(probe.own, (own[0::2] + own[1::2]) / 2)
        torch.testing.assert_close(probe.swapped, (other[0::2] + other[1::2]) / 2)
        assert (probe.score.abs() <= 1).all()


def test_a_head_that_chooses_keys_by_a_feature_scores_1_and_one_of_fixed_places_0() -> None:
    features = scalars(2)
    chooses = (2 * features[:, :, 0]).softmax(dim=1)[:, None]
    fixed = normal(3, TOKENS).softmax(dim=0).expand(IMAGES, 1, -1)
    uniform = torch.full((IMAGES, 1, TOKENS), 1 / TOKENS) + 1e-7 * normal(4, IMAGES, 1, TOKENS)
    score = attended(torch.cat([chooses, fixed, uniform], dim=1), features)[0].score
    assert (score[:, 0] > 0.9).all()
    assert score[:, 1].tolist() == [0.0] * 3, "the same in both images of a pair"
    assert score[:, 2].abs().max() < 1e-4, "uniform but for rounding"


@pytest.mark.parametrize("queries", [TOKENS, 4])
def test_pooling_is_the_likeness_of_queries_and_what_they_attend_to(queries: int) -> None:
    attention = maps(5, queries)
    first, second = normal(6, IMAGES, TOKENS, 2), normal(7, IMAGES, TOKENS, 3)
    pooled = attention @ pooling_columns([first, second])[:, None]
    at_queries = [Likeness(f[:, :queries], Likeness.of(f).best[:, :queries]) for f in (first, second)]
    for probe, feature in zip(pooling(pooled, at_queries), (first, second), strict=True):
        for found, partner in ((probe.own, list(range(IMAGES))), (probe.swapped, OTHER)):
            alike = [
                torch.einsum("hqk,qc,kc->h", attention[n], feature[p][:queries], feature[p]) / queries
                for n, p in enumerate(partner)
            ]
            torch.testing.assert_close(
                found, torch.stack(alike).unflatten(0, (-1, 2)).mean(dim=1), rtol=1e-4, atol=1e-5
            )
        assert (probe.score <= 1 + 1e-6).all()


def test_attention_to_the_tokens_most_alike_scores_1() -> None:
    feature = Likeness.of(scalars(8))
    best = (feature.columns @ feature.columns.mT).argmax(dim=2)
    attention = torch.nn.functional.one_hot(best, TOKENS).float()[:, None]
    (probe,) = pooling(attention @ pooling_columns([feature.columns])[:, None], [feature])
    assert probe.score.flatten().tolist() == pytest.approx([1.0] * 3)
    fixed = attention[:1].expand(IMAGES, -1, -1, -1)
    (probe,) = pooling(fixed @ pooling_columns([feature.columns])[:, None], [feature])
    torch.testing.assert_close(probe.own, probe.swapped)


def test_an_odd_image_has_no_pair() -> None:
    columns = pooling_columns([scalars(9)[:3]])
    assert columns.shape == (3, TOKENS, 4)
    assert (columns[2] == 0).all()
    assert attended(maps(0).mean(dim=2)[:3], scalars(1)[:3])[0].own.shape == (1, HEADS)


def test_coupling_is_the_share_of_variance_that_a_feature_explains() -> None:
    """An output that is signal x direction + noise: signal^2 |direction|^2 over all variance, however many tokens."""
    tokens = 4000
    feature = normal(10, IMAGES, tokens, 1)
    feature = (feature - feature.mean(dim=1, keepdim=True)) / feature.std(dim=1, keepdim=True, correction=0)
    direction = torch.tensor([2.0, 1.0, 2.0])
    noise = normal(11, IMAGES, HEADS, tokens, WIDTH)
    signal = torch.tensor([0.0, 0.5, 1.0, 2.0, 5.0])[:, None, None]
    outputs = signal * feature[:, None] * direction + noise + 7.0
    (probe,) = coupling(outputs, [feature])
    expected = (signal.flatten() ** 2 * 9) / (signal.flatten() ** 2 * 9 + 3)
    assert probe.own.mean(dim=0).tolist() == pytest.approx(expected.tolist(), abs=0.03)
    assert probe.swapped.abs().max() < 0.02
    torch.testing.assert_close(probe.score, probe.own - probe.swapped)


def test_coupling_to_parts_is_the_variance_between_them() -> None:
    parts = torch.nn.functional.one_hot(
        torch.randint(4, (1, 53), generator=torch.Generator().manual_seed(0)), 5
    ).float()
    outputs = normal(12, 1, 1, 53, WIDTH)
    means = torch.stack([outputs[0, 0][parts[0, :, p] > 0].mean(dim=0) for p in range(4)])
    between = ((means - outputs[0, 0].mean(dim=0)).square().sum(dim=1) * parts[0, :, :4].mean(dim=0)).sum()
    total = outputs[0, 0].var(dim=0, correction=0).sum()
    (probe,) = coupling(outputs.expand(2, -1, -1, -1), [part_columns(parts.expand(2, -1, -1))])
    assert probe.own.item() == pytest.approx((between / total).item(), rel=1e-5)


def test_nothing_to_explain_is_0() -> None:
    (probe,) = coupling(torch.ones(2, 1, TOKENS, WIDTH), [scalars(13)[:2]])
    assert isinstance(probe, PairedProbe)
    assert (probe.own.item(), probe.swapped.item(), probe.score.item()) == (0, 0, 0)


def test_the_permutation_null_holds_its_level_where_maps_and_features_are_smooth_alike() -> None:
    """Attention and features share a mean and are smooth, as aligned faces are: only a tie within images may count."""
    trials, pairs = 2000, 24
    rng = np.random.default_rng(0)
    common = np.cumsum(rng.standard_normal(16))

    def smooth() -> np.ndarray:
        return common + np.cumsum(0.5 * rng.standard_normal((trials, 2 * pairs, 16)), axis=2)

    attention, feature = smooth(), smooth()
    own = (attention * feature).mean(axis=2).reshape(trials, pairs, 2).mean(axis=2)
    swapped = (attention * feature.reshape(trials, pairs, 2, 16)[:, :, ::-1].reshape(feature.shape)).mean(axis=2)
    found = permutation_test(own, swapped.reshape(trials, pairs, 2).mean(axis=2))
    low, high = (binom.ppf(q, trials, 0.05) for q in (1e-6, 1 - 1e-6))
    assert low <= (found.p < 0.05).sum() <= high
    assert found.z.std() == pytest.approx(1.0, abs=0.1)
    assert found.statistic.mean() > 10 * abs((found.statistic - found.null_mean).mean()), "the two are alike, though"


def test_the_permutation_test_by_hand() -> None:
    own = np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0], [0.1, np.nan, 0.2], [1.0, 1.0, 1.0 + 1e-9]])
    null = np.array([[0.0, 1.0, 1.0], [5.0, 5.0, 5.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    found = permutation_test(own, null)
    assert found.statistic[[0, 1, 3]].tolist() == pytest.approx([2.0, 5.0, 1.0])
    assert found.null_mean[0] == pytest.approx(2 / 3)
    assert found.null_sd[0] == pytest.approx(np.sqrt(1 + 1 + 4) / 3)
    assert found.z[[0, 1, 3]].tolist() == pytest.approx([4 / np.sqrt(6), 0.0, 0.0])
    assert found.p[[0, 1, 3]].tolist() == pytest.approx([2 / 8, 1.0, 1.0])
    assert np.isnan([found.statistic[2], found.z[2], found.p[2]]).all()
    with pytest.raises(ValueError, match=r"\[trials, units >= 2\] of one shape, got \(1, 3\) and \(1, 2\)"):
        permutation_test(np.ones((1, 3)), np.ones((1, 2)))


def test_masks_of_generated_faces_are_found_by_their_ids() -> None:
    drawn = synthetic_faces([5, 1_000_003], size=16)
    faces = ImageSet("s", torch.from_numpy(drawn.images), ("synthetic_5", "synthetic_1000003"), None, "")
    found = synthetic_part_masks(faces)
    assert found is not None
    assert torch.equal(found, torch.from_numpy(drawn.parts))
    shares = token_features(faces.images, TokenGrid(4, 4), found).parts
    assert shares is not None
    assert shares.columns.shape == (2, 16, len(PARTS))
    assert shares.columns.sum(dim=2).flatten().tolist() == pytest.approx([1.0] * 32)
    others = ImageSet("s", faces.images.flip(3), faces.ids, None, "")
    assert synthetic_part_masks(others) is None, "other pictures under the same names"
    assert synthetic_part_masks(ImageSet("s", faces.images, ("a", "synthetic_5"), None, "")) is None
