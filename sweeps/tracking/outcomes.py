"""What the aggregation found about each trial: its line of effects.parquet by metric."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sweeps.seals import Damaged, read_parquet

COLUMNS = ("percent", "ci_low", "ci_high", "p", "q", "d_z", "n", "verdict", "stopped")


class Outcomes:
    """Effects by trial. Empty before the first aggregation, and where effects.parquet cannot be read."""

    def __init__(self, effects: pd.DataFrame, metric: str) -> None:
        known = {"trial_id", "metric", "verdict"} <= set(effects.columns)
        self.metric = metric
        self.effects = effects if known else effects.head(0)
        self._columns = [name for name in COLUMNS if known and name in effects]

    @classmethod
    def read(cls, run_dir: Path, metric: str) -> Outcomes:
        try:
            return cls(read_parquet(run_dir / "effects.parquet").to_pandas(), metric)
        except (OSError, Damaged):
            return cls(pd.DataFrame(), metric)

    @cached_property
    def _lines(self) -> dict[str, np.ndarray]:
        """Line numbers by trial."""
        if self.effects.empty:
            return {}
        return dict(self.effects.groupby("trial_id", sort=False, observed=True).indices)

    @cached_property
    def _values(self) -> dict[str, np.ndarray]:
        return {name: self.effects[name].to_numpy() for name in ("metric", *self._columns)}

    def of(self, trial: str) -> dict[str, dict[str, Any]]:
        """Of every metric what is known; numbers are finite."""
        return {str(self._values["metric"][line]): self._known(line) for line in self._lines.get(trial, ())}

    def primary(self, trial: str) -> dict[str, Any]:
        """Of the registered metric."""
        lines = (line for line in self._lines.get(trial, ()) if self._values["metric"][line] == self.metric)
        return next(map(self._known, lines), {})

    def _known(self, line: int) -> dict[str, Any]:
        values = ((name, cell(self._values[name][line])) for name in self._columns)
        return {name: value for name, value in values if value is not None}

    def strongest(self, trials: Iterable[str], name: Callable[[str], str]) -> dict[str, Any]:
        """For the run table: how many of these trials are degraded, and the one that is most, by its name."""
        found = {trial: outcome for trial in trials if (outcome := self.primary(trial))}
        if not found:
            return {}
        trial = max(found, key=lambda trial: found[trial].get("percent", -math.inf))
        kept = ("verdict", "percent", "ci_low", "ci_high", "q")
        shown = {key: found[trial][key] for key in kept if key in found[trial]}
        degraded = sum(outcome.get("verdict") == "degraded" for outcome in found.values())
        return shown | {"strongest": name(trial), "degraded": degraded}

    def digest(self, trials: Sequence[str]) -> str:
        """Identifies what is known of these trials; empty where nothing is."""
        found = [self.of(trial) for trial in trials]
        return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:8] if any(found) else ""


def shown(outcome: Mapping[str, Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """For the run table: all that is known by the registered metric, and the verdicts of the others."""
    kept = ("verdict", "ci_low", "ci_high", "q")
    others = {
        f"{name}/{key}": values[key]
        for name, values in outcome.items()
        if name != metric
        for key in kept
        if key in values
    }
    return others | dict(outcome.get(metric, {}))


def cell(value: Any) -> Any:
    """A value as JSON has it; None for what is not finite."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
