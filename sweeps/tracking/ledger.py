"""Which W&B runs were written: `tracking.jsonl` in the run directory, a line per run, append-only, last line wins."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

FILE = "tracking.jsonl"


class Busy(RuntimeError):
    """Another process tracks this run directory."""


@dataclass(frozen=True)
class Entry:
    run: str
    """Id of the W&B run."""
    content: str
    """What the run was made of; the same content is not logged again."""
    trials: int
    """Trials that the run shows."""
    path: str
    """Its directory, relative to the run directory."""
    uploaded: bool = False
    staged_in: str = ""
    """The run directory by its whole path, where the run has artifacts: wandb finds their files by whole paths."""


class Ledger:
    """Locked while open, so that two trackers never write the same runs. A line cut short by a crash is ignored."""

    def __init__(self, run_dir: Path) -> None:
        self.entries: dict[str, Entry] = {}
        path = run_dir / FILE
        self._file: TextIO = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115 (open until close())
        try:
            _lock(self._file)
        except OSError:
            self._file.close()
            raise Busy(f"{path} is in use: another process tracks this run") from None
        self._file.seek(0)
        text = self._file.read()
        for line in text.splitlines():
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError):
                continue
            self.entries[entry.run] = entry
        if text and not text.endswith("\n"):
            self._file.write("\n")

    def add(self, entry: Entry) -> None:
        self.entries[entry.run] = entry
        self._file.write(json.dumps(asdict(entry)) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def kinds_written(run_dir: Path) -> set[str]:
    """What the runs that were written begin their ids with: trial, head, ... Read whoever holds the ledger."""
    path = run_dir / FILE
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return set(re.findall(r'"run": "([a-z]+)-', text))


def _lock(file: TextIO) -> None:
    if os.name == "posix":
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
