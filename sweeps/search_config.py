"""Settings of the adaptive search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class SearchConfig:
    """Adaptive search over sets of heads (``sweep=search``)."""

    max_heads: int = 3  # largest set of heads intervened on at once
    candidates: int = 48  # sets tried
    generation: int = 8  # sets proposed at once; the next ones build on the best so far
    strengths: Any = field(default_factory=lambda: [0.5, 1.0])  # shares of the replacement that may be tried
    grace_images: int = 8  # images of the first rung, before a set may be dropped (ASHA)
    reduction: int = 2  # each rung keeps about one set in so many, and has so many times the images
    confirm: int = 5  # best sets measured again, on images the search never saw


def search_problem(search: SearchConfig) -> str | None:
    """What cannot be used, in one line; None where all can."""
    least = {"max_heads": 1, "candidates": 1, "generation": 1, "grace_images": 2, "reduction": 2, "confirm": 0}
    for name, fewest in least.items():
        if getattr(search, name) < fewest:
            return f"sweep.search.{name}: expected at least {fewest}, got {getattr(search, name)}"
    return None
