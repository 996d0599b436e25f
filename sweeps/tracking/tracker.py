"""Follows a run directory and keeps its W&B runs up to date. Nothing here raises into a sweep or awaits a network."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from sweeps.tracking.client import Target
from sweeps.tracking.heads import head_runs
from sweeps.tracking.ledger import Ledger
from sweeps.tracking.measured import Measured, RecordIndex
from sweeps.tracking.outcomes import Outcomes
from sweeps.tracking.plan import Key, Plan, group_of, is_control
from sweeps.tracking.settings import TrackerSettings, TrackOutcome, one_line, resolve_mode
from sweeps.tracking.summary import records_run, summary_run
from sweeps.tracking.trials import group_run, trial_content, trial_run
from sweeps.tracking.upload import Uploader, is_uploaded
from sweeps.tracking.writer import RunWriter

CHUNK = 256
"""Trials reduced at once."""
AT_FIRST, SHARE = 5.0, 0.1
"""While a sweep runs, seconds for writing runs: at first, and of the time that passes. The rest is written last."""
FOR_HEADS = 0.2
"""Of the time at the end, for runs over the diffusion process."""
A_DAY = 86_400.0


def open_tracker(run_dir: str | Path, settings: TrackerSettings) -> Tracker:
    """A tracker for a run directory with config.yaml and trials.parquet; else one that does nothing and says why."""
    mode, note = resolve_mode(settings, os.environ)
    if mode == "disabled":
        return Tracker(TrackOutcome("disabled", message="W&B: disabled."))
    if "://" in str(run_dir):
        return Tracker(TrackOutcome("disabled", message=f"W&B: needs a local run directory, got {run_dir}."))
    directory = Path(run_dir).absolute()
    try:
        plan = Plan.read(directory)
        ledger = Ledger(directory)
    except Exception as error:
        reason = one_line(error)
        return Tracker(
            TrackOutcome(
                "disabled", failed=1, message=f"W&B: nothing logged; {reason}", errors=(reason,), complete=False
            )
        )
    return WandbTracker(plan, ledger, settings, mode, note)


def track_from_records(run_dir: str | Path, settings: TrackerSettings) -> TrackOutcome:
    """Log everything that is recorded and not logged yet (`mode=track`); no sweep waits, so it may take its time."""
    return open_tracker(run_dir, replace(settings, finish_timeout=A_DAY)).finish()


class Tracker:
    """Call `trial_done` from any thread; `follow_once` now and then and `finish` at the end, from one thread.

    This one tracks nothing, and its outcome says why.
    """

    def __init__(self, outcome: TrackOutcome) -> None:
        self._outcome: TrackOutcome | None = outcome

    @property
    def mode(self) -> str:
        return "disabled"

    def trial_done(self, trial_id: str) -> None:
        """The trial's measurements are in records/ and its sample grid, if it has one, is in samples/."""

    def follow_once(self) -> int:
        """Log the trials that are done and not logged yet; returns how many W&B runs were written."""
        return 0

    def finish(self) -> TrackOutcome:
        """Log all that is recorded, then the summary, upload the rest, within about `finish_timeout`."""
        assert self._outcome is not None
        return self._outcome

    def close(self) -> None:
        """Let go of the run directory without finishing."""


