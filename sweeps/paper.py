"""What profiles say, from disk alone: heads.parquet, and rows of comparisons.parquet for each of the paper's claims."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from circuits.attention_types import TYPES, AssignedTypes, AttentionType, with_types
from circuits.complexity import complexity_ratio, complexity_ratios
from circuits.face_metrics import FACE_METRICS
from circuits.profiles import HeadProfiles
from circuits.seeds import numpy_generator
from circuits.statistics import bh, divergence_band, effects
from circuits.type_validation import ASSIGNED, SetOutcome, corrected, dissociations, type_effects
from circuits.vocabulary import DENOISE_METRICS
from sweeps import comparison_names as names
from sweeps.gains import read_gains
from sweeps.head_sets import types_of
from sweeps.profiles import ENERGY, RANK, ProfileStore, StoredProfiles
from sweeps.records import RunDirectory

ENTROPIES = ("entropy_nats", "entropy_normalised")
CIRCUIT_SIZE = "circuit_size"
_EFFECT = {True: names.TYPE_EFFECT, False: names.LEADING_EFFECT}
_ON_IMAGES = {True: names.TYPE_ON_IMAGES, False: names.LEADING_ON_IMAGES}
_OVER_SETS = {True: names.TYPE_OVER_SETS, False: names.LEADING_OVER_SETS}


@dataclass(frozen=True)
class Findings:
    """heads: heads.parquet, None where nothing was profiled; comparisons: rows of comparisons.parquet."""

    heads: pd.DataFrame | None
    comparisons: pd.DataFrame


def profile_findings(directory: RunDirectory) -> Findings:
    """Everything that the profiles of a run say; nothing where it has none, or not all of them yet."""
    store = ProfileStore(directory)
    stored = store.read()
    if stored is None:
        return Findings(None, pd.DataFrame())
    types = types_of(stored.heads)
    tables = [
        pd.DataFrame(rows)
        for rows in (complexity_rows(stored), divergence_rows(stored.heads), entropy_rows(stored.heads, types))
    ]
    sets = store.read_frame(store.sets)
    if sets is not None and len(sets):
        tables.append(causal_rows(directory, sets))
    kept = [table for table in tables if len(table)]
    return Findings(head_table(stored.heads, types), pd.concat(kept, ignore_index=True) if kept else pd.DataFrame())


def head_table(profiles: HeadProfiles, types: Mapping[str, AssignedTypes]) -> pd.DataFrame:
    """heads.parquet: a row a data set, timestep and head."""
    tables = []
    for dataset, found in types.items():
        alone = replace(profiles, values={dataset: profiles.values[dataset]})
        tables.append(with_types(alone, found))
    return pd.concat(tables, ignore_index=True)


def complexity_rows(stored: StoredProfiles) -> Iterator[dict[str, object]]:
    """Each data set's complexity over that of the first: of all heads, over heads too, and of each layer."""
    heads = stored.heads
    measured: dict[str, Mapping[str, Float[np.ndarray, "heads timesteps images"]]] = {}
    if stored.ranks:
        measured[RANK] = stored.ranks
    measured[ENERGY] = {dataset: values[ENERGY] for dataset, values in heads.values.items()}
    for first, other in _pairs(heads.values):
        name = f"{names.COMPLEXITY_RATIO}: {other} / {first}"
        for metric, values in measured.items():
            rng = numpy_generator(0, f"complexity/{metric}/{other}")
            table = complexity_ratios(heads.layers, values[other].astype(float), values[first].astype(float), rng)
            for row in table.to_dict("records"):
                shared = {"name": name, "metric": metric, "n_a": row["n_a"], "n_b": row["n_b"]}
                sizes = {key: row[key] for key in ("estimate", "ci_low", "ci_high", "p")}
                yield shared | sizes | {"group": row["layer"]}
                if row["layer"] == "all" and "heads_p" in row:
                    over = {"ci_low": row["heads_ci_low"], "ci_high": row["heads_ci_high"], "p": row["heads_p"]}
                    yield shared | over | {"estimate": row["estimate"], "group": "all, over heads"}
        if stored.circuits:
            sizes_of = {dataset: found.faithful().astype(float) for dataset, found in stored.circuits.items()}
            rng = numpy_generator(0, f"complexity/{CIRCUIT_SIZE}/{other}")
            if min(sizes_of[first].mean(), sizes_of[other].mean()) > 0:
                found = complexity_ratio(sizes_of[other], sizes_of[first], rng)
                yield {
                    "name": name, "metric": CIRCUIT_SIZE, "group": "all", "estimate": found.estimate,
                    "ci_low": found.ci_low, "ci_high": found.ci_high, "p": found.p, "n_a": found.n_a, "n_b": found.n_b,
                }  # fmt: skip


def divergence_rows(profiles: HeadProfiles) -> Iterator[dict[str, object]]:
    """Mean entropy of each data set less that of the first, by timestep: a max-T band, and what chance alone gives."""
    for first, other in _pairs(profiles.values):
        which = f"{other} - {first}"
        for metric in ENTROPIES:
            a, b = profiles.per_image(other, metric), profiles.per_image(first, metric)
            found = divergence_band(a, b, numpy_generator(0, f"divergence/{metric}/{other}"))
            shared = {"metric": metric, "n_a": len(a), "n_b": len(b)}
            for i, t in enumerate(profiles.timesteps):
                at = shared | {"group": f"t {t}"}
                yield at | {
                    "name": f"{names.DIVERGENCE}: {which}", "estimate": found.difference[i], "ci_low": found.low[i],
                    "ci_high": found.high[i], "p": found.p[i],
                }  # fmt: skip
                yield at | {"name": f"{names.DIVERGENCE_SIZE}: {which}", "estimate": abs(found.difference[i])}
                expected = {"estimate": found.expected_absolute[i]}
                yield at | expected | {"name": f"{names.DIVERGENCE_BY_CHANCE}: {which}"}
            mean = shared | {"group": "mean"}
            yield mean | {
                "name": f"{names.DIVERGENCE_SIZE}: {which}", "estimate": found.mean_absolute, "p": found.p_global,
            }  # fmt: skip
            yield mean | {
                "name": f"{names.DIVERGENCE_BY_CHANCE}: {which}", "estimate": found.expected_mean_absolute,
            }  # fmt: skip


