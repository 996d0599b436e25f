"""The only calls into wandb. Each runs on a thread of its own, and is waited for only so long."""

from __future__ import annotations

import queue
import re
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.tracking.contents import RunContent

if TYPE_CHECKING:
    import wandb


class Hung(TimeoutError):
    """wandb did not come back in time."""


@dataclass(frozen=True)
class Target:
    """Where runs are written, and under which project and group they will appear."""

    run_dir: Path
    project: str
    entity: str | None
    group: str
    timeout: float

    @property
    def wandb_dir(self) -> Path:
        return self.run_dir / "wandb"


def write_run(content: RunContent, target: Target) -> Path:
    """Write one finished W&B run below the run directory and return its folder. Raises whatever wandb raises."""
    import wandb

    run = wandb.init(
        project=target.project,
        entity=target.entity,
        group=target.group[:128],
        id=content.id,
        name=content.name,
        job_type=content.job_type,
        tags=content.tags,
        config=dict(content.config),
        mode="offline",
        settings=_lean_settings(target),
    )
    folder = Path(run.settings.sync_dir)
    try:
        if "timestep" in content.values:
            # Trials of one head line up over the diffusion process, window after window, in one chart.
            run.define_metric("timestep", hidden=True)
            run.define_metric("*", step_metric="timestep")
        run.log(_logged(content))
        if content.files:
            run.log_artifact(_artifact(content, target))
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()
    return folder


def _lean_settings(target: Target) -> wandb.Settings:
    """A run is a dozen local records: no console, git, code, packages, machine, metrics of the system, or links."""
    import wandb

    return wandb.Settings(
        root_dir=str(target.run_dir),
        use_dot_wandb=False,
        reinit="create_new",
        init_timeout=target.timeout,
        finish_timeout=target.timeout,
        finish_timeout_raises=True,
        silent=True,
        quiet=True,
        console="off",
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        label_disable=True,
        sagemaker_disable=True,
        symlink=False,
        allow_media_symlink=True,  # without symlinks that means hard links, or copies between drives
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_viewer=True,
        x_save_requirements=False,
    )


def _logged(content: RunContent) -> dict[str, Any]:
    import wandb

    logged: dict[str, Any] = dict(content.values)
    for key, pictures in content.pictures.items():
        images = [wandb.Image(picture.path, caption=picture.caption) for picture in pictures]
        if images:
            logged[key] = images if len(images) > 1 else images[0]
    for key, table in content.tables.items():
        # Mixed types: wandb would otherwise check every cell of a column against the cells before it.
        made = wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows], allow_mixed_types=True)
        logged[key] = made
        if table.bar:
            label, value = table.bar
            bars = wandb.Table(columns=[label, value], data=[[*pair] for pair in zip(*_columns(table, label, value))])
            logged[f"{key}_chart"] = wandb.plot.bar(bars, label, value, title=key)
    return logged


def _columns(table: Any, *names: str) -> list[list[Any]]:
    return [[row[list(table.columns).index(name)] for row in table.rows] for name in names]


def _artifact(content: RunContent, target: Target) -> wandb.Artifact:
    import wandb

    artifact = wandb.Artifact(re.sub(r"[^A-Za-z0-9_.-]", "-", f"report-{target.group}")[:128], type="report")
    for name, path in content.files.items():
        artifact.add_file(str(path), name=name, skip_cache=True)
    return artifact


class Patience:
    """Calls functions on a daemon thread and gives up on the one that hangs; the next call gets a new thread."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] | None = None

    def call(self, function: Callable[[], Any], timeout: float) -> Any:
        answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def job() -> None:
            try:
                answers.put((function(), None))
            except BaseException as error:
                answers.put((None, error))

        if self._jobs is None:
            self._jobs = queue.SimpleQueue()
            threading.Thread(target=_work, args=(self._jobs,), name="wandb", daemon=True).start()
        self._jobs.put(job)
        try:
            result, error = answers.get(timeout=timeout)
        except queue.Empty:
            self.close()
            _abandon_service()
            raise Hung(f"wandb did not answer within {timeout:g} s") from None
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        if self._jobs is not None:
            self._jobs.put(None)
            self._jobs = None


def _work(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()


def _abandon_service() -> None:
    """End wandb's hanging service: at exit wandb waits for it without a limit. The next run starts a new one."""
    if "wandb" not in sys.modules:
        return
    from wandb.sdk import wandb_setup

    with suppress(Exception):
        connection = wandb_setup._singleton._connection  # type: ignore[union-attr]
        wandb_setup._singleton = None
        process = connection._proc._process  # type: ignore[union-attr]
        process.kill()
        connection._cleanup()  # type: ignore[union-attr,misc]
        process.wait(10)
