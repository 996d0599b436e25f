"""Guidance as a setting: what it changes in a plan, which models refuse it, and a whole guided sweep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from circuits.checkpoints import ModelError
from circuits.conditioning import Conditioning
from circuits.guidance import Guidance
from circuits.vocabulary import SAMPLE_METRICS
from sweeps.config import Config, ConfigError
from sweeps.driver import execute, load
from sweeps.plan import Subject, make_plan
from tests.circuits.architectures import ARCHITECTURES
from tests.circuits.test_pipelines import sd15
from tests.sweeps.fake_subject import fake_subject
from tests.sweeps.tiny import composed, save_pipeline


def guided(scale: float = 4.0) -> Subject:
    return replace(fake_subject(), guidance=Guidance(scale, Conditioning({"class_labels": torch.tensor([2])})))


def ids(subject: Subject, *overrides: str) -> set[str]:
    return {trial.trial_id for trial in make_plan(composed("sweep.layers=[0]", *overrides), subject).trials}


def test_trials_that_generate_are_others_under_guidance() -> None:
    sampled = ("sweep.protocols=[sample]", f"stats.metric={SAMPLE_METRICS[0]}")
    for overrides in (sampled, ("sweep.samples=4",)):
        without = ids(fake_subject(), *overrides)
        assert not without & ids(guided(), *overrides)
        assert not ids(guided(2.0), *overrides) & ids(guided(), *overrides)


def test_errors_of_one_step_are_the_same_trials() -> None:
    assert ids(fake_subject(), "sweep.samples=0") == ids(guided(), "sweep.samples=0")


def test_a_generated_image_has_two_rows() -> None:
    config = composed("sweep.layers=[0]", "sweep.samples=2", "sweep.images=20")
    one, two = (make_plan(config, subject) for subject in (fake_subject(), guided()))
    steps = len(one.timesteps)
    after = sum(sum(t <= trial.window.t_start for t in one.timesteps) for trial in one.trials)
    generated = 2 * (after + steps * len(fake_subject().data))  # and a baseline a data set
    assert two.rows() - one.rows() == generated


@pytest.mark.parametrize(
    ("model", "scale"),
    [("sd15", 7.5), ("sdxl", 5.0), ("sd3", 7.0), ("dit_xl_2_256", 4.0), ("flux", None), ("tiny_faces", None)],
)
def test_presets_are_guided_as_their_pipelines(model: str, scale: float | None) -> None:
    assert composed(f"model={model}").model.guidance == scale


def test_what_cannot_be_is_said_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model\.guidance: expected at least 1, got 0.5$"):
        composed("model.guidance=0.5")
    with pytest.raises(
        ModelError, match=r"^model\.guidance: tiny_unet .* 2 classes and no null class; expected null, got 3"
    ):
        execute(composed("sweep=smoke", "model=tiny_unet", "model.guidance=3", f"run.root={tmp_path / 'runs'}"))
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def settings_of(tmp_path: Path) -> Callable[..., Config]:
    return lambda *overrides: composed(
        "sweep=smoke", "sweep.images=6", "sweep.steps=3", "sweep.samples=2", "sweep.windows=1", "sweep.heads=[0]",
        "sweep.layers=[0]", "model=hub", "cluster=inline", "tracker=none",
        "stats=fixed", "run.rows=16", f"run.root={tmp_path / 'runs'}", *overrides,
    )  # fmt: skip


@pytest.mark.run
@pytest.mark.usefixtures("no_report")
def test_a_guided_sweep_of_classes(settings_of: Callable[..., Config], tmp_path: Path) -> None:
    """Errors of one step are those without guidance; what is generated is not."""
    settings = (f"model.path={save_pipeline(tmp_path / 'model')}", "data=faces", "sweep.modes=[zero,mean,resample]")
    for name, scale in (("plain", "null"), ("one", "1"), ("guided", "5")):
        assert execute(settings_of(*settings, f"model.guidance={scale}", f"run.name={name}")) == 0
    plain, one, strong = (
        pd.read_parquet(tmp_path / "runs" / name / "effects.parquet") for name in ("plain", "one", "guided")
    )
    assert set(plain["trial_id"]) == set(one["trial_id"])
    assert not set(plain["trial_id"]) & set(strong["trial_id"])
    pd.testing.assert_frame_equal(plain, one)
    by_metric = [
        frame.sort_values(["metric", "n"]).groupby("metric")["mean_log_ratio"].mean() for frame in (plain, strong)
    ]
    assert by_metric[0]["noise_mse"] == pytest.approx(by_metric[1]["noise_mse"], rel=1e-5)
    pictures = [sorted((tmp_path / "runs" / name / "samples").iterdir()) for name in ("plain", "guided")]
    assert {p.read_bytes() for p in pictures[0]}.isdisjoint({p.read_bytes() for p in pictures[1]})


@pytest.mark.run
@pytest.mark.usefixtures("no_report")
def test_a_guided_sweep_over_prompts(settings_of: Callable[..., Config], tmp_path: Path) -> None:
    """The images of the prompts are guided too."""
    sd15(ARCHITECTURES["sd15"].build()).save_pretrained(tmp_path / "sd15")
    settings = (
        "data=prompts",
        "data.prompts=[a cat,two dogs at sea]",
        "sweep.modes=[zero]",
        f"model.path={tmp_path / 'sd15'}",
    )
    config = settings_of(*settings, "model.guidance=7.5")
    images = [load(c)[0].data["prompts"].measured.images for c in (settings_of(*settings), config)]
    assert (images[0] - images[1]).abs().max() > 1e-3
    assert execute(config) == 0
    effects = pd.read_parquet(next((tmp_path / "runs").glob("*/effects.parquet")))
    assert (effects["n"] >= 2).all()
    assert effects["mean_log_ratio"].notna().any()
