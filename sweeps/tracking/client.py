"""The only calls into wandb. Each runs on a thread of its own, and is waited for only so long."""

from __future__ import annotations

import os
import queue
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.tracking.contents import Artifact, Picture, RunContent

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
        notes=content.notes or None,
        config={**content.config, "kind": content.job_type},
        mode="offline",
        settings=_lean_settings(target),
    )
    folder = Path(run.settings.sync_dir)
    os.environ["WANDB_DATA_DIR"] = str(folder)  # what wandb stages of its artifacts goes when the run goes
    media = _media(content)
    try:
        _define_metrics(run, content)
        rows: list[dict[str, Any]] = [dict(row) for row in content.history] or [{}]
        rows[-1] |= media
        for row in rows:
            if row:
                run.log(row)
        if content.summary:
            run.summary.update(dict(content.summary))
        for used in content.uses:
            # What use_artifact does with an artifact that has no version yet; itself it refuses offline.
            run._log_artifact(_artifact(used), is_user_created=True, use_after_commit=True)
        for made in content.makes:
            run.log_artifact(_artifact(made))
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()
    for logged in media.values():
        _tidy(logged)
    return folder


def _tidy(logged: Any) -> None:
    """Delete what a table was written to on its way into the run; wandb leaves it until the process ends."""
    written = getattr(getattr(logged, "table", logged), "_artifact_target", None)
    if written is not None and written.artifact._tmp_dir is not None:
        written.artifact._tmp_dir.cleanup()


def _define_metrics(run: wandb.Run, content: RunContent) -> None:
    """Windows line up over the diffusion process, in every chart; and what of them the run table shows."""
    if any("timestep" in row for row in content.history):
        run.define_metric("timestep", hidden=True)
        # No two of them may fit one metric: which of them wandb takes then is left to chance.
        for metric, shown in (content.summaries or {"*": ""}).items():
            run.define_metric(metric, step_metric="timestep", summary=shown or None)


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


def _media(content: RunContent) -> dict[str, Any]:
    import wandb

    media: dict[str, Any] = {}
    for key, pictures in content.pictures.items():
        images = [_image(picture) for picture in pictures]
        if images:
            media[key] = images if len(images) > 1 else images[0]
    for key, table in content.tables.items():
        rows = [[_image(cell) if isinstance(cell, Picture) else cell for cell in row] for row in table.rows]
        media[key] = wandb.Table(columns=list(table.columns), data=rows)
    for key, bars in content.bars.items():
        ranked = wandb.Table(columns=[bars.label, bars.value], data=[list(row) for row in bars.rows])
        media[key] = wandb.plot.bar(ranked, bars.label, bars.value, title=key)
    for key, chart in content.lines.items():
        xs = [[x for x, _ in points] for points in chart.lines.values()]
        ys = [[y for _, y in points] for points in chart.lines.values()]
        media[key] = wandb.plot.line_series(xs, ys, keys=list(chart.lines), title=key, xname=chart.x)
    if content.maps:
        from sweeps.tracking.figure import Figure

        media |= {key: Figure(figure) for key, figure in content.maps.items()}
    return media


def _image(picture: Picture) -> wandb.Image:
    import wandb

    return wandb.Image(str(picture.path), caption=picture.caption)


def _artifact(content: Artifact) -> wandb.Artifact:
    import wandb

    artifact = wandb.Artifact(
        content.name, content.type, description=content.description, metadata=dict(content.metadata)
    )
    for name, path in content.files.items():
        artifact.add_file(str(path), name=name, skip_cache=True)
    # What is added is copied. (Artifact.new_file leaves its folder to the end of the process.)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in content.texts.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
            artifact.add_file(str(Path(folder) / name), name=name, skip_cache=True)
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
            result, error = None, Hung(f"wandb did not answer within {timeout:g} s")
        if error is None:
            return result
        if isinstance(error, TimeoutError):  # wandb's own wait for its service may end before this one
            _abandon_service()
        elif _service_died():
            _abandon_service()
            raise ConnectionError("wandb's own process died") from error
        raise error

    def close(self) -> None:
        if self._jobs is not None:
            self._jobs.put(None)
            self._jobs = None
        if _service_died():
            _abandon_service()


def _work(jobs: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()


def _service_died() -> bool:
    with suppress(Exception):
        process = sys.modules["wandb.sdk.wandb_setup"]._singleton._connection._proc._process
        return process.poll() is not None
    return False


def _abandon_service() -> None:
    """End wandb's service, which hangs or died: at exit wandb would wait for it. The next run starts a new one."""
    if "wandb" not in sys.modules:
        return
    from wandb.sdk import wandb_setup

    with suppress(Exception):
        connection = wandb_setup._singleton._connection  # type: ignore[union-attr]
        wandb_setup._singleton = None
        # Its clean-up thread writes to what is gone, now or at exit, and prints a traceback of that.
        if finalizer := getattr(connection, "_finalizer", None):
            finalizer._thread._invoke_excepthook = lambda _: None
        process = connection._proc._process  # type: ignore[union-attr]
        process.kill()
        connection._cleanup()  # type: ignore[union-attr,misc]
        process.wait(10)
