"""Evidence that accumulates image by image: three statistics whose p-values stay valid wherever a trial stops.

Each looks at four streams of x = log(ablated / baseline): x ("degraded"), -x ("improved"), and margin - x with
margin + x ("negligible": both must be shown, so the larger p and the smaller E count). States are updated one image at
a time for many trials at once: how images are split into batches cannot change a bit of the result.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import logsumexp, ndtr

from circuits.statistics.validation import TINY

SIGN_GRID = np.array([0.1, 0.2, 0.4, 0.8, 1.6])
"""kappa of the sign e-process: how strongly a value of one RMS is bet on."""

BETTING_GRID = np.array([0.05, 0.1, 0.2, 0.4, 0.7, 0.95])
"""lambda of the betting e-process: the share of wealth staked, below 1 so that r = -1 never ruins it."""


@dataclass(frozen=True)
class Evidence:
    """p-values per trial, in (0, 1], and the current e-values of the same claims (NaN for OBF, which has none).

    below_margin: of the upper half of "negligible" alone, mean x < margin.
    """

    degraded: Float[np.ndarray, " trials"]
    improved: Float[np.ndarray, " trials"]
    negligible: Float[np.ndarray, " trials"]
    below_margin: Float[np.ndarray, " trials"]
    e_degraded: Float[np.ndarray, " trials"]
    e_improved: Float[np.ndarray, " trials"]
    e_negligible: Float[np.ndarray, " trials"]


class Accumulator(ABC):
    """State of `trials` trials; `add` images of some of them, read the `evidence` of all."""

    def __init__(self, trials: int, margin: float) -> None:
        self.count = np.zeros(trials, dtype=np.int64)
        self.total = np.zeros(trials)
        self.margin = margin

    def add(self, rows: Int[np.ndarray, " rows"], x: Float[np.ndarray, "rows images"]) -> None:
        """Further images of the trials `rows` (distinct indices), in their order."""
        state = self._read(rows)
        for index in range(x.shape[1]):
            value = x[:, index]
            streams = np.stack([value, -value, self.margin - value, self.margin + value])
            self.total[rows] += value
            self._step(state, self.count[rows] + index + 1, streams)
        self._write(rows, state)
        self.count[rows] += x.shape[1]

    def beyond(self, share: float) -> Bool[np.ndarray, " trials"]:
        """Whether the mean of the images so far is further from 0 than this share of the margin."""
        return np.abs(self.total) > share * self.margin * np.maximum(self.count, 1)

    @abstractmethod
    def _arrays(self) -> list[np.ndarray]:
        """All that is remembered, each array with trials on its last axis."""

    @abstractmethod
    def _step(self, state: list[np.ndarray], j: Int[np.ndarray, " rows"], streams: np.ndarray) -> None:
        """Update in place what `_arrays` holds of some trials, by their j-th image."""

    @abstractmethod
    def evidence(self) -> Evidence: ...

    def _read(self, rows: Int[np.ndarray, " rows"]) -> list[np.ndarray]:
        return [array[..., rows] for array in self._arrays()]

    def _write(self, rows: Int[np.ndarray, " rows"], state: list[np.ndarray]) -> None:
        for array, values in zip(self._arrays(), state, strict=True):
            array[..., rows] = values


class ObrienFleming(Accumulator):
    """p = min over horizons h of 2 Phi(-max over first <= j <= min(k, h) of S_j / (s_j sqrt(h))) / share_h.

    Every term is the reflection bound of a Brownian path, monitored image by image up to its horizon (O'Brien &
    Fleming, Biometrics 35, 1979; Lan & Wittes, Biometrics 44, 1988); the shares sum to 1, so that their minimum is
    valid by Bonferroni. One horizon, n_max, is the classical boundary; a nearer second one stops clear trials sooner.
    Assumes a finite variance, images in random order and horizons fixed beforehand; asymptotic, like a t test.
    The p of a stopped trial is never below that of its full data, so any reason to stop, including the results of
    other trials, keeps it valid. Floored at 2^-k as a sign-flip test is.
    Towards the short tail of skewed differences every t-like test is liberal, and nearer horizons more so: at
    skewness -1 (-2) and n_max 256 a nominal .05 measures .057 (.067) for the sign-flip test, .060 (.088) for one
    horizon, .061 (.101) with a second at half of n_max.
    """

    def __init__(
        self, trials: int, margin: float, horizons: Sequence[tuple[int | Int[np.ndarray, " trials"], float]], first: int
    ) -> None:
        """`horizons`: (images, share of the error) of each, the images one number or one a trial."""
        super().__init__(trials, margin)
        self.first = first
        self.shares = tuple(share for _, share in horizons)
        self.limits = np.stack([np.broadcast_to(np.asarray(limit), (trials,)) for limit, _ in horizons])
        self.mean, self.squares = np.zeros(trials), np.zeros(trials)  # Welford: running mean and sum of squares
        self.peak = np.zeros(trials)
        self.highest = np.full((len(self.shares), 4, trials), -np.inf)

    def _arrays(self) -> list[np.ndarray]:
        return [self.mean, self.squares, self.peak, self.highest, self.limits]

    def _step(self, state: list[np.ndarray], j: Int[np.ndarray, " rows"], streams: np.ndarray) -> None:
        mean, squares, peak, highest, limits = state
        x = streams[0]
        before = x - mean
        mean += before / j
        squares += before * (x - mean)
        np.maximum(peak, np.abs(x), out=peak)
        sd = np.sqrt(squares / np.maximum(j - 1, 1))
        constant = sd <= 1e-12 * peak
        total = j * np.stack([mean, -mean, self.margin - mean, self.margin + mean])
        level = total / np.where(constant, 1.0, sd)
        if constant.any():
            level = np.where(constant, np.where(total > 0, np.inf, -np.inf), level)
        for peaks, limit in zip(highest, limits, strict=True):
            np.maximum(peaks, level, out=peaks, where=(j >= self.first) & (j <= limit))

    def evidence(self) -> Evidence:
        tail = np.ones(self.highest.shape[1:])
        for highest, limit, share in zip(self.highest, self.limits, self.shares, strict=True):
            tail = np.minimum(tail, 2.0 * ndtr(-highest / np.sqrt(limit)) / share)
        p = np.maximum(tail, np.maximum(np.exp2(-self.count.astype(np.float64)), TINY))
        none = np.full(self.count.shape, np.nan)
        return Evidence(p[0], p[1], np.maximum(p[2], p[3]), p[2], none, none, none)


class EProcess(Accumulator):
    """A mixture of products of bets: E is a test martingale, P(sup E >= 1 / a) <= a (Ville 1939), p = 1 / sup E."""

    def __init__(self, trials: int, margin: float, grid: Float[np.ndarray, " grid"]) -> None:
        super().__init__(trials, margin)
        self.grid = grid
        self.log_wealth = np.zeros((4, grid.size, trials))
        self.log_e, self.log_highest = np.zeros((4, trials)), np.zeros((4, trials))
        self.squares = np.zeros((4, trials))

    def _arrays(self) -> list[np.ndarray]:
        return [self.log_wealth, self.log_e, self.log_highest, self.squares]

    @abstractmethod
    def _log_bets(self, streams: Float[np.ndarray, "4 rows"], rms: Float[np.ndarray, "4 rows"]) -> np.ndarray:
        """log of the factor of every stream and grid value [4, grid, rows]; rms of the earlier images, 0 if none."""

    def _step(self, state: list[np.ndarray], j: Int[np.ndarray, " rows"], streams: np.ndarray) -> None:
        log_wealth, log_e, log_highest, squares = state
        log_wealth += self._log_bets(streams, np.sqrt(squares / np.maximum(j - 1, 1)))
        log_e[:] = logsumexp(log_wealth, axis=1) - np.log(self.grid.size)
        np.maximum(log_highest, log_e, out=log_highest)
        squares += streams**2

    def evidence(self) -> Evidence:
        p = np.maximum(np.exp(-self.log_highest), TINY)
        e = np.exp(np.minimum(self.log_e, 700.0))
        return Evidence(p[0], p[1], np.maximum(p[2], p[3]), p[2], e[0], e[1], np.minimum(e[2], e[3]))


class SignEProcess(EProcess):
    """E = mean over kappa of prod (1 + tanh(kappa z)), z = x / RMS(previous x); open-ended, no n_max needed.

    Exact in finite samples, for any tails, when each x is symmetric about its centre given the earlier images and
    the null centre is <= 0 with a unimodal density (Vovk & Wang, arXiv 2208.08925). The first image sets the scale.
    """

    def __init__(self, trials: int, margin: float) -> None:
        super().__init__(trials, margin, SIGN_GRID)

    def _log_bets(self, streams: Float[np.ndarray, "4 rows"], rms: Float[np.ndarray, "4 rows"]) -> np.ndarray:
        z = np.where(rms > 0, streams / np.where(rms > 0, rms, 1.0), 0.0)
        # 1 + tanh(y) = 2 / (1 + exp(-2 y))
        return np.log(2.0) - np.logaddexp(0.0, -2.0 * self.grid[:, None] * z[:, None, :])


class BettingEProcess(EProcess):
    """E = mean over lambda of prod (1 + lambda r), r = exp(stream) - 1 >= -1.

    Exact in finite samples for any distribution (Waudby-Smith & Ramdas, JRSS B 86, 2024). "Degraded" is a mean of
    ablated / baseline above 1; "improved" a mean of baseline / ablated above 1; "negligible" that baseline / ablated
    has a mean above exp(-margin) and so has ablated / baseline. These are claims about arithmetic means of bounded-
    below ratios, not about mean log ratios, and both of the first can hold for a wide
    distribution, which is then called degraded.
    """

    def __init__(self, trials: int, margin: float) -> None:
        super().__init__(trials, margin, BETTING_GRID)

    def _log_bets(self, streams: Float[np.ndarray, "4 rows"], rms: Float[np.ndarray, "4 rows"]) -> np.ndarray:
        r = np.expm1(np.minimum(streams, 700.0))
        return np.log1p(self.grid[:, None] * r[:, None, :])
