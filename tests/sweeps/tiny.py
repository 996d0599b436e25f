"""A sweep small enough to run whole in a test: a random class-conditional DiT, 2 layers x 4 heads, 16x16 gray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel
from hydra import compose, initialize_config_dir
from PIL import Image

from sweeps.composition import config_folder, register, typed
from sweeps.config import Config
from sweeps.driver import execute
from sweeps.records import RunDirectory

ROOT = Path(__file__).resolve().parents[2]
LAYERS, HEADS, SIZE = 2, 4, 16
PICTURES = 40
PLAIN = ("stats=fixed", "sweep.controls=0")

# The columns of architecture.md, in its order.
TRIAL_COLUMNS = [
    "trial_id", "model", "dataset", "protocol", "level", "layer", "layer_index", "head", "stream", "mode", "strength",
    "window_index", "t_start", "t_end", "sites",
]  # fmt: skip
RECORD_COLUMNS = ["trial_id", "unit", "metric", "baseline", "ablated"]
EFFECT_COLUMNS = [
    "trial_id", "metric", "n", "mean_log_ratio", "percent", "ci_low", "ci_high", "d_z", "p_degraded", "p", "q", "q_by",
    "verdict", "stopped",
]  # fmt: skip
COMPARISON_COLUMNS = ["name", "metric", "group", "estimate", "ci_low", "ci_high", "p", "q", "n_a", "n_b"]
FAILURE_COLUMNS = ["trial_id", "error", "traceback", "attempts"]


def save_pipeline(folder: Path, *, classes: int = 2, seed: int = 0) -> Path:
    """A random denoiser in the diffusers layout; weights are doubled, so that heads matter."""
    torch.manual_seed(seed)
    network = DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=4,
        in_channels=1,
        out_channels=1,
        num_layers=LAYERS,
        sample_size=SIZE,
        patch_size=4,
        num_embeds_ada_norm=classes,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(2)
    network.save_pretrained(folder / "transformer")
    DDPMScheduler().save_pretrained(folder / "scheduler")
    parts = {"scheduler": "DDPMScheduler", "transformer": "DiTTransformer2DModel"}
    index = {"_class_name": "DiTPipeline"} | {part: ["diffusers", name] for part, name in parts.items()}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def save_pictures(folder: Path, count: int = PICTURES) -> Path:
    """Smooth random pictures."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5), dtype=np.uint8))
        coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(folder / f"{index:03d}.png")
    return folder


def composed(*overrides: str) -> Config:
    """The configuration that a command line gives, in this process; without stopping and controls unless asked for."""
    register()
    plain = [o for o in PLAIN if not any(given.startswith(o.partition("=")[0] + "=") for given in overrides)]
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        return typed(compose("config", overrides=[*plain, *overrides]))


def command(*overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "launch.py"), *overrides]


def environment(**extra: str) -> dict[str, str]:
    """For subprocesses: one thread each, no network, no login."""
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "COLUMNS": "200"}
    kept = {k: value for k, value in os.environ.items() if not k.startswith("RAY_") or k == "RAY_worker_niceness"}
    return kept | quiet | extra


def launch(*overrides: str, cwd: Path, timeout: float = 120, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end."""
    return subprocess.run(
        command(*overrides), cwd=cwd, env=environment(**extra), capture_output=True, text=True, timeout=timeout
    )


def run_whole(root: Path, *overrides: str) -> RunDirectory:
    """A sweep run in this process, undisturbed and without its report; for fixtures wider than a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sweeps.driver.write_report", lambda path: path)
        assert execute(composed(*overrides, f"run.root={root}")) == 0
    return only_run(root)


def only_run(root: Path) -> RunDirectory:
    (folder,) = [path for path in root.iterdir() if path.is_dir()]
    return RunDirectory(folder)


def stored_rows(directory: RunDirectory) -> pd.DataFrame:
    """Every row of every part, duplicates included."""
    return pd.concat([table.to_pandas() for table in directory.tables()], ignore_index=True)


def duplicated_trials(directory: RunDirectory) -> int:
    """Trials that were measured more than once."""
    return int(stored_rows(directory).duplicated(["trial_id", "unit", "metric"]).sum())


def effects_by_trial(directory: RunDirectory) -> pd.DataFrame:
    """The effects table in an order that does not depend on the run."""
    return pd.read_parquet(directory.effects).set_index(["trial_id", "metric"]).sort_index()


def assert_same_effects(left: RunDirectory, right: RunDirectory) -> None:
    """Equal trial by trial: log ratios within 1e-5, divided by a small spread 1e-4, verdicts the same."""
    first, second = effects_by_trial(left), effects_by_trial(right)
    assert first.index.equals(second.index)
    assert (first[["n", "verdict"]] == second[["n", "verdict"]]).all(axis=None)
    limits = {"mean_log_ratio": 1e-5, "percent": 1e-3, "ci_low": 1e-3, "ci_high": 1e-3}
    limits |= dict.fromkeys(("d_z", "p_degraded", "p", "q", "q_by"), 1e-4)
    largest = {column: float((first[column] - second[column]).abs().max()) for column in limits}
    assert {column: size for column, size in largest.items() if not size <= limits[column]} == {}
