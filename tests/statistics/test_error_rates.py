"""Calibration: error rates and power of whole procedures, and the analyses that must fail."""

import numpy as np
import pytest
from scipy.stats import nct, ttest_1samp
from scipy.stats import t as student

from circuits.statistics import (
    SequentialTrials,
    StoppingRule,
    bh,
    equivalence_test,
    hierarchical_fdr,
    signflip_test,
    verdicts,
)

pytestmark = pytest.mark.calibration

ALPHA = 0.05
CLASSICAL = ((1.0, 1.0),)
RULE = StoppingRule()


def stopped_p(x: np.ndarray, rule: StoppingRule, name: str = "p_degraded") -> np.ndarray:
    trials = SequentialTrials(x.shape[0], rule)
    trials.update(np.arange(x.shape[0]), 0, x)
    return getattr(trials.result(), name)


def sweep(x: np.ndarray, rule: StoppingRule):
    trials = SequentialTrials(x.shape[0], rule)
    for start in range(0, rule.n_max, rule.batch):
        rows = np.flatnonzero(trials.active)
        if not rows.size:
            break
        trials.update(rows, start, x[rows, start : start + rule.batch])
        trials.decide()
    return trials.result()


@pytest.mark.parametrize("noise", ["normal", "student_3", "laplace", "student_2"])
@pytest.mark.parametrize("n", [12, 24, 256])
def test_sign_flip_error_rate(rng: np.random.Generator, band, noise: str, n: int) -> None:
    shape = (2000, n)
    x = {
        "normal": lambda: rng.standard_normal(shape),
        "student_3": lambda: rng.standard_t(3, shape),
        "student_2": lambda: rng.standard_t(2, shape),
        "laplace": lambda: rng.laplace(size=shape),
    }[noise]()
    low, high = band(2000, ALPHA)
    assert (round(low, 4), round(high, 4)) == (0.0285, 0.0745)
    assert low <= (signflip_test(x).p <= ALPHA).mean() <= high


def test_sign_flip_under_right_skew_is_conservative_above(rng: np.random.Generator, band) -> None:
    x = rng.exponential(size=(4000, 64)) - 1.0
    assert (signflip_test(x).p <= ALPHA).mean() <= band(4000, ALPHA)[1]


@pytest.mark.parametrize("analysis", ["sign-flip", "classical", "default"])
def test_left_skew_is_the_known_limit(rng: np.random.Generator, analysis: str) -> None:
    """Towards the short tail every t-like test is liberal: a skewness of -1 costs a little, one of -2 doubles alpha."""
    worst = {"sign-flip": (0.072, 0.085), "classical": (0.075, 0.11), "default": (0.075, 0.125)}[analysis]
    for skewed, limit in zip((4.0 - rng.gamma(4.0, size=(4000, 256)), 1.0 - rng.exponential(size=(4000, 256))), worst):
        if analysis == "sign-flip":
            p = signflip_test(skewed).p
        else:
            p = stopped_p(skewed, StoppingRule(horizons=CLASSICAL if analysis == "classical" else RULE.horizons))
        assert (p <= ALPHA).mean() <= limit


@pytest.mark.parametrize("horizons", [CLASSICAL, RULE.horizons])
@pytest.mark.parametrize("noise", ["normal", "student_3", "exponential"])
def test_obf_error_rate(rng: np.random.Generator, band, horizons, noise: str) -> None:
    shape = (4000, 256)
    x = {
        "normal": lambda: rng.standard_normal(shape),
        "student_3": lambda: rng.standard_t(3, shape),
        "exponential": lambda: rng.exponential(size=shape) - 1.0,
    }[noise]()
    assert (stopped_p(x, StoppingRule(horizons=horizons)) <= ALPHA).mean() <= band(4000, ALPHA)[1]


def test_negligible_error_rate_at_the_margin(rng: np.random.Generator, band) -> None:
    x = 0.3 + rng.standard_normal((4000, 128))
    p = stopped_p(x, StoppingRule(n_max=128, margin=0.3), "p_negligible")
    assert (p <= ALPHA).mean() <= band(4000, ALPHA)[1]


