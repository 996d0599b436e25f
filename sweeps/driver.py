"""The whole job, in the order of the data: plan, resume, schedule, record, aggregate, report."""

from __future__ import annotations

import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.console import Console

from sweeps import schedule
from sweeps.aggregate import aggregate
from sweeps.config import Config, ConfigError, as_plain, source_specs
from sweeps.leases import LeaseQueue
from sweeps.plan import Plan, Subject, default_run_name, make_plan
from sweeps.progress import SweepProgress
from sweeps.records import Failure, RunDirectory, RunDirectoryError, RunLock
from sweeps.report import write_report
from sweeps.run import RunnerSpec, SubjectSpec, load_subject
from sweeps.summary import print_plan, print_summary
from sweeps.tracking import TrackerSettings, open_tracker, track_from_records

OK, FAILED_TRIALS, INTERRUPTED = 0, 3, 130
_PACKAGES = ("circuit-sweep", "torch", "diffusers", "ray", "wandb", "numpy", "scipy", "pandas", "pyarrow", "hydra-core")


def execute(config: Config) -> int:
    """Do what ``config.mode`` asks; returns the exit code."""
    modes: dict[str, Callable[[Config], int]] = {
        "run": run_sweep,
        "plan": plan_only,
        "track": track,
        "aggregate": analyse,
        "report": report,
        "train": train_model,
    }
    return modes[config.mode](config)


def run_sweep(config: Config) -> int:
    """Measure what is not measured yet, then aggregate and report."""
    from sweeps.search import run_search  # needs Tune, which a grid does not

    console = Console(stderr=True)
    subject, spec = load(config)
    plan = make_plan(config, subject)
    directory = run_directory(config, plan)
    directory.create()
    with RunLock(directory.path):
        begin(config, subject, plan, directory)
        if config.sweep.kind == "search":
            plan, code = run_search(config, subject, spec, directory, console)
        else:
            code = measure(config, subject, spec, plan, directory, console)
        if code == INTERRUPTED:
            console.print(f"Interrupted; the same command goes on where it stopped: {shell_command()}", highlight=False)
            return code
        finish(config, plan, directory, console)
    return code


def measure(
    config: Config, subject: Subject, spec: SubjectSpec, plan: Plan, directory: RunDirectory, console: Console
) -> int:
    """Run every trial of the plan that is not recorded; returns the exit code."""
    for part in directory.parts()[1]:
        console.print(f"unreadable part {part.name}: set aside, its trials are measured again", highlight=False)
        part.rename(part.with_suffix(".damaged"))
    recorded = directory.recorded()
    pending = [t for t in plan.trials if t.trial_id not in recorded]
    if len(pending) < len(plan):
        console.print(f"{len(plan) - len(pending)} of {len(plan)} trials are recorded already", highlight=False)
    failures: list[Failure] = []
    rows, started, peak = 0, time.monotonic(), 0
    leases = LeaseQueue(pending, config.cluster.lease_seconds)
    runner = runner_spec(config, spec, directory)
    with (
        interruptible(console) as stop,
        tracked(config, directory, console) as tracker,
        SweepProgress({t.trial_id: t for t in plan.trials}, len(plan) - len(pending), console) as progress,
    ):
        if config.cluster.name == "inline":
            outcomes = schedule.inline(leases, runner, subject, stop)
        else:
            outcomes = schedule.ray_pool(leases, runner, config.cluster, stop)
        for _, outcome in outcomes if pending else iter(()):
            failures += outcome.failures
            rows, peak = rows + outcome.rows, max(peak, outcome.peak_memory)
            progress.add(outcome.percents, len(outcome.failures), outcome.rows)
            for trial_id in outcome.percents:
                tracker(trial_id)
        interrupted = stop.is_set()
    directory.write_failures(failures)
    now_recorded = directory.recorded() & {t.trial_id for t in plan.trials}
    before = directory.read_run()
    directory.write_run(
        {
            "finished": now(),
            "seconds": round(before.get("seconds", 0) + time.monotonic() - started, 1),
            "peak_memory_bytes": peak,
            "counts": {
                "trials": len(plan),
                "recorded": len(now_recorded),
                "failed": len(failures),
                "rows": before.get("counts", {}).get("rows", 0) + rows,
            },
        }
    )
    if interrupted:
        return INTERRUPTED
    return OK if len(now_recorded) == len(plan) else FAILED_TRIALS


