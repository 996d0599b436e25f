"""Whole sweeps on text-conditioned latent models: of prompts, and of images that its autoencoder encodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from circuits.data.prompts import PromptedSet
from circuits.data.sources import DataError
from sweeps.config import Config, ConfigError
from sweeps.driver import execute, load
from tests.circuits.architectures import ARCHITECTURES
from tests.circuits.test_pipelines import sd15
from tests.sweeps.tiny import composed, save_pictures

pytestmark = [pytest.mark.run, pytest.mark.usefixtures("no_report")]


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sd15"
    sd15(ARCHITECTURES["sd15"].build()).save_pretrained(folder)
    return folder


@pytest.fixture
def settings_of(stable_diffusion: Path, tmp_path: Path) -> Callable[..., Config]:
    return lambda *overrides: composed(
        "sweep=smoke", "sweep.images=6", "sweep.steps=3", "sweep.samples=2", "sweep.windows=1", "sweep.heads=[0]",
        "sweep.layers=[0,1]", "model=hub", f"model.path={stable_diffusion}", "cluster=inline", "tracker=none",
        "stats=fixed", "run.rows=16", f"run.root={tmp_path / 'runs'}", *overrides,
    )  # fmt: skip


def test_a_sweep_over_prompts(settings_of: Callable[..., Config], tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# animals\na cat\n\ntwo dogs at sea\n")
    modes = "sweep.modes=[zero,mean,resample]"
    assert execute(settings_of("data=prompts", f"data.root={file}", modes, "run.name=file")) == 0
    assert execute(settings_of("data=prompts", "data.prompts=[a cat,two dogs at sea]", modes, "run.name=list")) == 0
    first, second = (pd.read_parquet(tmp_path / "runs" / name / "effects.parquet") for name in ("file", "list"))
    assert (first["mean_log_ratio"] - second["mean_log_ratio"]).abs().max() < 1e-5
    trials = pd.read_parquet(tmp_path / "runs" / "file" / "trials.parquet")
    assert set(trials["dataset"]) == {"prompts"}
    assert [name.rsplit(".", 1)[1] for name in trials["layer"].unique()] == ["attn1", "attn2"], "self, then cross"
    assert (first.loc[first["metric"] == "noise_mse", "mean_log_ratio"].abs() > 0).all()
    with Image.open(next((tmp_path / "runs" / "file" / "samples").iterdir())) as grid:
        assert grid.mode == "RGB", "decoded, and in colour"


def test_images_become_latents_with_the_empty_prompt(settings_of: Callable[..., Config], tmp_path: Path) -> None:
    pictures = save_pictures(tmp_path / "pictures", 12)
    config = settings_of("data=folder", f"data.root={pictures}")
    natural = load(config)[0].data["natural"]
    assert isinstance(natural, PromptedSet)
    assert natural.measured.images.shape[1:] == natural.reference.images.shape[1:] == (4, 10, 10)
    (embeddings,) = natural.condition([0, 4]).tensors.values()
    assert torch.equal(embeddings[0], embeddings[1])
    assert execute(config) == 0
    effects = pd.read_parquet(next((tmp_path / "runs").glob("*/effects.parquet")))
    assert (effects.loc[effects["metric"] == "noise_mse", "n"] == 6).all()


def test_what_is_wrong_with_prompts_is_said_in_one_line(settings_of: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.root: nothing given; expected a text file of prompts, or data\.prompts="
    ):
        settings_of("data=prompts")
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    with pytest.raises(DataError, match="at least one prompt"):
        execute(settings_of("data=prompts", f"data.root={tmp_path / 'empty.txt'}"))
    with pytest.raises(DataError, match="no file"):
        execute(settings_of("data=prompts", f"data.root={tmp_path / 'absent.txt'}"))
    assert not (tmp_path / "runs").exists()
