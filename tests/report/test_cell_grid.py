import numpy as np
import pandas as pd
import pytest

from sweeps.report.cell_grid import cell_grid, grid_axes

LAYERS, HEADS, WINDOWS = 3, 5, 7  # primes, so that no transposed axis fits


def cells(head_of_layer=lambda layer: range(-1, HEADS)) -> pd.DataFrame:
    rows = [
        {
            "trial_id": f"{layer}.{head}.{window}",
            "level": "layer" if head == -1 else "head",
            "layer_index": layer,
            "head": head,
            "window_index": window,
            "percent": 100.0 * layer + 10.0 * head + window,
            "verdict": "degraded" if head % 2 else "negligible",
        }
        for layer in range(LAYERS)
        for head in head_of_layer(layer)
        for window in range(WINDOWS)
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def test_every_cell_is_in_its_place():
    frame = cells()
    grid = cell_grid(frame, grid_axes(frame))
    assert grid.percent.shape == grid.verdict.shape == grid.trial_id.shape == (LAYERS, HEADS + 1, WINDOWS)
    for layer in range(LAYERS):
        for column in range(HEADS + 1):
            head = column if column < HEADS else -1
            for window in range(WINDOWS):
                assert grid.percent[layer, column, window] == 100 * layer + 10 * head + window
                assert grid.trial_id[layer, column, window] == f"{layer}.{head}.{window}"
                assert grid.verdict[layer, column, window] == ("degraded" if head % 2 else "negligible")


def test_axes_are_those_that_were_addressed():
    frame = cells()
    axes = grid_axes(frame[frame["head"].isin([-1, 1, 4]) & (frame["layer_index"] != 1)])
    assert (axes.layers, axes.heads, axes.windows) == ((0, 2), (1, 4), tuple(range(WINDOWS)))


def test_layers_may_have_different_head_counts():
    frame = cells(lambda layer: range(-1, layer + 1))
    grid = cell_grid(frame, grid_axes(frame))
    assert grid.percent.shape == (LAYERS, LAYERS + 1, WINDOWS)
    assert np.isnan(grid.percent[0, 1:-1]).all()
    assert (grid.verdict[0, 1:-1] == "").all()
    assert np.isfinite(grid.percent[2]).all()


def test_sets_and_blocks_have_no_cell():
    frame = pd.concat([cells(), cells().assign(level="set")])
    assert np.isfinite(cell_grid(frame, grid_axes(frame)).percent).all()


def test_two_trials_in_one_cell_are_an_error():
    frame = cells()
    with pytest.raises(ValueError, match=r"one trial a cell.*2\.4\.6"):
        cell_grid(pd.concat([frame, frame[frame["trial_id"] == "2.4.6"]]), grid_axes(frame))


def test_an_empty_part_is_an_empty_grid():
    frame = cells()
    grid = cell_grid(frame.iloc[:0], grid_axes(frame))
    assert grid.percent.shape == (LAYERS, HEADS + 1, WINDOWS)
    assert np.isnan(grid.percent).all()
