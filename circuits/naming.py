"""Error messages that name the nearest valid choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


def nearest(given: object, valid: Iterable[object], limit: int = 12) -> str:
    """``"; did you mean 'mean'? valid: zero, mean, ..."``, to be appended to what went wrong."""
    names = [str(v) for v in valid]
    close = difflib.get_close_matches(str(given), names, n=1, cutoff=0.4)
    shown = ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
    return (f"; did you mean {close[0]!r}?" if close else ";") + f" valid: {shown}"


def nearest_folder(path: Path, others: Iterable[str] = ()) -> str:
    """``"; did you mean '/data/faces'?"`` for a missing folder: a sibling or one of ``others``; else empty."""
    try:
        siblings = {p.name: str(p) for p in path.parent.iterdir() if p.is_dir()}
    except OSError:
        siblings = {}
    known = siblings | {name: name for name in others}
    close = difflib.get_close_matches(path.name, known, n=1, cutoff=0.4)
    return f"; did you mean {known[close[0]]!r}?" if close else ""
