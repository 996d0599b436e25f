"""What early stopping costs and saves on a real sweep: the same records, judged with all images and as the rule stops.

Needs a run in which every trial was measured on all images::

    python launch.py stats=fixed stats.n_max=256 run.name=fixed
    python -m benchmarks.stopping runs/fixed --json

The rule sees the images in the order in which a sequential sweep would, so its verdicts and numbers of images are those
of ``stats=sequential``. Printed: ``same_verdict`` (of the trials that all images call, the share called alike),
``images`` (measured, over all), ``forwards`` (rows through the network with baselines, controls and samples, over the
same with all images) and ``mean_images`` by data set.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from sweeps.aggregate import Registered, effects_of
from sweeps.config import StatsConfig
from sweeps.gains import read_gains
from sweeps.records import RunDirectory
from sweeps.rounds import governed, stopping_rule


def compare(path: Path, stats: StatsConfig) -> dict[str, Any]:
    """``path``: the run with all images; ``stats``: the rule to compare with, on the same metric, margin and level."""
    directory = RunDirectory(path)
    config = directory.read_config()
    trials = directory.read_frame(directory.trials)
    measured = read_gains(directory, trials["trial_id"].tolist(), [stats.metric])
    grid = trials[governed(trials)].set_index("trial_id")
    rule = stopping_rule(stats, int(grid["images"].max()))
    verdicts = {}
    for name, chosen in (("all", None), ("rule", rule)):
        found = effects_of(trials, measured, Registered(stats.metric, stats.alpha, stats.margin, chosen))
        verdicts[name] = found.set_index("trial_id").loc[grid.index]
    called = verdicts["all"]["verdict"] != "inconclusive"
    same = verdicts["all"]["verdict"] == verdicts["rule"]["verdict"]
    used = verdicts["rule"]["n"]
    steps, samples = config["sweep"]["steps"], config["sweep"]["samples"]
    others = trials.loc[~governed(trials), "images"].sum() + (len(grid) + grid["dataset"].nunique()) * samples * steps

    def forwards(images: pd.Series) -> float:
        passes = images.groupby([grid["dataset"], grid["window_index"]]).max().sum()
        return float(images.sum() + passes + others)

    return {
        "trials": len(grid),
        "called": int(called.sum()),
        "same_verdict": round(float(same[called].mean()), 4),
        "images": round(float(used.sum() / grid["images"].sum()), 4),
        "forwards": round(forwards(used) / forwards(grid["images"]), 4),
        "mean_images": {
            str(name): f"{part.mean():.1f} of {grid.loc[part.index, 'images'].max()}"
            for name, part in used.groupby(grid["dataset"])
        },
        "changed": {
            f"{a} -> {b}": int(n)
            for (a, b), n in pd.DataFrame({"a": verdicts["all"]["verdict"], "b": verdicts["rule"]["verdict"]})[
                called & ~same
            ]
            .value_counts()
            .items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory in which every trial has all its images")
    parser.add_argument("--statistic", default="obf", choices=("obf", "sign", "betting"))
    parser.add_argument("--json", action="store_true", help="one JSON line")
    arguments = parser.parse_args()
    given = RunDirectory(arguments.run).read_config()["stats"]
    stats = StatsConfig(
        "sequential",
        metric=given["metric"],
        alpha=given["alpha"],
        margin=given["margin"],
        statistic=arguments.statistic,
    )
    found = compare(arguments.run, stats)
    print(json.dumps(found) if arguments.json else "\n".join(f"{key}: {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
