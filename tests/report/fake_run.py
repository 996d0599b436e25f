"""A run directory as a sweep leaves it, with simulated per-image effects: for tests and for looking at the page."""

import hashlib
import json
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml
from PIL import Image
from scipy import stats

from sweeps.records import MEASUREMENTS, RunDirectory

METRICS = ("noise_mse", "x0_mse", "edge", "high_frequency", "luminance", "structure")
IMAGES = 64
EFFECT_COLUMNS = [
    "trial_id", "metric", "n", "mean_log_ratio", "percent", "ci_low", "ci_high", "d_z", "p_degraded", "p", "q", "q_by",
    "verdict", "stopped",
]  # fmt: skip


@dataclass(frozen=True)
class FakeSweep:
    layers: int = 4
    heads: int = 8
    windows: int = 5
    modes: tuple[str, ...] = ("zero", "mean", "resample")
    datasets: tuple[str, ...] = ("synthetic_faces", "lfw_faces")
    protocols: tuple[str, ...] = ("denoise", "sample")
    model: str = "tiny_faces"
    layer_name: str = "transformer_blocks.{}.attn1"
    samples: int = 60
    metrics: tuple[str, ...] = METRICS
    seed: int = 7
    stats: dict = field(default_factory=lambda: {"metric": "noise_mse", "margin": 0.05, "alpha": 0.05})


def fake_trials(sweep: FakeSweep) -> pd.DataFrame:
    bounds = np.linspace(1000, 0, sweep.windows + 1).round().astype(int)
    rows = []
    for protocol, dataset, mode, layer, head, window in product(
        sweep.protocols,
        sweep.datasets,
        sweep.modes,
        range(sweep.layers),
        range(-1, sweep.heads),
        range(sweep.windows),
    ):
        cell = (sweep.model, protocol, dataset, mode, layer, head, window)
        rows.append(
            {
                "trial_id": hashlib.sha256(repr(cell).encode()).hexdigest()[:16],
                "model": sweep.model,
                "dataset": dataset,
                "protocol": protocol,
                "level": "layer" if head == -1 else "head",
                "layer": sweep.layer_name.format(layer),
                "layer_index": layer,
                "head": head,
                "stream": "image",
                "mode": mode,
                "strength": 1.0,
                "window_index": window,
                "t_start": int(bounds[window]) - 1,
                "t_end": int(bounds[window + 1]),
                "sites": None,
            }
        )
    return pd.DataFrame(rows)


def fake_gains(trials: pd.DataFrame, sweep: FakeSweep) -> dict[tuple[str, str], np.ndarray]:
    """Per-image log ratios by trial and metric, drawn. A third of the heads do nothing."""
    rng = np.random.default_rng(sweep.seed)
    measured = trials[trials["protocol"] == sweep.protocols[0]]
    strength = rng.gamma(0.4, 0.1, (sweep.layers, sweep.heads, sweep.windows))
    strength *= (rng.random((sweep.layers, sweep.heads, 1)) > 0.35) * np.linspace(0.3, 1.7, sweep.windows)
    found = {}
    for trial in measured.itertuples():
        layer = strength[trial.layer_index, :, trial.window_index]
        true = layer.sum() if trial.head == -1 else layer[trial.head]
        true *= {"zero": 1.0, "mean": 0.7}.get(trial.mode, 0.85) * (1 + 0.4 * (trial.dataset == sweep.datasets[0]))
        for metric in sweep.metrics:
            scale = 1.0 if metric == "noise_mse" else rng.uniform(0.2, 2)
            sample = rng.normal(scale * true + rng.normal(0, 0.002), 0.14 + 0.6 * true, IMAGES)
            found[trial.trial_id, metric] = sample
    return found


def fake_effects(gains: dict[tuple[str, str], np.ndarray], sweep: FakeSweep) -> pd.DataFrame:
    effects = pd.DataFrame([_effect(trial_id, metric, sample) for (trial_id, metric), sample in gains.items()])
    effects["q"] = effects.groupby("metric")["p"].transform(stats.false_discovery_control)
    effects["q_by"] = effects.groupby("metric")["p"].transform(lambda p: stats.false_discovery_control(p, method="by"))
    effects["verdict"] = [_verdict(row, sweep.stats["margin"]) for row in effects.itertuples()]
    effects["stopped"] = np.where(effects["verdict"] == "negligible", "decided", None)
    return effects[EFFECT_COLUMNS]


