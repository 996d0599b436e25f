"""What a comparison of two runs makes of controls, and of trials that stopped early."""

import numpy as np
import pytest

from tests.synthetic_run import Cell, measured, write_run
from tests.test_compare import compared

UNITS = 11


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def with_columns(directory, **columns) -> None:
    frame = directory.read_frame(directory.trials)
    directory.write_frame(directory.trials, frame.assign(**columns))


def test_controls_are_no_cells(tmp_path, rng):
    """Nor do their modes and strengths hide that each run has one mode, across which the runs are compared."""
    for name, mode in (("a", "zero"), ("b", "mean")):
        cells = [
            Cell(rng.normal(0.1, 0.3, UNITS), mode=mode),
            Cell(rng.normal(0, 0.3, UNITS), mode="subspace"),
            Cell(np.zeros(UNITS), mode="zero", strength=0.0),
        ]
        with_columns(write_run(tmp_path / name, cells), phase=["grid", "control", "control"])
    table, facts = compared(tmp_path)
    assert table[["mode", "mode_b"]].to_numpy().tolist() == [["zero", "mean"]]
    assert facts["across"] == {"mode": ["zero", "mean"]}
    assert (facts["cells"], facts["only_a"], facts["only_b"]) == (1, 0, 0)


def test_of_trials_that_stop_early_the_first_looks_are_compared(tmp_path, rng):
    """How far a trial went depends on its values, so each cell has the images that every trial of its data set has."""
    g_a, g_b = rng.normal(0.1, 0.3, (3, 40)), rng.normal(0.3, 0.3, (3, 40))
    g_a[1, 16:], g_b[2, 24:] = np.nan, np.nan
    for name, g in (("a", g_a), ("b", g_b)):
        directory = write_run(tmp_path / name, [Cell(row, head=head) for head, row in enumerate(g)])
        config = directory.read_config()
        config["stats"]["statistic"] = "obf"
        directory.write_config(config)
    table, facts = compared(tmp_path)
    assert facts["stops_early"]
    assert (table[["n_a", "n_b"]] == 16).all(axis=None)
    np.testing.assert_allclose(table["estimate"], (measured(g_b) - measured(g_a))[:, :16].mean(1), rtol=1e-5)
    page = (tmp_path / "compare-a-b" / "report" / "index.html").read_text(encoding="utf-8")
    assert "only the first images, those that every matched trial has, are compared" in page

    write_run(tmp_path / "others", [Cell(row, head=head) for head, row in enumerate(g_b)], images={
        "natural": [f"other-{i}" for i in range(40)]
    })  # fmt: skip
    independent, facts = compared(tmp_path, b="others")
    assert facts["stops_early"], "run a does"
    assert (independent["n_a"] == 16).all()
    assert (independent["n_b"] == 24).all()
