import pandas as pd
import pytest
import yaml
from fake_run import FakeSweep, fake_effects, fake_gains, fake_trials

from sweeps.records import RunDirectoryError
from sweeps.report import wording
from sweeps.report.findings import key_findings
from sweeps.report.page import _lead
from sweeps.report.reported_run import read_run


def rewrite(path, change):
    change(pd.read_parquet(path)).to_parquet(path)


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "trials.parquet", "effects.parquet"])
def test_a_missing_file_is_named(small_run, name):
    (small_run / name).unlink()
    with pytest.raises(RunDirectoryError, match=f"no report without {name} in .*run"):
        read_run(small_run)


def test_all_missing_files_are_named_at_once(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"config\.yaml, run\.json, trials\.parquet, effects\.parquet"):
        read_run(tmp_path)


def test_a_missing_column_is_named(small_run):
    rewrite(small_run / "effects.parquet", lambda effects: effects.drop(columns=["ci_low", "q"]))
    with pytest.raises(RunDirectoryError, match=r"effects\.parquet lacks the columns ci_low, q"):
        read_run(small_run)


def test_an_unknown_metric_gets_the_nearest(small_run):
    (small_run / "config.yaml").write_text(yaml.safe_dump({"stats": {"metric": "noise_msee"}}))
    with pytest.raises(RunDirectoryError, match=r"stats\.metric=noise_msee.*nearest: noise_mse$"):
        read_run(small_run)


def test_an_unknown_verdict_is_an_error(small_run):
    rewrite(small_run / "effects.parquet", lambda effects: effects.assign(verdict="broken"))
    with pytest.raises(RunDirectoryError, match=r"expected the verdicts degraded, .*; got broken"):
        read_run(small_run)


def test_an_effect_without_its_trial_is_an_error(small_run):
    rewrite(small_run / "trials.parquet", lambda trials: trials.iloc[5:])
    with pytest.raises(RunDirectoryError, match=r"effects\.parquet has 5 trials that trials.parquet lacks"):
        read_run(small_run)


def test_cells_are_the_primary_metric_of_one_protocol_strongest_first(small_run):
    trials = pd.read_parquet(small_run / "trials.parquet")
    sampled = trials.loc[trials["protocol"] == "sample", "trial_id"].iloc[0]

    def with_a_sample_trial(effects):
        return pd.concat([effects, effects.iloc[[0]].assign(trial_id=sampled, metric="noise_mse")])

    rewrite(small_run / "effects.parquet", with_a_sample_trial)
    cells = read_run(small_run).cells
    sweep = FakeSweep(layers=2, heads=3, windows=2, modes=("zero", "mean"))
    expected = fake_effects(fake_gains(fake_trials(sweep), sweep), sweep).query("metric == 'noise_mse'")
    assert set(cells["trial_id"]) == set(expected["trial_id"])
    assert set(cells["protocol"]) == {"denoise"}
    degraded = cells["verdict"] == "degraded"
    assert degraded.any()
    assert not degraded.iloc[int(degraded.sum()) :].any()
    assert cells.loc[degraded, "mean_log_ratio"].is_monotonic_decreasing


def test_data_sets_are_in_the_order_of_run_json(small_run):
    assert read_run(small_run).datasets == ("synthetic_faces", "lfw_faces")


def test_strength_tells_variants_apart_only_where_it_differs(small_run):
    def two_strengths(trials):
        soft = trials["mode"] == "mean"
        return trials.assign(strength=trials["strength"].where(~soft, (trials["head"] % 2 + 1) / 2))

    rewrite(small_run / "trials.parquet", two_strengths)
    assert set(read_run(small_run).trials["variant"]) == {"zero", "mean 0.5", "mean 1"}


def test_what_is_optional_may_be_absent(small_run):
    (small_run / "comparisons.parquet").unlink()
    (small_run / "failures.parquet").unlink()
    (small_run / "config.yaml").write_text("")
    (small_run / "run.json").write_text("{}")
    run = read_run(small_run)
    assert run.comparisons.empty
    assert run.failures.empty
    assert (run.stats.metric, run.stats.margin, run.stats.alpha) == ("noise_mse", 0.05, 0.05)
    assert run.datasets == ("lfw_faces", "synthetic_faces")


def test_blocks_and_stages_are_told_by_their_paths_and_scaling_by_its_factor(small_run):
    """A block has the index of its first layer and no cell in the heatmaps, which are of heads and layers."""

    def grouped(trials):
        whole = (trials["level"] == "layer") & (trials["mode"] == "zero") & (trials["layer_index"] == 0)
        sites = [["transformer_blocks.0.attn1:-1", "transformer_blocks.0.attn2:-1"]] * len(trials)
        return trials.assign(
            level=trials["level"].where(~whole, "block"),
            layer=trials["layer"].where(~whole, "transformer_blocks.0"),
            sites=sites,
            mode=trials["mode"].replace("mean", "scale"),
            factor=1.0 + (trials["mode"] == "mean"),
        )

    rewrite(small_run / "trials.parquet", grouped)
    run = read_run(small_run)
    assert set(run.cells["variant"]) == {"zero", "scale x2"}
    blocks = run.cells[run.cells["level"] == "block"]
    assert {wording.site(block) for block in blocks.itertuples()} == {"transformer_blocks.0"}
    assert len(blocks) == 2 * 2, "windows x data sets"
    assert "2 layers of 3 heads, 1 block, 2 windows, 2 modes (zero, scale x2)" in _lead(run)
    assert any(
        "ablating 1 of 1 block degrades it in some window, most of all transformer_blocks.0" in finding
        for finding in key_findings(run)
    )