def _effect(trial_id: str, metric: str, g: np.ndarray) -> dict:
    mean, se = g.mean(), g.std(ddof=1) / np.sqrt(len(g))
    half = stats.t.ppf(0.975, len(g) - 1) * se
    low, percent, high = 100 * np.expm1([mean - half, mean, mean + half])
    return {
        "trial_id": trial_id, "metric": metric, "n": len(g), "mean_log_ratio": mean, "percent": percent,
        "ci_low": low, "ci_high": high, "d_z": mean / g.std(ddof=1), "p_degraded": (g > 0).mean(),
        "p": max(stats.t.sf(mean / se, len(g) - 1), 2.0 ** -len(g)),
    }  # fmt: skip


def _verdict(effect, margin: float) -> str:
    low, high = np.log1p(np.array([effect.ci_low, effect.ci_high]) / 100)
    if -np.log1p(margin) < low and high < np.log1p(margin):
        return "negligible"
    if effect.q < 0.05:
        return "degraded"
    return "improved" if effect.p > 0.999 else "inconclusive"


def fake_comparisons(trials: pd.DataFrame, sweep: FakeSweep) -> pd.DataFrame:
    rng = np.random.default_rng(sweep.seed + 1)
    rows = []
    for layer, head, mode, window in product(
        range(sweep.layers), range(sweep.heads), sweep.modes, range(sweep.windows)
    ):
        difference = rng.normal(0, 0.08)
        rows.append(
            {
                "name": f"data set contrast: {sweep.datasets[-1]} - {sweep.datasets[0]}",
                "metric": "noise_mse",
                "group": f"layer {layer} head {head} | {mode} | window {window}",
                "estimate": difference,
                "ci_low": difference - 0.1,
                "ci_high": difference + 0.1,
                "p": rng.random(),
                "q": 0.6,
                "n_a": IMAGES,
                "n_b": IMAGES,
            }
        )
    columns = ["name", "metric", "group", "estimate", "ci_low", "ci_high", "p", "q", "n_a", "n_b"]
    return pd.DataFrame(rows, columns=columns)


