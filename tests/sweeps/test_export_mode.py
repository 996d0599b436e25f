"""``mode=export`` from the command line: what a real sweep measured, in the files of its export."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.sweeps.conftest import Said


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.export.document.drawings_of", lambda run: [])


@pytest.mark.usefixtures("no_report")
def test_a_sweep_is_exported_as_it_was_measured(said: Said, settings: list[str], tmp_path: Path) -> None:
    small = [*settings, "sweep.samples=0", "run.name=one"]
    assert said(*small)[0] == 0
    (tmp_path / "runs" / "one" / "effects.parquet").unlink()
    code, error, out = said("mode=export", "format=csv", "run.name=one")
    assert (code, error) == (0, "")
    assert "tables (csv), 0 figures" in out.replace("\n", " ")
    effects = pd.read_parquet(tmp_path / "runs" / "one" / "effects.parquet")
    effects = effects[effects["metric"] == "noise_mse"].set_index("trial_id")
    folder = tmp_path / "runs" / "one" / "export"
    tables = [pd.read_csv(folder / "tables" / f"{name}.csv") for name in ("heads", "groups")]
    found = pd.concat(tables).set_index("trial_id")
    assert len(found) == len(effects) == 40
    for column in ("percent", "ci_low", "ci_high", "q", "n", "verdict"):
        assert found[column].tolist() == effects.loc[found.index, column].tolist()
    text = (folder / "methods.tex").read_text()
    assert "We measured 40 trials (" in text
    assert "DDIM" in text
    assert "Unfinished" not in text


def test_what_has_no_measurement_is_refused_in_one_line(said: Said, settings: list[str], tmp_path: Path) -> None:
    assert said("mode=plan", *settings, "run.name=one")[0] == 0
    code, error, _ = said("mode=export", "run.name=one")
    assert code == 2
    assert error.count("\n") == 1
    assert not (tmp_path / "runs" / "one" / "export").exists()
