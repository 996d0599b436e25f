"""Two runs against one another: what the same ablations do in run b and not in run a."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from circuits.naming import nearest
from circuits.seeds import numpy_generator
from circuits.statistics import bh, effects, equivalence_test, hierarchical_fdr, signflip_test, two_way_contrast
from circuits.vocabulary import SAMPLE_METRICS
from sweeps.aggregate import COMPARISON_COLUMNS, TESTED
from sweeps.compared_gains import (
    ComparedRun,
    PairingKey,
    by_pairing,
    columns_of,
    compared_gains,
    complete,
    image_ratios,
    measured_cells,
)
from sweeps.config import ConfigError, RunConfig
from sweeps.contrasts import contrasts, permutations_for
from sweeps.differences import differences, factors
from sweeps.matching import CellMatch, disagreement, match_cells
from sweeps.places import fetch, names_at, run_at
from sweeps.records import SCHEMA_VERSION, RunDirectory, RunDirectoryError, publish_bytes
from sweeps.report.comparison_page import write_comparison_page
from sweeps.report.wording import count
from sweeps.units import UnitMatch, Units, match_images, match_seeds
from sweeps.uris import Uri, is_uri, uri_problem

CELL_COLUMNS = [
    "verdict", "paired", "trial_a", "trial_b", "protocol", "dataset", "dataset_b", "level", "layer_index", "head",
    "stream", "sites", "mode", "mode_b", "strength", "strength_b", "t_start", "t_end", "t_start_b", "t_end_b",
    "mean_a", "low_a", "high_a", "mean_b", "low_b", "high_b",
]  # fmt: skip
"""What the comparisons.parquet of a comparison has besides: the cell, and its effects in both runs."""

_NAME_LETTERS = 90


def compare_runs(chosen: RunConfig) -> str:
    """Compare run.a with run.b, write the comparison beside them under run.root; returns what to tell the user.

    Raises:
        ConfigError: a run that does not exist, the same run twice, or runs without a cell in common.
        RunDirectoryError: a run that cannot be read, was written by a newer version, or has nothing recorded.
    """
    a, b = open_run("run.a", chosen.a, chosen.root), open_run("run.b", chosen.b, chosen.root)
    if a.directory.path.resolve() == b.directory.path.resolve():
        raise ConfigError(f"run.b: {b.directory.where} is run.a too; choose another run")
    match = match_cells(a.trials, b.trials)
    if match.cells.empty:
        raise ConfigError(f"run.b: no cell of {b.name} matches one of {a.name}: {disagreement(a.trials, b.trials)}")
    metric = primary_metric(a, b)
    alpha, margin = min(a.stats["alpha"], b.stats["alpha"]), min(a.stats["margin"], b.stats["margin"])
    pairings = dict(_pairings(match, a, b, metric))
    table = contrast_table(match, a, b, pairings, metric, alpha, margin)
    primary = table[table["metric"] == metric]
    if primary.empty:
        raise ConfigError(f"run.b: no cell of {b.name} and {a.name} has two units of {metric} in both")
    comparison = run_at(chosen.root, f"compare-{a.name[:_NAME_LETTERS]}-{b.name[:_NAME_LETTERS]}")
    comparison.create()
    target = comparison.path
    comparison.write_frame(target / "comparisons.parquet", table)
    comparison.write_frame(target / "images.parquet", image_ratios(match, a, b, pairings, metric))
    facts = {
        "schema_version": SCHEMA_VERSION,
        "a": _about(a),
        "b": _about(b),
        "metric": metric,
        "alpha": alpha,
        "margin": margin,
        "across": match.across,
        "cells": len(primary),
        "only_a": match.only_a,
        "only_b": match.only_b,
        "permutations": permutations_for(len(primary), alpha),
        "pairings": [_pairing(key, found) for key, found in pairings.items()],
        "stops_early": a.stops_early or b.stops_early,
        "factors": factors(match, pairings.values(), a.config, b.config, a.facts, b.facts),
        "differences": differences(a.config, b.config, a.facts, b.facts),
        "over_heads": over_heads(match, a, b, pairings, metric),
    }
    publish_bytes(target / "compare.json", (json.dumps(facts, indent=2) + "\n").encode())
    page = write_comparison_page(target)
    counts = primary["verdict"].value_counts()
    said = ", ".join(f"{counts.get(v, 0)} {v}" for v in ("more", "less", "same", "undecided"))
    how = "paired" if primary["paired"].all() else "independent" if not primary["paired"].any() else "partly paired"
    found = f"{count(len(primary), 'cell')} ({how}) by {metric}, {b.name} against {a.name}: {said}"
    return "\n".join([*a.directory.damage(), *b.directory.damage(), found, f"report: {comparison.shown(page)}"])


def open_run(key: str, given: str | None, root: str) -> ComparedRun:
    """A run by its directory or URI, or by its name under ``root``."""
    assert given is not None, "checked with the configuration"
    directory = _located(key, given, root)
    facts, config = directory.read_run(), directory.read_config()
    trials = directory.read_frame(directory.trials)
    return ComparedRun(directory, trials, config, facts, _units(directory, config))


def _located(key: str, given: str, root: str) -> RunDirectory:
    """
    Raises:
        ConfigError: there is no such run.
    """
    below = given.strip("/") or given  # in a store nothing lies at an absolute path
    inside = Uri.parse(given) if is_uri(given) else Uri.parse(root).child(below) if is_uri(root) else None
    if inside is not None and (problem := uri_problem(key, inside.full)):
        raise ConfigError(problem)
    candidates = [] if is_uri(given) else [RunDirectory(Path(given).expanduser().resolve())]
    if not (candidates and candidates[0].trials.is_file()):  # a folder here is looked for before a store is asked
        home, name = inside.parent() if inside is not None else (None, given)
        within = root if home is None else home.full
        candidates.append(run_at(within, name, key))
        fetch(candidates[-1])
    found = next((directory for directory in candidates if directory.trials.is_file()), None)
    if found is None:
        elsewhere = names_at(str(Path(given).expanduser().parent)) if not is_uri(given) else []
        raise ConfigError(
            f"{key}: no run {given}{nearest(Path(given).name, sorted({*elsewhere, *names_at(within, key)}))}"
        )
    return found


def primary_metric(a: ComparedRun, b: ComparedRun) -> str:
    """The metric that a registered, or b, if both have measured it; else the first that both have."""
    shared = [metric for metric in TESTED if metric in a.gains and metric in b.gains]
    if not shared:
        raise ConfigError(
            f"run.b: {b.name} and {a.name} have no metric in common: {', '.join(b.gains)} against {', '.join(a.gains)}"
        )
    return next((run.stats["metric"] for run in (a, b) if run.stats["metric"] in shared), shared[0])


def contrast_table(
    match: CellMatch,
    a: ComparedRun,
    b: ComparedRun,
    pairings: Mapping[PairingKey, UnitMatch],
    primary: str,
    alpha: float,
    margin: float,
) -> pd.DataFrame:
    """Every matched cell on every metric that both runs have; the estimate is mean g in b less mean g in a."""
    tables = []
    for metric in (m for m in TESTED if m in a.gains and m in b.gains):
        pieces = list(_contrasted(match, a, b, pairings, metric, primary, alpha, margin))
        if not pieces:
            continue
        table = pd.concat(pieces, ignore_index=True)
        family = (
            table["layer_index"].astype(str) + "|" + table["t_start"].astype(str) + "|" + table["t_end"].astype(str)
        )
        table["q"] = hierarchical_fdr(table["p"].to_numpy(), family.to_numpy(), alpha).q
        table["verdict"] = _verdicts(table, alpha)
        tables.append(table.assign(metric=metric, name=f"{b.name} - {a.name}", group=_groups(table)))
    columns = [*COMPARISON_COLUMNS, *CELL_COLUMNS]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def _contrasted(
    match: CellMatch,
    a: ComparedRun,
    b: ComparedRun,
    pairings: Mapping[PairingKey, UnitMatch],
    metric: str,
    primary: str,
    alpha: float,
    margin: float,
) -> Iterator[pd.DataFrame]:
    """The cells of a metric, in groups that have one way of pairing and one number of units."""
    cells = measured_cells(match, a, b, metric)
    permutations = permutations_for(len(cells), alpha) if metric == primary else 0
    log_margin = float(np.log1p(margin))
    for key, part in by_pairing(cells):
        units = pairings[key]
        g_a, g_b = compared_gains(part, key, units, a, b, metric)
        sizes = np.stack([np.count_nonzero(~np.isnan(g), axis=1) for g in (g_a, g_b)], axis=1)
        for n_a, n_b in np.unique(sizes[(sizes >= 2).all(axis=1)], axis=0):
            rows = np.flatnonzero((sizes == (n_a, n_b)).all(axis=1))
            left, right = _dense(g_a[rows], n_a), _dense(g_b[rows], n_b)
            if units.paired:
                found = _paired(left, right, log_margin)
            else:
                found = _independent(left, right, log_margin, f"compare/{metric}", permutations)
            for side, g in (("a", left), ("b", right)):
                own = effects(g)
                found = found.assign(
                    **{f"mean_{side}": own.mean_log_ratio, f"low_{side}": own.log_low, f"high_{side}": own.log_high}
                )
            yield pd.concat([part.iloc[rows].reset_index(drop=True), found.assign(paired=units.paired)], axis=1)


def _paired(a: Float[np.ndarray, "cells n"], b: Float[np.ndarray, "cells n"], margin: float) -> pd.DataFrame:
    """The same units in both: sign flips of the differences, Student's interval."""
    d = b.astype(np.float64) - a
    found = effects(d)
    return pd.DataFrame(
        {
            "estimate": found.mean_log_ratio,
            "ci_low": found.log_low,
            "ci_high": found.log_high,
            "p": signflip_test(d, "two-sided").p,
            "p_same": equivalence_test(d, margin).p,
            "n_a": found.n,
            "n_b": found.n,
        }
    )


