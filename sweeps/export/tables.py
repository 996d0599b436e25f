"""The tables of a run: every row as it lies in the parquet files, and what a reader must know to read them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from sweeps.comparison_names import DATA_SET_CONTRAST
from sweeps.report import wording
from sweeps.report.controls import Controls, read_controls
from sweeps.report.paper import PLAIN, claims
from sweeps.report.profiled import Profiled, read_profiled
from sweeps.report.registration import margin, registration
from sweeps.report.reported_run import VERDICTS, ReportedRun

Kind = Literal["text", "long", "count", "estimate", "interval", "probability"]
TOP_HEADS, TOP_OTHERS, TOP_CONTRASTS, TOP_CONTROLS = 20, 20, 15, 20
_EFFECT = ["percent", "ci_low", "ci_high", "mean_log_ratio", "d_z", "p", "q", "n", "verdict", "stopped"]
_PLACE = ["trial_id", "site", "level", "layer_index", "head", "variant", "dataset", "t_start", "t_end"]


@dataclass(frozen=True)
class Column:
    """
    Attributes:
        names: columns of the rows that it shows: two for an interval, else one.
        kind: how it is written; ``long`` is text that may need several lines.
    """

    heading: str
    names: tuple[str, ...]
    kind: Kind


@dataclass(frozen=True)
class Table:
    """
    Attributes:
        name: of its files. rows: all of them, unrounded. shown: so many of them are typeset.
        notes: footnotes, a sentence or more each.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: pd.DataFrame
    shown: int
    notes: tuple[str, ...]

    @property
    def typeset(self) -> pd.DataFrame:
        return self.rows.head(self.shown)


def tables_of(run: ReportedRun) -> list[Table]:
    """Every table that the run has something for."""
    controls, profiled = read_controls(run), read_profiled(run)
    found = [_verdicts(run), *_effects(run), *_contrasts(run), *_controls(controls), *_profiled(run, profiled)]
    return [table for table in found if len(table.rows)]


def unfinished(run: ReportedRun) -> str:
    """What is missing, in a sentence; empty where every planned trial has all the images that its verdict needs."""
    planned = run.trials[run.trials["protocol"].isin(run.cells["protocol"])] if len(run.cells) else run.trials
    missing = int((~planned["trial_id"].isin(run.through)).sum())
    if not missing:
        return ""
    failed = int(planned["trial_id"].isin(run.failures["trial_id"]).sum())
    also = f", {failed:,} of them because they failed" if failed else ""
    return (
        f"Unfinished: {missing:,} of {wording.count(len(planned), 'planned trial')} are not measured to the end{also}."
    )


def common_notes(run: ReportedRun) -> tuple[str, ...]:
    """Estimand, interval, N, test, correction, margin and stopping: what stands below every table of effects."""
    said = registration(run)
    kind = "repeated confidence interval, valid wherever a trial stopped" if run.stops_early else "Student t interval"
    stopping = dict(said.facts).get("Stopping rule", "")
    notes = [
        f"Effect: percent change of {run.stats.metric} over the unablated model on the same images and noise, "
        f"100 (exp(mean g) - 1), where g is the log ratio of an image; {wording.CONFIDENCE} CI: {kind}, not adjusted "
        "for the selection of rows.",
        f"n: images of a trial, {wording.between(run.cells['n'])}.",
        f"Test: {said.test}",
        f"q, correction: {said.correction} Level: {100 * run.stats.alpha:g}%.",
        f"Corrected within {said.families}." if said.corrected == "hierarchical" else "",
        f"Negligible: shown to lie within {margin(run)} of the baseline.",
        f"Stopping rule: {stopping}." if stopping else "",
        unfinished(run),
    ]
    return tuple(note for note in notes if note)


def _effects(run: ReportedRun) -> list[Table]:
    """Heads by themselves; then layers, blocks, stages and sets of heads."""
    cells = run.cells.assign(site=[wording.site(trial) for trial in run.cells.itertuples()])
    cells = cells[[*_PLACE, *_EFFECT]].astype({"n": int})
    heads, others = cells[cells["level"] == "head"], cells[cells["level"] != "head"]
    levels = wording.listing(f"{level}s" for level in others["level"].drop_duplicates()) if len(others) else ""
    return [
        _effect_table(run, "heads", "heads", heads, TOP_HEADS),
        _effect_table(run, "groups", levels, others, TOP_OTHERS),
    ]


