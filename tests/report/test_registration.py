"""What was registered before the run, and words that follow the stopping rule."""

import json

import numpy as np
import pandas as pd
import pytest
from fake_controls import MOST, add_controls, stop_early
from page_parts import PageParts
from scipy.stats import norm

from circuits.statistics import StoppingRule
from sweeps.report import wording, write_report
from sweeps.report.registration import CORRECTIONS, TESTS, registration
from sweeps.report.reported_run import read_run
from sweeps.report.resolution import LAST_HORIZON, POWER, smallest_detectable


def text_of(page) -> str:
    return " ".join(" ".join(PageParts(page.read_text(encoding="utf-8")).text).split())


def test_a_fixed_run_says_that_it_is(small_run):
    facts = dict(registration(read_run(small_run)).facts)
    assert facts["Stopping rule"] == "none: every trial is measured on all of its images, 64"
    assert facts["Families"] == "4 families: trials alike in layer and window"
    assert facts["Margin of negligible"] == "−4.76% to +5% of the baseline"
    assert not {"Giving up", "Plan", "Random subspaces"} & set(facts)
    text = text_of(write_report(small_run))
    assert "p: studentised sign-flip test on g, one-sided for degradation." in text
    assert "Intervals are Student’s, 95%" in text
    assert "two one-sided t tests (adjusted by Benjamini–Hochberg) place" in text
    assert "its true level at a nominal 5% is about" in text
    assert "Stopping early used" not in text
    assert "Everything else on this page is exploratory" in text


def test_a_stopping_rule_is_said_in_words(small_run):
    add_controls(small_run)
    effects = stop_early(small_run)
    about = json.loads((small_run / "run.json").read_text()) | {"plan": "45c2ec81d369"}
    (small_run / "run.json").write_text(json.dumps(about))
    facts = dict(registration(read_run(small_run)).facts)
    assert facts["Stopping rule"] == (
        "O’Brien–Fleming boundary: a trial ends once its verdict is certain among all trials; looks after 16 images "
        "and every 8 more, at most 64; an effect that is certain ends its trial only if it looks larger than 80% of "
        "the margin, because a smaller one may be negligible"
    )
    assert facts["Giving up"] == "never: no trial ends without a verdict before its last image"
    assert facts["Plan"] == "45c2ec81d369"
    text = text_of(write_report(small_run))
    used, most = int(effects["n"].sum()), MOST * len(effects)
    ended = int((effects["n"] < MOST).sum())
    assert (
        f"Stopping early used {used:,} of {most:,} images ({100 * used / most:.0f}%): a mean of "
        f"{effects['n'].mean():.0f} a trial instead of 64; {ended} of 64 trials ended before their last image." in text
    )
    assert "16 to 64 of at most 64 images a trial" in text
    for said in (
        TESTS["obf"],
        "Intervals are repeated confidence intervals, 95%",
        "the same statistic on margin − g and on margin + g, both with the same correction, places",
        "a nominal 5% came to 6.1% at a skewness of −1 and to 10.1% at −2",
        "it alone decided when a trial stopped; the others are described on the images that it took",
        "so a contrast uses those that every trial has, 64 of a data set.",
        "The plan is a digest of the trials and of these settings",
    ):
        assert said in text, said
    for gone in ("sign-flip test on g, one-sided", "Intervals are Student’s, 95%", "its true level at a nominal"):
        assert gone not in text, gone
    assert (small_run / "report" / "figures" / "images-used.svg").is_file()


@pytest.mark.parametrize("statistic", ["sign", "betting"])
def test_e_processes_have_their_own_words(small_run, statistic):
    stop_early(small_run, statistic, futility=0.05)
    found = registration(read_run(small_run))
    facts = dict(found.facts)
    assert (found.test, found.correction) == (TESTS[statistic], CORRECTIONS["by"])
    assert facts["Giving up"].startswith("a trial whose unadjusted p of lying below the margin falls to 0.05 ends")
    assert "Families" not in facts
    text = text_of(write_report(small_run))
    assert f"p: {TESTS[statistic]}" in text
    assert f"q: {CORRECTIONS['by']} Level: 5%." in text
    assert f"not to the {statistic} e-process" in text
    assert "with 80% power" not in text
    assert not (small_run / "report" / "figures" / "minimum-detectable.svg").is_file()


def test_images_at_most_are_said_by_data_set(small_run):
    stop_early(small_run)
    trials = pd.read_parquet(small_run / "trials.parquet")
    images = np.where(trials["dataset"] == "lfw_faces", 64, 256)
    trials.assign(images=images).to_parquet(small_run / "trials.parquet")
    assert "16 to 64 of at most 256 (synthetic_faces) and 64 (lfw_faces) images a trial" in text_of(
        write_report(small_run)
    )


def test_a_rule_that_governs_no_trial_is_none(small_run):
    """Of a search the confirmed sets are measured whole, whatever the configuration says of stopping."""
    stop_early(small_run)
    path = small_run / "trials.parquet"
    pd.read_parquet(path).assign(phase="confirm").to_parquet(path)
    run = read_run(small_run)
    assert run.stats.statistic == "none"
    assert not run.stops_early


def test_words_and_rule_agree():
    """The report knows the rule's defaults without loading it."""
    assert StoppingRule().horizons == ((0.5, 1 - LAST_HORIZON), (1.0, LAST_HORIZON))
    assert "Half of a trial’s images" in TESTS["obf"]
    assert "three quarters of the error" in TESTS["obf"]
    assert [StoppingRule(statistic=name).correction for name in ("obf", "sign", "betting")] == [
        "hierarchical", "by", "by",
    ]  # fmt: skip
    assert (StoppingRule().first, StoppingRule().batch) == (16, 16)


def test_the_detectable_effect_of_a_stopping_rule_has_the_power_it_says():
    """Against simulated Brownian paths, whose steps miss a little of what the path reaches between them."""
    alpha, n, spread, steps = 0.05, 256, 0.2, 2_048
    smallest = smallest_detectable(spread, n, alpha, "obf")
    rng = np.random.default_rng(5)
    drift = smallest / spread * np.sqrt(n)
    paths = rng.normal(drift / steps, 1 / np.sqrt(steps), (4_000, steps)).cumsum(axis=1)
    reached = 2 * norm.sf(paths.max(axis=1)) / LAST_HORIZON <= alpha
    assert reached.mean() == pytest.approx(POWER, abs=0.025)
    assert smallest > smallest_detectable(spread, n, alpha)
    assert np.isnan(smallest_detectable(spread, n, alpha, "sign"))


def test_ranks_are_of_shared_images_and_not_screened(small_run):
    stop_early(small_run)
    path = small_run / "diagnostics.parquet"
    pd.read_parquet(path).assign(rank_images=16.0).to_parquet(path)
    text = text_of(write_report(small_run))
    assert (
        "among the 24 head trials of its data set, with intervals that hold all at once, from 16 images that all"
        in text
    )


def test_between_is_one_number_where_both_are_the_same():
    assert wording.between(pd.Series([64, 64])) == "64"
    assert wording.between(pd.Series([2048, 16])) == "16 to 2,048"
