"""A page of a sweep that is not through yet."""

import json

import pandas as pd
import yaml
from fake_run import FakeSweep, write_fake_run
from page_data import embedded
from page_parts import PageParts

from sweeps.report import write_report
from sweeps.report.coverage import coverage
from sweeps.report.findings import key_findings
from sweeps.report.reported_run import read_run

SWEEP = FakeSweep(layers=2, heads=3, windows=2, modes=("zero",), protocols=("denoise",), samples=0)


def halfway(run, counts=None) -> None:
    """Half of the trials measured, as the driver leaves the files while it works."""
    effects = pd.read_parquet(run / "effects.parquet")
    ids = effects["trial_id"].unique()
    effects[effects["trial_id"].isin(ids[: len(ids) // 2])].to_parquet(run / "effects.parquet")
    facts = json.loads((run / "run.json").read_text())
    del facts["finished"], facts["counts"]
    (run / "run.json").write_text(json.dumps(facts | (counts or {})))


def text_of(page) -> str:
    return " ".join(" ".join(PageParts(page.read_text(encoding="utf-8")).text).split())


def test_a_partial_page_says_how_much_is_measured(tmp_path):
    run = write_fake_run(tmp_path / "run", SWEEP)
    halfway(run)
    page = write_report(run, figures=False)
    trials = 2 * 4 * 2 * 2
    said = f"Partial report: {trials // 2} of {trials} trials were finished when it was written, 1 failed."
    assert said in text_of(page)
    assert len(embedded(page)["trials"]["id"]) == trials // 2
    assert not (run / "report" / "figures").exists()


def test_an_interrupted_run_is_partial_until_it_was_resumed(tmp_path):
    run = write_fake_run(tmp_path / "run", SWEEP)
    halfway(run, {"finished": "2026-03-14T09:21:40+00:00", "counts": {"trials": 32, "recorded": 16, "failed": 0}})
    found = coverage(read_run(run))
    assert (found.planned, found.done, found.failed, found.finished) == (32, 16, 1, False)
    assert found.partial


def test_a_trial_that_may_see_further_images_is_not_finished(tmp_path):
    """Under a stopping rule every trial is measured soon, and most are not through."""
    run = write_fake_run(tmp_path / "run", SWEEP)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["stats"] |= {"statistic": "obf"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    trials = pd.read_parquet(run / "trials.parquet").assign(phase="grid", images=128)
    trials.to_parquet(run / "trials.parquet")
    facts = json.loads((run / "run.json").read_text())
    del facts["finished"], facts["counts"]
    (run / "run.json").write_text(json.dumps(facts))
    effects = pd.read_parquet(run / "effects.parquet").query("metric == 'noise_mse'")
    stopped = int(effects["stopped"].notna().sum())
    assert 0 < stopped < len(effects) == len(trials)
    found = coverage(read_run(run))
    assert (found.planned, found.done) == (32, stopped)
    assert found.partial
    (saved,) = (sentence for sentence in key_findings(read_run(run)) if sentence.startswith("Stopping early used"))
    assert saved.endswith(f"{stopped} of {stopped} trials ended before their last image.")
    trials.assign(images=64).to_parquet(run / "trials.parquet")
    assert not coverage(read_run(run)).partial


def test_a_finished_run_is_not_partial(report):
    assert "Partial report" not in text_of(report)


def test_nothing_measured_yet(tmp_path):
    run = write_fake_run(tmp_path / "run", SWEEP)
    path = run / "effects.parquet"
    pd.read_parquet(path).iloc[:0].to_parquet(path)
    facts = json.loads((run / "run.json").read_text())
    del facts["finished"]
    (run / "run.json").write_text(json.dumps(facts))
    text = text_of(write_report(run, figures=False))
    assert "Partial report: 0 of 32 trials were finished" in text