def _effect_table(run: ReportedRun, name: str, noun: str, rows: pd.DataFrame, shown: int) -> Table:
    selected = f"The {shown} strongest of {len(rows):,} trials; {name}.csv or .parquet has all of them."
    notes = (*common_notes(run), *((selected,) if len(rows) > shown else ()))
    return Table(
        name=name,
        caption=f"Effect of ablating single {noun}" if name == "heads" else f"Effect of ablating whole {noun}",
        columns=(
            Column("Site", ("site",), "long" if (rows["level"] == "set").any() else "text"),
            Column("Mode", ("variant",), "text"),
            Column("Timesteps", ("t_start", "t_end"), "count"),
            Column("Data set", ("dataset",), "text"),
            Column("Effect (%)", ("percent",), "estimate"),
            Column(f"{wording.CONFIDENCE} CI", ("ci_low", "ci_high"), "interval"),
            Column("q", ("q",), "probability"),
            Column("n", ("n",), "count"),
            Column("Verdict", ("verdict",), "text"),
        ),
        rows=rows.reset_index(drop=True),
        shown=shown,
        notes=notes,
    )


def _verdicts(run: ReportedRun) -> Table:
    keys = ["variant", "dataset", "level"]
    counts = run.cells.groupby([*keys, "verdict"], sort=False).size().unstack("verdict", fill_value=0)
    rows = counts.reindex(columns=list(VERDICTS), fill_value=0).reset_index()
    rows = rows.assign(trials=rows[list(VERDICTS)].sum(axis=1)).sort_values(keys, kind="stable", ignore_index=True)
    columns = [Column("Mode", ("variant",), "text"), Column("Data set", ("dataset",), "text")]
    columns += [Column("Level", ("level",), "text"), Column("Trials", ("trials",), "count")]
    columns += [Column(verdict.capitalize(), (verdict,), "count") for verdict in VERDICTS]
    return Table("verdicts", "Verdicts by mode, data set and level", tuple(columns), rows, 60, common_notes(run))


def _contrasts(run: ReportedRun) -> list[Table]:
    found = run.data_set_contrasts.sort_values(["q", "p"], kind="stable", ignore_index=True)
    found = found.assign(contrast=found["name"].astype(str).str.removeprefix(f"{DATA_SET_CONTRAST}: "))
    places = run.cells.drop_duplicates("window_index").sort_values("window_index")
    windows = ", ".join(f"{int(place.window_index)}: {wording.window(place)}" for place in places.itertuples())
    notes = [
        f"Windows: {windows}.",
        "Difference: mean log ratio on the first data set less that on the second; different images, so unpaired.",
        f"{wording.CONFIDENCE} CI: Welch's; q: permutation test (Welch's t where the contrasts are very many), "
        "adjusted for the false discovery rate.",
        f"The {TOP_CONTRASTS} surest of {len(found):,}." if len(found) > TOP_CONTRASTS else "",
        "Only images that every trial has are used, because trials stopped early." if run.stops_early else "",
        unfinished(run),
    ]
    columns = (
        Column("Cell", ("group",), "text"),
        Column("Contrast", ("contrast",), "text"),
        Column("Difference", ("estimate",), "estimate"),
        Column(f"{wording.CONFIDENCE} CI", ("ci_low", "ci_high"), "interval"),
        Column("q", ("q",), "probability"),
        Column("n", ("n_a", "n_b"), "count"),
    )
    caption = f"Differences between data sets in the effect on {run.stats.metric}"
    kept = tuple(note for note in notes if note)
    return [Table("contrasts", caption, columns, found, TOP_CONTRASTS, kept)] if len(found) else []


