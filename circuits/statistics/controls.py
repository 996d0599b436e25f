"""Is an ablation worse than a random one of the same size?"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from circuits.statistics.effects import moments
from circuits.statistics.signflip import signflip_test
from circuits.statistics.validation import check_fraction, check_matrix


@dataclass(frozen=True)
class ControlContrast:
    """Per trial: mean over images of (outcome - mean outcome of the controls).

    p: share of controls at least as bad, (1 + #{mean_r >= mean}) / (R + 1), never below `resolution` = 1 / (R + 1):
    the claim "worse than a random subspace", whose unit is the control. p_images: paired sign-flip of the contrast
    over images: the claim "worse than the average control, on images like these". A claim about both needs both.
    """

    estimate: Float[np.ndarray, " trials"]
    ci_low: Float[np.ndarray, " trials"]
    ci_high: Float[np.ndarray, " trials"]
    p: Float[np.ndarray, " trials"]
    p_images: Float[np.ndarray, " trials"]
    resolution: float
    controls: int
    n: int


def control_contrast(
    outcome: Float[np.ndarray, "trials n"], controls: Float[np.ndarray, "controls n"], level: float = 0.95
) -> ControlContrast:
    """Contrast of trials with norm-matched random-subspace controls on the same images; larger outcomes are worse.

    This is also the test for outcomes that are distances to the baseline image (LPIPS, MSE): they are never negative,
    so comparing them with 0 shows nothing. Needs R >= 999 controls to reach p = .001; other heads are no substitute:
    eight of them cannot reach p < 1/8. Assumes controls drawn at random with the removed norm of the trial's own site.
    """
    outcome, controls = check_matrix(outcome, "outcome"), check_matrix(controls, "controls")
    if controls.shape[1] != outcome.shape[1] or not controls.shape[0]:
        raise ValueError(f"controls: expected shape [controls >= 1, {outcome.shape[1]}], got {controls.shape}")
    check_fraction(level, "level")
    contrast = outcome.astype(np.float64) - controls.mean(axis=0, dtype=np.float64)
    m = moments(contrast)
    half = stdtrit(m.n - 1, 0.5 + level / 2) * m.sd / np.sqrt(m.n)
    control_means = np.sort(controls.mean(axis=1, dtype=np.float64))
    trial_means = outcome.mean(axis=1, dtype=np.float64)
    tie = 1e-12 * np.maximum(np.abs(trial_means), np.abs(control_means).max())
    at_least = controls.shape[0] - np.searchsorted(control_means, trial_means - tie, side="left")
    return ControlContrast(
        estimate=m.mean,
        ci_low=m.mean - half,
        ci_high=m.mean + half,
        p=(1.0 + at_least) / (controls.shape[0] + 1.0),
        p_images=signflip_test(contrast).p,
        resolution=1.0 / (controls.shape[0] + 1.0),
        controls=controls.shape[0],
        n=m.n,
    )
