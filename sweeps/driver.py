"""The whole job, in the order of the data: plan, resume, schedule, record, aggregate, report."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from circuits.shipped import SHIPPED
from sweeps import places, standing
from sweeps.adaptive import recall
from sweeps.aggregate import aggregate
from sweeps.candidates import search_plan
from sweeps.config import Config, ConfigError, as_plain, source_specs
from sweeps.exit_codes import GAVE_OUT, INTERRUPTED, OK
from sweeps.exploration import explore
from sweeps.follower import Follower
from sweeps.interruption import interruptible
from sweeps.measuring import measure
from sweeps.partial import PartialReports
from sweeps.places import fetch, held, run_at, visiting
from sweeps.plan import Plan, Subject, check_labels, default_run_name, images_of, make_plan
from sweeps.plan_summary import print_plan, print_search_plan
from sweeps.profiling import check_profiles, profiled_plan
from sweeps.progress import say
from sweeps.provenance import device_name, git_commit, machine_name, now, shell_command, versions
from sweeps.records import RunDirectory, RunDirectoryError
from sweeps.report import write_report
from sweeps.run import RunnerSpec, SubjectSpec, load_subject
from sweeps.schedule.clusters import resolve_device
from sweeps.standing import AGGREGATING, EXPLORING, FINISHED, REPORTING, TRACKING, Bulletin
from sweeps.status import show_status
from sweeps.summary import print_summary
from sweeps.timings import LOADING, Timings
from sweeps.tracking import TrackerSettings, track_from_records
from sweeps.train_mode import check_trained, train_model
from sweeps.units import unit_table


def execute(config: Config, began: Callable[[str], object] = str) -> int:
    """Do what ``config.mode`` asks; returns the exit code. ``began`` is told the name of a sweep's run directory."""
    modes: dict[str, Callable[[Config], int]] = {
        "run": functools.partial(run_sweep, began=began),
        "plan": plan_only,
        "status": show_status,
        "track": track,
        "aggregate": analyse,
        "report": report,
        "compare": compare,
        "export": export,
        "workspace": workspace,
        "train": train_model,
    }
    with visiting(config.run.root):
        return modes[config.mode](config)


def run_sweep(config: Config, began: Callable[[str], object] = str) -> int:
    """Measure what is not measured yet, then aggregate and report."""
    console = Console(stderr=True)
    checked = tracker_settings(config)  # a wrong setting is said now, not after the work
    settings = checked if config.tracker.name == "wandb" else None
    timings = Timings()
    with timings.part(LOADING):
        subject, spec = load(config)
    plan = planned(config, subject)
    directory = run_directory(config, plan)
    with held(directory, functools.partial(say, console)), Bulletin(directory) as bulletin:
        begin(config, subject, plan, directory)
        began(directory.path.name)
        for part in directory.clean():
            say(console, f"damaged part {part.name}: set aside, its trials are measured again")
        runner = runner_spec(config, spec, directory)
        bulletin.enter(EXPLORING)
        with interruptible(console) as stop, timings.part(EXPLORING):
            explored = explore(config, subject, runner, plan, directory, console, stop)
        plan, code = explored.plan, INTERRUPTED
        if not explored.interrupted:
            with Follower(directory.path, settings) as follower:
                with PartialReports(directory, config.run.report_every, functools.partial(say, console)):
                    code = measure(config, subject, runner, plan, directory, console, follower, bulletin)
                if code != INTERRUPTED:
                    finish(config, plan, directory, console, follower, bulletin, timings)
        bulletin.enter(standing.INTERRUPTED if code == INTERRUPTED else FINISHED)
        if code == INTERRUPTED:
            say(console, f"Interrupted; the same command goes on where it stopped: {shell_command()}")
    return code


def finish(
    config: Config,
    plan: Plan,
    directory: RunDirectory,
    console: Console,
    follower: Follower,
    bulletin: Bulletin,
    timings: Timings,
) -> None:
    """Aggregate, report, track the summary, and say what came out."""
    bulletin.enter(AGGREGATING)
    try:
        with timings.part(AGGREGATING):
            found = aggregate(directory)
    except RunDirectoryError as error:
        say(console, str(error))
        return
    bulletin.enter(REPORTING)
    with timings.part(REPORTING):
        page = write_report(directory.path)
    print_summary(Console(), plan, found, config.stats.metric, directory, page)
    timings.merge_into(directory)  # before run.json is logged
    bulletin.enter(TRACKING)
    if message := follower.finish():
        say(Console(), message)


def plan_only(config: Config) -> int:
    """``mode=plan``: the grid and its cost; writes nothing but the plan."""
    began = time.monotonic()
    subject, spec = load(config)
    loading = time.monotonic() - began
    plan = planned(config, subject)
    directory = run_directory(config, plan)
    fetch(directory)
    refuse_other_plan(plan, directory)
    directory.create()
    if config.sweep.kind == "search":
        directory.write_frame(directory.trials, recall(config, subject, directory).plan().frame())
        print_search_plan(Console(), config, subject, directory)
    else:
        directory.write_frame(directory.trials, profiled_plan(config, subject, plan, directory).frame())
        runner = runner_spec(config, spec, directory)
        print_plan(Console(), config, subject, runner, plan, directory, loading)
    return OK


def track(config: Config) -> int:
    """``mode=track``: log from the records whatever is not in W&B yet; what could not be logged is left to the next."""
    outcome = track_from_records(existing(config).path, tracker_settings(config))
    say(Console(), outcome.message)
    return OK if outcome.complete else GAVE_OUT


