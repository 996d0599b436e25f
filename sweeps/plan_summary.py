"""What ``mode=plan`` says before the work: the grid, what it costs, and what it can find."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from circuits.conditioning import draw
from sweeps.candidates import search_images, search_space
from sweeps.config import METRICS, Config, as_list
from sweeps.estimate import (
    LOADED,
    Estimate,
    Likeness,
    Pace,
    Setting,
    Work,
    earlier_pace,
    estimated,
    pace_of_forward,
    pace_of_pilot,
    wandb_runs,
    work_of,
)
from sweeps.leases import share_key
from sweeps.measuring import workers_of
from sweeps.outlook import SURVIVAL
from sweeps.pilot import run_pilot
from sweeps.plan import Plan, Subject, choose_layers, images_of
from sweeps.profiling import profile_rows
from sweeps.progress import clock, say
from sweeps.provenance import device_name, machine_name
from sweeps.records import RunDirectory
from sweeps.resolving import PERCENTS, explanation, families_of, has_formula, needs, shown, warnings
from sweeps.rounds import is_governed, stopping_rule
from sweeps.run import RunnerSpec
from sweeps.rungs import rungs
from sweeps.targets import find_targets

_PROBE_ROWS = 32
_PROBES = 3
_PROBE_SECONDS = 4.0  # that forwards of many rows may take; a model that is slower is measured on one


def print_plan(
    console: Console,
    config: Config,
    subject: Subject,
    runner: RunnerSpec,
    plan: Plan,
    directory: RunDirectory,
    loading: float,
) -> None:
    """
    Args:
        loading: seconds that model and data took to load.
    """
    profiling = profile_rows(config, subject)
    flops, row_seconds = probe(subject)
    stopped = config.stats.statistic != "none"
    work = work_of(plan, stopped, config.stats.first, config.stats.batch)
    setting = setting_of(config, subject, plan, loading)
    pace = pace_of(config, subject, runner, plan, work, setting, row_seconds)
    if pace.survival != SURVIVAL:
        work = work_of(plan, stopped, config.stats.first, config.stats.batch, pace.survival)
    estimate = estimated(work, pace, setting, profiling * row_seconds)
    table = Table(title=f"{config.sweep.name} on {escape(config.model.name)}", show_header=False, title_justify="left")
    add_grid(table, config, subject, plan)
    most = "at most " if stopped or profiling else ""
    rows = work.most_rows + profiling
    table.add_row("leases", f"at least {len({share_key(t) for t in plan.trials})}")
    if profiling:
        table.add_row("profiles", f"{most}{profiling:,} of the rows below, those of the sets of heads included")
    table.add_row("forwards", f"{span(f'{work.rows + profiling:,.0f}', f'{rows:,}', stopped)} rows of one image")
    table.add_row("FLOPs", f"at most {rows * flops:.3g} ({flops:.3g} a row; replay saves about half)")
    add_estimate(table, config, estimate, pace, setting, stopped)
    console.print(table)
    say(console, f"run directory: {directory.where}")  # whole, however narrow the terminal
    print_power(console, config, subject, plan, pace)


def span(expected: str, most: str, stopped: bool) -> str:
    """Under a stopping rule both; without one they are the same."""
    return f"{expected} expected, {most} at most" if stopped and expected != most else most


def add_grid(table: Table, config: Config, subject: Subject, plan: Plan) -> None:
    """How many trials there are along which axis."""
    frame = plan.frame()
    table.add_row("trials", str(len(plan)))
    for axis in ("dataset", "protocol", "level", "mode"):
        table.add_row(
            f"  {axis}", ", ".join(f"{escape(str(k))} {v}" for k, v in frame[axis].value_counts(sort=False).items())
        )
    repeated = find_targets(config, subject.layers, choose_layers(config.sweep.layers, subject.layers)).repeated
    if repeated:
        counted = " and ".join(f"{number} {level}{'s' * (number > 1)}" for level, number in repeated.items())
        table.add_row("  measured once", f"{counted} of one layer or block, which the grid has already")
    windows = frame.drop_duplicates("window_index").sort_values("window_index")
    table.add_row("  windows", ", ".join(f"{a}-{b}" for a, b in zip(windows["t_start"], windows["t_end"], strict=True)))
    table.add_row(
        "  layers", ", ".join(f"{layer.index} {layer.name} ({layer.heads} heads)" for layer in subject.layers)
    )
    images = ", ".join(f"{escape(name)} {n}" for name, n in images_of(config, subject).items())
    most = "at most " if config.stats.statistic != "none" else ""
    table.add_row("images a trial", f"{most}{images}; {config.sweep.samples} generated")


def add_estimate(table: Table, config: Config, estimate: Estimate, pace: Pace, setting: Setting, stopped: bool) -> None:
    workers = f"{setting.workers} worker" + "s" * (setting.workers > 1)
    where = f"{workers} as fast as this machine" if setting.elsewhere else f"{workers} here"
    times = span(clock(estimate.expected), clock(estimate.most), stopped)
    table.add_row("estimated time", f"{times}; {where}, by {escape(pace.source)}")
    for part in estimate.parts:
        table.add_row(f"  {part.name}", span(clock(part.expected), clock(part.most), stopped))
    if stopped:
        table.add_row(
            "  assumed", f"a look, every {config.stats.batch} images, leaves {pace.survival:.0%} of the trials running"
        )
    price = config.cluster.price_per_hour
    if price is not None:
        least, most = (f"{cost:.2f}" for cost in estimate.cost(price))
        table.add_row("cost", f"{span(least, most, stopped)}, at {price:g} an hour for each of {workers}")


def print_power(console: Console, config: Config, subject: Subject, plan: Plan, pace: Pace) -> None:
    """The images that effects need, by each metric of the registered one's protocol; warnings where they are too few.

    Without a noise there is no table, and yet some grids have too few images to find anything.
    """
    stats, frame = config.stats, plan.frame()
    protocol = next(name for name, metrics in METRICS.items() if stats.metric in metrics)
    tested = frame[(frame["phase"] == "grid") & (frame["protocol"] == protocol)]
    if tested.empty:
        return
    governed = [trial.images for trial in plan.trials if is_governed(trial) and trial.protocol == protocol]
    rule = stopping_rule(stats, max(governed)) if governed else None
    families = families_of(tested, as_list(stats.families, "stats.families"), rule)
    noise = {
        metric: pace.spreads[metric]
        for metric in sorted(METRICS[protocol], key=lambda name: (name != stats.metric, name))
        if 0 < pace.spreads.get(metric, 0.0) < math.inf
    }
    if not has_formula(rule):
        say(console, f"No power table: of statistic={stats.statistic} there is no formula.")
    elif not noise:
        say(console, "No power table: no trial was measured here, so how much images differ is not known.")
    else:
        table = Table(title="What it can find", title_justify="left")
        table.add_column("metric")
        for column in ("noise (sd of g)", *(f"{percent}%" for percent in PERCENTS)):
            table.add_column(column, justify="right")
        for metric, spread in noise.items():
            found = needs(spread, families, stats.alpha, rule)
            table.add_row(metric, f"{spread:.3f}", *(f"{shown(need.among)} / {shown(need.alone)}" for need in found))
        console.print(table)
        say(console, explanation(families, stats.alpha, rule))
    lines = warnings(
        images_of(config, subject), stats.metric, noise.get(stats.metric, math.nan), families, stats.alpha, rule
    )
    for line in lines:
        say(console, f"warning: {line}")


def setting_of(config: Config, subject: Subject, plan: Plan, loading: float) -> Setting:
    cluster, cores, device = config.cluster, os.cpu_count() or 1, subject.denoiser.device.type
    workers = workers_of(config, device)
    threads = torch.get_num_threads()
    if cluster.name == "local" and device == "cpu":
        threads = min(threads, max(1, cores // workers))
    tracker = config.tracker
    runs = wandb_runs(plan.trials, tracker.granularity, tracker.max_trial_runs) if tracker.name == "wandb" else 0
    return Setting(
        workers=workers,
        threads=threads,
        cores=cores,
        loading=loading,
        runs=runs,
        ray=cluster.name != "inline",
        elsewhere=cluster.name == "ray",
    )


def pace_of(
    config: Config,
    subject: Subject,
    runner: RunnerSpec,
    plan: Plan,
    work: Work,
    setting: Setting,
    row_seconds: float,
) -> Pace:
    """By an earlier run like this one, else by a pilot, else by a forward."""
    alike = Likeness(
        revision=subject.denoiser.revision,
        machine=machine_name(),
        device=device_name(subject.denoiser.device),
        loaded={name: getattr(config.model, name) for name in LOADED},
        protocols=as_list(config.sweep.protocols, "sweep.protocols"),
        samples=config.sweep.samples,
        cluster=config.cluster.name,
        workers=setting.workers,
    )
    root = Path(config.run.root).expanduser()
    earlier = None if setting.elsewhere else earlier_pace(root, alike, len(plan))
    if earlier is not None:
        return earlier
    pilot = run_pilot(subject, runner, plan, row_seconds=row_seconds, workers=setting.workers, threads=setting.threads)
    if pilot is not None:
        return pace_of_pilot(pilot, setting, len(plan))
    return pace_of_forward(row_seconds, setting, len(plan))


def print_search_plan(console: Console, config: Config, subject: Subject, directory: RunDirectory) -> None:
    """The space of a search and what the search costs at most; how much less depends on what it finds."""
    space, steps, search = search_space(config, subject), rungs(config), config.sweep.search
    candidates, confirmed = min(search.candidates, space.size()), min(search.confirm, space.size())
    # Each candidate with its baseline, on every rung; the confirmations generate samples too.
    rows = 2 * candidates * sum(steps) + 2 * confirmed * (
        search_images(config) + config.sweep.samples * config.sweep.steps
    )
    flops, seconds = probe(subject)
    table = Table(title=f"{config.sweep.name} on {escape(config.model.name)}", show_header=False, title_justify="left")
    table.add_row("sets", f"{space.size():,} of up to {space.max_heads} of {len(space.sites)} heads")
    table.add_row("  data sets", ", ".join(map(escape, space.datasets)))
    table.add_row("  modes", ", ".join(f"{mode.value}" for mode in space.modes))
    table.add_row("  strengths", ", ".join(f"{strength:g}" for strength in space.strengths))
    table.add_row("  windows", ", ".join(f"{w.t_start}-{w.t_end}" for w in space.windows))
    table.add_row("searched", f"{candidates} sets, on {', '.join(map(str, steps))} images")
    fresh = f"images {search_images(config)} to {2 * search_images(config) - 1}"
    table.add_row("confirmed", f"the best {confirmed}, on {fresh}; {config.sweep.samples} generated")
    table.add_row("forwards", f"at most {rows:,} rows of one image")
    table.add_row("FLOPs", f"at most {rows * flops:.3g} ({flops:.3g} a row)")
    table.add_row("estimated time", f"at most {clock(rows * seconds)} of measuring here ({seconds * 1e3:.1f} ms a row)")
    price = config.cluster.price_per_hour
    if price is not None:
        table.add_row(
            "cost", f"at most {rows * seconds / 3600 * price:.2f} of measuring, at {price:g} an hour of a worker"
        )
    console.print(table)
    say(console, f"run directory: {directory.where}")  # whole, however narrow the terminal


def probe(subject: Subject) -> tuple[float, float]:
    """FLOPs and seconds of one row on this machine: at 32 rows, or at one where that would take long."""
    denoiser = subject.denoiser

    def forward(rows: int) -> float:
        x = torch.randn(rows, *denoiser.sample_shape)
        t = torch.full((rows,), denoiser.train_timesteps // 2)
        labels = draw(denoiser.network, rows, torch.Generator().manual_seed(0))
        started = time.perf_counter()
        denoiser(x, t, labels)
        if denoiser.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    with FlopCounterMode(display=False) as counter:
        single = forward(1)
    if single * _PROBE_ROWS * _PROBES > _PROBE_SECONDS:
        return counter.get_total_flops(), forward(1)
    forward(_PROBE_ROWS)
    return counter.get_total_flops(), min(forward(_PROBE_ROWS) for _ in range(_PROBES)) / _PROBE_ROWS