def test_sign_e_process_error_rate(rng: np.random.Generator, band) -> None:
    x = rng.standard_t(2, (4000, 256))
    assert (stopped_p(x, StoppingRule("sign")) <= ALPHA).mean() <= band(4000, ALPHA)[1]


def test_betting_error_rate(rng: np.random.Generator, band) -> None:
    """Ratios with mean exactly 1 and a long right tail: log-normal, mean log -sd^2 / 2."""
    x = 0.5 * rng.standard_normal((4000, 256)) - 0.125
    assert (stopped_p(x, StoppingRule("betting")) <= ALPHA).mean() <= band(4000, ALPHA)[1]


def test_power_against_the_noncentral_t(rng: np.random.Generator) -> None:
    for d, stated in ((0.1, 0.480), (0.15, 0.773), (0.2, 0.939)):
        exact = nct.sf(student.ppf(0.95, 255), 255, d * 16)
        assert exact == pytest.approx(stated, abs=0.001)
        found = (signflip_test(d + rng.standard_normal((4000, 256))).p <= ALPHA).mean()
        assert found == pytest.approx(exact, abs=4.75 * np.sqrt(exact * (1 - exact) / 4000))


@pytest.mark.parametrize("correlation", [0.0, 0.3])
def test_false_discovery_rates(rng: np.random.Generator, correlation: float) -> None:
    """30 families of 8 trials, effects in 6 of them: flat BH, hierarchical trials, hierarchical families."""
    family = np.repeat(np.arange(30), 8)
    effect = np.where(family < 6, rng.choice([0.0, 0.4, 0.6], 240), 0.0)
    null_family = np.arange(30) >= 6
    fdp: dict[str, list[float]] = {"flat": [], "average over families": [], "families": []}
    found = 0.0
    for _ in range(400):
        common = np.sqrt(correlation) * rng.standard_normal((1, 64))
        g = effect[:, None] + common + np.sqrt(1 - correlation) * rng.standard_normal((240, 64))
        p = signflip_test(g).p
        result = hierarchical_fdr(p, family)
        flat = bh(p) <= ALPHA
        selected = result.family_q <= ALPHA
        inside = [
            share(result.rejected & (effect == 0), result.rejected, family == f) for f in np.flatnonzero(selected)
        ]
        fdp["flat"].append(share(flat & (effect == 0), flat))
        fdp["average over families"].append(float(np.mean(inside)) if inside else 0.0)
        fdp["families"].append(share(selected & null_family, selected))
        found += result.rejected[effect > 0].mean() / 400
    for name in ("flat", "average over families", "families"):
        values = np.array(fdp[name])
        assert values.mean() <= ALPHA + 4.75 * values.std(ddof=1) / 20, name
    assert found > 0.5


def test_must_fail_flat_bh_names_null_families(rng: np.random.Generator) -> None:
    """Two families full of effects earn flat BH false discoveries, and it spends them on the 18 families without."""
    family = np.repeat(np.arange(20), 20)
    flat_fdp, hierarchical_fdp = [], []
    for _ in range(200):
        p = signflip_test(np.where(family < 2, 0.8, 0.0)[:, None] + rng.standard_normal((400, 48))).p
        named = np.isin(np.arange(20), family[bh(p) <= ALPHA])
        selected = hierarchical_fdr(p, family).family_q <= ALPHA
        flat_fdp.append(share(named & (np.arange(20) >= 2), named))
        hierarchical_fdp.append(share(selected & (np.arange(20) >= 2), selected))
    assert np.mean(flat_fdp) > 0.2
    assert np.mean(hierarchical_fdp) <= ALPHA + 4.75 * np.std(hierarchical_fdp) / np.sqrt(200)


def share(part: np.ndarray, whole: np.ndarray, among: np.ndarray | None = None) -> float:
    among = np.ones_like(whole) if among is None else among
    return float((part & among).sum() / max((whole & among).sum(), 1))


