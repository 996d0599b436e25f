"""Colours of page and figures in both themes, from one table.

Figures are drawn in the light colours; when a figure is inlined each of these colours becomes a CSS variable, so
that one drawing serves both themes. Effects have the same colour in every report: the bins are fixed.
"""

import bisect
from typing import Any

import numpy as np

# Edges of the colour bins, percent degradation, roughly equal steps on a symmetric log scale.
BIN_EDGES = (-50, -20, -10, -5, -2, -1, 1, 2, 5, 10, 20, 50, 100, 200, 500)
BIN_NAMES = (
    "imp-6", "imp-5", "imp-4", "imp-3", "imp-2", "imp-1", "mid",
    "deg-1", "deg-2", "deg-3", "deg-4", "deg-5", "deg-6", "deg-7", "deg-8", "deg-9",
)  # fmt: skip

# Lightness is monotone in the size of the effect and hue runs blue to orange, which survives every common colour
# blindness. Every colour of LIGHT is unique: it is looked up backwards.
LIGHT = {
    "paper": "#ffffff",
    "page": "#f6f7f8",
    "ink": "#1a1f25",
    "muted": "#56606b",
    "rule": "#d8dde2",
    "faint": "#eaedf0",
    "hatch": "#bfc6cd",
    "accent": "#0b5f8a",
    "imp-6": "#0c3566",
    "imp-5": "#1c5595",
    "imp-4": "#3f7fbd",
    "imp-3": "#74a9d8",
    "imp-2": "#a8cbe9",
    "imp-1": "#d2e4f4",
    "mid": "#f7f4ec",
    "deg-1": "#fdeac8",
    "deg-2": "#fbd59b",
    "deg-3": "#f6b76a",
    "deg-4": "#ed9543",
    "deg-5": "#da7029",
    "deg-6": "#b94f1c",
    "deg-7": "#923417",
    "deg-8": "#671f13",
    "deg-9": "#3f0f0e",
    "degraded": "#c2571d",
    "improved": "#2268ac",
    "negligible": "#8a949e",
    "inconclusive": "#aab2ba",
    "data-1": "#12766f",
    "data-2": "#7d4ea8",
    "data-3": "#9a6a00",
    "data-4": "#4a5560",
}
DARK = {
    "paper": "#1a1e23",
    "page": "#121519",
    "ink": "#e8ebee",
    "muted": "#a3adb7",
    "rule": "#363d45",
    "faint": "#272c32",
    "hatch": "#4d565f",
    "accent": "#6cbbe6",
    "imp-6": "#e2f1fd",
    "imp-5": "#b4d8f6",
    "imp-4": "#82bbeb",
    "imp-3": "#5597d2",
    "imp-2": "#3a73a9",
    "imp-1": "#2b5278",
    "mid": "#39352c",
    "deg-1": "#4e3a1f",
    "deg-2": "#6a4518",
    "deg-3": "#8a5217",
    "deg-4": "#ad621c",
    "deg-5": "#d17729",
    "deg-6": "#ec9543",
    "deg-7": "#f8b66f",
    "deg-8": "#fdd6a3",
    "deg-9": "#fff2da",
    "degraded": "#f08a4b",
    "improved": "#6fb0ea",
    "negligible": "#8d979f",
    "inconclusive": "#6d767f",
    "data-1": "#4fc0b5",
    "data-2": "#c49aec",
    "data-3": "#dcb04a",
    "data-4": "#aeb8c2",
}

FIGURE_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": LIGHT["ink"],
    "text.parse_math": False,  # a layer may be called "$x$"
    "axes.edgecolor": LIGHT["rule"],
    "axes.facecolor": LIGHT["paper"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titlecolor": LIGHT["ink"],
    "axes.unicode_minus": True,
    "figure.facecolor": LIGHT["paper"],
    "hatch.color": LIGHT["hatch"],
    "hatch.linewidth": 0.9,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.facecolor": LIGHT["paper"],
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
}


def bin_name(percent: float) -> str:
    """The colour bin of an effect, as a CSS variable without its dashes; "faint" where there is none."""
    return BIN_NAMES[bisect.bisect_right(BIN_EDGES, percent)] if np.isfinite(percent) else "faint"


def dataset_colour(index: int) -> str:
    return LIGHT[f"data-{index % 4 + 1}"]


def css_variables(theme: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in theme.items())