def finish(config: Config, plan: Plan, directory: RunDirectory, console: Console) -> None:
    """Aggregate, report, track the summary, and say what came out."""
    try:
        found = aggregate(directory)
    except RunDirectoryError as error:
        console.print(str(error), highlight=False)
        return
    page = write_report(directory.path)
    print_summary(Console(), plan, found, config.stats.metric, directory, page)
    if config.tracker.name == "wandb":
        outcome = track_from_records(directory.path, tracker_settings(config))
        Console().print(outcome.message, highlight=False, soft_wrap=True, markup=False)


def plan_only(config: Config) -> int:
    """``mode=plan``: the grid and its cost; writes nothing but the plan."""
    subject, _ = load(config)
    plan = make_plan(config, subject)
    directory = run_directory(config, plan)
    directory.path.mkdir(parents=True, exist_ok=True)
    directory.write_frame(directory.trials, plan.frame())
    print_plan(Console(), config, subject, plan, directory)
    return OK


def track(config: Config) -> int:
    """``mode=track``: log from the records whatever is not in W&B yet."""
    outcome = track_from_records(existing(config).path, tracker_settings(config))
    Console().print(outcome.message, highlight=False, soft_wrap=True, markup=False)
    return OK


def analyse(config: Config) -> int:
    """``mode=aggregate``: effects from the records."""
    directory = existing(config)
    found = aggregate(directory)
    Console().print(
        f"{directory.effects}: {len(found.effects)} effects, {found.missing} trials not measured", highlight=False
    )
    return OK


def report(config: Config) -> int:
    """``mode=report``: aggregate and write the page."""
    directory = existing(config)
    aggregate(directory)
    Console().print(str(write_report(directory.path)), highlight=False, soft_wrap=True)
    return OK


def train_model(config: Config) -> int:
    """``mode=train``: train a shipped model; goes on where it stopped."""
    from rich.progress import Progress

    from circuits.shipped import SHIPPED, train_tiny_faces
    from circuits.training import TrainingProgress

    if config.model.name not in SHIPPED or config.model.training is None:
        raise ConfigError(
            f"mode=train trains the models that ship, not model={config.model.name}; valid: {', '.join(SHIPPED)}"
        )
    folder = Path("training") / config.model.name
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=config.model.training.steps)

        def show(at: TrainingProgress) -> None:
            bar.update(task, completed=at.step, description=f"loss {at.loss:.4f}, {at.seconds_per_step:.2f} s a step")

        exported = train_tiny_faces(config.model.training, folder, show)
    Console().print(
        f"{exported}: sweep it with model=hub model.path={exported}, or copy it to circuits/assets/", highlight=False
    )
    return OK


def load(config: Config) -> tuple[Subject, SubjectSpec]:
    """Model and data sets in this process: for the plan, and for a sweep without Ray."""
    spec = SubjectSpec(
        model_name=config.model.name,
        model_path=absolute(config.model.path),
        dtype=config.model.dtype,
        device=schedule.resolve_device(config.cluster.device),
        sources=tuple(source_specs(config.data)),
        images=images_needed(config),
    )
    return load_subject(spec), spec


def images_needed(config: Config) -> int:
    """A search is confirmed on as many fresh images again."""
    return config.sweep.images * (2 if config.sweep.kind == "search" else 1)


def runner_spec(config: Config, spec: SubjectSpec, directory: RunDirectory) -> RunnerSpec:
    return RunnerSpec(
        subject=spec,
        steps=config.sweep.steps,
        seed=config.sweep.seed,
        rows=config.run.rows,
        threads=0,
        run_dir=str(directory.path),
        metric=config.stats.metric,
    )


