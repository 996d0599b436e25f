"""How numbers and trials are written, the same in the table, the figures and the sentences."""

import math
from collections.abc import Hashable, Iterable
from datetime import datetime
from typing import Any

import pandas as pd

from sweeps.report.cell_grid import WHOLE_LAYER

MINUS = "−"
CONFIDENCE = "95%"  # of the intervals in effects.parquet


def percent(value: float) -> str:
    """+12.3%, −0.45%, +410%: three significant digits, a sign always."""
    if not math.isfinite(value):
        return "–"
    digits = 2 if abs(value) < 1 else 1 if abs(value) < 100 else 0
    return f"{value:+,.{digits}f}%".replace("-", MINUS)


def interval(low: float, high: float) -> str:
    return f"{percent(low)} to {percent(high)}"


def decimal(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("-", MINUS) if math.isfinite(value) else "–"


def probability(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}".replace("e-0", "e-")


def estimate(value: float) -> str:
    return f"{value:.3g}".replace("-", MINUS) if math.isfinite(value) else "–"


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def between(values: pd.Series) -> str:
    """64, or 16 to 256: the smallest and the largest of whole numbers."""
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def listing(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def site(trial: Any) -> str:
    """L3H5 for a head, L3 for a whole layer, both with the stream where there is one; ``sites`` of anything else."""
    if trial.level not in ("head", "layer"):
        return trial.sites or f"{trial.level} {trial.layer}"
    head = "" if trial.head == WHOLE_LAYER else f"H{int(trial.head)}"
    stream = f" {trial.stream}" if trial.stream else ""
    return f"L{int(trial.layer_index)}{head}{stream}"


def window(trial: Any) -> str:
    return f"t {number(trial.t_start)}–{number(trial.t_end)}"


def short(text: str, letters: int = 24) -> str:
    """For figures, where a long name would leave no room for the data; the page's tables have it in full."""
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def cell(trial: Any) -> str:
    """The label of a row of a figure."""
    return f"{short(site(trial))} · {short(trial.variant)} · {window(trial)}"


def number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) or hasattr(value, "dtype") else str(value)


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    hours, minutes = divmod(round(whole / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def moment(text: Any) -> str:
    """2026-03-14 09:12 UTC from an ISO timestamp; any other text as it is."""
    try:
        when = datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    return f"{when:%Y-%m-%d %H:%M} {when.tzname() or ''}".strip()


def effect(trial: Any) -> str:
    return f"{percent(trial.percent)} ({CONFIDENCE} CI {interval(trial.ci_low, trial.ci_high)})"


def tooltips(cells: pd.DataFrame) -> dict[str, str]:
    return {
        str(trial.trial_id): f"{site(trial)} · {trial.variant} · {window(trial)} · {trial.dataset}\n"
        f"{effect(trial)}\n{trial.verdict}, q = {probability(trial.q)}, n = {int(trial.n)}"
        for trial in cells.itertuples()
    }


def plain(value: Any) -> str:
    """A value of run.json as text: nested lists and mappings flattened."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain(inner) for inner in value)
    return "–" if value is None else str(value)


def slug(*parts: Hashable) -> str:
    """A file name from names that may hold anything."""
    text = "-".join(str(part) for part in parts)
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text).strip("-").lower()[:80]


def tick(value: float) -> str:
    return f"{value:+,g}%".replace("-", MINUS) if value else "0"
