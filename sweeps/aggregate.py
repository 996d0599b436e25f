"""From records to effects: reads the run directory only, needs no Ray, and says what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from jaxtyping import Float32

from circuits.effect_tables import adjusted, estimates
from circuits.statistics import StoppingRule, bh
from circuits.vocabulary import DENOISE_METRICS, GROUP_LEVELS, SAMPLE_METRICS
from sweeps.comparison_names import DATA_SET_CONTRAST
from sweeps.config import StatsConfig, as_list
from sweeps.contrasts import contrasts, permutations_for
from sweeps.controls import control_contrasts, noise_floor
from sweeps.diagnostics import diagnostics
from sweeps.gains import Gains, read_gains
from sweeps.paper import profile_findings
from sweeps.phases import COMPARED
from sweeps.records import RunDirectory, RunDirectoryError
from sweeps.rounds import family_labels, governed, stopping_rule
from sweeps.sequential import sequential_effects

EFFECT_COLUMNS = [
    "trial_id", "metric", "n", "mean_log_ratio", "percent", "ci_low", "ci_high", "d_z", "p_degraded", "p", "q", "q_by",
    "verdict", "stopped",
]  # fmt: skip
COMPARISON_COLUMNS = ["name", "metric", "group", "estimate", "ci_low", "ci_high", "p", "q", "n_a", "n_b"]
TESTED = (*DENOISE_METRICS, *SAMPLE_METRICS)


@dataclass(frozen=True)
class Registered:
    """What the analysis fixed before the run."""

    metric: str
    alpha: float
    margin: float
    rule: StoppingRule | None = None
    families: tuple[str, ...] = ("layer", "window")


@dataclass(frozen=True)
class Aggregate:
    """The tables of a run, and how many planned trials have no measurements."""

    effects: pd.DataFrame
    comparisons: pd.DataFrame
    missing: int


def aggregate(directory: RunDirectory) -> Aggregate:
    """Compute effects.parquet, comparisons.parquet and diagnostics.parquet from the records and write them.

    Raises:
        RunDirectoryError: no plan, nothing recorded yet, or a newer version wrote it.
    """
    directory.read_run()
    trials = directory.read_frame(directory.trials)
    registered = registered_in(directory, trials)
    gain_table = read_gains(directory, trials["trial_id"].tolist(), TESTED)
    if not gain_table:
        raise RunDirectoryError(f"{directory.where} has no measurements of its planned trials yet")
    effect_table = effects_of(trials, gain_table, registered)
    findings = profile_findings(directory)
    comparison_table = comparisons_of(trials, gain_table, registered)
    if len(findings.comparisons):
        comparison_table = pd.concat([comparison_table, findings.comparisons], ignore_index=True)[COMPARISON_COLUMNS]
    if findings.heads is not None:
        directory.write_frame(directory.heads, findings.heads)
    directory.write_frame(directory.effects, effect_table)
    directory.write_frame(directory.comparisons, comparison_table)
    directory.write_frame(
        directory.diagnostics, diagnostics(trials, gain_table.get(registered.metric), registered.metric)
    )
    missing = len(set(trials["trial_id"]).difference(*(found.trial_ids for found in gain_table.values())))
    return Aggregate(effect_table, comparison_table, missing)


def registered_in(directory: RunDirectory, trials: pd.DataFrame) -> Registered:
    """What config.yaml registered."""
    known = {field.name for field in fields(StatsConfig)}
    section = directory.read_config().get("stats")
    if not isinstance(section, dict):
        raise RunDirectoryError(f"{directory.config} does not say what was registered: it has no stats")
    stats = StatsConfig(**{key: value for key, value in section.items() if key in known})
    rule = None
    if stats.statistic != "none" and {"images", "phase"} <= set(trials.columns):
        most = trials.loc[governed(trials), "images"].max()
        rule = stopping_rule(stats, int(most)) if most >= 2 else None
    families = tuple(as_list(stats.families, "stats.families"))
    return Registered(stats.metric, stats.alpha, stats.margin, rule, families)


def effects_of(trials: pd.DataFrame, gain_table: Mapping[str, Gains], registered: Registered) -> pd.DataFrame:
    """The effects table: every tested metric of every trial with measurements, but for the controls.

    Phases are corrected apart: trials that a search chose from are exploratory, and the few that it confirmed on fresh
    images are one family.
    """
    place = trials.set_index("trial_id")
    phase = phases(trials).set_axis(place.index)
    family = pd.Series(family_labels(trials, registered.families), index=place.index)
    family = family.where(phase != "confirm", "confirm")
    whole = ~phase.isin(COMPARED)
    tables: list[pd.DataFrame] = []
    if registered.rule is not None:
        whole &= ~governed(trials).set_axis(place.index)
        errors = {name: measured for name, measured in gain_table.items() if name in DENOISE_METRICS}
        tables += sequential_effects(
            trials[governed(trials)], errors, registered.metric, registered.rule, registered.families
        )
    for metric, measured in gain_table.items():
        table = _estimates(measured, float(np.log1p(registered.margin)), whole)
        for name, part in table.groupby(phase.loc[table.index], sort=False):
            found = _adjusted(part, family.loc[part.index], metric, registered)
            tables.append(_exploratory(found) if name == "search" else found)
    tables = [table for table in tables if len(table)]
    return pd.concat(tables, ignore_index=True)[EFFECT_COLUMNS] if tables else pd.DataFrame(columns=EFFECT_COLUMNS)


def comparisons_of(trials: pd.DataFrame, gain_table: Mapping[str, Gains], registered: Registered) -> pd.DataFrame:
    """Rows of the comparisons table: data sets with one another, heads with controls, and the noise floor."""
    measured = gain_table.get(registered.metric)
    tables = [data_set_contrasts(trials, gain_table, registered)]
    if measured is not None and (phases(trials) == "control").any():
        tables += [control_contrasts(trials, measured), noise_floor(trials, measured)]
    tables = [table.assign(metric=registered.metric) for table in tables if len(table)]
    every = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COMPARISON_COLUMNS)
    return every.reindex(columns=COMPARISON_COLUMNS)


def phases(trials: pd.DataFrame) -> pd.Series:
    """What each trial is for: ``Trial.phase``."""
    return trials["phase"] if "phase" in trials else pd.Series("grid", index=trials.index)


def _exploratory(table: pd.DataFrame) -> pd.DataFrame:
    """Only what describes: how many images a set was measured on depends on what it did, so no error rate holds."""
    return table.assign(ci_low=np.nan, ci_high=np.nan, p=np.nan, q=np.nan, q_by=np.nan, verdict="inconclusive")


def _estimates(measured: Gains, margin: float, wanted: pd.Series) -> pd.DataFrame:
    """Estimates and unadjusted p-values by trial id, computed together for trials measured on equally many images."""
    pieces = []
    chosen = wanted.loc[measured.trial_ids].to_numpy()
    for rows, g in measured.groups():
        here = chosen[rows]
        if not here.any():
            continue
        if not here.all():
            rows, g = rows[here], g[here]
        pieces.append(estimates(g, margin).set_axis(rows))
    table = pd.concat(pieces).sort_index() if pieces else pd.DataFrame()
    return table.set_axis(measured.trial_ids[table.index.to_numpy(dtype=int)])


def _adjusted(table: pd.DataFrame, family: pd.Series, metric: str, registered: Registered) -> pd.DataFrame:
    """Effects of one metric, corrected over all the trials of the table."""
    found = adjusted(table, family.to_numpy(), registered.alpha).assign(stopped=None, metric=metric)
    return found.reset_index(names="trial_id")[EFFECT_COLUMNS]


def data_set_contrasts(trials: pd.DataFrame, gain_table: Mapping[str, Gains], registered: Registered) -> pd.DataFrame:
    """Does the same ablation hurt one data set more than another? Difference of mean g, later data set minus the first.

    Images are the unit and the data sets share none, so the samples are independent: Welch's interval; p by the
    studentised permutation of the data-set labels, or by Welch's t where the cells are too many for permutations.
    """
    measured = gain_table.get(registered.metric)
    names = list(dict.fromkeys(trials["dataset"]))
    if measured is None or len(names) < 2:
        return pd.DataFrame(columns=COMPARISON_COLUMNS)
    axes = ["protocol", "level", "layer", "layer_index", "head", "mode", "strength", "window_index"]
    cells = trials[trials["trial_id"].isin(measured.trial_ids) & ~phases(trials).isin(["search", *COMPARED])]
    cells = cells.assign(sites=cells["sites"].map(tuple))
    wide = cells.pivot_table(index=[*axes, "sites"], columns="dataset", values="trial_id", aggfunc="first")
    tables = []
    for other in names[1:]:
        if names[0] not in wide or other not in wide:
            continue
        pairs = wide[[names[0], other]].dropna()
        a, b = (_complete(measured.of(pairs[name].tolist())) for name in (other, names[0]))
        if len(pairs) == 0 or a.shape[1] < 2 or b.shape[1] < 2:
            continue
        permutations = permutations_for(len(pairs), registered.alpha)
        found = contrasts(a, b, f"contrast/{other}", permutations)
        groups = [cell_label(dict(zip([*axes, "sites"], key, strict=True))) for key in pairs.index]
        name = f"{DATA_SET_CONTRAST}: {other} - {names[0]}"
        tables.append(found.assign(name=name, metric=registered.metric, group=groups, q=bh(found["p"].to_numpy())))
    found = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COMPARISON_COLUMNS)
    return found[COMPARISON_COLUMNS]


def _complete(g: Float32[np.ndarray, "trials units"]) -> Float32[np.ndarray, "trials shared"]:
    """The units on which every trial was measured."""
    return g[:, ~np.isnan(g).any(axis=0)]


def cell_label(cell: dict) -> str:
    """``layer 2 head 3 | zero | window 1``: the group of a comparison."""
    where = f"layer {cell['layer_index']}" + (f" head {cell['head']}" if cell["head"] >= 0 else "")
    where = " + ".join(cell["sites"]) if cell["level"] == "set" else where
    where = f"{cell['level']} {cell['layer']}" if cell["level"] in GROUP_LEVELS else where
    return f"{where} | {cell['mode']} | window {cell['window_index']}"
