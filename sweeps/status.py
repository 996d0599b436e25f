"""``mode=status``: how a run is doing, from its directory alone. Takes no lock and writes nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from circuits.naming import nearest
from sweeps.config import Config, ConfigError
from sweeps.locks import STALE_SECONDS
from sweeps.places import existing, names_at, run_at
from sweeps.progress import TOP, clock, gib, say
from sweeps.records import RunDirectory, RunDirectoryError
from sweeps.standing import (
    FINISHED,
    INTERRUPTED,
    MEASURING,
    PLANNED,
    TRACKING,
    WORKING,
    Standing,
    Strong,
    read_standing,
)
from sweeps.uris import is_uri

_LONGEST_CAUSE = 160
_CAUSES = 5


@dataclass(frozen=True)
class Driver:
    """Who has the run's lock.

    Attributes:
        alive: its process is there, as far as can be seen from here, and touched the lock not long ago.
        silent: seconds since it touched it.
    """

    host: str
    pid: int | None
    alive: bool
    silent: float


@dataclass(frozen=True)
class Status:
    """
    Attributes:
        standing: what the driver said last, or what the records say where it said nothing.
        driver: None where nobody works on the run.
        stale: seconds since the standing was written; None where it is from the records.
        report: the page, if there is one; partial: it was made before everything was measured.
        command: what to type to go on.
    """

    name: str
    path: str
    standing: Standing
    driver: Driver | None
    stale: float | None
    report: str | None
    partial: bool
    command: str | None


def show_status(config: Config) -> int:
    """``mode=status``: says it, of the run that is named, or of the one that something happened in last."""
    root, name = config.run.root, config.run.name
    if name:
        directory: RunDirectory | None = existing(run_at(root, name), root)
    elif is_uri(root):
        raise ConfigError(f"run.name: nothing given; in a store{nearest('', names_at(root))}")
    else:
        directory = newest_run(Path(root).expanduser())
    if directory is None:
        raise ConfigError(f"run.root: expected a folder with runs, got {root!r}, which has none")
    found = read_status(directory)
    if config.run.as_json:
        say(Console(), as_json(found))
    else:
        print_status(Console(), found)
    return 0


def read_status(directory: RunDirectory, wall: Callable[[], float] = time.time) -> Status:
    """
    Raises:
        RunDirectoryError: this is no run, or a newer version wrote it.
    """
    about = directory.read_run()
    driver = read_driver(directory.lock, wall)
    said = read_standing(directory)
    standing = said or from_records(directory, about)
    if standing.state in WORKING and not (driver and driver.alive):
        standing = replace(standing, state=INTERRUPTED, eta=None)
    elif said is None and driver and driver.alive:
        standing = replace(standing, state=MEASURING)
    page = directory.path / "report" / "index.html"
    return Status(
        name=directory.path.name,
        path=directory.where,
        standing=standing,
        driver=driver,
        stale=None if said is None else _age(directory.progress, wall),
        report=directory.shown(page) if page.is_file() else None,
        partial=standing.state not in {FINISHED, TRACKING},
        command=about.get("command"),
    )


def read_driver(lock: Path, wall: Callable[[], float] = time.time) -> Driver | None:
    """Who holds a lock, without touching it; None where nobody does."""
    try:
        silent = _age(lock, wall)
        read = json.loads(lock.read_text())
    except OSError:
        return None
    except ValueError:  # being written just now
        read = None
    holder = read if isinstance(read, dict) else {}
    host, pid = str(holder.get("host", socket.gethostname())), holder.get("pid")
    here = host == socket.gethostname()
    there = is_running(pid) if here and isinstance(pid, int) else True
    return Driver(host, pid if isinstance(pid, int) else None, there and silent < STALE_SECONDS, silent)


def _age(file: Path, wall: Callable[[], float]) -> float:
    """Seconds since a file was touched."""
    return max(0.0, wall() - file.stat().st_mtime)


def is_running(pid: int) -> bool:
    """Whether a process of this machine is there and has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state not in {"Z", "X"}


