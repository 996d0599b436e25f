"""The report's figures as vector files, with their fonts inside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

from sweeps.records import publish
from sweeps.report import figures
from sweeps.report.controls import read_controls
from sweeps.report.drawing import Drawing
from sweeps.report.profile_figures import draw_profiles
from sweeps.report.profiled import read_profiled
from sweeps.report.reported_run import ReportedRun
from sweeps.report.theme import FIGURE_STYLE

# Type 42 embeds TrueType fonts whole, so that text stays text in a PDF; in an SVG only outlines look alike everywhere.
_EMBEDDED: dict[Any, Any] = {**FIGURE_STYLE, "pdf.fonttype": 42, "svg.fonttype": "path"}
_UNDATED = {
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    "svg": {"Creator": None, "Date": None, "Format": None, "Type": None},
}


def drawings_of(run: ReportedRun) -> list[Drawing]:
    """Every figure that the run has something for, in the order of the report."""
    return [
        *figures.draw_heatmaps(run),
        *figures.draw_forest(run),
        *figures.draw_evidence(run),
        *figures.draw_resolution(run),
        *figures.draw_contrasts(run),
        *figures.draw_controls(run, read_controls(run)),
        *draw_profiles(read_profiled(run)),
    ]


def save(drawing: Drawing, folder: Path) -> list[Path]:
    """NAME.pdf and NAME.svg; the same run gives the same bytes."""
    paths = []
    with matplotlib.rc_context(_EMBEDDED):
        for kind, metadata in _UNDATED.items():
            path = folder / f"{drawing.name}.{kind}"
            publish(path, _writer(drawing, kind, metadata), synced=False)
            paths.append(path)
    return paths


def _writer(drawing: Drawing, kind: str, metadata: dict[str, None]) -> Callable[[Path], None]:
    return lambda temporary: drawing.figure.savefig(temporary, format=kind, metadata=metadata)
