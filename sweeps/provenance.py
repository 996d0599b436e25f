"""What a run was made with: versions, commit, device and command line, for run.json."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from sweeps.logins import without_login

_PACKAGES = ("circuit-sweep", "torch", "diffusers", "ray", "wandb", "numpy", "scipy", "pandas", "pyarrow", "hydra-core")


def versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Of the checkout this runs from, with ``+`` where it has uncommitted changes."""
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=here, capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() + ("+" if changed.returncode else "") if commit.returncode == 0 else None


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def machine_name() -> str:
    return f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} CPU threads"


def shell_command() -> str:
    """What to type to run this again; goes into run.json and W&B, so logins are hidden."""
    program = Path(sys.argv[0]).name
    return shlex.join([*(["python"] if program.endswith(".py") else []), program, *map(without_login, sys.argv[1:])])


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
