"""What is known of each head, for the picked cell: its type, its entropy over timesteps, and its attention."""

from typing import Any

import numpy as np
import pandas as pd

from sweeps.report.columns import counts, floats, names
from sweeps.report.paper import PLAIN
from sweeps.report.profiled import Profiled

_MAPS = 200  # pictures of attention, at most
_PLACES = 64  # rows or columns of a map that are worth drawing


def head_views(profiled: Profiled | None) -> dict[str, Any] | None:
    """None where no head was profiled."""
    if profiled is None or profiled.heads.empty:
        return None
    heads = profiled.heads
    times = sorted({int(t) for t in heads["t"]}, reverse=True)
    keys = ["dataset", "layer_index", "head"]
    wide = heads.pivot_table(index=keys, columns="t", values="entropy_nats", aggfunc="first", sort=False)
    types = heads.drop_duplicates(keys).set_index(keys).reindex(wide.index)
    rows = wide.index.to_frame(index=False)
    return {
        "times": times,
        "keys": float(np.nan_to_num(pd.to_numeric(heads["keys"], errors="coerce").max())),
        "dataset": names(rows["dataset"]),
        "layer": counts(rows["layer_index"]),
        "head": counts(rows["head"]),
        "type": names([PLAIN.get(str(name), str(name)) for name in types["type"]]),
        "probability": floats(types["type_probability"]),
        "entropy": floats(wide.reindex(columns=times).to_numpy(dtype=float).ravel(), "f4"),
        "maps": _maps(profiled.maps),
    }


def _maps(maps: pd.DataFrame) -> list[dict[str, Any]]:
    found = []
    for row in maps.head(_MAPS).itertuples():
        height, width = int(row.rows), int(row.columns)
        if not 0 < height <= _PLACES or not 0 < width <= _PLACES:
            continue
        received, from_query = (np.asarray(values, dtype=float) for values in (row.received, row.from_query))
        if len(received) != height * width or len(from_query) != height * width:
            continue
        found.append(
            {
                "dataset": str(row.dataset), "layer": int(row.layer_index), "head": int(row.head), "t": int(row.t),
                "rows": height, "columns": width, "received": floats(received, "f4"),
                "from_query": floats(from_query, "f4"), "query": [int(row.query_row), int(row.query_column)],
            }
        )  # fmt: skip
    return found
