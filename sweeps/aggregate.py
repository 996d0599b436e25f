"""From records to effects: reads the run directory only, needs no Ray, and says what is missing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from circuits.metrics import DENOISE_METRICS, SAMPLE_METRICS
from circuits.seeds import numpy_generator
from circuits.statistics import (
    bh,
    by,
    effects,
    equivalence_test,
    hierarchical_fdr,
    independent_contrast,
    log_ratio,
    signflip_test,
    verdicts,
)
from sweeps.records import RunDirectory, RunDirectoryError

EFFECT_COLUMNS = [
    "trial_id", "metric", "n", "mean_log_ratio", "percent", "ci_low", "ci_high", "d_z", "p_degraded", "p", "q", "q_by",
    "verdict", "stopped",
]  # fmt: skip
COMPARISON_COLUMNS = ["name", "metric", "group", "estimate", "ci_low", "ci_high", "p", "q", "n_a", "n_b"]
TESTED = (*DENOISE_METRICS, *SAMPLE_METRICS)
_FLOOR = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Registered:
    """What the analysis fixed before the run."""

    metric: str
    alpha: float
    margin: float


@dataclass(frozen=True)
class Aggregate:
    """The tables of a run, and how many planned trials have no measurements."""

    effects: pd.DataFrame
    comparisons: pd.DataFrame
    missing: int


def gains(ablated: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """g = log(ablated / baseline) per image, ``[trials, images]``; an error of exactly zero counts as the smallest float32."""
    ablated = np.maximum(np.atleast_2d(ablated).astype(np.float64), _FLOOR)
    baseline = np.maximum(np.atleast_2d(baseline).astype(np.float64), _FLOOR)
    return log_ratio(ablated, np.broadcast_to(baseline, ablated.shape))


def aggregate(directory: RunDirectory) -> Aggregate:
    """Compute effects.parquet and comparisons.parquet from the records and write them.

    Raises:
        RunDirectoryError: no plan, or nothing recorded yet.
    """
    if not directory.trials.is_file():
        raise RunDirectoryError(f"{directory.path} has no trials.parquet; is it a run directory?")
    trials = pd.read_parquet(directory.trials)
    stats = directory.read_config()["stats"]
    registered = Registered(stats["metric"], stats["alpha"], stats["margin"])
    measured = directory.measurements()
    measured = measured[measured["trial_id"].isin(set(trials["trial_id"]))]
    if measured.empty:
        raise RunDirectoryError(f"{directory.path} has no measurements of its planned trials yet")
    effect_table, gain_table = effects_of(trials, measured, registered)
    comparison_table = data_set_contrasts(trials, gain_table, registered)
    directory.write_frame(directory.effects, effect_table)
    directory.write_frame(directory.comparisons, comparison_table)
    missing = len(set(trials["trial_id"]) - set(measured["trial_id"]))
    return Aggregate(effect_table, comparison_table, missing)


def effects_of(
    trials: pd.DataFrame, measured: pd.DataFrame, registered: Registered
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """The effects table, and per metric the per-image log ratios, a row a trial and a column a unit (NaN: not measured)."""
    place = trials.set_index("trial_id")
    family = place["layer_index"].astype(str) + "|" + place["window_index"].astype(str)
    tables: list[pd.DataFrame] = []
    by_metric: dict[str, pd.DataFrame] = {}
    present = [m for m in TESTED if m in set(measured["metric"].unique())]
    for metric in present:
        rows = measured[measured["metric"] == metric]
        ablated = rows.pivot(index="trial_id", columns="unit", values="ablated")
        baseline = rows.pivot(index="trial_id", columns="unit", values="baseline")
        order = [t for t in place.index if t in ablated.index]
        ablated, baseline = ablated.loc[order], baseline.loc[order]
        log_ratios = pd.DataFrame(gains(ablated.fillna(1), baseline.fillna(1)), ablated.index, ablated.columns)
        by_metric[metric] = log_ratios.where(ablated.notna())
        tables.append(_metric_effects(by_metric[metric], family.loc[order], metric, registered))
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=EFFECT_COLUMNS)
    return table[EFFECT_COLUMNS], by_metric


def _metric_effects(log_ratios: pd.DataFrame, family: pd.Series, metric: str, registered: Registered) -> pd.DataFrame:
    """Effects of one metric; trials measured on different numbers of images are tested in groups and corrected together."""
    pieces = []
    counts = log_ratios.notna().sum(axis=1)
    for n in sorted(counts.unique()):
        group = log_ratios[counts == n]
        g = group.to_numpy()[~np.isnan(group.to_numpy())].reshape(len(group), int(n))
        pieces.append(_group_effects(g, group.index))
    table = pd.concat(pieces).loc[log_ratios.index]
    families = family.loc[table.index].to_numpy()
    alpha = registered.alpha
    margin = float(np.log1p(registered.margin))
    equivalence = pd.concat(
        [
            pd.Series(
                equivalence_test(_dense(log_ratios[counts == n], int(n)), margin).p, log_ratios.index[counts == n]
            )
            for n in sorted(counts.unique())
            if n >= 2
        ]
    ).reindex(table.index, fill_value=1.0)
    table["q"] = hierarchical_fdr(table["p"].to_numpy(), families, alpha).q
    table["q_by"] = by(table["p"].to_numpy())
    improved = hierarchical_fdr(table.pop("p_improved").to_numpy(), families, alpha).q
    table["verdict"] = verdicts(table["q"].to_numpy(), improved, bh(equivalence.to_numpy()), alpha)
    table["stopped"] = None
    table["metric"] = metric
    return table.reset_index(names="trial_id")


def _dense(group: pd.DataFrame, n: int) -> np.ndarray:
    values = group.to_numpy()
    return values[~np.isnan(values)].reshape(len(group), n)


def _group_effects(g: np.ndarray, index: pd.Index) -> pd.DataFrame:
    found = effects(g)
    return pd.DataFrame(
        {
            "n": g.shape[1],
            "mean_log_ratio": found.mean_log_ratio,
            "percent": found.percent,
            "ci_low": found.ci_low,
            "ci_high": found.ci_high,
            "d_z": found.d_z,
            "p_degraded": found.p_degraded,
            "p": signflip_test(g, "greater").p,
            "p_improved": signflip_test(g, "less").p,
        },
        index=index,
    )


def data_set_contrasts(
    trials: pd.DataFrame, gain_table: dict[str, pd.DataFrame], registered: Registered
) -> pd.DataFrame:
    """Does the same ablation hurt one data set more than another? Difference of mean g, later data set minus the first.

    Images are the unit and the data sets share none, so the samples are independent: Welch's interval, and the studentised
    permutation of the data-set labels for p.
    """
    g = gain_table.get(registered.metric)
    names = list(dict.fromkeys(trials["dataset"]))
    if g is None or len(names) < 2:
        return pd.DataFrame(columns=COMPARISON_COLUMNS)
    axes = ["protocol", "level", "layer_index", "head", "mode", "strength", "window_index"]
    cells = trials[trials["trial_id"].isin(g.index)].assign(sites=trials["sites"].map(tuple))
    wide = cells.pivot_table(index=[*axes, "sites"], columns="dataset", values="trial_id", aggfunc="first")
    tables = []
    for other in names[1:]:
        if names[0] not in wide or other not in wide:
            continue
        pairs = wide[[names[0], other]].dropna()
        a, b = g.loc[pairs[other]].dropna(axis=1), g.loc[pairs[names[0]]].dropna(axis=1)
        if len(pairs) == 0 or a.shape[1] < 2 or b.shape[1] < 2:
            continue
        rng = numpy_generator(0, f"contrast/{other}")
        found = independent_contrast(a.to_numpy(), b.to_numpy(), rng)
        tables.append(
            pd.DataFrame(
                {
                    "name": f"data set contrast: {other} - {names[0]}",
                    "metric": registered.metric,
                    "group": [cell_label(dict(zip(axes, key[:-1], strict=True))) for key in pairs.index],
                    "estimate": found.estimate,
                    "ci_low": found.ci_low,
                    "ci_high": found.ci_high,
                    "p": found.p,
                    "q": bh(found.p),
                    "n_a": found.n_a,
                    "n_b": found.n_b,
                }
            )
        )
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COMPARISON_COLUMNS)


def cell_label(cell: dict) -> str:
    """``layer 2 head 3 | zero | window 1``: the group of a comparison."""
    where = f"layer {cell['layer_index']}" + (f" head {cell['head']}" if cell["head"] >= 0 else "")
    return f"{where} | {cell['mode']} | window {cell['window_index']}"
