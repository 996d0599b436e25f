"""Axes of effects: drawn on the log-ratio scale, labelled in percent."""

import math
from collections.abc import Callable

from matplotlib.axis import Axis
from matplotlib.lines import Line2D

from sweeps.report import wording
from sweeps.report.theme import LIGHT

MARKERS = ("o", "D", "s", "^")
_TICKS = (
    -90, -80, -50, -20, -10, -5, -2, -1, -0.5, -0.2, -0.1, 0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000,
    2000, 5000, 10000,
)  # fmt: skip


def draw_reference(line: Callable, span: Callable, margin: float) -> None:
    """No effect, and the margin within which an effect counts as negligible."""
    span(-margin, margin, color=LIGHT["faint"], linewidth=0, zorder=0)
    line(0, color=LIGHT["hatch"], linewidth=1, zorder=0)


def percent_axis(axis: Axis) -> None:
    low, high = axis.get_view_interval()
    inside = [tick for tick in _TICKS if low <= log_ratio(tick) <= high]
    # a tick a 9th of the axis from the last one, so that no two labels touch; 0 is always kept
    kept: list[float] = []
    for tick in sorted(inside, key=lambda t: (t != 0, -abs(t))):
        if all(abs(log_ratio(tick) - log_ratio(other)) > (high - low) / 9 for other in kept):
            kept.append(tick)
    axis.set_ticks([log_ratio(tick) for tick in sorted(kept)], [wording.tick(tick) for tick in sorted(kept)])


def log_ratio(percent: float) -> float:
    return math.log1p(percent / 100) if percent > -100 else -math.inf


def key(marker: str, colour: str, label: str, filled: bool = True) -> Line2D:
    face = colour if filled else "none"
    return Line2D(
        [], [], marker=marker, linestyle="none", markersize=5, markerfacecolor=face, markeredgecolor=colour, label=label
    )
