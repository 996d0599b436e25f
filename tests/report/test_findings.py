import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sweeps.report.findings import detectable_percent, key_findings, verdict_counts
from sweeps.report.reported_run import Stats, read_run
from sweeps.report.tables import metric_rows, tally


def test_counts_and_the_strongest_are_those_of_the_effects(fake_run):
    run = read_run(fake_run)
    sentences = key_findings(run)
    primary = pd.read_parquet(fake_run / "effects.parquet").query("metric == 'noise_mse'")
    counts = primary["verdict"].value_counts()
    assert f"Of 1,080 trials, {counts['degraded']} degrade noise_mse" in sentences[0]
    assert f"{counts['inconclusive']} ({100 * counts['inconclusive'] / 1080:.0f}%) are inconclusive" in sentences[0]
    cells = primary.merge(pd.read_parquet(fake_run / "trials.parquet"), on="trial_id")
    for dataset in ("synthetic_faces", "lfw_faces"):
        heads = cells.query("dataset == @dataset and head >= 0 and verdict == 'degraded'")
        top = heads.loc[heads["percent"].idxmax()]
        sentence = next(s for s in sentences if s.startswith(f"On {dataset}"))
        assert f"{len(heads.drop_duplicates(['layer_index', 'head']))} of 32 heads" in sentence
        assert f"L{top['layer_index']}H{top['head']} ({top['mode']}, " in sentence
        assert f"{top['percent']:+.3g}" in sentence.replace("−", "-")


def test_no_effect_is_said_plainly(small_run):
    path = small_run / "effects.parquet"
    pd.read_parquet(path).assign(verdict="inconclusive").to_parquet(path)
    sentences = key_findings(read_run(small_run))
    assert "0 degrade noise_mse" in sentences[0]
    assert "On lfw_faces, no trial is called degraded." in sentences
    assert not any("Heads matter most" in sentence for sentence in sentences)


def test_detectable_effect_has_the_power_it_says():
    n, spread, alpha = 64, 0.2, 0.05
    cells = pd.DataFrame({"mean_log_ratio": [0.1, -0.3, 0.0], "d_z": [0.5, -1.5, 0.0], "most": n})
    smallest = math.log1p(detectable_percent(cells, Stats(alpha=alpha)) / 100)
    shift = smallest / spread * math.sqrt(n)
    power = stats.nct.sf(stats.t.ppf(1 - alpha, n - 1), n - 1, shift)
    assert power == pytest.approx(0.8, abs=0.01)


def test_the_tally_adds_up(fake_run):
    run = read_run(fake_run)
    *parts, everything = tally(run)
    assert len(parts) == 3 * 2 * 2
    assert sum(row.total for row in parts) == everything.total == 1080
    assert everything.verdicts == verdict_counts(run.cells)
    for verdict, number in everything.verdicts.items():
        assert sum(row.verdicts[verdict] for row in parts) == number
    one = next(row for row in parts if (row.mode, row.dataset, row.level) == ("mean", "lfw_faces", "layer"))
    cells = run.cells.query("mode == 'mean' and dataset == 'lfw_faces' and level == 'layer'")
    assert one.verdicts["degraded"] == (cells["verdict"] == "degraded").sum()
    assert one.stopped["decided"] == (cells["stopped"] == "decided").sum()


def test_other_metrics_belong_to_their_trial(fake_run):
    metrics, rows = metric_rows(read_run(fake_run), rows=5)
    effects = pd.read_parquet(fake_run / "effects.parquet").set_index(["trial_id", "metric"])["percent"]
    assert metrics[0] == "noise_mse"
    assert set(metrics) == set(effects.index.get_level_values("metric"))
    assert len(rows) == 5
    for row in rows:
        shown = [float(number.value) for number, _, _ in row.values]
        np.testing.assert_allclose(shown, [effects[row.trial.trial_id, metric] for metric in metrics], rtol=1e-5)
