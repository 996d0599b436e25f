"""Effects arranged as the model is: layers in execution order, heads, windows."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped

WHOLE_LAYER = -1


@dataclass(frozen=True)
class GridAxes:
    """The layers, heads and windows that any trial of the sweep addressed; the same for every panel of a figure."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    windows: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.layers), len(self.heads) + 1, len(self.windows)


@dataclass(frozen=True)
class CellGrid:
    """[layer, head + 1, window]; the last column of the head axis is the whole layer. NaN and "" where not measured."""

    axes: GridAxes
    percent: Float[np.ndarray, "layer head_and_all window"]
    verdict: Shaped[np.ndarray, "layer head_and_all window"]
    trial_id: Shaped[np.ndarray, "layer head_and_all window"]


def grid_axes(cells: pd.DataFrame) -> GridAxes:
    sites = _addressable(cells)
    heads = sites.loc[sites["head"] != WHOLE_LAYER, "head"]
    return GridAxes(
        layers=tuple(sorted(int(i) for i in sites["layer_index"].unique())),
        heads=tuple(sorted(int(i) for i in heads.unique())),
        windows=tuple(sorted(int(i) for i in sites["window_index"].unique())),
    )


def cell_grid(cells: pd.DataFrame, axes: GridAxes) -> CellGrid:
    """Arrange the cells of one data set, variant and stream."""
    sites = _addressable(cells)
    position = (
        _positions(sites["layer_index"], axes.layers),
        _positions(sites["head"], (*axes.heads, WHOLE_LAYER)),
        _positions(sites["window_index"], axes.windows),
    )
    flat = np.ravel_multi_index(position, axes.shape) if len(sites) else np.array([], dtype=int)
    twice = sites["trial_id"].to_numpy()[pd.Series(flat).duplicated(keep=False).to_numpy()]
    if len(twice):
        raise ValueError(f"expected one trial a cell; these share one: {', '.join(map(str, twice[:4]))}")
    percent = np.full(axes.shape, np.nan)
    verdict = np.full(axes.shape, "", dtype=object)
    trial_id = np.full(axes.shape, "", dtype=object)
    percent[position] = sites["percent"].to_numpy(dtype=float)
    verdict[position] = sites["verdict"].to_numpy(dtype=object)
    trial_id[position] = sites["trial_id"].to_numpy(dtype=object)
    return CellGrid(axes, percent, verdict, trial_id)


def _addressable(cells: pd.DataFrame) -> pd.DataFrame:
    """Heads and whole layers; blocks, stages and sets have no cell of their own."""
    return cells[cells["level"].isin(["head", "layer"])]


def _positions(values: pd.Series, axis: tuple[int, ...]) -> np.ndarray:
    where = {value: position for position, value in enumerate(axis)}
    return np.array([where[int(value)] for value in values], dtype=int)
