"""What a user chooses about tracking, and what came of it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sweeps.tracking.environment import as_found

MODES = ("auto", "offline", "online", "disabled")
GRANULARITIES = ("auto", "trial", "group")

# W&B's own values of WANDB_MODE (wandb 0.31, Settings.mode), as what they mean here.
WANDB_MODES = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


@dataclass(frozen=True)
class TrackerSettings:
    """Validated here, once; times in seconds."""

    project: str = "circuit-sweep"
    entity: str | None = None
    mode: str = "auto"
    """auto: what WANDB_MODE says, else online when a login exists, else offline."""
    granularity: str = "auto"
    """A W&B run per trial, or per layer and window (group); auto: per trial up to `max_trial_runs` trials."""
    max_trial_runs: int = 2000
    samples: bool = True
    init_timeout: float = 30.0
    """Longest wait for wandb to write one run. It is a local write; the summary run may take twice as long."""
    finish_timeout: float = 120.0
    """Longest wait at the end of the sweep, for what is not logged yet and for the upload together."""
    upload_every: float = 20.0
    """Finished runs are uploaded in batches, at most one batch in this time."""

    def __post_init__(self) -> None:
        _one_of("tracker.mode", self.mode, MODES)
        _one_of("tracker.granularity", self.granularity, GRANULARITIES)
        if not self.project or len(self.project) > 128 or set(self.project) & set("/\\#?%:"):
            raise ValueError(
                f"tracker.project: expected 1 to 128 characters without / \\ # ? % : and got {self.project!r}"
            )
        if self.max_trial_runs < 0:
            raise ValueError(f"tracker.max_trial_runs: expected 0 or more, got {self.max_trial_runs}")
        for name in ("init_timeout", "finish_timeout", "upload_every"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"tracker.{name}: expected a finite time above 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class TrackOutcome:
    """What is in W&B now; counts are trials, except `uploaded`, which counts W&B runs."""

    mode: str
    logged: int = 0
    pending: int = 0
    failed: int = 0
    """Attempts to write a W&B run that failed."""
    uploaded: int = 0
    message: str = ""
    errors: tuple[str, ...] = ()
    directory: Path | None = None
    complete: bool = True
    """Nothing is left for mode=track: all is logged and, in mode online, uploaded."""


def resolve_mode(settings: TrackerSettings, environ: Mapping[str, str]) -> tuple[str, str]:
    """The mode to track in and, where it is not the one asked for, why."""
    asked, source = settings.mode, "tracker.mode"
    if asked == "auto" and (named := environ.get("WANDB_MODE", "").lower()):
        if named not in WANDB_MODES:
            return "offline", f"WANDB_MODE={named} is not one of {', '.join(WANDB_MODES)}"
        asked, source = WANDB_MODES[named], "WANDB_MODE"
    if asked in ("offline", "disabled"):
        return asked, ""
    if login_exists():
        return "online", ""
    return "offline", "" if asked == "auto" else f"{source} is online and there is no login (`wandb login`)"


def login_exists() -> bool:
    """wandb looks where it keeps logins; only yes or no leaves this function. Asks no server and no user."""
    try:
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib import wbauth

        with as_found():
            host = wandb_setup.singleton().settings.base_url
            found = wbauth.authenticate_session(host=host, source="tracker", prompt=False, update_session=False)
        return found is not None
    except Exception:
        return False


def one_line(error: BaseException | str) -> str:
    """For an outcome: one line, not too long, without anything as long as a key."""
    kind = f"{type(error).__name__}: " if isinstance(error, BaseException) else ""
    return (kind + re.sub(r"[0-9A-Za-z_-]{40,}", "...", " ".join(str(error).split())))[:300]


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{key}: expected one of {', '.join(allowed)}, got {value!r}{hint}")
