"""Which cells of two runs are the same ablation."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from circuits.vocabulary import GROUP_LEVELS
from sweeps.aggregate import phases
from sweeps.mode_names import mode_names
from sweeps.phases import COMPARED

AXES = [
    "dataset", "protocol", "level", "layer_index", "head", "stream", "mode", "strength", "t_start", "t_end", "sites",
]  # fmt: skip
CROSSABLE = {"data set": ["dataset"], "mode": ["mode"], "strength": ["strength"], "window": ["t_start", "t_end"]}
"""Axes along which two runs may be compared with one another, where each has one value only."""


@dataclass(frozen=True)
class CellMatch:
    """The cells that two runs have in common.

    Attributes:
        cells: AXES as in a, ``layer`` and ``trial_a``; ``trial_b``, and crossed axes as in b with the suffix ``_b``.
        across: the value in a and the value in b of each crossed axis, by the axis' name.
        only_a, only_b: cells without a partner.
    """

    cells: pd.DataFrame
    across: dict[str, tuple[str, str]]
    only_a: int
    only_b: int


def match_cells(a: pd.DataFrame, b: pd.DataFrame) -> CellMatch:
    """Match the trials of two plans on the axes that they share; not controls, nor what a search chose from."""
    left, right = _cells(a), _cells(b)
    across = {}
    crossed: list[str] = []
    for name, columns in CROSSABLE.items():
        values = [side[columns].drop_duplicates() for side in (left, right)]
        if all(len(v) == 1 for v in values) and tuple(values[0].iloc[0]) != tuple(values[1].iloc[0]):
            in_a, in_b = ("–".join(_text(x) for x in v.iloc[0]) for v in values)
            across[name] = (in_a, in_b)
            crossed += columns
    keys = [axis for axis in AXES if axis not in crossed]
    left, right = left.drop_duplicates(keys), right.drop_duplicates(keys)
    cells = left.merge(right.drop(columns="layer"), on=keys, suffixes=("_a", "_b"), validate="one_to_one")
    cells = cells.rename(
        columns={f"{axis}_a": axis for axis in crossed} | {"trial_id_a": "trial_a", "trial_id_b": "trial_b"}
    )
    return CellMatch(cells, across, len(left) - len(cells), len(right) - len(cells))


def disagreement(a: pd.DataFrame, b: pd.DataFrame) -> str:
    """Why no cell matches, in a few words: the axes of which the plans share no value."""
    left, right = _cells(a), _cells(b)
    reasons = []
    for columns in [
        ["dataset"],
        ["protocol"],
        ["level"],
        ["layer_index"],
        ["head"],
        ["mode"],
        ["strength"],
        ["t_start", "t_end"],
    ]:
        found = [side[columns].drop_duplicates() for side in (left, right)]
        values = [["–".join(_text(x) for x in row) for row in table.itertuples(index=False)] for table in found]
        if not set(values[0]) & set(values[1]):
            shown = [", ".join(v[:4]) + (", ..." if len(v) > 4 else "") for v in values]
            name = "window" if columns[0] == "t_start" else columns[0].replace("dataset", "data set").replace("_", " ")
            reasons.append(f"{name} {shown[0] or 'none'} against {shown[1] or 'none'}")
    return "; ".join(reasons) or "they share values on every axis, but no combination of them"


def _cells(trials: pd.DataFrame) -> pd.DataFrame:
    chosen = trials[~phases(trials).isin(["search", *COMPARED])]
    # A head or a layer is known by its index, which two models may share where module paths differ.
    sites = [
        "" if level in ("head", "layer") else layer if level in GROUP_LEVELS else ", ".join(sorted(map(str, site)))
        for level, layer, site in zip(chosen["level"], chosen["layer"], chosen["sites"])
    ]
    chosen = chosen.assign(
        sites=pd.Series(sites, index=chosen.index, dtype=object),
        stream=chosen["stream"].fillna("").astype(object),
        mode=mode_names(chosen),
        strength=chosen["strength"].astype(float).round(9),
    )
    return chosen[[*AXES, "layer", "trial_id"]]


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