class WandbTracker(Tracker):
    def __init__(self, plan: Plan, ledger: Ledger, settings: TrackerSettings, mode: str, note: str) -> None:
        self._outcome = None
        self._plan = plan
        self._settings = settings
        self._mode = mode
        self._note = note
        target = Target(plan.run_dir, settings.project, settings.entity, plan.name, settings.init_timeout)
        self._writer = RunWriter(target, ledger)
        self._index = RecordIndex(plan.run_dir / "records")
        self._outcomes = Outcomes(pd.DataFrame(), plan.metric)
        self._uploader = Uploader(target.wandb_dir, settings.upload_every)
        self._uploader.add(self._left_on_disk())
        self._done: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._started, self._spent = time.monotonic(), 0.0
        self._waiting: set[str] = set()
        self._called: set[str] = set()
        self._cut_short = False
        ablations = sum(not is_control(axes) for axes in plan.trials.values())
        self._by_group = settings.granularity == "group" or (
            settings.granularity == "auto" and ablations > settings.max_trial_runs
        )

    @property
    def mode(self) -> str:
        return self._mode

    def trial_done(self, trial_id: str) -> None:
        self._done.put(trial_id)

    def follow_once(self) -> int:
        while not self._done.empty():
            trial = self._done.get()
            self._waiting.add(trial)
            self._called.add(trial)
        started = time.monotonic()
        left = AT_FIRST + SHARE * (started - self._started) - self._spent
        written = self._guarded(lambda: self._log_recorded(self._ready, started + left)) or 0 if left > 0 else 0
        self._spent += time.monotonic() - started
        self._upload(self._uploader.step)
        return written

    def finish(self) -> TrackOutcome:
        if self._outcome is None:
            deadline = time.monotonic() + self._settings.finish_timeout
            self._index.scan()
            self._cut_short = False
            self._outcomes = Outcomes.read(self._plan.run_dir, self._plan.metric)
            for_trials = deadline - FOR_HEADS * self._settings.finish_timeout
            self._guarded(lambda: self._log_recorded(self._recorded, for_trials, final=True))
            self._guarded(lambda: self._log_heads(deadline))
            # Last, because viewers list the newest first; and whatever the time is.
            self._guarded(self._log_whole)
            self._upload(lambda: self._uploader.drain(deadline))
            self._outcome = self._make_outcome()
            self._writer.close()
        return self._outcome

    def close(self) -> None:
        if self._outcome is None:
            self._writer.close()

    # Which trials

    def _recorded(self) -> list[str]:
        return [trial for trial in self._plan.trials if trial in self._index.rows]

    def _ready(self) -> list[str]:
        """Trials that were called done; of those shown by group, the ones of groups in which every trial was.

        A trial that may stop early has records long before it is done, so records alone do not complete a group.
        """
        known = [trial for trial in self._waiting if trial in self._index.rows and trial in self._plan.trials]
        complete = [trial for trial in known if not self._in_group(trial)]
        self._waiting.difference_update(complete)
        for key in {group_of(self._plan.trials[trial]) for trial in known if self._in_group(trial)}:
            members = self._plan.groups[key]
            if all(trial in self._called and trial in self._index.rows for trial in members):
                self._waiting.difference_update(members)
                complete += members
        return complete

    # Logging

    def _log_recorded(self, choose: Callable[[], list[str]], deadline: float, final: bool = False) -> int:
        """Write what W&B does not show yet; unless `final`, a run that lacks only what was found may stay as it is."""
        self._index.scan()
        chosen = choose()
        written = self._log_trials([trial for trial in chosen if not self._in_group(trial)], deadline, final)
        return written + self._log_groups([trial for trial in chosen if self._in_group(trial)], deadline, final)

    def _in_group(self, trial: str) -> bool:
        """Whether a run of its layer and window shows the trial; controls, being many, have none of their own."""
        return self._by_group or is_control(self._plan.trials[trial])

    def _is_logged(self, run_id: str, trials: list[str], final: bool) -> bool:
        rows = sum(self._index.rows[trial] for trial in trials)
        if final:
            return self._writer.has(run_id, trial_content(rows, self._outcomes, trials))
        return self._writer.shows(run_id, rows)

    def _log_trials(self, trials: list[str], deadline: float, final: bool) -> int:
        new = [trial for trial in trials if not self._is_logged(self._plan.trial_id(trial), [trial], final)]
        runs = (
            trial_run(self._plan, trial, found, self._outcomes, self._settings.samples)
            for trial, found in self._measured(new, deadline)
        )
        return sum(map(self._write, runs))

    def _log_groups(self, trials: list[str], deadline: float, final: bool) -> int:
        written = 0
        groups: dict[Key, list[str]] = {}
        for trial in trials:
            groups.setdefault(group_of(self._plan.trials[trial]), []).append(trial)
        groups = {
            key: members
            for key, members in groups.items()
            if not self._is_logged(self._plan.group_id(key), members, final)
        }
        parts: dict[Key, dict[str, Measured]] = {key: {} for key in groups}
        for trial, found in self._measured([trial for members in groups.values() for trial in members], deadline):
            key = group_of(self._plan.trials[trial])
            parts[key][trial] = found
            if len(parts[key]) == len(groups[key]):
                group = group_run(self._plan, key, parts.pop(key), self._outcomes, self._settings.samples)
                written += self._write(group)
        return written

    def _measured(self, trials: list[str], deadline: float) -> Iterator[tuple[str, Measured]]:
        """In the order of the part files, so that each is read about once; ends early at the deadline."""
        trials = self._index.in_order(trials)
        for start in range(0, len(trials), CHUNK):
            for trial, found in self._index.measure(trials[start : start + CHUNK]).items():
                if self._is_over(deadline):
                    return
                yield trial, found

    def _is_over(self, deadline: float) -> bool:
        over = self._writer.gave_up or time.monotonic() > deadline
        self._cut_short |= over
        return over

    def _log_whole(self) -> None:
        recorded = len(self._recorded())
        self._write(records_run(self._plan, recorded), patience=2)
        self._write(summary_run(self._plan, recorded, self._settings.samples), patience=2)

    def _log_heads(self, deadline: float) -> None:
        for run in head_runs(self._plan, self._outcomes, self._settings.max_trial_runs):
            if self._is_over(deadline):
                return
            self._write(run)

    def _write(self, *arguments: Any, **options: Any) -> int:
        folder = self._writer.write(*arguments, **options)
        if folder is None:
            return 0
        self._uploader.add([folder])
        return 1

    def _guarded(self, function: Callable[[], Any]) -> Any:
        if self._writer.gave_up:
            return None
        try:
            return function()
        except Exception as error:
            self._writer.count(error)
            return None

    # Uploading

    def _upload(self, some: Callable[[], list[Path]]) -> None:
        if self._mode != "online":
            return
        try:
            self._mark_uploaded(some())
        except OSError as error:
            self._uploader.failure = one_line(error)
        if self._uploader.failure:
            self._mode, self._note = "offline", f"Uploading stopped: {self._uploader.failure}"

    def _mark_uploaded(self, folders: Iterable[Path]) -> None:
        ledger = self._writer.ledger
        paths = {folder.relative_to(self._plan.run_dir).as_posix() for folder in folders}
        for entry in [entry for entry in ledger.entries.values() if entry.path in paths]:
            ledger.add(replace(entry, uploaded=True))

    def _left_on_disk(self) -> list[Path]:
        """Runs of earlier calls that were not uploaded. The ledger learns of those that were, by hand, since."""
        entries = [entry for entry in self._writer.ledger.entries.values() if not entry.uploaded]
        folders = [self._plan.run_dir / entry.path for entry in entries if self._writer.can_upload(entry)]
        uploaded = [folder for folder in folders if is_uploaded(folder)]
        self._mark_uploaded(uploaded)
        return [folder for folder in folders if folder not in uploaded]

    # The outcome

    def _make_outcome(self) -> TrackOutcome:
        entries = self._writer.ledger.entries.values()
        kinds = ("group-",) if self._by_group else ("trial-", "group-")
        logged = sum(entry.trials for entry in entries if entry.run.startswith(kinds))
        outcome = TrackOutcome(
            mode=self._mode,
            logged=logged,
            pending=max(0, len(self._recorded()) - logged),
            failed=len(self._writer.errors),
            uploaded=sum(entry.uploaded for entry in entries),
            errors=tuple(dict.fromkeys(self._writer.errors))[:10],
            directory=self._writer.target.wandb_dir,
        )
        left = outcome.pending or outcome.errors or self._cut_short or self._uploader.failure
        return replace(outcome, message=self._message(outcome, len(entries)), complete=not left)

    def _message(self, outcome: TrackOutcome, runs: int) -> str:
        lines = [f"W&B: {outcome.logged} trials in {runs} runs, {outcome.uploaded} uploaded."]
        if self._note:
            lines.append(self._note)
        lines.append(f"Look:   wandb leet {outcome.directory}")
        if outcome.uploaded < runs:
            lines.append(f"Upload: wandb sync {outcome.directory}")
        if outcome.errors:
            lines.append(f"Failed attempts: {outcome.failed}, the first: {outcome.errors[0]}")
        if outcome.pending:
            lines.append(f"{outcome.pending} recorded trials are not logged; mode=track logs what is missing.")
        elif outcome.errors or self._cut_short:
            lines.append("Every trial is logged, not all that was found of them; mode=track logs what is missing.")
        return "\n".join(lines)