def _independent(
    a: Float[np.ndarray, "cells n_a"], b: Float[np.ndarray, "cells n_b"], margin: float, purpose: str, permutations: int
) -> pd.DataFrame:
    """Different units: Welch's interval, label permutations or Welch's t; equivalence by two one-sided Welch tests."""
    found = contrasts(b, a, purpose, permutations)
    above = contrasts(b + np.float32(margin), a, purpose, 0, "greater")["p"]
    below = contrasts(b - np.float32(margin), a, purpose, 0, "less")["p"]
    return found.rename(columns={"n_a": "n_b", "n_b": "n_a"}).assign(p_same=np.maximum(above, below))


def _verdicts(table: pd.DataFrame, alpha: float) -> np.ndarray:
    """more, less: the ablation degrades more or less in b; same: within the margin, and it wins as in a run."""
    verdict = np.full(len(table), "undecided", dtype=object)
    differs = (table["q"] <= alpha).to_numpy()
    verdict[differs & (table["estimate"] > 0).to_numpy()] = "more"
    verdict[differs & (table["estimate"] < 0).to_numpy()] = "less"
    verdict[bh(table["p_same"].to_numpy()) <= alpha] = "same"
    return verdict


def over_heads(
    match: CellMatch, a: ComparedRun, b: ComparedRun, pairings: Mapping[PairingKey, UnitMatch], metric: str
) -> list[dict[str, Any]]:
    """A claim about the heads together: heads and images are both resampled, each head the mean of its cells."""
    cells = measured_cells(match, a, b, metric)
    found = []
    for key, part in by_pairing(cells[cells["level"] == "head"]):
        units = pairings[key]
        head = part.groupby(["layer_index", "head", "stream"]).ngroup().to_numpy()
        g_a = columns_of(a.gains[metric].of(part["trial_a"].tolist()), units.a)
        g_b = columns_of(b.gains[metric].of(part["trial_b"].tolist()), units.b)
        if units.paired:
            g_a, g_b = np.zeros((len(part), 2)), g_b - g_a
        g_a, g_b = complete(g_a), complete(g_b)
        if head.max() < 1 or min(g_a.shape[1], g_b.shape[1]) < 2:
            continue
        heads_a, heads_b = (np.stack([g[head == i].mean(axis=0) for i in np.unique(head)]) for g in (g_a, g_b))
        contrast = two_way_contrast(heads_b, heads_a, numpy_generator(0, f"compare/heads/{metric}"))
        found.append(
            {
                "dataset": key[0], "dataset_b": key[1], "protocol": key[2], "heads": contrast.heads,
                "images": g_b.shape[1], "estimate": contrast.estimate, "ci_low": contrast.ci_low,
                "ci_high": contrast.ci_high, "p": contrast.p,
            }
        )  # fmt: skip
    return found


