"""What the terminal says: the plan before the work, the findings after it."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from circuits.conditioning import draw
from sweeps.aggregate import Aggregate
from sweeps.candidates import search_images, search_space
from sweeps.config import Config
from sweeps.leases import share_key
from sweeps.plan import Plan, Subject, choose_layers, images_of
from sweeps.profiling import profile_rows
from sweeps.progress import clock
from sweeps.records import RunDirectory
from sweeps.rungs import rungs
from sweeps.targets import find_targets

STRONGEST = 10
_PROBE_ROWS = 32
_PROBES = 3


def print_plan(console: Console, config: Config, subject: Subject, plan: Plan, directory: RunDirectory) -> None:
    """The grid, its cost in forwards and FLOPs, and an estimated time from a probe of this machine."""
    frame = plan.frame()
    profiling = profile_rows(config, subject)
    rows = plan.rows() + profiling
    flops, seconds = probe(subject)
    table = Table(title=f"{config.sweep.name} on {escape(config.model.name)}", show_header=False, title_justify="left")
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
    most = "at most " if config.stats.statistic != "none" or profiling else ""
    table.add_row("images a trial", f"{most}{images}; {config.sweep.samples} generated")
    table.add_row("leases", f"at least {len({share_key(t) for t in plan.trials})}")
    if profiling:
        table.add_row("profiles", f"{most}{profiling:,} of the rows below, those of the sets of heads included")
    table.add_row("forwards", f"{most}{rows:,} rows of one image")
    table.add_row("FLOPs", f"{most}{rows * flops:.3g} ({flops:.3g} a row)")
    table.add_row("estimated time", f"{most}{clock(rows * seconds)} here, by a probe ({seconds * 1e3:.1f} ms a row)")
    table.add_row("run directory", escape(directory.where))
    console.print(table)


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
    table.add_row("run directory", escape(directory.where))
    console.print(table)


def probe(subject: Subject) -> tuple[float, float]:
    """FLOPs and seconds of one row on this machine, at a batch of 32 rows."""
    denoiser = subject.denoiser
    x = torch.randn(_PROBE_ROWS, *denoiser.sample_shape)
    t = torch.full((_PROBE_ROWS,), denoiser.train_timesteps // 2)
    labels = draw(denoiser.network, _PROBE_ROWS, torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        denoiser(x, t, labels)
    times = []
    for _ in range(_PROBES):
        started = time.perf_counter()
        denoiser(x, t, labels)
        if denoiser.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return counter.get_total_flops() / _PROBE_ROWS, min(times) / _PROBE_ROWS


def strongest_heads(plan: Plan, effects: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The trials of single heads with the largest degradation of the registered metric, significant ones only."""
    joined = effects.merge(plan.frame(), on="trial_id")
    found = (joined["metric"] == metric) & (joined["verdict"] == "degraded") & (joined["head"] >= 0)
    heads = joined[found]
    return heads.sort_values("percent", ascending=False).head(STRONGEST)


def print_summary(
    console: Console, plan: Plan, found: Aggregate, metric: str, directory: RunDirectory, page: Path
) -> None:
    """Verdict counts, the ten strongest heads, and where everything lies."""
    primary = found.effects[found.effects["metric"] == metric].merge(
        plan.frame()[["trial_id", "phase", "images"]], on="trial_id"
    )
    searched, primary = primary[primary["phase"] == "search"], primary[primary["phase"] != "search"]
    counts = primary["verdict"].value_counts()
    verdicts = ", ".join(f"{counts.get(v, 0)} {v}" for v in ("degraded", "improved", "negligible", "inconclusive"))
    missing = f"; {found.missing} trials have no measurements" if found.missing else ""
    console.print(f"{len(primary)} trials by {metric}: {verdicts}{missing}", highlight=False)
    stopped = int(primary["stopped"].notna().sum())
    if stopped:
        used, most = primary["n"].sum(), primary["images"].sum()
        console.print(
            f"{stopped} trials ended early, their verdict being certain: {used:,} of {most:,} images "
            f"({100 * used / most:.0f}%) were measured",
            highlight=False,
        )
    if len(searched):
        print_confirmed(console, confirmed_sets(plan, found.effects, metric), len(searched), directory)
    heads = strongest_heads(plan, found.effects, metric)
    if len(heads):
        table = Table(title="Strongest heads", title_justify="left")
        # Narrow enough for 80 columns, which is what a log gets.
        for column in ("head", "mode", "timesteps", "data", "harm", "95% CI", "q"):
            table.add_column(column, justify="right" if column in {"harm", "95% CI", "q"} else "left")
        for row in heads.itertuples():
            table.add_row(
                f"L{row.layer_index}H{row.head}",
                str(row.mode),
                f"{row.t_start}-{row.t_end}",
                escape(str(row.dataset)),
                f"{row.percent:+.1f}%",
                f"{row.ci_low:.1f} to {row.ci_high:.1f}",
                f"{row.q:.1e}",
            )
        console.print(table)
    where = f"report: {directory.shown(page)}\nrun directory: {directory.where}"
    console.print(where, highlight=False, soft_wrap=True, markup=False)


def print_confirmed(console: Console, sets: pd.DataFrame, searched: int, directory: RunDirectory) -> None:
    """The sets that a search chose, by what they do to images it never saw. L2H3 is head 3 of layer 2."""
    index = {name: i for i, name in enumerate(directory.read_run().get("model", {}).get("layers", []))}
    table = Table(title="Strongest sets, on fresh images", title_justify="left")
    for column in ("heads", "how", "confirmed", "95% CI", "q", "chosen at"):
        table.add_column(column, justify="left" if column in {"heads", "how"} else "right")
    for row in sets.itertuples():
        sites = [site.rpartition(":") for site in row.sites]
        table.add_row(
            escape(" ".join(f"L{index.get(layer, layer)}H{head}" for layer, _, head in sites)),
            escape(f"{row.mode} {row.strength:g}, t {row.t_start}-{row.t_end}, {row.dataset}"),
            f"{row.percent:+.1f}%",
            f"{row.ci_low:.1f} to {row.ci_high:.1f}",
            f"{row.q:.1e}",
            f"{row.percent_searched:+.1f}%",
        )
    if len(sets):
        console.print(table)
    console.print(
        f"The {len(sets)} were chosen as the strongest of {searched} sets, so the effects they were chosen at are too "
        "large on average. The confirmed ones are not: they come from images and noise that the search never saw.",
        highlight=False,
        soft_wrap=True,
    )


def confirmed_sets(plan: Plan, effects: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Confirmed trials with their effect, the strongest first, and ``percent_searched``, by which they were chosen."""
    joined = effects[effects["metric"] == metric].merge(plan.frame(), on="trial_id")
    joined = joined.assign(sites=joined["sites"].map(tuple))
    axes = ["dataset", "mode", "strength", "window_index", "sites"]
    searched = joined.loc[joined["phase"] == "search", [*axes, "percent"]]
    confirmed = joined[joined["phase"] == "confirm"].merge(searched, on=axes, suffixes=("", "_searched"))
    return confirmed.sort_values("percent", ascending=False)