def entropy_rows(profiles: HeadProfiles, types: Mapping[str, AssignedTypes]) -> Iterator[dict[str, object]]:
    """Mean entropy of the heads of each type, over heads and timesteps, with Student's interval over images."""
    for dataset, found in types.items():
        for code, kind in [*enumerate(TYPES), (-1, "unassigned")]:
            member = found.type == code
            if not member.any():
                continue
            label = kind.value if isinstance(kind, AttentionType) else kind
            for metric in ENTROPIES:
                per_image = profiles.values[dataset][metric][member].mean(axis=(0, 1), dtype=np.float64)
                summary = effects(per_image[None])
                yield {
                    "name": names.TYPE_ENTROPY, "metric": metric, "group": f"{label} | {dataset}",
                    "estimate": summary.mean_log_ratio[0], "ci_low": summary.log_low[0],
                    "ci_high": summary.log_high[0], "n_a": per_image.size, "n_b": int(member.sum()),
                }  # fmt: skip


def causal_rows(directory: RunDirectory, sets: pd.DataFrame) -> pd.DataFrame:
    """The matrix of types and metrics, and types against one another on their own metrics.

    Three rows a cell: the effect itself (log ratio), what it has beyond random sets with p over images, and the same
    with p over the n_b sets. q is adjusted over all cells of assigned types, and over all of leading heads.
    """
    cells, against = [], []
    for dataset, part in sets.groupby("dataset", sort=False):
        outcomes, assigned = _outcomes(directory, part)
        if not outcomes:
            continue
        cells.append(type_effects(outcomes).assign(dataset=dataset))
        against.append(dissociations(outcomes).assign(dataset=dataset))
        for table in (cells[-1], against[-1]):
            table["assigned"] = [
                row["type"] in assigned and row.get("other", row["type"]) in assigned
                for row in table.to_dict("records")
            ]
    if not cells:
        return pd.DataFrame()
    rows: list[pd.DataFrame] = []
    matrix, pairs = pd.concat(cells, ignore_index=True), pd.concat(against, ignore_index=True)
    for assigned, part in matrix.groupby("assigned"):
        label = part["type"] + " | " + part["dataset"].astype(str)
        shared = pd.DataFrame({"metric": part["metric"], "group": label, "n_a": part["n"], "n_b": part["controls"]})
        effect = {"estimate": part["effect"], "ci_low": part["effect_low"], "ci_high": part["effect_high"]}
        excess = {"estimate": part["excess"], "ci_low": part["ci_low"], "ci_high": part["ci_high"]}
        is_assigned = bool(assigned)
        rows.append(shared.assign(name=_EFFECT[is_assigned], **effect))
        known = part["excess"].notna()
        on_images = shared.assign(name=_ON_IMAGES[is_assigned], **excess, p=part["p"], q=corrected(part["p"]))
        over_sets = shared.assign(
            name=_OVER_SETS[is_assigned], **excess, p=part["p_controls"], q=corrected(part["p_controls"])
        )
        rows += [on_images[known], over_sets[known]]
    if len(pairs):
        q = pairs.groupby("assigned")["p"].transform(lambda p: bh(p.to_numpy(dtype=float)))
        rows.append(
            pairs.assign(
                name=names.TYPE_AGAINST_TYPE,
                group=pairs["type"] + " beyond " + pairs["other"] + " | " + pairs["dataset"].astype(str),
                n_a=pairs["n"],
                n_b=pairs["n"],
                q=q,
            )[["name", "metric", "group", "estimate", "ci_low", "ci_high", "p", "q", "n_a", "n_b"]]
        )
    return pd.concat(rows, ignore_index=True)


def _outcomes(directory: RunDirectory, sets: pd.DataFrame) -> tuple[dict[AttentionType, SetOutcome], set[str]]:
    """What the sets of a data set do, by type, on the images that all have; and which types have heads of their own."""
    table = read_gains(directory, sets["trial_id"].unique().tolist(), (*DENOISE_METRICS, *FACE_METRICS))
    outcomes: dict[AttentionType, SetOutcome] = {}
    assigned: set[str] = set()
    for kind, part in sets.groupby("type", sort=False):
        own: dict[str, np.ndarray] = {}
        matched: dict[str, np.ndarray] = {}
        for metric, measured in table.items():
            there = set(measured.trial_ids)
            mine = [name for name in part.loc[part["draw"] == 0, "trial_id"] if name in there]
            random = [name for name in part.loc[part["draw"] > 0, "trial_id"] if name in there]
            if not mine:
                continue
            g = measured.of([*mine, *random]).astype(np.float64)
            g = g[:, ~np.isnan(g).any(axis=0)]
            if g.shape[1] >= 2:
                own[metric], matched[metric] = g[0], g[1:]
        if own:
            outcomes[AttentionType(str(kind))] = SetOutcome(own, matched)
            if (part["basis"] == ASSIGNED).all():
                assigned.add(str(kind))
    return outcomes, assigned


def _pairs(datasets: Mapping[str, object]) -> list[tuple[str, str]]:
    """The first data set with each of the others."""
    first, *others = datasets
    return [(first, other) for other in others]
