"""Weights & Biases beside a sweep: follows a run directory, writes W&B runs into it, uploads them when it may.

Everything W&B shows is derived from the run directory, so whatever could not be logged can be logged later
(`mode=track`). Runs are always written offline, in `<run directory>/wandb`; being online means that a `wandb sync`
process uploads finished runs in the background. The network can therefore neither slow a sweep nor stop it.
"""

from sweeps.tracking.settings import TrackerSettings, TrackOutcome
from sweeps.tracking.tracker import Tracker, open_tracker, track_from_records

__all__ = ["TrackOutcome", "Tracker", "TrackerSettings", "open_tracker", "track_from_records"]