def _controls(controls: Controls | None) -> list[Table]:
    if controls is None or controls.heads.empty:
        return []
    heads = controls.heads
    rows = heads.assign(
        site=[wording.site(head) for head in heads.itertuples()],
        above=100 * np.expm1(heads["estimate"].astype(float)),
        above_low=100 * np.expm1(heads["ci_low"].astype(float)),
        above_high=100 * np.expm1(heads["ci_high"].astype(float)),
    )
    names = ["trial_id", "site", "dataset", "t_start", "t_end", "above", "above_low", "above_high", "estimate"]
    names += ["ci_low", "ci_high", "p", "q", "p_controls", "n_a", "n_b", "percent", "verdict"]
    notes = [
        "Above controls: percent by which zeroing the head hurts more than the average of random subspaces of its "
        f"layer and window, as large as a head and with as much removed ({controls.number} each), on the same "
        f"{controls.images} images.",
        f"{wording.CONFIDENCE} CI and q over images (paired sign-flip, adjusted for the false discovery rate); p over "
        f"controls: share of controls at least as bad, never below {wording.probability(controls.resolution)}.",
        f"The {TOP_CONTROLS} furthest above of {len(rows):,}." if len(rows) > TOP_CONTROLS else "",
    ]
    columns = (
        Column("Head", ("site",), "text"),
        Column("Timesteps", ("t_start", "t_end"), "count"),
        Column("Data set", ("dataset",), "text"),
        Column("Above controls (%)", ("above",), "estimate"),
        Column(f"{wording.CONFIDENCE} CI", ("above_low", "above_high"), "interval"),
        Column("q", ("q",), "probability"),
        Column("p over controls", ("p_controls",), "probability"),
        Column("Verdict", ("verdict",), "text"),
    )
    kept = tuple(note for note in notes if note)
    whole = rows[names].reset_index(drop=True)
    return [Table("controls", "Zeroed heads beside random subspaces", columns, whole, TOP_CONTROLS, kept)]


def _profiled(run: ReportedRun, profiled: Profiled | None) -> list[Table]:
    """What heads are and whether it shows; and the claims of the paper beside what this run measured."""
    if profiled is None:
        return []
    tables = [_claims(run, profiled)]
    if profiled.verdicts:
        tables.append(_types(profiled))
    return tables


def _claims(run: ReportedRun, profiled: Profiled) -> Table:
    found = claims(run, profiled)
    rows = pd.DataFrame(
        [(c.claim, c.paper, "; ".join(c.ours), c.outcome, c.definition) for c in found],
        columns=["claim", "paper", "ours", "outcome", "definition"],
    )
    columns = (
        Column("Claim", ("claim",), "long"),
        Column("Paper", ("paper",), "long"),
        Column("Here", ("ours",), "long"),
        Column("Holds here?", ("outcome",), "text"),
    )
    notes = (
        "Paper: arXiv 2506.17237, another model and other images. Where its definitions are not known, ours are used: "
        "claims.csv or .parquet has them.",
    )
    return Table("claims", "Claims of the paper beside this run", columns, rows, len(rows), notes)


def _types(profiled: Profiled) -> Table:
    def percent(value: float) -> float:
        return 100 * math.expm1(value)

    rows = pd.DataFrame(
        [
            (
                v.dataset, PLAIN[v.type], "assigned" if v.assigned else "leading", v.heads, v.own.replace("_", " "),
                percent(v.excess), percent(v.ci_low), percent(v.ci_high), v.q, v.p_sets, v.images, v.controls, v.says,
            )
            for v in profiled.verdicts
        ],
        columns=[
            "dataset", "type", "basis", "heads", "own_metric", "excess", "ci_low", "ci_high", "q", "p_sets", "images",
            "random_sets", "outcome",
        ],
    )  # fmt: skip
    columns = (
        Column("Data set", ("dataset",), "text"),
        Column("Type", ("type",), "text"),
        Column("Basis", ("basis",), "text"),
        Column("Heads", ("heads",), "count"),
        Column("Own metric", ("own_metric",), "text"),
        Column("Excess (%)", ("excess",), "estimate"),
        Column(f"{wording.CONFIDENCE} CI", ("ci_low", "ci_high"), "interval"),
        Column("q", ("q",), "probability"),
        Column("Holds?", ("outcome",), "text"),
    )
    notes = (
        "Excess: percent by which ablating the heads of a type at once hurts the type's own metric more than random "
        "heads of the same layers do. Types come from probes on one half of the images, confirmed on the other. Basis "
        "leading: no head has the type, and its highest-scoring ones are ablated in its place, which is exploratory.",
    )
    return Table("types", "Do heads do what their type says?", columns, rows, len(rows), notes)