def from_records(directory: RunDirectory, about: dict[str, Any]) -> Standing:
    """A standing without progress.json: of a run that has not begun to measure, or of an earlier version."""
    try:
        trials = pq.read_metadata(directory.trials).num_rows
    except (OSError, pa.ArrowException) as error:
        raise RunDirectoryError(f"{directory.where} holds no run: trials.parquet cannot be read") from error
    failures = directory.read_failures()
    causes = Counter(failure.error for failure in failures)
    standing = Standing(
        state=INTERRUPTED if about else PLANNED,
        trials=trials,
        failed=len(failures),
        causes=tuple(causes.most_common(_CAUSES)),
    )
    if not about:
        return standing
    counts = about.get("counts", {})
    if directory.effects.is_file() and counts.get("recorded", -1) + counts.get("failed", 0) == trials:
        return replace(standing, state=FINISHED, done=counts["recorded"], rows=counts.get("rows", 0))
    return replace(standing, done=len(directory.recorded()), top=strongest(directory))


def strongest(directory: RunDirectory) -> tuple[Strong, ...]:
    """The ablations with the largest mean log ratio in the records, heads alone if there are any."""
    from sweeps.gains import read_gains  # and scipy with it, where the driver said nothing

    trials = directory.read_frame(directory.trials)
    if "phase" in trials:
        trials = trials[trials["phase"] == "grid"]
    heads = trials[trials["head"] >= 0] if (trials["head"] >= 0).any() else trials
    metric = str(directory.read_config().get("stats", {}).get("metric"))
    measured = read_gains(directory, heads["trial_id"].tolist(), [metric]).get(metric)
    if measured is None:
        return ()
    found = heads.set_index("trial_id").loc[measured.trial_ids]
    found = found.assign(n=measured.counts, gain=np.nanmean(measured.g, axis=1))
    top = found.nlargest(TOP, "gain")
    return tuple(
        Strong(
            f"layer {row.layer_index}" + (f" head {row.head}" if row.head >= 0 else "")
            + f", {row.mode}, t {row.t_start}-{row.t_end}, {row.dataset}",
            100 * float(np.expm1(row.gain)),
            int(row.n),
        )
        for row in top.itertuples()
    )  # fmt: skip


def print_status(console: Console, status: Status) -> None:
    """In plain lines, for people and for grep."""
    for line in lines(status):
        say(console, line)


def as_json(status: Status) -> str:
    return json.dumps(dataclasses.asdict(status), indent=2)


def lines(status: Status) -> list[str]:
    found = status.standing
    ended = found.done + found.failed
    share = f" ({100 * ended // found.trials}%)" if found.trials else ""
    working = found.state in WORKING
    said = [
        f"run {status.name}: {found.state}, {found.done:,} of {found.trials:,} trials{share}, {found.failed} failed",
        _driver(status),
    ]
    if found.rows_per_second and working:
        memory = f", GPU {gib(found.memory)}" if found.memory else ""
        eta = "" if found.eta is None else f", ETA {clock(found.eta)}"
        said.append(
            f"rate {found.trials_per_second:.1f} trials/s, {found.rows_per_second:.0f} rows/s{memory}{eta}"
            + ("" if status.stale is None else f" (as of {_ago(status.stale)})")
        )
    said += [f"failed {count}: {cause[:_LONGEST_CAUSE]}" for cause, count in found.causes]
    if found.top and found.state != FINISHED:
        said.append("top ten so far (provisional: by the images measured so far, corrected for nothing)")
        said += [f"  {strong.percent:+8.1f}%  n={strong.images:<4d} {strong.label}" for strong in found.top]
    if status.report:
        said.append(
            f"report {status.report}"
            + (" (partial: of what was measured when it was written)" if status.partial else "")
        )
    if not working and found.state != FINISHED and status.command:
        said.append(f"to go on: {status.command}")
    return said


def _driver(status: Status) -> str:
    driver = status.driver
    if driver is None:
        return "driver none"
    who = f"driver process {'unknown' if driver.pid is None else driver.pid} on {driver.host}"
    return f"{who}, {'alive' if driver.alive else 'gone'} (last sign of life {_ago(driver.silent)})"


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s ago" if seconds < 120 else f"{clock(seconds)} ago"


def newest_run(root: Path) -> RunDirectory | None:
    """The run under a root that something happened in last."""
    runs = [path for path in root.iterdir() if (path / "trials.parquet").is_file()] if root.is_dir() else []
    return RunDirectory(max(runs, key=_last_touched)) if runs else None


def _last_touched(path: Path) -> float:
    times = []
    for name in ("lock.json", "progress.json", "run.json", "trials.parquet"):
        try:
            times.append((path / name).stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)
