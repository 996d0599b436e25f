"""A comparison's folder as mode=compare leaves it, with drawn numbers: for tests and for looking at the page."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd


def write_fake_comparison(
    path: Path,
    names: tuple[str, str] = ("full_ablation-tiny_faces-60da7a4e", "full_ablation-tiny_faces_b-1fe0c2d7"),
    modes: tuple[str, ...] = ("zero", "mean", "resample"),
    datasets: tuple[str, ...] = ("synthetic", "natural"),
    layers: int = 4,
    heads: int = 8,
    windows: int = 5,
    metrics: tuple[str, ...] = ("noise_mse", "edge"),
    note: str = "sweep.seed",
) -> Path:
    rng = np.random.default_rng(3)
    bounds = np.linspace(1000, 0, windows + 1).round().astype(int)
    rows = []
    for metric, dataset, mode, layer, head, window in product(
        metrics, datasets, modes, range(layers), range(-1, heads), range(windows)
    ):
        mean_a = rng.gamma(0.5, 0.08)
        estimate = rng.normal(0, 0.02) + (rng.random() < 0.15) * rng.normal(0.1, 0.15)
        p = float(np.clip(2 * np.exp(-((estimate / 0.02) ** 2) / 2), 1e-12, 1))
        verdict = "undecided" if p > 0.01 else "more" if estimate > 0 else "less"
        t_start, t_end = int(bounds[window]) - 1, int(bounds[window + 1])
        trial = f"{metric[0]}{len(rows):06d}"
        rows.append(
            {
                "name": f"{names[1]} - {names[0]}", "metric": metric, "group": f"cell {len(rows)}",
                "estimate": estimate, "ci_low": estimate - 0.04, "ci_high": estimate + 0.04, "p": p,
                "q": min(1.0, 3 * p), "n_a": 64, "n_b": 64 if dataset == datasets[0] else 80,
                "verdict": "same" if abs(estimate) < 0.006 else verdict, "paired": dataset == datasets[0],
                "trial_a": trial, "trial_b": trial[::-1], "protocol": "denoise", "dataset": dataset,
                "dataset_b": dataset, "level": "layer" if head == -1 else "head", "layer_index": layer, "head": head,
                "stream": "image", "sites": "", "mode": mode, "mode_b": mode, "strength": 1.0, "strength_b": 1.0,
                "t_start": t_start, "t_end": t_end, "t_start_b": t_start, "t_end_b": t_end, "mean_a": mean_a,
                "low_a": mean_a - 0.03, "high_a": mean_a + 0.03, "mean_b": mean_a + estimate,
                "low_b": mean_a + estimate - 0.03, "high_b": mean_a + estimate + 0.03,
            }
        )  # fmt: skip
    path.mkdir(parents=True)
    table = pd.DataFrame(rows)
    _images(table[table["metric"] == metrics[0]], rng).to_parquet(path / "images.parquet", index=False)
    table.to_parquet(path / "comparisons.parquet", index=False)
    (path / "compare.json").write_text(json.dumps(_facts(table, names, datasets, metrics, note)))
    return path


def _images(cells: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """g image by image in both runs, with the means of the table."""
    rows = []
    for cell in cells.itertuples():
        a, b = (rng.normal(0, 0.1, n).astype(np.float32) for n in (cell.n_a, cell.n_b))
        rows.append(
            {
                "trial_a": cell.trial_a, "trial_b": cell.trial_b, "paired": cell.paired,
                "a": a - a.mean() + np.float32(cell.mean_a), "b": b - b.mean() + np.float32(cell.mean_b),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _facts(table: pd.DataFrame, names: tuple, datasets: tuple, metrics: tuple, note: str) -> dict:
    run = {"path": "/runs", "plan": "60da7a4e", "finished": "2026-03-14T09:21:40+00:00", "command": "python launch.py"}
    sides = {
        side: {"name": name, **run, "model": name, "revision": f"{side}1c", "trials": 1080}
        for side, name in zip("ab", names)
    }
    pairing = {"protocol": "denoise", "shared_images": True, "shared_noise": True, "dropped": 0}
    claim = {"protocol": "denoise", "estimate": 0.02, "ci_low": 0.01, "ci_high": 0.03, "p": 0.004}
    return {
        "schema_version": 1, **sides, "metric": metrics[0], "alpha": 0.05, "margin": 0.05, "across": {},
        "cells": int((table["metric"] == metrics[0]).sum()), "only_a": 0, "only_b": 3, "permutations": 43_200,
        "stops_early": False, "factors": ["the checkpoint", "the images"],
        "differences": [{"what": note, "a": names[0], "b": "1"}],
        "pairings": [
            {"dataset": name, "dataset_b": name, "paired": index == 0, "n_a": 64, "n_b": 64 + 16 * index, **pairing}
            for index, name in enumerate(datasets)
        ],
        "over_heads": [{"dataset": name, "dataset_b": name, "heads": 32, "images": 64, **claim} for name in datasets],
    }  # fmt: skip