def absolute(path: str) -> str:
    """A local folder by its absolute path, since workers run elsewhere; names and hub ids as they are."""
    return str(Path(path).expanduser().resolve()) if Path(path).expanduser().is_dir() else path


def run_directory(config: Config, plan: Plan) -> RunDirectory:
    return RunDirectory(Path(config.run.root).expanduser() / (config.run.name or default_run_name(config, plan)))


def existing(config: Config) -> RunDirectory:
    """The run that the configuration names, by ``run.name`` or by its plan."""
    if config.run.name:
        directory = RunDirectory(Path(config.run.root).expanduser() / config.run.name)
    else:
        directory = run_directory(config, make_plan(config, load(config)[0]))
    if not directory.trials.is_file():
        from circuits.naming import nearest

        root = Path(config.run.root)
        others = sorted(p.name for p in root.iterdir() if (p / "trials.parquet").is_file()) if root.is_dir() else []
        raise ConfigError(f"run.name: no run {directory.path}{nearest(directory.path.name, others)}")
    return directory


def begin(config: Config, subject: Subject, plan: Plan, directory: RunDirectory) -> None:
    """Write the plan and what it runs with; a different plan needs a different run directory."""
    before = directory.read_run()
    if before.get("plan", plan.digest) != plan.digest:
        raise ConfigError(
            f"run.name: {directory.path.name} holds a different plan ({before['plan'][:8]}, this one is {plan.digest[:8]}); "
            "choose another run.name, or leave it out"
        )
    directory.write_config(as_plain(config))
    directory.write_frame(directory.trials, plan.frame())
    denoiser = subject.denoiser
    directory.write_run(
        {
            "plan": plan.digest,
            "name": directory.path.name,
            "started": before.get("started", now()),
            "command": shell_command(),
            "versions": versions(),
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} CPU threads",
            "device": device_name(denoiser.device),
            "git_commit": git_commit(),
            "seeds": {"sweep": config.sweep.seed},
            "model": {
                "name": denoiser.name,
                "path": config.model.path,
                "revision": denoiser.revision,
                "parameters": denoiser.parameters,
                "layers": [layer.name for layer in subject.layers],
                "heads": max(layer.heads for layer in subject.layers),
            },
            "data": {
                name: {"n": config.sweep.images, "held_out": d.measured.held_out, "trained_on": d.measured.trained_on}
                for name, d in subject.data.items()
            },
            "timesteps": list(plan.timesteps),
        }
    )


@contextmanager
def interruptible(console: Console) -> Iterator[threading.Event]:
    """The first Ctrl-C (or SIGTERM) lets what is in flight finish, the second ends at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, _: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        console.print("Stopping when what is in flight has finished; again to stop at once.", highlight=False)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def tracked(config: Config, directory: RunDirectory, console: Console) -> Iterator[Callable[[str], None]]:
    """Log finished trials to W&B from a thread beside the work; yields what to call with a trial's id."""
    if config.tracker.name != "wandb":
        yield lambda _: None
        return
    tracker = open_tracker(directory.path, tracker_settings(config))
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(1.0):
            tracker.follow_once()

    thread = threading.Thread(target=follow, name="tracker", daemon=True)
    thread.start()
    try:
        yield tracker.trial_done
    finally:
        ended.set()
        thread.join(timeout=tracker_settings(config).init_timeout)
        if thread.is_alive():
            console.print("W&B is slow; mode=track can log the rest later", highlight=False)


def tracker_settings(config: Config) -> TrackerSettings:
    tracker = config.tracker
    try:
        return TrackerSettings(
            project=tracker.project,
            entity=tracker.entity,
            mode=tracker.mode,
            granularity=tracker.granularity,
            max_trial_runs=tracker.max_trial_runs,
            samples=tracker.samples,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


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


def shell_command() -> str:
    import shlex

    return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
