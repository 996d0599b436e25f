"""Types of heads: found when real, never among identical heads, and the in-sample typing that must fail."""

import numpy as np
import pytest
from scipy.stats import f_oneway

from circuits.statistics import UNASSIGNED, assign_types, fit_prototypes

HALF = np.arange(64) % 2 == 0


def test_separated_types_are_found(rng: np.random.Generator) -> None:
    truth = np.repeat([2, 0, 1], 7)
    features = rng.standard_normal((21, 64, 2)) + 3.0 * truth[:, None, None]
    result = assign_types(features, HALF, 3, rng, draws=199)
    assert list(result.type) == list(truth)  # numbered by their first feature
    assert result.probability == pytest.approx(np.ones(21))
    assert result.probabilities.sum(axis=1) == pytest.approx(np.ones(21))
    assert result.reliability > 0.95


def test_a_head_between_two_types_is_unassigned(rng: np.random.Generator) -> None:
    centre = np.array([0.0] * 6 + [4.0] * 6 + [2.0])
    features = rng.standard_normal((13, 64, 1)) + centre[:, None, None]
    means = features.mean(axis=1)
    # exactly half way on fold B, whatever the noise
    boundary = (features[:6, HALF].mean() + features[6:12, HALF].mean()) / 2
    features[12, ~HALF] += boundary - features[12, ~HALF].mean()
    labels = np.array([0] * 6 + [1] * 6 + [0])
    prototypes = fit_prototypes(features[:, HALF], labels, rng)
    assert prototypes.nearest(means[:12]).tolist() == [0] * 6 + [1] * 6
    result = assign_types(features, HALF, 2, rng, draws=399)
    assert result.type[12] == UNASSIGNED
    assert result.probability[12] < 0.9


def test_prototypes_of_given_types_are_their_means(rng: np.random.Generator) -> None:
    features = rng.random((6, 5, 3))
    prototypes = fit_prototypes(features, [0, 1, 0, 1, 0, 1], rng)
    means = features.mean(axis=1)
    centres = prototypes.centres * prototypes.scale + prototypes.location
    assert centres == pytest.approx(np.stack([means[::2].mean(axis=0), means[1::2].mean(axis=0)]))


def test_identical_values_are_unassigned(rng: np.random.Generator) -> None:
    result = assign_types(np.ones((5, 64, 2)), HALF, 2, rng, draws=49)
    assert (result.type == UNASSIGNED).all()
    assert (result.reliability, result.p_separation) == (0.0, 1.0)


def test_bad_input_is_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match=r"features: expected shape \[heads >= 2, images >= 2, features >= 1\]"):
        assign_types(np.ones((5, 64)), HALF, 2, rng)
    with pytest.raises(ValueError, match="fold_a: expected 64 booleans"):
        assign_types(np.ones((5, 64, 2)), HALF[:5], 2, rng)
    with pytest.raises(ValueError, match=r"types: expected at most 5 \(the heads\), got 6"):
        fit_prototypes(np.ones((5, 64, 2)), 6, rng)
    with pytest.raises(ValueError, match="labels that use all of 0"):
        fit_prototypes(np.ones((3, 64, 2)), [0, 2, 2], rng)


@pytest.mark.calibration
def test_identical_heads_get_no_types(rng: np.random.Generator, band) -> None:
    """Heads that differ in nothing, on images that differ: any label at all is a false one."""
    labelled = separated = 0
    for _ in range(2000):
        features = rng.standard_normal((1, 64, 2)) + rng.standard_normal((24, 64, 2))
        found = assign_types(features, HALF, 3, rng, draws=19)
        labelled += (found.type != UNASSIGNED).any()
        separated += found.p_separation <= 0.05
    low, high = band(2000, 0.05)
    assert low <= separated / 2000 <= high, "the test of separation is exact"
    assert labelled / 2000 <= 0.05, "and a label needs more than that: 2.9% are expected"


@pytest.mark.calibration
def test_must_fail_in_sample_typing(rng: np.random.Generator) -> None:
    """Binning identical heads by entropy and testing entropy between the bins: p < .001 every time."""
    for _ in range(200):
        entropy = rng.standard_normal((24, 64)).mean(axis=1)
        bins = np.split(np.sort(entropy), 3)
        assert f_oneway(*bins).pvalue < 0.001
