"""BH, BY, e-BH and the hierarchical procedure against statsmodels and against its own definition."""

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from circuits.statistics import bh, by, e_bh, hierarchical_fdr


def small_p(rng: np.random.Generator, size: int) -> np.ndarray:
    p = rng.random(size)
    return np.where(rng.random(size) < 0.4, p**6, p)


def by_definition(p: np.ndarray, family: np.ndarray, alpha: float) -> np.ndarray:
    """Simes, BH over families, BH inside the selected at alpha R / m: written out step by step."""
    names = np.unique(family)
    simes = np.array(
        [(np.sort(p[family == f]) * np.sum(family == f) / np.arange(1, np.sum(family == f) + 1)).min() for f in names]
    )
    selected = multipletests(simes, alpha, method="fdr_bh")[0]
    rejected = np.zeros(p.size, dtype=bool)
    for name in names[selected]:
        members = family == name
        rejected[members] = multipletests(p[members], alpha * selected.sum() / names.size, method="fdr_bh")[0]
    return rejected


def test_flat_procedures_agree_with_statsmodels(rng: np.random.Generator) -> None:
    p = small_p(rng, 53)
    assert bh(p) == pytest.approx(multipletests(p, method="fdr_bh")[1], rel=1e-12)
    assert by(p) == pytest.approx(multipletests(p, method="fdr_by")[1], rel=1e-12)


def test_e_bh_by_hand() -> None:
    """m = 4: the k-th largest e is rejected at alpha when e >= 4 / (k alpha)."""
    q = e_bh([100.0, 0.2, 40.0, 3.0])
    assert q == pytest.approx([0.04, 1.0, 0.05, 4 / 9])


def test_hierarchical_by_hand() -> None:
    """Two families of two. Within BH: A .02, .03; B .5, .5. Family q: A .04, B .5."""
    result = hierarchical_fdr([0.01, 0.03, 0.5, 0.4], ["a", "a", "b", "b"], alpha=0.05)
    assert result.family_p == pytest.approx([0.02, 0.5])
    assert result.family_q == pytest.approx([0.04, 0.5])
    # trial 1: one family selected, .03 <= alpha / 2 needs alpha = .06
    assert result.q == pytest.approx([0.04, 0.06, 0.5, 0.5])
    assert list(result.rejected) == [True, False, False, False]


@pytest.mark.parametrize("case", range(40))
def test_q_at_most_alpha_is_rejection_by_definition(rng: np.random.Generator, case: int) -> None:
    size = 5 + 3 * case
    p, family = small_p(rng, size), rng.integers(0, 1 + case % 11, size)
    result = hierarchical_fdr(p, family)
    for alpha in (0.003, 0.01, 0.05, 0.1, 0.3, 0.6):
        assert (result.q <= alpha).tolist() == by_definition(p, family, alpha).tolist()
    assert (result.q >= p * (1 - 1e-12)).all()


def test_one_family_is_bh_and_singletons_are_bh(rng: np.random.Generator) -> None:
    p = small_p(rng, 31)
    assert hierarchical_fdr(p, np.zeros(31)).q == pytest.approx(bh(p), rel=1e-12)
    assert hierarchical_fdr(p, np.arange(31)).q == pytest.approx(bh(p), rel=1e-12)


def test_order_and_names_of_families_do_not_matter(rng: np.random.Generator) -> None:
    p, family = small_p(rng, 47), rng.integers(0, 7, 47)
    order = rng.permutation(47)
    q = hierarchical_fdr(p, family).q
    assert hierarchical_fdr(p[order], family[order]).q == pytest.approx(q[order], rel=1e-12)
    assert hierarchical_fdr(p, np.array(list("gfedcba"))[family]).q == pytest.approx(q, rel=1e-12)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"p: expected values in \[0, 1\], got a range of \[0.1, 1.2\]"):
        bh([0.1, 1.2])
    with pytest.raises(ValueError, match="one label for each of 2 trials, got shape"):
        hierarchical_fdr([0.1, 0.2], ["a"])
    with pytest.raises(ValueError, match="strictly between 0 and 1, got 5"):
        hierarchical_fdr([0.1], ["a"], alpha=5)
    with pytest.raises(ValueError, match="e-values of at least 0, got -1"):
        e_bh([-1.0])
    assert hierarchical_fdr([], []).q.size == 0