def fake_diagnostics(trials: pd.DataFrame, effects: pd.DataFrame, sweep: FakeSweep) -> pd.DataFrame:
    """Halves that scatter as halves do, and ranks of the 200 leading head trials of each data set."""
    rng = np.random.default_rng(sweep.seed + 2)
    cells = effects[effects["metric"] == sweep.stats["metric"]].merge(trials, on="trial_id")
    apart = rng.normal(0, (cells["mean_log_ratio"] / cells["d_z"]).abs() / np.sqrt(cells["n"]))
    table = cells[["trial_id", "metric"]].assign(
        skewness=rng.normal(0.2, 0.5, len(cells)),
        half_a=cells["mean_log_ratio"] + apart,
        half_b=cells["mean_log_ratio"] - apart,
    )
    heads = cells[cells["level"] == "head"]
    rank = heads.groupby("dataset")["mean_log_ratio"].rank(ascending=False, method="first")
    rank = rank[rank <= 200]
    ranked = rank.groupby(cells["dataset"]).transform("size")
    return table.assign(
        rank=rank,
        rank_low=(rank - 8).clip(lower=1),
        rank_high=(rank + 15).clip(upper=ranked),
        ranked=ranked,
        rank_images=ranked.where(ranked.isna(), IMAGES // 2),
    )


def sample_grid(seed: int, size: int = 32, rows: int = 4) -> Image.Image:
    """baseline | ablated | difference, a row a seed: blurred blobs that pass for faces at a glance."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    lines = []
    for _ in range(rows):
        face = 0.15 + 0.65 * np.exp(-(((x / 0.6) ** 2 + (y / 0.8) ** 2) ** 2) + rng.normal(0, 0.05))
        for eye in (-0.28, 0.28):
            face -= 0.45 * np.exp(-(((x - eye) / 0.12) ** 2 + ((y + 0.2) / 0.09) ** 2))
        face -= 0.35 * np.exp(-((x / 0.25) ** 2 + ((y - 0.42) / 0.07) ** 2))
        ablated = face + 0.12 * rng.normal(size=face.shape) + 0.1 * x
        lines.append(np.hstack([face, ablated, 0.5 + (ablated - face)]))
    return Image.fromarray((255 * np.vstack(lines).clip(0, 1)).astype(np.uint8))


def write_fake_run(path: Path, sweep: FakeSweep | None = None) -> Path:
    sweep = sweep or FakeSweep()
    path.mkdir(parents=True, exist_ok=True)
    trials = fake_trials(sweep)
    gains = fake_gains(trials, sweep)
    effects = fake_effects(gains, sweep)
    write_records(path, trials, gains, sweep)
    trials.to_parquet(path / "trials.parquet")
    effects.to_parquet(path / "effects.parquet")
    fake_comparisons(trials, sweep).to_parquet(path / "comparisons.parquet")
    fake_diagnostics(trials, effects, sweep).to_parquet(path / "diagnostics.parquet")
    failed = trials["trial_id"].iloc[[-1]]
    pd.DataFrame(
        {
            "trial_id": failed,
            "error": "RuntimeError: expected 64 tokens, got 63",
            "traceback": "Traceback (most recent call last):\\nRuntimeError: <script>alert(1)</script>",
            "attempts": 3,
        }
    ).to_parquet(path / "failures.parquet")
    write_samples(path, trials, effects, sweep)
    config = {
        "sweep": {"name": "full_ablation", "modes": list(sweep.modes), "windows": sweep.windows},
        "model": {"name": sweep.model},
        "stats": sweep.stats,
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "run.json").write_text(json.dumps(fake_run_json(trials, effects, sweep), indent=1))
    return path


def write_records(path: Path, trials: pd.DataFrame, gains: dict[tuple[str, str], np.ndarray], sweep: FakeSweep) -> None:
    """One part. The baseline is the same for all trials of a data set and window, as in a sweep."""
    (path / "records").mkdir(exist_ok=True)
    rng = np.random.default_rng(sweep.seed + 3)
    place = trials.set_index("trial_id")[["dataset", "window_index"]]
    drawn: dict[tuple, np.ndarray] = {}
    baselines = []
    for trial_id, metric in gains:
        key = (*place.loc[trial_id], metric)
        drawn.setdefault(key, rng.lognormal(-3, 0.4, IMAGES).astype(np.float32))
        baselines.append(drawn[key])
    baseline, g = np.concatenate(baselines), np.concatenate(list(gains.values()))
    names = [np.repeat([key[part] for key in gains], IMAGES) for part in (0, 1)]
    table = pa.table(
        {
            "trial_id": names[0],
            "unit": np.tile(np.arange(IMAGES, dtype=np.int32), len(gains)),
            "metric": names[1],
            "baseline": baseline,
            "ablated": (baseline * np.exp(g)).astype(np.float32),
        }
    )
    RunDirectory(path).write_part("lease", table.cast(MEASUREMENTS))


def write_samples(path: Path, trials: pd.DataFrame, effects: pd.DataFrame, sweep: FakeSweep) -> None:
    """For the `sample` trials of the strongest cells."""
    (path / "samples").mkdir(exist_ok=True)
    primary = effects[effects["metric"] == sweep.metrics[0]].merge(trials, on="trial_id")
    cell = ["dataset", "layer_index", "head", "mode", "window_index"]
    sampled = trials[trials["protocol"] == "sample"][[*cell, "trial_id"]]
    strongest = primary.sort_values("percent", ascending=False).merge(sampled, on=cell, suffixes=("", "_sampled"))
    for seed, trial_id in enumerate(strongest["trial_id_sampled"].head(sweep.samples)):
        sample_grid(seed).save(path / "samples" / f"{trial_id}.png")


def fake_run_json(trials: pd.DataFrame, effects: pd.DataFrame, sweep: FakeSweep) -> dict:
    trained = {
        "synthetic_faces": "Trained on 20,000 images of the same generator; these indices were not among them.",
        "lfw_faces": "Trained on 80 LFW faces; these 20 were kept apart.",
    }
    return {
        "schema_version": 1,
        "started": "2026-03-14T09:12:07+00:00",
        "finished": "2026-03-14T09:21:40+00:00",
        "seconds": 573.2,
        "versions": {"circuit-sweep": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1", "python": "3.11.7"},
        "machine": "Linux x86_64, 2 CPU threads",
        "device": "CPU",
        "git_commit": "0f3a9c1d2b4e5f60718293a4b5c6d7e8f9012345",
        "seeds": {"run": 0, "images": 64, "samples": 4},
        "counts": {"trials": len(trials), "recorded": len(trials) - 1, "failed": 1, "rows": len(effects) * IMAGES},
        "model": {
            "name": sweep.model,
            "path": "circuits/assets/tiny_faces",
            "revision": "9c1e6f2",
            "parameters": 5_812_345,
            "layers": [sweep.layer_name.format(layer) for layer in range(sweep.layers)],
            "heads": sweep.heads,
        },
        "data": {
            name: {"n": IMAGES, "held_out": True, "trained_on": trained.get(name, "Not among the training images.")}
            for name in sweep.datasets
        },
        "command": "python launch.py sweep=full_ablation",
    }
