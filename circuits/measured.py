"""What a notebook has measured, as pandas tables; several measurements are tested together, as a sweep's trials are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from circuits.effect_tables import adjusted, estimates, gains
from circuits.engine import Paired, Window
from circuits.interventions import ALL_HEADS, Intervention, Mode
from circuits.naming import nearest
from circuits.sites import AttentionLayer

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "layer": ("layer_index",),
    "window": ("t_start", "t_end"),
    "mode": ("mode",),
    "dataset": ("dataset",),
}
"""What trials of a family may have in common, and the columns that say so."""

TRIAL_COLUMNS = ("dataset", "layer", "layer_index", "head", "mode", "strength", "t_start", "t_end", "sites")
EFFECT_COLUMNS = (
    "metric", "n", "mean_log_ratio", "percent", "ci_low", "ci_high", "d_z", "p_degraded", "p", "q", "q_by", "verdict",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Measured(Mapping[str, Paired]):
    """Interventions on one data set in one window of timesteps: by metric, the paired values of every image.

    Attributes:
        layers: of the model, where the interventions' sites are.
    """

    dataset: str
    window: Window
    interventions: tuple[Intervention, ...]
    layers: tuple[AttentionLayer, ...]
    metrics: Mapping[str, Paired]

    def __getitem__(self, metric: str) -> Paired:
        if metric not in self.metrics:
            raise KeyError(f"no metric {metric!r}{nearest(metric, self.metrics)}")
        return self.metrics[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)

    def trials(self) -> pd.DataFrame:
        """A row for each intervention: where it acts, and how.

        ``layer_index`` and ``head`` are -1 where there are several of them, ``head`` also for a whole layer: ``sites``
        tells them apart.
        """
        index = {layer.name: layer.index for layer in self.layers}
        rows = [self._trial(intervention, index) for intervention in self.interventions]
        return pd.DataFrame(rows, columns=list(TRIAL_COLUMNS))

    def _trial(self, intervention: Intervention, index: Mapping[str, int]) -> dict[str, Any]:
        names = {site.layer for site in intervention.sites}
        heads = {site.head for site in intervention.sites}
        return {
            "dataset": self.dataset,
            "layer": " + ".join(sorted(names, key=index.__getitem__)),
            "layer_index": index[min(names)] if len(names) == 1 else -1,
            "head": heads.pop() if len(intervention.sites) == 1 else ALL_HEADS,
            "mode": _mode_name(intervention),
            "strength": intervention.strength,
            "t_start": self.window.t_start,
            "t_end": self.window.t_end,
            "sites": [f"{site.layer}:{site.head}" for site in intervention.sites],
        }

    def frame(self) -> pd.DataFrame:
        """A row for each intervention, metric and image, with its ``baseline`` and ``ablated`` value."""
        trials = self.trials()
        tables = []
        for metric, pair in self.metrics.items():
            n = len(pair.baseline)
            table = trials.loc[trials.index.repeat(n)].reset_index(drop=True)
            tables.append(
                table.assign(
                    metric=metric,
                    unit=np.tile(np.arange(n), len(trials)),
                    baseline=np.tile(pair.baseline.numpy(), len(trials)),
                    ablated=pair.ablated.numpy().ravel(),
                )
            )
        return pd.concat(tables, ignore_index=True)


def effects(
    measured: Measured | Sequence[Measured],
    *,
    alpha: float = 0.05,
    margin: float = 0.05,
    families: Sequence[str] = ("layer", "window"),
) -> pd.DataFrame:
    """Estimate, interval, p, q and verdict of every intervention and metric: those of a sweep with ``stats=fixed``.

    All that is given is corrected together, each metric by itself. So give everything that was measured to answer one
    question: what was left out cannot be corrected for.

    Args:
        alpha: false discovery rate of each kind of claim.
        margin: effects within this share of 1 are negligible.
        families: trials alike in these (``layer``, ``window``, ``mode``, ``dataset``) are corrected together.

    Raises:
        ValueError: nothing measured, fewer than two images, or an unknown family.
    """
    parts = [measured] if isinstance(measured, Measured) else list(measured)
    if not any(part.interventions for part in parts):
        raise ValueError("expected at least one measured intervention, got none")
    for axis in families:
        if axis not in FAMILIES:
            raise ValueError(f"families: unknown {axis!r}{nearest(axis, FAMILIES)}")
    columns = [column for axis in families for column in FAMILIES[axis]]
    tables = []
    for metric in dict.fromkeys(name for part in parts for name in part):
        rows = [_estimated(part, metric, margin) for part in parts if metric in part.metrics and part.interventions]
        table = pd.concat(rows, ignore_index=True)
        family = table[columns].astype(str).agg("|".join, axis=1) if columns else [""] * len(table)
        tables.append(adjusted(table, np.asarray(family, dtype=object), alpha))
    return pd.concat(tables, ignore_index=True)[[*TRIAL_COLUMNS, *EFFECT_COLUMNS]]


def _estimated(part: Measured, metric: str, margin: float) -> pd.DataFrame:
    pair = part[metric]
    g = gains(pair.ablated.numpy(), pair.baseline.numpy()).astype(np.float32)  # as precise as what was measured
    return part.trials().join(estimates(g, float(np.log1p(margin)))).assign(metric=metric)


def _mode_name(intervention: Intervention) -> str:
    if intervention.mode is Mode.own:
        return intervention.function
    return f"scale x{intervention.factor:g}" if intervention.mode is Mode.scale else intervention.mode.value
