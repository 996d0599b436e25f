"""Writes W&B runs, each content once, and gives up where wandb does."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from sweeps.tracking.client import Hung, Patience, Target, write_run
from sweeps.tracking.contents import RunContent
from sweeps.tracking.environment import as_found
from sweeps.tracking.ledger import Entry, Ledger
from sweeps.tracking.settings import one_line

ERRORS_IN_A_ROW = 5
HANGS = 2
FOLDER = re.compile(r"offline-run-\d+_\d+-(?P<id>(all|trial|group|head|layer|records)-([^/]+-)?[0-9a-f]{16})(-\d+)?")


class RunWriter:
    def __init__(self, target: Target, ledger: Ledger) -> None:
        self.target = target
        self.ledger = ledger
        self.errors: list[str] = []
        self._patience = Patience()
        self._place = str(target.run_dir.resolve())
        self._in_a_row = 0
        self._hangs = 0
        target.wandb_dir.mkdir(exist_ok=True)
        self._folders: dict[str, list[Path]] = {}
        for folder in target.wandb_dir.iterdir():
            if found := FOLDER.fullmatch(folder.name):
                self._folders.setdefault(found["id"], []).append(folder)

    @property
    def gave_up(self) -> bool:
        """wandb fails whatever it is given: the rest is left to mode=track."""
        return self._in_a_row >= ERRORS_IN_A_ROW or self._hangs >= HANGS

    def has(self, run_id: str, content: str) -> bool:
        entry = self.ledger.entries.get(run_id)
        if entry is None or entry.content != content:
            return False
        return entry.uploaded or self.can_upload(entry)

    def can_upload(self, entry: Entry) -> bool:
        """Whether the run is on disk, with its artifacts: a run directory that moved has lost them to `wandb sync`."""
        return entry.staged_in in ("", self._place) and (self.target.run_dir / entry.path).is_dir()

    def shows(self, run_id: str, rows: int) -> bool:
        """Whether the run shows this many measurements, with or without what was found of them."""
        entry = self.ledger.entries.get(run_id)
        return entry is not None and self.has(run_id, entry.content) and entry.content.split("/")[0] == str(rows)

    def write(self, content: RunContent, patience: float = 1) -> Path | None:
        """The folder of the new W&B run; None where the same run exists or could not be written."""
        if self.gave_up or self.has(content.id, content.content):
            return None
        # An earlier state of this run, or the torn remains of a crash: uploading both would mix them.
        for folder in self._folders.pop(content.id, []):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            with as_found(self.target.wandb_dir):
                folder = self._patience.call(lambda: write_run(content, self.target), patience * self.target.timeout)
        except Exception as error:
            for torn in self.target.wandb_dir.glob(f"offline-run-*-{content.id}*"):
                shutil.rmtree(torn, ignore_errors=True)
            self.count(error)
            return None
        self._in_a_row = 0
        self._folders[content.id] = [folder]
        path = folder.relative_to(self.target.run_dir).as_posix()
        staged_in = self._place if content.has_artifacts else ""
        self.ledger.add(Entry(content.id, content.content, content.trials, path, staged_in=staged_in))
        return folder

    def count(self, error: Exception) -> None:
        self.errors.append(one_line(error))
        self._in_a_row += 1
        self._hangs += isinstance(error, Hung)

    def close(self) -> None:
        self._patience.close()
        self.ledger.close()
