"""What a sweep adds to its run directory for controls and for early stopping, with numbers known to the test."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from sweeps.comparison_names import NOISE_FLOOR, WORSE_ON_IMAGES, WORSE_THAN_CONTROLS

DRAWN = 5
CONTROL_IMAGES = 7  # odd: one half has an image more than the other
FLOOR = 3.2e-7
MOST = 64


def add_controls(run: Path, floor: float = FLOOR) -> pd.DataFrame:
    """Random subspaces for each data set, window and layer; returns their trials, with their mean as `mean`."""
    rng = np.random.default_rng(3)
    trials = pd.read_parquet(run / "trials.parquet").assign(phase="grid", images=MOST, draw=0)
    effects = pd.read_parquet(run / "effects.parquet").query("metric == 'noise_mse'")
    heads = effects.merge(trials, on="trial_id").query("level == 'head' and mode == 'zero'")
    template = trials[(trials["protocol"] == "denoise") & (trials["mode"] == "zero") & (trials["level"] == "head")]
    template = template.assign(phase="control", images=CONTROL_IMAGES)
    places = template.drop_duplicates(["dataset", "window_index", "layer_index"])
    drawn = pd.concat([places.assign(mode="subspace", draw=draw, head=draw % 3) for draw in range(DRAWN)])
    drawn = drawn.assign(mean=rng.normal(0.03, 0.02, len(drawn)))
    again = places[places["layer_index"] == 0].assign(strength=0.0, mean=0.0)
    controls = pd.concat([again, drawn], ignore_index=True)
    controls = controls.assign(trial_id=[f"c{i:015x}" for i in range(len(controls))])
    pd.concat([trials, controls.drop(columns="mean")]).to_parquet(run / "trials.parquet", index=False)
    _add_halves(run, controls, rng)
    _add_comparisons(run, heads, drawn, floor, rng)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["sweep"] |= {"controls": DRAWN, "control_images": CONTROL_IMAGES}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return controls


def _add_halves(run: Path, controls: pd.DataFrame, rng: np.random.Generator) -> None:
    apart = rng.normal(0, 0.01, len(controls))
    first = (CONTROL_IMAGES + 1) // 2
    halves = controls[["trial_id"]].assign(
        metric="noise_mse",
        half_a=controls["mean"] + apart,
        half_b=controls["mean"] - apart * first / (CONTROL_IMAGES - first),
    )
    known = pd.read_parquet(run / "diagnostics.parquet")
    pd.concat([known, halves]).to_parquet(run / "diagnostics.parquet", index=False)


def _add_comparisons(
    run: Path, heads: pd.DataFrame, drawn: pd.DataFrame, floor: float, rng: np.random.Generator
) -> None:
    rows = []
    for head in heads.itertuples():
        here = drawn.query(
            "dataset == @head.dataset and window_index == @head.window_index and layer_index == @head.layer_index"
        )["mean"]
        estimate = head.mean_log_ratio - here.mean()
        row = {
            "metric": "noise_mse", "estimate": estimate, "ci_low": estimate - 0.02, "ci_high": estimate + 0.02,
            "group": f"layer {head.layer_index} head {head.head} | zero | window {head.window_index} | {head.dataset}",
            "n_a": CONTROL_IMAGES, "n_b": DRAWN,
        }  # fmt: skip
        rows.append({**row, "name": WORSE_ON_IMAGES, "p": float(stats.norm.sf(estimate / 0.02))})
        at_least = int((here >= head.mean_log_ratio).sum())
        rows.append({**row, "name": WORSE_THAN_CONTROLS, "p": (1 + at_least) / (DRAWN + 1)})
    found = pd.DataFrame(rows)
    found["q"] = found.groupby("name")["p"].transform(stats.false_discovery_control)
    floors = [
        {"name": NOISE_FLOOR, "metric": "noise_mse", "group": dataset, "estimate": size, "n_a": 14, "n_b": 0}
        for dataset, size in product(heads["dataset"].unique(), [floor / 2, floor])
    ]
    known = pd.read_parquet(run / "comparisons.parquet")
    everything = pd.concat([known, found.sample(frac=1, random_state=0), pd.DataFrame(floors)])
    everything.to_parquet(run / "comparisons.parquet", index=False)


def stop_early(run: Path, statistic: str = "obf", **registered: object) -> pd.DataFrame:
    """A run whose certain trials stopped after 16 images; returns its effects on the registered metric."""
    trials = pd.read_parquet(run / "trials.parquet")
    planned = {"phase": "grid", "images": MOST, "draw": 0}
    trials.assign(**{key: value for key, value in planned.items() if key not in trials}).to_parquet(
        run / "trials.parquet", index=False
    )
    effects = pd.read_parquet(run / "effects.parquet")
    certain = effects["verdict"] != "inconclusive"
    effects = effects.assign(n=effects["n"].where(~certain, 16), stopped=np.where(certain, "decided", None))
    effects.to_parquet(run / "effects.parquet", index=False)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["stats"] |= {"statistic": statistic, "first": 16, "batch": 8, "correction": None, "futility": None}
    config["stats"] |= registered
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return effects[effects["metric"] == "noise_mse"]
