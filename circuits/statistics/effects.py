"""Effect sizes of paired trials, on the log scale of ablated / baseline, one number per image."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri, stdtrit

from circuits.statistics.validation import check_fraction, check_matrix

BLOCK_VALUES = 1 << 18


@dataclass(frozen=True)
class Effects:
    """Per trial: the paired effect of an ablation, each size with its confidence interval.

    mean_log_ratio, sd: mean and standard deviation (ddof 1) of g over images; interval by Student's t.
    percent: 100 (exp(mean g) - 1), the degradation of the geometric mean ratio; the interval is the transformed one.
    d_z: mean g / sd g; +-inf where g is constant and not 0. Interval from the noncentral t.
    p_degraded: share of images with g > 0; Wilson interval.
    """

    n: int
    level: float
    mean_log_ratio: Float[np.ndarray, " trials"]
    sd: Float[np.ndarray, " trials"]
    log_low: Float[np.ndarray, " trials"]
    log_high: Float[np.ndarray, " trials"]
    percent: Float[np.ndarray, " trials"]
    ci_low: Float[np.ndarray, " trials"]
    ci_high: Float[np.ndarray, " trials"]
    d_z: Float[np.ndarray, " trials"]
    d_z_low: Float[np.ndarray, " trials"]
    d_z_high: Float[np.ndarray, " trials"]
    p_degraded: Float[np.ndarray, " trials"]
    p_degraded_low: Float[np.ndarray, " trials"]
    p_degraded_high: Float[np.ndarray, " trials"]


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation (ddof 1; exactly 0 for a constant row) of every row."""

    n: int
    mean: Float[np.ndarray, " trials"]
    sd: Float[np.ndarray, " trials"]


def log_ratio(
    ablated: Float[np.ndarray, "trials n"], baseline: Float[np.ndarray, "trials n"]
) -> Float[np.ndarray, "trials n"]:
    """g = log(ablated / baseline) per image, for a positive metric that the baseline has too.

    Not for distances to the baseline image: those are 0 at the baseline by construction; compare them with a
    norm-matched control (`control_contrast`). `baseline` may be one row, shared by all trials.
    """
    ablated, baseline = check_matrix(ablated, "ablated", columns=1), check_matrix(baseline, "baseline", columns=1)
    if baseline.shape not in (ablated.shape, (1, ablated.shape[1])):
        raise ValueError(f"baseline: expected shape {ablated.shape} or (1, {ablated.shape[1]}), got {baseline.shape}")
    for name, values in (("ablated", ablated), ("baseline", baseline)):
        if not (values > 0).all():
            raise ValueError(f"{name}: expected positive values, got {values.min():g} at the least")
    return np.log(ablated.astype(np.float64)) - np.log(baseline.astype(np.float64))


def effects(g: Float[np.ndarray, "trials n"], level: float = 0.95) -> Effects:
    """Reduce g = log(ablated / baseline) to effect sizes with intervals of coverage `level`, per trial.

    Assumes independent images; the t interval is exact for normal g and asymptotic otherwise. The mean of per-image
    ratios is not offered: by Jensen's inequality it exceeds the ratio it is taken for.
    """
    g = check_matrix(g, "g")
    check_fraction(level, "level")
    m = moments(g)
    half = stdtrit(m.n - 1, 0.5 + level / 2) * m.sd / np.sqrt(m.n)
    low, high = m.mean - half, m.mean + half
    d_z = standardised_mean(m)
    d_z_low, d_z_high = d_z_interval(d_z, m.n, level)
    positive = np.count_nonzero(g > 0, axis=1)
    p_low, p_high = wilson_interval(positive, m.n, level)
    return Effects(
        n=m.n,
        level=level,
        mean_log_ratio=m.mean,
        sd=m.sd,
        log_low=low,
        log_high=high,
        percent=percent(m.mean),
        ci_low=percent(low),
        ci_high=percent(high),
        d_z=d_z,
        d_z_low=d_z_low,
        d_z_high=d_z_high,
        p_degraded=positive / m.n,
        p_degraded_low=p_low,
        p_degraded_high=p_high,
    )


def percent(log_ratio_value: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """100 (exp(x) - 1): a log ratio as a percentage of degradation."""
    with np.errstate(over="ignore"):
        return 100.0 * np.expm1(log_ratio_value)


def moments(g: Float[np.ndarray, "trials n"]) -> Moments:
    """Row means and standard deviations in float64, in blocks so that a float32 matrix is never copied whole."""
    trials, n = g.shape
    mean, sd = np.empty(trials), np.empty(trials)
    step = max(1, BLOCK_VALUES // n)
    for start in range(0, trials, step):
        block = slice(start, start + step)
        rows = g[block].astype(np.float64)
        peak = np.abs(rows).max(axis=1)
        mean[block] = rows.mean(axis=1)
        spread = rows.std(axis=1, ddof=1)
        sd[block] = np.where(spread <= 1e-12 * peak, 0.0, spread)
    return Moments(n=n, mean=mean, sd=sd)


def standardised_mean(m: Moments) -> Float[np.ndarray, " trials"]:
    """Cohen's d_z = mean / sd: 0 for a row of zeros, infinite for any other constant row."""
    constant = np.where(m.mean == 0, 0.0, np.copysign(np.inf, m.mean))
    return np.where(m.sd > 0, m.mean / np.where(m.sd > 0, m.sd, 1.0), constant)


def d_z_interval(
    d_z: Float[np.ndarray, " trials"], n: int, level: float
) -> tuple[Float[np.ndarray, " trials"], Float[np.ndarray, " trials"]]:
    """Interval of the population d_z by inverting the noncentral t distribution of sqrt(n) d_z.

    The closed form P(T <= t | delta) = Phi((t (1 - 1 / 4v) - delta) / sqrt(1 + t^2 / 2v)) (Abramowitz & Stegun
    26.7.10; Johnson & Welch 1940) is inverted: from n = 16 on within 0.01 of the exact limits for |d_z| <= 1, and
    within 2 % of d_z beyond.
    """
    v = n - 1
    finite = np.where(np.isfinite(d_z), d_z, 0.0)
    t = finite * np.sqrt(n)
    half = ndtri(0.5 + level / 2) * np.sqrt(1.0 + t**2 / (2 * v))
    centre = t * (1.0 - 1.0 / (4 * v))
    infinite = ~np.isfinite(d_z)
    low = np.where(infinite, d_z, (centre - half) / np.sqrt(n))
    high = np.where(infinite, d_z, (centre + half) / np.sqrt(n))
    return low, high


def wilson_interval(
    successes: np.ndarray, n: int, level: float
) -> tuple[Float[np.ndarray, " trials"], Float[np.ndarray, " trials"]]:
    """Wilson's score interval of a proportion (JASA 22, 1927); agrees with statsmodels' proportion_confint."""
    z2 = ndtri(0.5 + level / 2) ** 2
    share = np.asarray(successes) / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return np.clip(centre - half, 0.0, 1.0), np.clip(centre + half, 0.0, 1.0)
