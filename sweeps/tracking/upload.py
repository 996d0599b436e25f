"""Uploads finished W&B runs with `wandb sync`, in a process of its own, until something goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from sweeps.tracking.settings import one_line

BATCH = 256
PARALLEL = 8
ATTEMPTS = 2
"""Batches that a run may be part of before it is left to a later `wandb sync`."""

# Until the first run has arrived: a server that is not there, or does not answer, is found out within half a minute.
IMPATIENCE = {
    "WANDB_HTTP_TIMEOUT": "8",
    "WANDB__GRAPHQL_RETRY_MAX": "2",
    "WANDB__GRAPHQL_RETRY_WAIT_MIN_SECONDS": "0.5",
    "WANDB__GRAPHQL_RETRY_WAIT_MAX_SECONDS": "2",
}


def is_uploaded(run: Path) -> bool:
    """`wandb sync` leaves a marker beside the file that it uploaded whole (its exit code says nothing)."""
    return any(run.glob("*.wandb.synced"))


class Uploader:
    """One `wandb sync` at a time. A batch of which nothing arrives ends uploading for good: `failure` says why."""

    def __init__(self, wandb_dir: Path, every: float, batch_timeout: float = 120.0) -> None:
        self.failure = ""
        self._log = wandb_dir / "sync.log"
        self._every = every
        self._batch_timeout = batch_timeout
        self._queue: list[Path] = []
        self._batch: list[Path] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._started = -every
        self._attempts: Counter[Path] = Counter()
        self._works = False

    def add(self, runs: Iterable[Path]) -> None:
        self._queue.extend(runs)

    def step(self, now: bool = False) -> list[Path]:
        """Start, or look after, the current upload without waiting for it. Returns the runs that have arrived."""
        if self._process is not None:
            return self._finish_batch()
        if self._queue and not self.failure and (now or time.monotonic() - self._started >= self._every):
            self._start_batch()
        return []

    def drain(self, deadline: float) -> list[Path]:
        """Upload what is left until `deadline` (time.monotonic); then end the process."""
        arrived: list[Path] = []
        while (self._queue or self._process) and not self.failure and time.monotonic() < deadline:
            arrived += self.step(now=True)
            time.sleep(0.05)
        if self._process is not None:
            self._stop()
            arrived += [run for run in self._batch if is_uploaded(run)]
            self.failure = self.failure or "the time for uploading was over"
        return arrived

    def _start_batch(self) -> None:
        size = BATCH if self._works else PARALLEL  # a few runs find out whether the server answers
        queue = [run for run in self._queue if run.is_dir()]  # some have made way for a later state of the same run
        self._batch, self._queue = queue[:size], queue[size:]
        if not self._batch:
            return
        self._attempts.update(self._batch)
        command = [sys.executable, "-m", "wandb", "sync", "-n", str(PARALLEL), *map(str, self._batch)]
        self._started = time.monotonic()
        try:
            with open(self._log, "wb") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment(),
                    start_new_session=True,
                )
        except OSError as error:
            self.failure = f"wandb sync did not start: {error}"

    def _finish_batch(self) -> list[Path]:
        assert self._process is not None
        allowed = self._batch_timeout + 2 * len(self._batch)
        if self._process.poll() is None:
            if time.monotonic() - self._started < allowed:
                return []
            self._stop()
            self.failure = f"wandb sync did not end within {allowed:.0f} s"
        self._process = None
        arrived = [run for run in self._batch if is_uploaded(run)]
        self._works = self._works or bool(arrived)
        # A run that was written again meanwhile has gone, and comes again; that is no failure.
        if not arrived and any(run.is_dir() for run in self._batch):
            self.failure = self.failure or self._first_error()
        missing = set(self._batch).difference(arrived)
        self._queue += [run for run in self._batch if run in missing and self._attempts[run] < ATTEMPTS]
        return arrived

    def _stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def _first_error(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        errors = [line for line in lines if "ERROR" in line] or [line for line in lines if line.strip()]
        return one_line(errors[0] if errors else "wandb sync uploaded nothing")

    def _environment(self) -> dict[str, str]:
        # Not this process's wandb service, and not its offline mode.
        inherited = {k: v for k, v in os.environ.items() if k not in ("WANDB_SERVICE", "WANDB_MODE", "WANDB_SILENT")}
        wandb_dir = self._log.parent
        ours = {
            "WANDB_DIR": str(wandb_dir.parent),
            "WANDB_DATA_DIR": str(wandb_dir),
            "WANDB_CACHE_DIR": str(wandb_dir / "cache"),
        }
        return ({} if self._works else IMPATIENCE) | inherited | ours
