"""Detectable effects, halves, skewness, ranks and images used, as the page shows them."""

import re

import numpy as np
import pandas as pd
import pytest
from page_parts import PageParts
from scipy import stats

from sweeps.report import wording, write_report
from sweeps.report.findings import skewness
from sweeps.report.reported_run import read_run
from sweeps.report.resolution import level_under_skew


def rewrite(path, change):
    change(pd.read_parquet(path)).to_parquet(path)


def figures(run) -> set[str]:
    return {path.stem for path in (run / "report" / "figures").glob("*.svg")}


def text_of(page) -> str:
    return " ".join(" ".join(PageParts(page.read_text(encoding="utf-8")).text).split())


def test_figures_of_resolution(fake_run, report):
    assert {"minimum-detectable", "split-half"} <= figures(fake_run)
    diagnostics = pd.read_parquet(fake_run / "diagnostics.parquet")
    heads = pd.read_parquet(fake_run / "trials.parquet").query("level == 'head'")["trial_id"]
    halves = diagnostics[diagnostics["trial_id"].isin(heads)]
    rho = stats.spearmanr(halves["half_a"], halves["half_b"]).statistic
    text = text_of(report)
    assert f"Rank correlation of the halves {wording.decimal(rho)} over 960 head trials" in text
    assert f"by Spearman and Brown, {wording.decimal(2 * rho / (1 + rho))}" in text


def test_ranks_stand_beside_the_forest(report, small_run):
    assert "among the 200 head trials of its data set that lead on the other images" in text_of(report)
    assert "rank, with its interval" in (report.parent / "figures" / "forest.svg").read_text()
    (small_run / "diagnostics.parquet").unlink()
    page = write_report(small_run)
    assert "rank, with its interval" not in (page.parent / "figures" / "forest.svg").read_text()
    assert "split-half" not in figures(small_run)
    assert "Skewness" not in text_of(page)


def test_images_used_are_drawn_where_they_vary(fake_run, report, small_run):
    assert "images-used" not in figures(fake_run)

    def stopped(effects: pd.DataFrame) -> pd.DataFrame:
        early = effects["stopped"].notna()
        return effects.assign(n=effects["n"].where(~early, 16))

    rewrite(small_run / "effects.parquet", stopped)
    page = write_report(small_run)
    assert "images-used" in figures(small_run)
    n = pd.read_parquet(small_run / "effects.parquet").query("metric == 'noise_mse'")["n"]
    label = re.search(r'aria-label="(Bars: how many of [^"]*)"', page.read_text(encoding="utf-8"))[1]
    assert label.endswith(f"used how many images; {n.mean():.0f} on average.")


def test_skewness_is_said_and_warned_of(small_run):
    run = read_run(small_run)
    found = skewness(run)
    values = run.cells["skewness"]
    assert found.median == wording.decimal(values.median())
    assert found.low == wording.decimal(values.quantile(0.05))
    assert found.level == f"{100 * level_under_skew(0.05, values.quantile(0.05), 64):.1f}%"
    assert found.left == (values < -1).sum()

    def leaning(diagnostics: pd.DataFrame) -> pd.DataFrame:
        degraded = run.cells.query("verdict == 'degraded'")["trial_id"].head(3)
        return diagnostics.assign(skewness=np.where(diagnostics["trial_id"].isin(degraded), -2.0, 0.0))

    rewrite(small_run / "diagnostics.parquet", leaning)
    text = text_of(write_report(small_run))
    assert "3 trials lean to the left by more than 1" in text
    assert "3 of the trials called degraded lean that far to the left; read their p-values as too small." in text
    rewrite(small_run / "diagnostics.parquet", lambda diagnostics: diagnostics.assign(skewness=0.5))
    text = text_of(write_report(small_run))
    assert "0 trials lean to the left" in text
    assert "read their p-values" not in text


@pytest.mark.parametrize("level", [0.01, 0.05])
def test_a_symmetric_outcome_keeps_its_level(level):
    assert level_under_skew(level, 0.0, 64) == pytest.approx(level)
