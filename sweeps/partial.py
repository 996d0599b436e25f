"""Reports of what is measured so far, while a sweep runs: by a process beside it that takes what nobody else wants.

``python -m sweeps.partial RUN_DIRECTORY PARENT_PID`` writes one. It works on a mirror of the run directory, so that
effects of an unfinished sweep exist there only: in the run itself nothing can take them for its results.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from sweeps.records import RunDirectory, publish

_OWN = {
    "effects.parquet", "comparisons.parquet", "diagnostics.parquet", "heads.parquet", "run.json", "report", "lock.json",
    "progress.json", "wandb", "tracking.jsonl",
}  # fmt: skip
"""What a mirror has of its own, or does without."""

_PATIENCE = 3.0  # seconds for a report that is to be given up


class PartialReports:
    """Writes a report every so many minutes while inside its ``with``; 0 for never.

    Args:
        say: tells the user, in one line, why a report could not be written.
    """

    def __init__(self, directory: RunDirectory, minutes: float, say: Callable[[str], object]) -> None:
        self._directory, self._seconds, self._say = directory, 60 * minutes, say
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="partial reports", daemon=True)

    def __enter__(self) -> PartialReports:
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """A report that is being made is given up: the final one follows, or none."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _follow(self) -> None:
        while not self._ended.wait(self._seconds):
            problem = self._write()
            if problem:
                self._say(f"no report of what is measured so far: {problem}")

    def _write(self) -> str:
        """Returns what went wrong, in a line; nothing where nothing did, or it was given up."""
        code = Path(__file__).resolve().parents[1]
        quiet = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(code), *_python_path()])}
        with tempfile.TemporaryFile("w+") as said:
            child = subprocess.Popen(
                [sys.executable, "-m", "sweeps.partial", str(self._directory.path), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                env=dict(os.environ) | quiet,
                start_new_session=True,  # Ctrl-C is for the sweep
            )
            while child.poll() is None and not self._ended.wait(0.1):
                pass
            if child.poll() is None:
                child.terminate()
                try:
                    child.wait(_PATIENCE)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
                return ""
            said.seek(0)
            lines = said.read().strip().splitlines()
        return (lines or [f"exit code {child.returncode}"])[-1] if child.returncode else ""


def _python_path() -> list[str]:
    found = os.environ.get("PYTHONPATH")
    return [found] if found else []


def write_partial_report(directory: RunDirectory, current: Callable[[], bool] = lambda: True) -> bool:
    """Aggregate and report what is recorded; returns whether there was anything, and it was ``current`` to the end.

    The page says how much of the sweep it is of. Only the page is left of the mirror: figures are for finished ones.
    """
    from sweeps.aggregate import aggregate
    from sweeps.report import write_report

    if not any(directory.records.glob("*.parquet")):
        return False
    with tempfile.TemporaryDirectory(prefix="partial-") as scratch:
        mirror = mirrored(directory, Path(scratch))
        aggregate(mirror)
        page = write_report(mirror.path, figures=False).read_text(encoding="utf-8")
    if not current():
        return False
    folder = directory.path / "report"
    folder.mkdir(exist_ok=True)
    publish(folder / "index.html", lambda temporary: temporary.write_text(page, encoding="utf-8"), synced=False)
    return True


def mirrored(directory: RunDirectory, scratch: Path) -> RunDirectory:
    """A run directory of the same name that shares plan, records and samples with this one, and nothing of results."""
    mirror = RunDirectory(scratch / directory.path.name)
    mirror.create()
    for entry in directory.path.iterdir():
        if entry.name not in _OWN and not entry.name.startswith("."):
            (mirror.path / entry.name).symlink_to(entry)
    mirror.write_run({key: value for key, value in directory.read_run().items() if key != "finished"})
    return mirror


def main(run_directory: str, parent: str) -> int:
    """Nothing is published once the driver is gone: another one may have finished the run meanwhile."""
    try:
        write_partial_report(RunDirectory(Path(run_directory)), lambda: os.getppid() == int(parent))
    except Exception as error:
        print(f"{type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    os.nice(19)  # what nobody else wants of the processor, or nearly so: a report must come in the end
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the mirror is deleted
    sys.exit(main(*sys.argv[1:]))
