"""Run directories to track, and W&B's offline runs read back by wandb's own reader."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from sweeps.tracking import TrackerSettings
from sweeps.tracking.plan import Plan

UNITS = 5
FACTORS = {"noise_mse": 1.25, "edge": 0.5, "luminance": 1.0}  # ablated / baseline, the same for every unit
OFFLINE = TrackerSettings(mode="offline")
KEY = "0123456789abcdef" * 2 + "01234567"


def make_run(run_dir: Path, trials: int = 3, heads: int = 1_000) -> Path:
    """A run directory with planned trials: head i, window i % 2; nothing recorded yet.

    With fewer heads each has both windows: head i // 2.
    """
    for folder in ("records", "samples", "report/figures"):
        (run_dir / folder).mkdir(parents=True)
    config = {"run": {"name": run_dir.name}, "sweep": {"seed": 7}, "stats": {"metric": "noise_mse"}}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [
        {
            "trial_id": f"trial{i:03d}",
            "model": "tiny_faces",
            "dataset": "lfw_faces",
            "protocol": "denoise",
            "level": "head",
            "layer": "mid.attn",
            "layer_index": 2,
            "head": i if heads >= trials else i // 2,
            "stream": "image",
            "mode": "zero",
            "strength": 1.0,
            "window_index": i % 2,
            "t_start": (999, 799)[i % 2],
            "t_end": (800, 600)[i % 2],
            "sites": None,
        }
        for i in range(trials)
    ]
    pq.write_table(pa.Table.from_pylist(rows), run_dir / "trials.parquet")
    return run_dir


def record(run_dir: Path, *numbers: int, units: range = range(UNITS), part: str = "") -> list[str]:
    """Measurements and a sample grid of the trials with these numbers, in one part file."""
    trials = [f"trial{i:03d}" for i in numbers]
    rows = [
        {"trial_id": trial, "unit": unit, "metric": metric, "baseline": 2.0 + unit, "ablated": factor * (2.0 + unit)}
        for trial in trials
        for unit in units
        for metric, factor in FACTORS.items()
    ]
    table = pa.Table.from_pylist(rows)
    for column in ("baseline", "ablated"):
        index = table.schema.get_field_index(column)
        table = table.set_column(index, column, table[column].cast(pa.float32()))
    pq.write_table(table, run_dir / "records" / f"{part or '-'.join(trials)}.parquet")
    for number, trial in zip(numbers, trials):
        Image.fromarray(np.full((6, 18), 20 * number, np.uint8)).save(run_dir / "samples" / f"{trial}.png")
    return trials


def folders(run_dir: Path, kind: str = "") -> list[Path]:
    return sorted((run_dir / "wandb").glob(f"offline-run-*-{kind}*"), key=lambda path: path.name.split("-", 3)[-1])


def ids(run_dir: Path, kind: str) -> list[str]:
    return [re.sub(r"offline-run-\d+_\d+-", "", folder.name) for folder in folders(run_dir, kind)]


def ledger(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "tracking.jsonl").read_text().splitlines()]


class Seen:
    """An offline run, read with `wandb leet inspect`."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=folder).stdout
        records = [json.loads(line) for line in printed.splitlines()]
        self.kinds = {found["type"] for found in records}
        self.run = next(found["run"] for found in records if found["type"] == "run")
        self.config = self.run["config"]["update"]
        self.history = [found["history"]["item"] for found in records if found["type"] == "history"]
        self.metrics = [found["metric"] for found in records if found["type"] == "metric"]
        self.summary: dict[str, Any] = {}
        for found in records:
            if found["type"] == "summary":
                self.summary |= found["summary"]["update"]
        self.artifacts = [record["artifact"] for record in records if record["type"] == "artifact"]
        self.exit_code = next(found["exit"].get("exit_code", 0) for found in records if found["type"] == "exit")


def trial_folder(run_dir: Path, trial: str) -> Path:
    (folder,) = folders(run_dir, Plan.read(run_dir).trial_id(trial))
    return folder


def make_controlled_run(run_dir: Path) -> Path:
    """Head 0 of window 0 (trial000), a random subspace of it (trial001), the unablated model again (trial002)."""
    run_dir = make_run(run_dir)
    rows = pq.read_table(run_dir / "trials.parquet").to_pylist()
    changes: list[dict[str, Any]] = [
        {"phase": "grid", "draw": 0},
        {"phase": "control", "mode": "subspace", "draw": 5},
        {"phase": "control", "mode": "zero", "strength": 0.0, "draw": 0},
    ]
    same = {"window_index": 0, "t_start": 999, "t_end": 800, "head": 0}
    pq.write_table(
        pa.Table.from_pylist([{**row, **same, **change} for row, change in zip(rows, changes)]),
        run_dir / "trials.parquet",
    )
    return run_dir


def effect(trial: int, percent: float, verdict: str, metric: str = "noise_mse") -> dict[str, Any]:
    """A line of effects.parquet; its interval is 2 percent to each side."""
    return {
        "trial_id": f"trial{trial:03d}", "metric": metric, "n": UNITS, "mean_log_ratio": float(np.log1p(percent / 100)),
        "percent": percent, "ci_low": percent - 2, "ci_high": percent + 2, "d_z": 1.5, "p_degraded": 0.25, "p": 0.005,
        "q": 0.01, "q_by": 0.02, "verdict": verdict, "stopped": None,
    }  # fmt: skip


def write_effects(run_dir: Path, *effects: dict[str, Any]) -> None:
    pq.write_table(pa.Table.from_pylist(list(effects)), run_dir / "effects.parquet")


def table(seen: Seen, key: str) -> list[dict[str, Any]]:
    """A logged table as W&B shows it, media included; as dictionaries."""
    content = table_file(seen, key)
    return [dict(zip(content["columns"], cells)) for cells in content["data"]]


def table_file(seen: Seen, key: str) -> dict[str, Any]:
    entries = [entry for artifact in seen.artifacts for entry in artifact["manifest"]["contents"]]
    (entry,) = [entry for entry in entries if entry["path"] == f"{key}.table.json"]
    return json.loads(Path(entry["local_path"]).read_text())