def _pairings(match: CellMatch, a: ComparedRun, b: ComparedRun, metric: str) -> Iterator[tuple[PairingKey, UnitMatch]]:
    for key, _ in by_pairing(match.cells.assign(dataset_b=match.cells.get("dataset_b", match.cells["dataset"]))):
        units_a, units_b = a.units[key[0]], b.units[key[1]]
        if key[2] == "sample":
            yield key, match_seeds(units_a, units_b, _seeds(a), _seeds(b))
        else:
            yield key, match_images(units_a, units_b)


def _seeds(run: ComparedRun) -> int:
    """Of generated images."""
    return max((found.g.shape[1] for metric, found in run.gains.items() if metric in SAMPLE_METRICS), default=0)


def _about(run: ComparedRun) -> dict[str, Any]:
    keys = ("plan", "finished", "command")
    model, counts = run.facts.get("model", {}), run.facts.get("counts", {})
    return {
        "name": run.name, "path": run.directory.where, **{key: run.facts.get(key) for key in keys},
        "model": model.get("name"), "revision": model.get("revision"), "trials": counts.get("trials"),
    }  # fmt: skip


def _pairing(key: PairingKey, units: UnitMatch) -> dict[str, Any]:
    return {
        "dataset": key[0], "dataset_b": key[1], "protocol": key[2], "paired": units.paired, "n_a": len(units.a),
        "n_b": len(units.b), "shared_images": units.shared_images, "shared_noise": units.shared_noise,
        "dropped": units.dropped,
    }  # fmt: skip


