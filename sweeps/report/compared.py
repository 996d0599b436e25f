"""A comparison of two runs as its page shows it, checked once at the door."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sweeps.records import RunDirectoryError
from sweeps.report.printable import all_printable
from sweeps.report.reported_run import tidied

VERDICTS = {"more": "degraded", "less": "improved", "same": "negligible", "undecided": "inconclusive"}
"""The verdicts of a comparison, and those of a run whose colours they have."""

SETTLED = ("more", "less")


@dataclass(frozen=True)
class Comparison:
    path: Path
    facts: dict[str, Any]
    cells: pd.DataFrame

    @property
    def metric(self) -> str:
        return str(self.facts["metric"])

    @property
    def names(self) -> tuple[str, str]:
        return str(self.facts["a"]["name"]), str(self.facts["b"]["name"])

    @cached_property
    def primary(self) -> pd.DataFrame:
        """The cells on the primary metric: certain differences first, the largest ones before the others."""
        cells = self.cells[self.cells["metric"] == self.metric]
        order = cells.assign(settled=cells["verdict"].isin(SETTLED), size=cells["estimate"].abs())
        order = order.sort_values(["settled", "size"], ascending=False, kind="stable")
        return order.drop(columns=["settled", "size"]).reset_index(drop=True)

    @cached_property
    def datasets(self) -> tuple[str, ...]:
        """Labels of the data sets, ``celeba → lfw`` where two different ones were compared."""
        return tuple(self.cells["data"].drop_duplicates())


def read_comparison(path: Path) -> Comparison:
    """
    Raises:
        RunDirectoryError: a file is missing.
    """
    try:
        facts = all_printable(json.loads((path / "compare.json").read_text(encoding="utf-8")))
        cells = tidied(pd.read_parquet(path / "comparisons.parquet"))
    except OSError as error:
        raise RunDirectoryError(f"{path} holds no comparison: {error}") from error
    windows = list(zip(cells["t_start"], cells["t_end"]))
    order = {window: index for index, window in enumerate(sorted(set(windows), reverse=True))}
    several = cells[["strength", "strength_b"]].stack().nunique() > 1
    mode = _crossed(cells["mode"], cells["mode_b"])
    strength = _crossed(cells["strength"].map("{:g}".format), cells["strength_b"].map("{:g}".format))
    stream = cells["stream"] if cells["stream"].nunique() > 1 else ""
    return Comparison(
        path,
        facts,
        cells.assign(
            stream=stream,
            data=_crossed(cells["dataset"], cells["dataset_b"]),
            variant=mode + " " + strength if several else mode,
            window_index=[order[window] for window in windows],
            percent=_percent(cells["estimate"]),
            trial_id=cells["trial_a"],
        ),
    )


def _percent(log_ratios: pd.Series) -> pd.Series:
    with np.errstate(over="ignore"):
        return 100 * np.expm1(log_ratios)


def _crossed(a: pd.Series, b: pd.Series) -> pd.Series:
    a, b = a.astype(object), b.astype(object)
    return a.where(a == b, a + " → " + b)
