"""Names as they come from a run: without characters that neither a page nor a figure can hold."""

import re
from typing import Any

import pandas as pd

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\ud800-\udfff\ufffe\uffff]")
_REPLACEMENT = "\ufffd"


def printable(value: Any) -> Any:
    """Texts in it, however deep, with a mark in place of control characters."""
    if isinstance(value, str):
        return _UNPRINTABLE.sub(_REPLACEMENT, value)
    if isinstance(value, dict):
        return {printable(key): printable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [printable(inner) for inner in value]
    return value


def printable_table(table: pd.DataFrame) -> pd.DataFrame:
    changed = {}
    for name in table.columns:
        column = table[name]
        if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
            continue
        known = {text for text in column if isinstance(text, str)}
        if any(_UNPRINTABLE.search(text) for text in known):
            changed[name] = column.astype(object).map(printable)
        elif any(hasattr(value, "tolist") for value in column.head(1)):
            changed[name] = column.map(lambda value: printable(value.tolist()) if hasattr(value, "tolist") else value)
    return table.assign(**changed)