def test_saddlepoint_resolves_what_ten_thousand_permutations_cannot(rng: np.random.Generator) -> None:
    """50 true effects of d = .4 among 100,000 trials: BH needs p of 2.5e-5, and 1 / 10,001 is above it."""
    g = rng.standard_normal((100_000, 256), dtype=np.float32)
    g[:50] += 0.4
    q = bh(signflip_test(g).p)
    assert (q[:50] <= ALPHA).sum() >= 48
    assert (q[50:] <= ALPHA).sum() <= 10
    assert bh(np.where(np.arange(100_000) < 50, 1 / 10_001, 1.0))[0] > ALPHA


def population(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The sweep of statistics.md: 2,000 trials, 80 % null, 5 % each at d = .1, .3, .5, 1; margin .3 sd."""
    d = np.zeros(2000)
    d[:400] = np.repeat([0.1, 0.3, 0.5, 1.0], 100)
    return d, d[:, None] + rng.standard_normal((2000, 256))


def test_sequential_against_fixed_on_the_reference_sweep(rng: np.random.Generator) -> None:
    """FDR, power, images and verdicts of the default rule, against fixed N with BH."""
    fdp, power, fixed_power, images, same = [], [], [], [], []
    for _ in range(12):
        d, x = population(rng)
        fixed = verdicts(*(bh(p) for p in (signflip_test(x).p, signflip_test(x, "less").p, equivalence_test(x, 0.3).p)))
        result = sweep(x, StoppingRule(margin=0.3, correction="bh"))
        degraded = result.verdict == "degraded"
        fdp.append(share(degraded & (d == 0), degraded))
        power.append(degraded[d == 0.3].mean())
        fixed_power.append((fixed[d == 0.3] == "degraded").mean())
        images.append(result.n.mean())
        called = fixed != "inconclusive"
        same.append((result.verdict == fixed)[called].mean())
    assert np.mean(fdp) <= ALPHA
    assert np.mean(power) >= 0.97 * np.mean(fixed_power)
    assert np.mean(images) <= 0.5 * 256
    assert np.mean(same) >= 0.95


def test_the_classical_boundary_with_futility_on_the_reference_sweep(rng: np.random.Generator) -> None:
    """OBF + BH + futility: FDR .020, .971 found at d = .3, 118 images (statistics.md); 165 without futility."""
    outcome = []
    for _ in range(8):
        d, x = population(rng)
        fixed = bh(signflip_test(x).p) <= ALPHA
        rule = StoppingRule(margin=0.3, correction="bh", horizons=CLASSICAL, futility=0.05)
        with_futility, without = sweep(x, rule), sweep(x, StoppingRule(margin=0.3, correction="bh", horizons=CLASSICAL))
        found = with_futility.q_degraded <= ALPHA
        outcome.append(
            (
                share(found & (d == 0), found),
                found[d == 0.3].mean() / fixed[d == 0.3].mean(),
                with_futility.n.mean(),
                without.n.mean(),
            )
        )
    fdp, power, images, images_without = np.mean(outcome, axis=0)
    assert fdp <= ALPHA
    assert power >= 0.95
    assert images <= 0.5 * 256
    assert images_without <= 0.66 * 256


def test_must_fail_timestep_as_replicate(rng: np.random.Generator) -> None:
    """32 images of 10 timesteps with intraclass correlation .3, all 320 numbers taken as independent."""
    image = np.sqrt(0.3) * rng.standard_normal((1000, 32, 1))
    x = image + np.sqrt(0.7) * rng.standard_normal((1000, 32, 10))
    assert (ttest_1samp(x.reshape(1000, -1), 0.0, axis=1).pvalue <= ALPHA).mean() > 0.2
    assert (signflip_test(x.mean(axis=2), "two-sided").p <= ALPHA).mean() <= 0.085


def test_must_fail_peeking(rng: np.random.Generator) -> None:
    """A t test after every batch of 16, the smallest p kept: the error of a trial, and the FDR of BH over them."""
    d, x = population(rng)
    looks = range(16, 257, 16)
    p = np.min([ttest_1samp(x[:, :k], 0.0, axis=1, alternative="greater").pvalue for k in looks], axis=0)
    assert (p[d == 0] <= ALPHA).mean() > 0.12
    found = bh(p) <= ALPHA
    assert share(found & (d == 0), found) > 0.12
