"""What a W&B run says: plain data, without wandb."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TABLE_ROWS = 10_000
"""wandb.Table.MAX_ROWS: what the W&B UI loads at once."""


@dataclass(frozen=True)
class Picture:
    path: Path
    caption: str


@dataclass(frozen=True)
class Rows:
    """A table. A cell is a number, a text, a truth value, None, or a Picture; a column has one kind of them."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Bars:
    """A bar chart, strongest first."""

    label: str
    value: str
    rows: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Lines:
    """A chart of lines over one axis."""

    x: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    """Points (x, y) by name."""


@dataclass(frozen=True)
class Artifact:
    """A versioned part of the run directory. W&B makes a new version only where the content differs."""

    name: str
    type: str
    files: Mapping[str, Path] = field(default_factory=dict)
    """Name in the artifact: file."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Name in the artifact: content of a file that exists nowhere else."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""


@dataclass(frozen=True)
class RunContent:
    """One W&B run. `content` identifies what it was made of, for the ledger."""

    id: str
    name: str
    job_type: str
    content: str
    trials: int
    config: Mapping[str, Any]
    tags: tuple[str, ...] = ()
    notes: str = ""
    history: Sequence[Mapping[str, float]] = ()
    """Rows over the diffusion process; the axis of their charts is `timestep`."""
    summaries: Mapping[str, str] = field(default_factory=dict)
    """Metric (a trailing * stands for any ending): what of its history the run table shows, as in define_metric; empty:
    the last value. Without any, that is so of all."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """Values of the run table that are no history."""
    pictures: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    tables: Mapping[str, Rows] = field(default_factory=dict)
    bars: Mapping[str, Bars] = field(default_factory=dict)
    lines: Mapping[str, Lines] = field(default_factory=dict)
    maps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Figures as Plotly's JSON."""
    uses: Sequence[Artifact] = ()
    makes: Sequence[Artifact] = ()

    @property
    def has_artifacts(self) -> bool:
        """Tables are artifacts too."""
        return any((self.tables, self.bars, self.lines, self.uses, self.makes))


def finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}
