"""The names that settings, tables and code share: ablation modes, levels, metrics and sources of images.

Nothing here imports torch, so that a command line is checked, explained and completed at once.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal


class Mode(StrEnum):
    """How the activation at a site is replaced."""

    zero = "zero"
    """Zeros in place of the head's output."""
    mean = "mean"
    """The head's mean output over a reference set, per site, timestep, class and token."""
    resample = "resample"
    """The head's output for another image of the same data set at the same timestep."""
    resample_across = "resample_across"
    """The head's output for an image of the other data set, under that data set's class, at the same timestep."""
    identity = "identity"
    """(1 - strength) o + strength V: the head's attention map moved toward the identity."""
    uniform = "uniform"
    """The mean of V over all keys: the head's attention map moved to the uniform one."""
    noise = "noise"
    """Gaussian noise with the mean and the standard deviation that each entry of the head's output has over the
    reference set, keyed as in ``mean``; fixed per image, layer and timestep."""
    scale = "scale"
    """The head's output times ``Intervention.factor``: more of what it says (above 1), or less."""
    subspace = "subspace"
    """A control: a random subspace as large as the head is removed from the layer, as much of it as the head has."""
    own = "own"
    """A function of the head's output that was registered from Python (``circuits.register_intervention``)."""


ABLATIONS = tuple(mode for mode in Mode if mode not in (Mode.subspace, Mode.own))
"""What a grid may be made of: the random subspace is what these are compared with, and settings name no code."""

GroupLevel = Literal["block", "stage"]
GROUP_LEVELS: tuple[GroupLevel, ...] = ("block", "stage")
"""Levels that hold several layers; their definitions are in ``circuits.levels``."""

DENOISE_METRICS = ("noise_mse", "x0_mse", "edge", "high_frequency", "luminance", "structure")
"""Errors of the noise prediction, and of the one-step clean image that follows from it."""

SAMPLE_METRICS = ("edge_energy", "high_frequency_energy", "contrast")
"""Properties of a generated image that the unablated image of the same seed has too."""

SAMPLE_DISTANCES = ("sample_mse", "sample_structure")
"""Distances to the unablated image of the same seed: zero for the baseline, so never tested against zero."""

SOURCE_NAMES = ("synthetic_faces", "lfw_faces", "image_folder", "celeba")
"""Where images come from; ``circuits.data.sources`` loads them."""

PROMPTS = "prompts"
"""The source whose images the model makes itself."""
