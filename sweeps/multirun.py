"""Several jobs by one command (``--multirun``): a run directory for each, and at the end what became of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.exit_codes import FAILED_TRIALS, INTERRUPTED, OK
from sweeps.overrides import pasted
from sweeps.uris import Uri, is_uri

_SAID = {OK: "complete", FAILED_TRIALS: "some trials failed for good", INTERRUPTED: "interrupted"}


@dataclass(frozen=True)
class Job:
    """One job of a multirun: what it was given besides the others, its run directory, and its exit code."""

    swept: tuple[str, ...]
    root: str
    name: str
    code: int


def swept(given: Sequence[str], keys: Sequence[str]) -> tuple[str, ...]:
    """The overrides of a job that make it another one than its neighbours; ``keys`` are those with several values."""
    return tuple(override for override in given if override.lstrip("+").partition("=")[0] in keys)


def run_name(name: str, swept: Sequence[str]) -> str:
    """The run directory of a job, where one name was given for all: ``faces,model=tiny_unet,sweep.seed=1``."""
    return re.sub(r"[/\\\x00-\x1f]", "_", ",".join([name, *swept]))[:200]


def _place(job: Job) -> str:
    return str(Uri.parse(job.root).child(job.name)) if is_uri(job.root) else f"{job.root.rstrip('/')}/{job.name}"


def summary(jobs: Sequence[Job], program: str) -> list[str]:
    """Where the jobs' runs lie and how to compare them; nothing where none began."""
    if not jobs:
        return []
    wide = max(len(" ".join(job.swept)) for job in jobs)
    lines = [f"{len(jobs)} runs:" if len(jobs) > 1 else "1 run:"]
    for job in jobs:
        said = _SAID.get(job.code, "ended early")
        lines.append(f"  {' '.join(job.swept).ljust(wide)}  {_place(job)}  ({said})")
    done = [job for job in jobs if job.code in (0, 3)]
    different = {(job.root, job.name): job for job in done}
    if len(different) > 1:
        first, second = list(different.values())[:2]
        root = {} if first.root == "runs" else {"run.root": first.root}
        command = pasted({"mode": "compare", **root, "run.a": first.name, "run.b": second.name})
        lines.append(f"Compare any two: {program} {command}")
    return lines
