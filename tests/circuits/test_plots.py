"""Figures of a notebook: what is drawn where, and that nothing but the figure is touched."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from circuits import plot_effects, plot_heatmap, plot_profile, profile_heads
from circuits.denoisers import Denoiser
from circuits.plots import COLOURS, EDGES, NO_CLAIM, _bins
from circuits.profiles import HeadProfiles
from tests.circuits.conftest import two_data_sets

VERDICTS = ("degraded", "improved", "negligible", "inconclusive")


def table(
    layers: int = 2, heads: tuple[int, ...] = (0, 3, -1), windows: tuple = ((999, 500), (499, 0))
) -> pd.DataFrame:
    """Effects whose percent says which cell they are of, with verdicts in turn."""
    rows = [
        {
            "dataset": dataset, "layer": f"blocks.{layer}", "layer_index": layer, "head": head, "mode": "zero",
            "strength": 1.0, "t_start": start, "t_end": end, "sites": [f"blocks.{layer}:{head}"], "metric": metric,
        }
        for metric in ("noise_mse", "edge")
        for dataset in ("synthetic", "natural")
        for start, end in windows
        for layer in range(layers)
        for head in heads
    ]  # fmt: skip
    made = pd.DataFrame(rows)
    size = np.arange(1.0, len(made) + 1)
    verdict = np.array(VERDICTS)[np.arange(len(made)) % 4]
    percent = np.where(verdict == "improved", -size, size)
    return made.assign(percent=percent, ci_low=percent - 1, ci_high=percent + 2, verdict=verdict)


def drawn(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def panels_of(figure: Figure) -> dict[str, Axes]:
    """By title; that of the colours has none."""
    return {title: axes for axes in figure.axes if (title := axes.get_title(loc="left"))}


def test_every_cell_of_the_heatmap_is_in_its_place_and_coloured_only_by_a_claim() -> None:
    effects = table()
    figure = plot_heatmap(effects, "edge")
    panels = panels_of(figure)
    assert list(panels) == [f"{name}, zero\nt {a} to {b}" for name in ("synthetic", "natural") for a, b in
                            ((999, 500), (499, 0))]  # fmt: skip
    bins, colours = _bins()
    for row in effects[effects["metric"] == "edge"].itertuples():
        axes = panels[f"{row.dataset}, zero\nt {row.t_start} to {row.t_end}"]
        place = ({0: 0, 3: 1, -1: 2}[row.head], row.layer_index)
        (cell,) = [p for p in axes.patches if isinstance(p, Rectangle) and p.get_xy() == place]
        claimed = row.verdict in ("degraded", "improved")
        expected = to_hex(colours(bins(row.percent))) if claimed else NO_CLAIM
        assert to_hex(cell.get_facecolor()) == expected
        assert bool(cell.get_hatch()) == (row.verdict == "inconclusive")
    first = next(iter(panels.values()))
    last = list(panels.values())[-1]
    assert [text.get_text() for text in last.get_xticklabels()] == ["0", "3", "all"]
    assert [text.get_text() for text in first.get_yticklabels()] == ["0", "1"]
    assert drawn(figure).startswith(b"\x89PNG")


def test_colours_grow_with_the_effect_and_tell_worse_from_better() -> None:
    bins, colours = _bins()
    middles = [EDGES[0] - 1, *((a + b) / 2 for a, b in itertools.pairwise(EDGES)), EDGES[-1] + 1]
    shades = [colours(bins(percent)) for percent in middles]
    assert len(set(shades)) == len(EDGES) + 1
    red_over_blue = [red - blue for red, _, blue, _ in shades]
    assert all((amount > 0) == (percent > 0) for amount, percent in zip(red_over_blue, middles) if abs(percent) > 1)
    assert abs(red_over_blue[middles.index(0)]) < 0.02


def test_the_ranking_has_the_largest_first_with_its_interval() -> None:
    effects = table()
    figure = plot_effects(effects, most=5)
    (axes,) = figure.axes
    shown = effects[effects["metric"] == "noise_mse"]
    shown = shown.loc[shown["percent"].abs().sort_values(ascending=False).index].head(5)
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels[0] == "layer 1, zero, t 499 to 0, natural"
    assert labels[1] == "layer 1 head 3, zero, t 499 to 0, natural"
    bars = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1]]
    for place, row in enumerate(shown.itertuples()):
        bar = bars[place]
        assert tuple(bar.get_xdata()) == (row.ci_low, row.ci_high)
        assert tuple(bar.get_ydata()) == (place, place)
        assert to_hex(bar.get_color()) == COLOURS[row.verdict]
    assert axes.yaxis_inverted()
    drawn(figure)


def test_sets_have_a_line_and_no_cell() -> None:
    effects = table(layers=1, heads=(-1,), windows=((999, 0),))
    effects["sites"] = [["blocks.0:0", "blocks.0:3"]] * len(effects)
    for index, where in ((0, "2 sites of layer 0, zero"), (-1, "2 sites, zero")):
        sets = effects.assign(layer_index=index)
        assert plot_effects(sets).axes[0].get_yticklabels()[0].get_text().startswith(where)
        with pytest.raises(ValueError, match="sets of heads only: see plot_effects"):
            plot_heatmap(sets)
    whole = table(layers=1, heads=(-1,), windows=((999, 0),))
    cells = {title: len(axes.patches) for title, axes in panels_of(plot_heatmap(pd.concat([whole, effects]))).items()}
    assert cells == {"synthetic, zero\nt 999 to 0": 1, "natural, zero\nt 999 to 0": 1}
    with pytest.raises(ValueError, match="no effects of metric 'egde'; did you mean 'edge'"):
        plot_effects(effects, "egde")


def test_strengths_have_maps_and_names_of_their_own() -> None:
    whole = table(layers=1, heads=(0,), windows=((999, 0),))
    effects = pd.concat([whole, whole.assign(strength=0.25)], ignore_index=True)
    cells = {title: len(axes.patches) for title, axes in panels_of(plot_heatmap(effects)).items()}
    assert cells == {
        f"{name}, zero{strength}\nt 999 to 0": 1 for name in ("synthetic", "natural") for strength in ("", " 0.25")
    }
    labels = {text.get_text() for text in plot_effects(effects).axes[0].get_yticklabels()}
    assert {"layer 0 head 0, zero, t 999 to 0, natural", "layer 0 head 0, zero 0.25, t 999 to 0, natural"} <= labels


@pytest.fixture(scope="module")
def profiles(model_folders: dict) -> HeadProfiles:
    from circuits import load_denoiser

    denoiser: Denoiser = load_denoiser(model_folders["dit"])
    return profile_heads(denoiser, two_data_sets(denoiser), timesteps=[900, 500, 100], images=4)


def test_a_profile_shows_each_heads_measure_at_each_timestep(profiles: HeadProfiles) -> None:
    figure = plot_profile(profiles, "entropy_nats")
    pictures = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in pictures] == ["synthetic", "natural"]
    for axes, name in zip(pictures, ("synthetic", "natural"), strict=True):
        expected = profiles.values[name]["entropy_nats"].mean(axis=2)
        np.testing.assert_allclose(axes.images[0].get_array(), expected, rtol=1e-6)
        assert [text.get_text() for text in axes.get_xticklabels()] == ["900", "500", "100"]
    assert [text.get_text() for text in pictures[0].get_yticklabels()][:6] == ["0.0", "0.1", "0.2", "0.3", "0.4", "1.0"]
    assert not [c for axes in pictures for c in axes.collections if isinstance(c, QuadMesh)]
    drawn(figure)
    with pytest.raises(ValueError, match="measure: unknown 'entropy'; did you mean 'entropy_nats'"):
        plot_profile(profiles, "entropy")


def test_drawing_leaves_no_trace_and_importing_loads_no_matplotlib() -> None:
    """In a process of its own: other tests may have imported pyplot."""
    code = """
import io, sys
import circuits
assert not [name for name in sys.modules if name.startswith("matplotlib")], "import of circuits loads matplotlib"
for forbidden in ("sweeps", "ray", "wandb", "hydra", "omegaconf"):
    assert forbidden not in sys.modules, forbidden
import matplotlib, pandas
before = dict(matplotlib.rcParams)
effects = pandas.read_json(io.StringIO(sys.stdin.read()))
circuits.plot_heatmap(effects).savefig(sys.stdout.buffer, format="png")
circuits.plot_effects(effects)
assert dict(matplotlib.rcParams) == before
assert "matplotlib.pyplot" not in sys.modules
"""
    environment = os.environ | {"MPLBACKEND": "agg"}  # else reading rcParams would choose one, by importing pyplot
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=table().to_json().encode(), env=environment, capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.startswith(b"\x89PNG")