def analyse(config: Config) -> int:
    """``mode=aggregate``: effects from the records."""
    directory = existing(config)
    found = aggregate(directory)
    for line in directory.damage():
        say(Console(stderr=True), line)
    effects = directory.shown(directory.effects)
    say(Console(), f"{effects}: {len(found.effects)} effects, {found.missing} trials not measured")
    return OK


def report(config: Config) -> int:
    """``mode=report``: aggregate and write the page."""
    directory = existing(config)
    aggregate(directory)
    for line in directory.damage():
        say(Console(stderr=True), line)
    say(Console(), directory.shown(write_report(directory.path)))
    return OK


def compare(config: Config) -> int:
    """``mode=compare``: what the same ablations do in run.b and not in run.a."""
    from sweeps.compare import compare_runs

    say(Console(), compare_runs(config.run))
    return OK


def export(config: Config) -> int:
    """``mode=export``: tables, figures and a methods paragraph for a paper."""
    from sweeps.export import export_run

    directory = existing(config)
    aggregate(directory)
    for line in directory.damage():
        say(Console(stderr=True), line)
    for line in export_run(directory.path, config.format):
        say(Console(), line)
    say(Console(), directory.shown(directory.path / "export"))
    return OK


def workspace(config: Config) -> int:
    """``mode=workspace``: a W&B workspace and report of one sweep, or of two beside one another."""
    from sweeps.tracking.workspace import make_workspace

    say(Console(), make_workspace(config.run, tracker_settings(config)))
    return OK


def load(config: Config) -> tuple[Subject, SubjectSpec]:
    """Model and data sets in this process: for the plan, and for a sweep without Ray."""
    spec = subject_spec(config)
    subject = load_subject(spec)
    check_labels(subject)
    return subject, spec


def subject_spec(config: Config) -> SubjectSpec:
    """What to load, with absolute paths, since workers run elsewhere."""
    path = config.model.path
    check_trained(config.model)
    return SubjectSpec(
        model_name=config.model.name,
        model_path=path if path in SHIPPED else absolute(path),
        dtype=config.model.dtype,
        device=resolve_device(config.cluster.device, elsewhere=config.cluster.name == "ray"),
        sources=tuple(replace(s, root=absolute(s.root) if s.root else None) for s in source_specs(config.data)),
        images=images_needed(config),
        at_most=config.sweep.images is None,
        size=config.model.size,
        guidance=config.model.guidance,
        channels_last=config.model.channels_last,
        compiled=config.model.compile,
        steps=config.sweep.steps,
        seed=config.sweep.seed,
    )


def planned(config: Config, subject: Subject) -> Plan:
    """Every trial of a grid; of a search its identity, since its trials follow from one another."""
    check_profiles(config, subject)
    return search_plan(config, subject) if config.sweep.kind == "search" else make_plan(config, subject)


def images_needed(config: Config) -> int:
    """Images to load per data set. A search is confirmed on as many fresh images again."""
    return (config.sweep.images or config.stats.n_max) * (2 if config.sweep.kind == "search" else 1)


def runner_spec(config: Config, spec: SubjectSpec, directory: RunDirectory) -> RunnerSpec:
    return RunnerSpec(
        subject=spec,
        rows=config.run.rows,
        threads=0,
        run_dir=str(directory.path),
        metric=config.stats.metric,
        faces=config.sweep.profile.images > 0,
    )


def absolute(path: str) -> str:
    """A local folder by its absolute path; hub ids as they are."""
    return str(Path(path).expanduser().resolve()) if Path(path).expanduser().is_dir() else path


def run_directory(config: Config, plan: Plan) -> RunDirectory:
    return run_at(config.run.root, config.run.name or default_run_name(config, plan))


def existing(config: Config) -> RunDirectory:
    """The run that the configuration names, by ``run.name`` or by its plan."""
    if config.run.name:
        directory = run_at(config.run.root, config.run.name)
    else:
        directory = run_directory(config, planned(config, load(config)[0]))
    return places.existing(directory, config.run.root)


def begin(config: Config, subject: Subject, plan: Plan, directory: RunDirectory) -> None:
    """Write the plan and what it runs with."""
    before = refuse_other_plan(plan, directory)
    directory.create(directory.records, directory.samples)
    directory.write_config(as_plain(config))
    directory.write_frame(directory.trials, plan.frame())
    directory.write_frame(directory.units, unit_table(subject.data))
    denoiser, images = subject.denoiser, images_of(config, subject)
    directory.write_run(
        {
            "plan": plan.digest,
            "name": directory.path.name,
            "started": before.get("started", now()),
            "command": shell_command(),
            "versions": versions(),
            "python": platform.python_version(),
            "machine": machine_name(),
            "device": device_name(denoiser.device),
            "git_commit": git_commit(),
            "seeds": {"sweep": config.sweep.seed},
            "model": {
                "name": denoiser.name,
                "path": config.model.path,
                "revision": denoiser.revision,
                "prediction_type": denoiser.prediction_type,
                "parameters": denoiser.parameters,
                "layers": [layer.name for layer in subject.layers],
                "heads": max(layer.heads for layer in subject.layers),
            },
            "data": {
                name: {
                    "n": images[name],
                    "held_out": d.measured.held_out,
                    "trained_on": d.measured.trained_on,
                }
                for name, d in subject.data.items()
            },
            "timesteps": list(plan.timesteps),
        }
    )


def refuse_other_plan(plan: Plan, directory: RunDirectory) -> dict[str, Any]:
    """What run.json says so far; a different plan needs a different run directory."""
    before = directory.read_run()
    if before.get("plan", plan.digest) != plan.digest:
        raise ConfigError(
            f"run.name: {directory.path.name} holds a different plan ({before['plan'][:8]}, "
            f"this one is {plan.digest[:8]}); choose another run.name, or leave it out"
        )
    return before


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
