"""What a mode is called where people read it."""

from __future__ import annotations

import pandas as pd


def mode_names(trials: pd.DataFrame) -> pd.Series:
    """The mode of each trial; of mode ``scale`` with its factor, without which it says nothing: ``scale x2``."""
    factor = trials["factor"] if "factor" in trials else pd.Series(1.0, index=trials.index)
    names = trials["mode"].astype(object)
    return names.where(names != "scale", names + " x" + factor.map("{:g}".format))
