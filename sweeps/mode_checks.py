"""What a mode asks of a sweep, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from circuits.engine import Window
from circuits.interventions import Mode
from circuits.rows import why_not
from circuits.sites import AttentionLayer
from sweeps.config import Config, ConfigError, as_list

if TYPE_CHECKING:
    from sweeps.plan import Subject


def check_modes(
    config: Config,
    modes: Sequence[Mode],
    layers: Sequence[AttentionLayer],
    windows: Sequence[Window],
    timesteps: Sequence[int],
    subject: Subject,
    *,
    images: int,
    key: str = "sweep.images",
) -> None:
    """Refuse what a mode cannot do; ``key`` is the setting that gives the trials their ``images``.

    Raises:
        ConfigError: too few images or samples, a single data set, or a layer without values of its own.
    """
    # Under protocol `sample` a trial's images are generated together, all at the same timesteps.
    resampling = {Mode.resample, Mode.resample_across} & set(modes) and "denoise" in as_list(
        config.sweep.protocols, "sweep.protocols"
    )
    steps = max(len(w.select(timesteps)) for w in windows)
    if resampling and images < 2 * steps:
        raise ConfigError(
            f"{key}: resample needs 2 images a sampler step of a window, {2 * steps} in all, got {images}"
        )
    if resampling and config.sweep.samples == 1:
        raise ConfigError("sweep.samples: resample needs 0 or at least 2 samples, got 1")
    if Mode.resample_across in modes and len(subject.data) < 2:
        raise ConfigError(
            f"sweep.modes: resample_across needs two data sets, data={config.data.name} has {len(subject.data)}"
        )
    for layer in layers:
        for mode in modes:
            if reason := why_not(mode, layer):
                raise ConfigError(f"sweep.modes: {reason}")
