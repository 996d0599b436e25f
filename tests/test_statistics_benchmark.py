"""The benchmark of the statistics, small: it measures what it says it measures."""

import json

import pandas as pd
import pytest

from benchmarks import statistics
from sweeps.records import RunDirectory


def test_a_synthetic_run_is_aggregated_whole(tmp_path):
    directory = statistics.write_synthetic_run(tmp_path / "run", 120, 16)
    assert len(directory.recorded()) == 120
    found = statistics.measure_aggregation(directory.path)
    assert found["seconds"] >= 0
    assert 50 < found["rss_mb"] < 4_000
    effects = pd.read_parquet(RunDirectory(directory.path).effects)
    assert len(effects) == 120
    assert set(effects["n"]) == {16}


def test_all_metrics_under_a_stopping_rule(tmp_path):
    directory = statistics.write_synthetic_run(tmp_path / "run", 60, 48, metrics=6, statistic="obf")
    statistics.measure_aggregation(directory.path)
    effects = pd.read_parquet(RunDirectory(directory.path).effects)
    assert effects["metric"].value_counts().tolist() == [60] * 6
    assert set(effects["n"]) == {16, 32, 48}
    assert effects["stopped"].notna().any()


def test_more_trials_than_there_are_cells_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at most 100000 trials, got 100001"):
        statistics.write_synthetic_run(tmp_path / "run", 100_001, 2)


def test_both_tests_are_timed_on_the_same_cells():
    assert statistics.gemm_over_scipy(4, 20) > 1


def test_one_line_of_json(monkeypatch, capsys):
    monkeypatch.setattr(statistics, "aggregation", lambda *_: {"seconds": 1.5, "rss_mb": 2})
    monkeypatch.setattr(statistics, "gemm_over_scipy", lambda cells, images: 123.4)
    monkeypatch.setattr("sys.argv", ["statistics", "--json"])
    statistics.main()
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"aggregate_100k_s": 1.5, "aggregate_100k_rss_mb": 2, "gemm_over_scipy": 123}
