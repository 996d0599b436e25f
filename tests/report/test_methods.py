"""The methods paragraph says what was run, and nothing that was not."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml
from fake_controls import add_controls, stop_early

from sweeps.export import latex
from sweeps.export.methods import methods
from sweeps.report.reported_run import read_run


def said_of(run: Path) -> str:
    return methods(read_run(run))


def test_methods_of_a_plain_run_claim_nothing_more(small_run: Path) -> None:
    text = said_of(small_run)
    for said in (
        "tiny_faces (5,812,345 parameters, 2 attention layers of up to 3 heads, revision 9c1e6f2)",
        "The data set synthetic_faces has 64 images, held out from training.",
        "zeros or its mean over a reference set",
        "one-sided studentised sign-flip test over images, with a saddlepoint approximation of its tail [@niu2024]",
        "(4 families: trials alike in layer and window)",
        "within −4.76% to +5% of the baseline",
        "negligibility over all trials by Benjamini and Hochberg",
        "Outcome, margin and level were fixed before the run.",
        "Every trial was measured on all of its images (64).",
        "torch 2.13.0",
    ):
        assert said in text, said
    for absent in ("O'Brien", "subspace", "profiled", "guidance", "search", "Unfinished", "DDIM", "measured twice"):
        assert absent not in text, absent


def changed(run: Path, **sections: dict) -> Path:
    """The run with other settings."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    for section, values in sections.items():
        config[section] = {**config.get(section, {}), **values}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


@pytest.mark.parametrize(
    ("statistic", "said", "cited"),
    [
        ("obf", "O'Brien-Fleming boundaries", {"obrien1979", "jennison1989", "benjamini2014", "simes1986"}),
        ("sign", "e-process that bets on the sign", {"jennison1989", "benjamini2001"}),
        ("betting", "a betting e-process", {"waudbysmith2024", "benjamini2001"}),
    ],
)
def test_methods_of_a_stopping_rule(statistic: str, said: str, cited: set[str], small_run: Path) -> None:
    add_controls(small_run)
    stop_early(small_run, statistic)
    text = said_of(small_run)
    assert said in text
    assert "Trials were looked at after 16 images" in text
    assert "studentised sign-flip" not in text
    assert "random subspaces of their layer" in text
    assert cited <= set(latex.citations(text))


def test_trials_that_wait_for_their_next_look_are_not_finished(small_run: Path) -> None:
    stop_early(small_run)
    assert "Unfinished" not in said_of(small_run)
    effects = pd.read_parquet(small_run / "effects.parquet")
    waiting = effects.loc[(effects["metric"] == "noise_mse") & (effects["n"] == 16), "trial_id"].head(3)
    effects.loc[effects["trial_id"].isin(waiting), "stopped"] = None
    effects.to_parquet(small_run / "effects.parquet")
    assert said_of(small_run).startswith("Unfinished: 3 of ")


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        (["mode"], "(2 families: trials alike in mode)"),
        (["layer", "window", "dataset"], "(8 families: trials alike in layer, window and data set)"),
        ([], "(one family)"),
    ],
)
def test_methods_name_the_families_that_were_registered(axes: list[str], said: str, small_run: Path) -> None:
    assert said in said_of(changed(small_run, stats={"families": axes}))


def test_methods_follow_the_settings_and_tables(small_run: Path) -> None:
    changed(small_run, data={"sets": [{"name": "lfw_faces", "source": "lfw_faces"}]}, model={"guidance": 4.0})
    trials = pd.read_parquet(small_run / "trials.parquet")
    trials.loc[trials["mode"] == "mean", "mode"] = "scale"
    trials.assign(factor=0.25).to_parquet(small_run / "trials.parquet")
    facts = (small_run / "run.json").read_text()
    (small_run / "run.json").write_text(
        facts.replace('"revision"', '"prediction_type": "epsilon", "revision"').replace(
            '"device"', '"timesteps": [999, 499], "device"'
        )
    )
    text = said_of(small_run)
    assert "64 faces of Labeled Faces in the Wild [@huang2007]" in text
    assert "2 windows of the 2 timesteps of the sampler (DDIM [@song2021])" in text
    assert "Outputs were also multiplied by 0.25." in text
    assert "guidance" not in text, "one-step errors have none"
    (small_run / "run.json").write_text((small_run / "run.json").read_text().replace('"epsilon"', '"flow"'))
    assert "Euler steps of flow matching [@lipman2023]" in said_of(small_run)


def test_methods_of_generated_images(small_run: Path) -> None:
    trials = pd.read_parquet(small_run / "trials.parquet")
    trials.assign(protocol="sample").to_parquet(small_run / "trials.parquet")
    text = said_of(changed(small_run, model={"guidance": 4.0}))
    assert "measured on images generated from fixed seeds" in text
    assert "For the data set synthetic_faces (images), 64 images were generated." in text
    assert "held out" not in text, "none of its images were measured"
    assert "classifier-free guidance [@ho2022] of scale 4" in text
    assert "noise of its own" not in text


def test_methods_of_one_window(small_run: Path) -> None:
    trials = pd.read_parquet(small_run / "trials.parquet")
    first = trials[trials["window_index"] == 0]
    first.to_parquet(small_run / "trials.parquet")
    effects = pd.read_parquet(small_run / "effects.parquet")
    effects[effects["trial_id"].isin(first["trial_id"])].to_parquet(small_run / "effects.parquet")
    (small_run / "comparisons.parquet").unlink()
    assert "each ablated during one window" in said_of(small_run)
