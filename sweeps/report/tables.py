"""The rows of the page's tables: a value for sorting and a text for reading."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sweeps.comparison_names import DATA_SET_CONTRAST
from sweeps.report import wording
from sweeps.report.findings import verdict_counts
from sweeps.report.reported_run import CALLED, STOPPED, ReportedRun
from sweeps.report.theme import bin_name


@dataclass(frozen=True)
class Number:
    value: str  # six significant digits, or empty
    text: str


@dataclass(frozen=True)
class TrialRow:
    rank: int
    trial_id: str
    site: str
    level: str
    mode: str
    window: str
    window_order: int
    dataset: str
    percent: Number
    ci_low: Number
    ci_high: Number
    d_z: Number
    p: Number
    q: Number
    n: int
    verdict: str
    stopped: str


@dataclass(frozen=True)
class TallyRow:
    mode: str
    dataset: str
    level: str
    total: int
    verdicts: dict[str, int]
    stopped: dict[str, int]


@dataclass(frozen=True)
class MetricRow:
    trial: TrialRow
    values: list[tuple[Number, str, str]]  # percent, verdict, colour bin


@dataclass(frozen=True)
class ComparisonRow:
    name: str
    metric: str
    group: str
    estimate: Number
    ci_low: Number
    ci_high: Number
    p: Number
    q: Number
    n_a: str
    n_b: str


@dataclass(frozen=True)
class ControlRow:
    rank: int
    trial_id: str
    site: str
    window: str
    window_order: int
    dataset: str
    above: Number
    ci_low: Number
    ci_high: Number
    p: Number
    q: Number
    p_controls: Number
    images: int
    percent: Number
    verdict: str


@dataclass(frozen=True)
class FailureRow:
    trial: str
    error: str
    traceback: str
    attempts: str


def trial_rows(cells: pd.DataFrame) -> list[TrialRow]:
    """In the order given, which is the rank."""
    return [_trial_row(rank, trial) for rank, trial in enumerate(cells.itertuples(), start=1)]


def tally(run: ReportedRun) -> list[TallyRow]:
    """Counts of verdicts and early stops for each mode, data set and level; then all together."""
    parts = run.cells.groupby(["variant", "dataset", "level"], sort=False)
    rows = [_tally_row(str(mode), str(data), str(level), part) for (mode, data, level), part in parts]
    rows.sort(key=lambda row: (row.mode, run.datasets.index(row.dataset), row.level))
    return [*rows, _tally_row("all", "all", "all", run.cells)]


def metric_rows(run: ReportedRun, rows: int = 12) -> tuple[list[str], list[MetricRow]]:
    """The metrics, and a row of them for each of the strongest heads: once on each data set, in its strongest cell."""
    heads = run.cells[run.cells["level"] == "head"].drop_duplicates(["dataset", "layer_index", "head", "stream"])
    heads = heads.head(rows)
    here = run.effects[run.effects["trial_id"].isin(heads["trial_id"])]
    metrics = [run.stats.metric, *sorted(set(here["metric"]) - {run.stats.metric})]
    effects = {(effect.trial_id, effect.metric): effect for effect in here.itertuples()}
    return metrics, [
        MetricRow(row, [_metric_value(effects.get((row.trial_id, metric))) for metric in metrics])
        for row in trial_rows(heads)
    ]


def comparison_rows(run: ReportedRun, limit: int) -> list[ComparisonRow]:
    """Between data sets, the surest first."""
    ordered = run.data_set_contrasts.sort_values(["q", "p"], kind="stable").head(limit)
    return [
        ComparisonRow(
            name=str(row.name).removeprefix(f"{DATA_SET_CONTRAST}: "),
            metric=str(row.metric),
            group="" if row.group is None else str(row.group),
            estimate=number(row.estimate, wording.estimate),
            ci_low=number(row.ci_low, wording.estimate),
            ci_high=number(row.ci_high, wording.estimate),
            p=number(row.p, wording.probability),
            q=number(row.q, wording.probability),
            n_a=wording.number(row.n_a),
            n_b=wording.number(row.n_b),
        )
        for row in ordered.itertuples()
    ]


def control_rows(heads: pd.DataFrame) -> list[ControlRow]:
    """Heads against random subspaces, in the order given."""

    def percent(log_ratio: float) -> Number:
        return number(100 * math.expm1(log_ratio), wording.percent)

    return [
        ControlRow(
            rank=rank,
            trial_id=str(head.trial_id),
            site=wording.site(head),
            window=wording.window(head),
            window_order=int(head.window_index),
            dataset=head.dataset,
            above=percent(head.estimate),
            ci_low=percent(head.ci_low),
            ci_high=percent(head.ci_high),
            p=number(head.p, wording.probability),
            q=number(head.q, wording.probability),
            p_controls=number(head.p_controls, wording.probability),
            images=int(head.n_a),
            percent=number(head.percent, wording.percent),
            verdict=head.verdict,
        )
        for rank, head in enumerate(heads.itertuples(), start=1)
    ]


def failure_rows(run: ReportedRun) -> list[FailureRow]:
    names = _trial_names(pd.concat([run.trials, run.controls]), run.failures["trial_id"])
    return [
        FailureRow(
            names.get(row.trial_id, str(row.trial_id)), str(row.error), str(row.traceback or ""), str(row.attempts)
        )
        for row in run.failures.itertuples()
    ]


def _trial_row(rank: int, trial: Any) -> TrialRow:
    return TrialRow(
        rank=rank,
        trial_id=str(trial.trial_id),
        site=wording.site(trial),
        level=trial.level,
        mode=trial.variant,
        window=wording.window(trial),
        window_order=int(trial.window_index),
        dataset=trial.dataset,
        percent=number(trial.percent, wording.percent),
        ci_low=number(trial.ci_low, wording.percent),
        ci_high=number(trial.ci_high, wording.percent),
        d_z=number(trial.d_z, wording.decimal),
        p=number(trial.p, wording.probability),
        q=number(trial.q, wording.probability),
        n=int(trial.n),
        verdict=trial.verdict,
        stopped=trial.stopped if isinstance(trial.stopped, str) else "",
    )


def _tally_row(mode: str, dataset: str, level: str, part: pd.DataFrame) -> TallyRow:
    stopped = {reason: int((part["stopped"] == reason).sum()) for reason in STOPPED}
    return TallyRow(mode, dataset, level, len(part), verdict_counts(part), stopped)


def _metric_value(effect: Any) -> tuple[Number, str, str]:
    if effect is None:
        return Number("", "–"), "", "faint"
    called = effect.verdict in CALLED
    return number(effect.percent, wording.percent), effect.verdict, bin_name(effect.percent) if called else "faint"


def _trial_names(trials: pd.DataFrame, wanted: pd.Series) -> dict[str, str]:
    return {
        trial.trial_id: f"{wording.site(trial)}, {trial.variant}, {wording.window(trial)}, {trial.dataset}"
        for trial in trials[trials["trial_id"].isin(wanted)].itertuples()
    }


def number(value: Any, write: Any) -> Number:
    value = float("nan") if value is None else float(value)
    return Number(f"{value:.6g}" if value == value else "", write(value))
