"""Saddlepoint tail of a sum of independent signs: P(sum e_i d_i >= sum d_i), e_i = +1 or -1 with probability 1/2.

Niu, Choudhury & Katsevich, "The conditional saddlepoint approximation for fast and accurate large-scale hypothesis
testing" (arXiv 2407.08911) prove the relative accuracy of such tails for resampling tests; the tail formula is
Barndorff-Nielsen's r* = w + log(u / w) / w (Biometrika 73, 1986).
"""

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr

NEWTON_STEPS = 200
"""Newton from the left never overshoots (K' is concave), and an unconverged theta gives a larger p: a cap is safe."""

SMALL_W = 0.02
"""Below this |w| the difference theta S - K loses digits; the series about theta = 0 is exact to w^3 there."""


def saddlepoint_upper_tail(d: Float[np.ndarray, "trials n"]) -> Float[np.ndarray, " trials"]:
    """P(sum e_i d_i >= sum d_i) for every row of `d`, whose sum must lie in [0, sum |d|).

    With K(theta) = sum log cosh(theta d): solve K'(theta) = S = sum d; w = sqrt(2 (theta S - K)),
    u = theta sqrt(K''), p = 1 - Phi(w + log(u / w) / w). Rows are expected at unit norm, so that K''(0) = 1.
    Assumes a sum without large atoms: for rows of one common magnitude the tail is binomial, see `signflip_test`.
    Valid for S >= 0 only; the other half follows from symmetry.
    """
    total = d.sum(axis=1)
    theta = _solve(d, total)
    k, k2 = _cumulants(d, theta)
    w = np.sqrt(np.maximum(2.0 * (theta * total - k), 0.0))
    u = theta * np.sqrt(k2)
    usable = (w > SMALL_W) & (u > 0)
    safe_w, safe_u = np.where(usable, w, 1.0), np.where(usable, u, 1.0)
    # About theta = 0 the odd cumulants vanish: log(u / w) / w -> kappa_4 theta / 8, with kappa_4 = -2 sum d^4.
    kurtosis = -2.0 * np.einsum("ij,ij,ij,ij->i", d, d, d, d)
    small = theta * np.sqrt(np.maximum(1.0 + kurtosis * theta**2 / 4.0, 0.0)) + kurtosis * theta / 8.0
    return ndtr(-np.where(usable, safe_w + np.log(safe_u / safe_w) / safe_w, small))


def _solve(d: Float[np.ndarray, "trials n"], total: Float[np.ndarray, " trials"]) -> Float[np.ndarray, " trials"]:
    """Root of K'(theta) = sum d tanh(theta d) = total; rows that have converged leave the iteration."""
    theta = total.copy()  # K''(0) = 1 and K' concave: this start is never to the right of the root
    active = np.arange(d.shape[0])
    rows = d
    for _ in range(NEWTON_STEPS):
        tanh = np.tanh(theta[active, None] * rows)
        slope = np.einsum("ij,ij->i", rows, tanh)
        weighted = rows * tanh
        curvature = np.einsum("ij,ij->i", rows, rows) - np.einsum("ij,ij->i", weighted, weighted)
        step = (total[active] - slope) / np.maximum(curvature, 1e-300)
        moving = step > 1e-9 * (theta[active] + 1e-3)
        theta[active[moving]] += step[moving]
        if not moving.any():
            break
        if moving.sum() < 0.8 * moving.size:
            active, rows = active[moving], rows[moving]
    return theta


def _cumulants(
    d: Float[np.ndarray, "trials n"], theta: Float[np.ndarray, " trials"]
) -> tuple[Float[np.ndarray, " trials"], Float[np.ndarray, " trials"]]:
    """K(theta) = sum log cosh(theta d) and K''(theta) = sum d^2 sech^2(theta d), without overflow."""
    x = np.abs(theta[:, None] * d)
    decay = np.exp(-2.0 * x)
    k = x.sum(axis=1) + np.log1p(decay).sum(axis=1) - d.shape[1] * np.log(2.0)
    k2 = np.einsum("ij,ij,ij->i", d, d, 4.0 * decay / (1.0 + decay) ** 2)
    return k, k2
