"""What a sweep has to find out before it knows all its trials: the sets of a search, the types of heads."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from rich.console import Console

from sweeps.adaptive import run_search
from sweeps.config import Config
from sweeps.plan import Plan, Subject
from sweeps.profiling import run_profiles
from sweeps.records import RunDirectory
from sweeps.run import RunnerSpec


@dataclass(frozen=True)
class Explored:
    """All trials that are to be measured; as far as they are known, where it was interrupted."""

    plan: Plan
    interrupted: bool


def explore(
    config: Config,
    subject: Subject,
    runner: RunnerSpec,
    plan: Plan,
    directory: RunDirectory,
    console: Console,
    stop: threading.Event,
) -> Explored:
    """Find out which trials there are; a grid without profiles has them all in its plan."""
    if config.sweep.kind == "search":
        searched = run_search(config, subject, runner, directory, console, stop)
        return Explored(searched.plan, searched.interrupted)
    if config.sweep.profile.images:
        profiled = run_profiles(config, subject, plan, directory, console, stop)
        return Explored(profiled.plan, profiled.interrupted)
    return Explored(plan, interrupted=False)