def _dense(g: Float[np.ndarray, "cells units"], n: int) -> Float[np.ndarray, "cells n"]:
    return g[~np.isnan(g)].reshape(len(g), int(n))


def _units(directory: RunDirectory, config: Mapping[str, Any]) -> dict[str, Units]:
    if not directory.units.is_file():
        raise RunDirectoryError(
            f"{directory.where} lacks units.parquet, which says what its images are; its command, run again, adds it"
        )
    table = directory.read_frame(directory.units)
    seed = int(config["sweep"]["seed"])
    sources = {s["name"]: s for s in config["data"]["sets"]}
    found = {}
    for name, part in table.sort_values("unit").groupby("dataset", sort=False):
        spec = sources[str(name)]
        source = (str(spec["source"]), str(spec.get("root") or config["data"].get("root") or ""))
        found[str(name)] = Units(tuple(part["image"]), tuple(part["fingerprint"]), source, (str(name), seed))
    return found


def _groups(table: pd.DataFrame) -> list[str]:
    """A label that tells the cells of a table apart."""
    return [
        " | ".join(
            [
                cell.sites or f"layer {cell.layer_index}" + (f" head {cell.head}" if cell.head >= 0 else "")
                + (f" {cell.stream}" if cell.stream else ""),
                crossed(cell.mode, cell.mode_b),
                f"strength {crossed(cell.strength, cell.strength_b)}",
                "t " + crossed(f"{cell.t_start}-{cell.t_end}", f"{cell.t_start_b}-{cell.t_end_b}"),
                crossed(cell.dataset, cell.dataset_b),
                cell.protocol,
            ]
        )
        for cell in table.itertuples()
    ]  # fmt: skip


def crossed(a: object, b: object) -> str:
    """One value, or what it is in a and in b."""
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in (a, b)]
    return texts[0] if texts[0] == texts[1] else " → ".join(texts)
