"""What a sweep adds to its run directory when it profiles heads, with numbers known to the test."""

from pathlib import Path

import numpy as np
import pandas as pd

from sweeps import comparison_names as names

FIRST, OTHER = "synthetic_faces", "lfw_faces"
TIMES = (900, 500, 100)
TYPES = {  # by data set, layer and head
    (FIRST, 0, 0): "edge", (FIRST, 0, 1): "edge", (FIRST, 1, 2): "positional",
    (OTHER, 0, 0): "edge", (OTHER, 1, 1): "local_detail",
}  # fmt: skip
DIVERGENCES = {900: (0.20, 0.12, 0.28, 0.001), 500: (-0.05, -0.13, 0.03, 0.4), 100: (0.11, 0.03, 0.19, 0.01)}
RATIOS = {"effective_rank": (1.08, 1.02, 1.14, 0.004), "output_energy": (0.9, 0.8, 1.01, 0.07)}
CELLS = {  # of (data set, type, metric): excess, low, high, q over images, p over sets
    (FIRST, "edge", "edge"): (0.2, 0.1, 0.3, 0.001, 0.04),
    (FIRST, "edge", "luminance"): (0.3, 0.2, 0.4, 0.001, 0.04),
    (OTHER, "edge", "edge"): (0.1, 0.02, 0.18, 0.01, 0.2),
    (FIRST, "positional", "edge"): (0.0, -0.1, 0.1, 0.6, 0.5),
    (OTHER, "local_detail", "high_frequency"): (-0.1, -0.2, 0.0, 0.9, 0.8),
    (OTHER, "texture", "high_frequency"): (0.4, 0.3, 0.5, 1e-6, 0.04),
}
LEADING = {(OTHER, "texture")}
OWN = {"edge": "edge", "positional": "", "local_detail": "high_frequency", "texture": "high_frequency"}
AGAINST = {(FIRST, "edge", "positional"): 0.001, (OTHER, "edge", "local_detail"): 0.3, (OTHER, "edge", "texture"): 0.9}


def add_profiles(run: Path) -> None:
    """heads.parquet, profiles/, and rows of comparisons.parquet."""
    (run / "profiles").mkdir()
    _heads().to_parquet(run / "heads.parquet", index=False)
    _sets().to_parquet(run / "profiles" / "sets.parquet", index=False)
    _maps().to_parquet(run / "profiles" / "maps.parquet", index=False)
    columns = ["name", "metric", "group", "estimate", "ci_low", "ci_high", "p", "q", "n_a", "n_b"]
    found = pd.DataFrame([*_divergence(), *_ratios(), *_entropies(), *_cells()]).reindex(columns=columns)
    known = pd.read_parquet(run / "comparisons.parquet")
    pd.concat([known, found.assign(n_a=found["n_a"].fillna(60), n_b=found["n_b"].fillna(24))]).to_parquet(
        run / "comparisons.parquet", index=False
    )


def _heads() -> pd.DataFrame:
    rows = [
        {
            "layer": f"blocks.{layer}.attn1", "layer_index": layer, "head": head, "dataset": dataset, "t": t,
            "entropy_nats": 3.0 - 0.1 * head, "entropy_normalised": 0.7, "keys": 64.0,
            "type": TYPES.get((dataset, layer, head), "unassigned"), "type_probability": 0.97,
        }
        for dataset in (FIRST, OTHER) for t in TIMES for layer in range(2) for head in range(3)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _sets() -> pd.DataFrame:
    kinds = {(dataset, kind): "assigned" for (dataset, _, _), kind in TYPES.items()} | dict.fromkeys(LEADING, "leading")
    rows = [
        {
            "dataset": dataset, "type": kind, "basis": basis, "own_metric": OWN[kind], "draw": draw,
            "trial_id": f"{dataset[:1]}{kind[:4]}{draw}", "heads": 2,
        }
        for (dataset, kind), basis in kinds.items() for draw in (0, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _maps() -> pd.DataFrame:
    share = np.arange(16.0) / 120
    return pd.DataFrame(
        [
            {
                "dataset": FIRST, "layer": "x", "layer_index": 0, "head": head, "type": "edge", "t": t, "rows": 4,
                "columns": 4, "received": share, "from_query": share[::-1], "query_row": 1, "query_column": 2,
                "size": size, "picture": np.zeros(size * size),
            }
            for head, size in ((0, 8), (1, 0)) for t in TIMES
        ]
    )  # fmt: skip


def _divergence() -> list[dict]:
    which, rows = f"{OTHER} - {FIRST}", []
    for metric in ("entropy_nats", "entropy_normalised"):
        for t, (difference, low, high, p) in DIVERGENCES.items():
            at = {"metric": metric, "group": f"t {t}"}
            rows.append(
                at
                | {
                    "name": f"{names.DIVERGENCE}: {which}",
                    "estimate": difference,
                    "ci_low": low,
                    "ci_high": high,
                    "p": p,
                }
            )
            rows.append(at | {"name": f"{names.DIVERGENCE_SIZE}: {which}", "estimate": abs(difference)})
            rows.append(at | {"name": f"{names.DIVERGENCE_BY_CHANCE}: {which}", "estimate": 0.02})
        mean = {"metric": metric, "group": "mean"}
        rows.append(mean | {"name": f"{names.DIVERGENCE_SIZE}: {which}", "estimate": 0.12, "p": 0.001})
        rows.append(mean | {"name": f"{names.DIVERGENCE_BY_CHANCE}: {which}", "estimate": 0.021})
    return rows


def _ratios() -> list[dict]:
    name = f"{names.COMPLEXITY_RATIO}: {OTHER} / {FIRST}"
    rows = [
        {"name": name, "metric": metric, "group": "all", "estimate": e, "ci_low": low, "ci_high": high, "p": p}
        for metric, (e, low, high, p) in RATIOS.items()
    ]
    over = {"estimate": 1.08, "ci_low": 0.95, "ci_high": 1.2, "p": 0.2}
    return [*rows, {"name": name, "metric": "effective_rank", "group": "all, over heads"} | over]


def _entropies() -> list[dict]:
    found = {("edge", FIRST): (3.2, 3.1, 3.3), ("edge", OTHER): (3.9, 3.8, 4.0), ("positional", FIRST): (2.0, 1.9, 2.1)}
    return [
        {
            "name": names.TYPE_ENTROPY, "metric": metric, "group": f"{kind} | {dataset}", "estimate": e * scale,
            "ci_low": low * scale, "ci_high": high * scale, "n_b": 2,
        }
        for metric, scale in (("entropy_nats", 1.0), ("entropy_normalised", 0.24))
        for (kind, dataset), (e, low, high) in found.items()
    ]  # fmt: skip


def _cells() -> list[dict]:
    rows = []
    for (dataset, kind, metric), (e, low, high, q, p_sets) in CELLS.items():
        leading = (dataset, kind) in LEADING
        cell = {"metric": metric, "group": f"{kind} | {dataset}", "estimate": e, "ci_low": low, "ci_high": high}
        on_images = names.LEADING_ON_IMAGES if leading else names.TYPE_ON_IMAGES
        over_sets = names.LEADING_OVER_SETS if leading else names.TYPE_OVER_SETS
        rows += [cell | {"name": on_images, "p": q / 2, "q": q}, cell | {"name": over_sets, "p": p_sets}]
    for (dataset, kind, other), q in AGAINST.items():
        group = f"{kind} beyond {other} | {dataset}"
        rows.append({"name": names.TYPE_AGAINST_TYPE, "metric": OWN[kind], "group": group, "estimate": 0.1, "q": q})
    return rows
