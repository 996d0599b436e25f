"""The data that a page embeds for its script, decoded again by other means than the script's."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd


def embedded(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    found = re.findall(r'<script type="application/json" id="report-data">(.*?)</script>', text, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def column(packed) -> np.ndarray | list:
    if isinstance(packed, dict) and "names" in packed:
        return [packed["names"][code] for code in column(packed["codes"])]
    if isinstance(packed, dict):
        return np.frombuffer(base64.b64decode(packed["data"]), dtype=f"<{packed['kind']}")
    return packed


def table(packed: dict) -> pd.DataFrame:
    return pd.DataFrame({name: column(values) for name, values in packed.items()})


def effects(data: dict, metric: str) -> pd.DataFrame:
    """Effects on a metric, with the columns of their trials, by trial id."""
    trials, found = table(data["trials"]), table(data["effects"][metric])
    return found.assign(**trials.loc[found["trial"]].reset_index(drop=True)).set_index("id")


def image_ratios(data: dict, metric: str) -> dict[str, np.ndarray]:
    """Log ratios of each trial, NaN where an image has none."""
    packed = data["images"]["metrics"][metric]
    counts, step, codes = (column(packed[name]) for name in ("counts", "step", "codes"))
    parts = np.split(codes, np.cumsum(counts)[:-1])
    return {
        trial: np.where(part == -32768, np.nan, part * float(width))
        for trial, part, width in zip(data["trials"]["id"], parts, step)
    }
