"""Settings of profiles: what heads do, beside what ablating them does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PROFILE_MODES = ("zero", "mean")
FEWEST_IMAGES = 8  # types need two folds of at least two pairs each


@dataclass
class ProfileConfig:
    """Profiles of heads, their types and their complexity (``sweep=paper``); none are made with ``images: 0``."""

    images: int = 0  # of each data set, at most, profiled at every step of the sampler
    complexity: bool = True  # effective rank, and how many heads an image needs
    circuit_images: int = 32  # that circuits are measured on; heads are ranked on as many others
    mode: str = "mean"  # how sets of heads are ablated: zero, mean
    type_images: int = 64  # that the heads of a type are ablated on
    matched: int = 24  # random sets of heads that each type is compared with; p over them is at least 1/(matched + 1)
    map_heads: int = 8  # heads whose attention is kept to look at, per data set


def profile_problem(profile: ProfileConfig, kind: str, protocols: Sequence[str]) -> str | None:
    """What cannot be used, in one line; None where all can."""
    if profile.images and profile.images < FEWEST_IMAGES:
        return f"sweep.profile.images: expected 0 (no profiles) or at least {FEWEST_IMAGES}, got {profile.images}"
    if profile.images and (kind != "grid" or "denoise" not in protocols):
        return "sweep.profile.images: heads are profiled beside a grid (sweep.kind=grid) with the protocol denoise"
    for name, least in (("circuit_images", 2), ("type_images", 2), ("matched", 1), ("map_heads", 0)):
        if getattr(profile, name) < least:
            return f"sweep.profile.{name}: expected at least {least}, got {getattr(profile, name)}"
    return None
