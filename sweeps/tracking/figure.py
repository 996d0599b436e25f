"""Plotly's JSON as W&B media, where plotly itself is not installed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import wandb
from wandb.sdk.data_types.base_types.media import Media


class Figure(wandb.Plotly):
    """What wandb.Plotly makes of a plotly figure, made of the figure's JSON."""

    def __init__(self, figure: Mapping[str, Any]) -> None:
        Media.__init__(self)
        handle, path = tempfile.mkstemp(suffix=".plotly.json")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(figure, file)
        self._set_file(path, is_tmp=True, extension=".plotly.json")
