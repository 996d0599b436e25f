"""Call wandb with an environment of its own, and leave the process as it was found."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def as_found(wandb_dir: Path | None = None, settings: Mapping[str, str] | None = None) -> Iterator[None]:
    """Inside, wandb prints nothing, reports no errors of its own, and stages and caches files in `wandb_dir`.

    `settings` are further variables of its environment.

    Undone at the end, like what wandb itself leaves behind: it replaces sys.exit and sys.excepthook, and passes its
    service on to child processes through the environment.
    """
    ours = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", **(settings or {})}
    if wandb_dir is not None:
        ours |= {"WANDB_DATA_DIR": str(wandb_dir), "WANDB_CACHE_DIR": str(wandb_dir / "cache")}
    before = {name: os.environ.get(name) for name in (*ours, "WANDB_SERVICE")}
    hooks = sys.exit, sys.excepthook
    os.environ.update(ours)
    try:
        yield
    finally:
        sys.exit, sys.excepthook = hooks
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
