"""Tables as the page's script reads them: typed columns, packed as base64, in JSON that stays inside its element."""

import base64
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

Column = dict[str, Any]


def numbers(values: Iterable[Any] | np.ndarray, kind: str = "f8") -> Column:
    """A column of numbers; `kind` is a numpy type of one byte order, such as ``f8``, ``i2`` or ``u4``."""
    with np.errstate(over="ignore", invalid="ignore"):
        array = np.asarray(values).astype(f"<{kind}")
    return {"kind": kind, "data": base64.b64encode(array.tobytes()).decode("ascii")}


def floats(values: Iterable[Any], kind: str = "f8") -> Column:
    """Whatever is no number becomes NaN."""
    return numbers(pd.to_numeric(pd.Series(list(values), dtype=object), errors="coerce").astype(float), kind)


def counts(values: Iterable[Any]) -> Column:
    """Whole numbers from 0; what is missing or out of range becomes the nearest of them."""
    plain = pd.to_numeric(pd.Series(list(values), dtype=object), errors="coerce").astype(float)
    return numbers(plain.fillna(0).clip(0, 2**32 - 1), "u4")


def names(values: Iterable[Any], known: Iterable[str] = ()) -> Column:
    """Few different texts: each once, and a code for every row. `known` come first; nothing is an empty text."""
    texts = ["" if value is None or value != value else str(value) for value in values]
    codes = {name: code for code, name in enumerate(dict.fromkeys([*known, *texts]))}
    kind = "u1" if len(codes) <= 2**8 else "u2" if len(codes) <= 2**16 else "u4"
    return {"names": list(codes), "codes": numbers([codes[text] for text in texts], kind)}


def script_text(data: Any) -> Markup:
    """JSON for a script element: no ``<`` in it could end the element or begin a comment."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))
