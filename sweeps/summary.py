"""What the terminal says after the work: the findings."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sweeps.aggregate import Aggregate
from sweeps.plan import Plan
from sweeps.records import RunDirectory

STRONGEST = 10


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
    console.print(f"{len(primary)} trials by {metric}: {verdicts}{missing}", highlight=False, soft_wrap=True)
    stopped = int(primary["stopped"].notna().sum())
    if stopped:
        used, most = primary["n"].sum(), primary["images"].sum()
        console.print(
            f"{stopped} trials ended early, their verdict being certain: {used:,} of {most:,} images "
            f"({100 * used / most:.0f}%) were measured",
            highlight=False,
            soft_wrap=True,
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
