"""How the statistics scale: aggregation of 100,000 trials from records on disk, and max-T against a loop over scipy.

    python -m benchmarks.statistics [--json] [--trials 100000] [--images 256] [--cells 200] [--metrics 1]
        [--statistic none|obf|sign|betting]

Aggregation is `mode=aggregate` as users run it (effects, data-set contrasts, diagnostics), in a process of its own, on
synthetic records of the registered metric (or of more) in parts of 25 trials; its time is that of the call, its memory
the peak of the whole process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice, product
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.stats import permutation_test

from circuits.seeds import numpy_generator
from circuits.statistics import max_t_test
from circuits.vocabulary import DENOISE_METRICS
from sweeps.aggregate import aggregate
from sweeps.config import STATISTICS
from sweeps.records import RunDirectory, measurement_table

METRIC = "noise_mse"
LAYERS, HEADS, WINDOWS = 50, 50, 10
DATA_SETS, MODES = ("synthetic", "natural"), ("zero", "mean")
PART = 25
DRAWS = 9_999


def write_synthetic_run(
    path: Path, trials: int, images: int, metrics: int = 1, statistic: str = "none"
) -> RunDirectory:
    """A run directory with a plan and records, and no model behind it: 4 of 5 cells have no effect."""
    directory = RunDirectory(path)
    directory.create(directory.records)
    directory.write_config({"stats": {"name": "benchmark", "metric": METRIC, "statistic": statistic}})
    table = pd.DataFrame([_row(i, *cell) for i, cell in enumerate(islice(_cells(), trials))])
    if len(table) < trials:
        raise ValueError(f"at most {len(table)} trials, got {trials}")
    directory.write_frame(directory.trials, table.assign(phase="grid", images=images))
    rng = numpy_generator(0, "benchmark records")
    baseline = {name: rng.lognormal(-3, 0.5, images) for name in DATA_SETS}
    for start in range(0, trials, PART):
        rows = table.iloc[start : start + PART]
        means = 0.1 * (rng.random(len(rows)) < 0.2)
        before = baseline[rows["dataset"].iloc[0]]
        measured = []
        for metric in (METRIC, *(name for name in DENOISE_METRICS if name != METRIC))[:metrics]:
            g = rng.normal(means[:, None], 0.2, (len(rows), images))
            measured.append(measurement_table(rows["trial_id"].tolist(), metric, before, before * np.exp(g)))
        directory.write_part(f"{start:08d}", pa.concat_tables(measured))
    return directory


def _cells() -> product:
    return product(DATA_SETS, MODES, range(WINDOWS), range(LAYERS), range(HEADS))


def _row(index: int, dataset: str, mode: str, window: int, layer: int, head: int) -> dict[str, object]:
    name = f"blocks.{layer}.attn"
    high = 1000 - 100 * window
    return {
        "trial_id": f"{index:016x}", "model": "synthetic", "dataset": dataset, "protocol": "denoise", "level": "head",
        "layer": name, "layer_index": layer, "head": head, "stream": "image", "mode": mode, "strength": 1.0,
        "window_index": window, "t_start": high - 1, "t_end": high - 100, "sites": [f"{name}:{head}"],
    }  # fmt: skip


def measure_aggregation(path: Path) -> dict[str, float]:
    """Aggregate in this process: seconds of the call, and this process's peak memory in MB, imports included."""
    started = time.perf_counter()
    aggregate(RunDirectory(path))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": round(seconds, 1), "rss_mb": round(peak / 1e6)}


def aggregation(trials: int, images: int, metrics: int = 1, statistic: str = "none") -> dict[str, float]:
    """As `measure_aggregation`, in a fresh process on records written for the purpose."""
    with tempfile.TemporaryDirectory() as folder:
        directory = write_synthetic_run(Path(folder) / "run", trials, images, metrics, statistic)
        command = [sys.executable, "-m", "benchmarks.statistics", "--aggregate", str(directory.path)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def gemm_over_scipy(cells: int, images: int) -> float:
    """How many times longer a loop over scipy's one-sample permutation test takes than max-T over the same cells."""
    rng = numpy_generator(0, "benchmark cells")
    g = rng.normal(0.02, 0.2, (cells, images))
    max_t_test(g, rng, draws=99)  # the first call of a process also starts the threads of BLAS
    started = time.perf_counter()
    ours = max_t_test(g, rng, draws=DRAWS).p
    gemm = time.perf_counter() - started
    started = time.perf_counter()
    theirs = [
        permutation_test(
            (row,),
            np.mean,
            permutation_type="samples",
            n_resamples=DRAWS,
            alternative="greater",
            vectorized=True,
            rng=rng,
        ).pvalue
        for row in g
    ]
    loop = time.perf_counter() - started
    worst = np.abs(ours - np.array(theirs)).max()
    if worst > 0.05:
        raise AssertionError(f"the two tests disagree by {worst:.3f} on p")
    return loop / gemm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--cells", type=int, default=200, help="of the comparison with scipy")
    parser.add_argument("--metrics", type=int, default=1, help="recorded, the registered one included")
    parser.add_argument("--statistic", default="none", choices=STATISTICS, help="the stopping rule")
    parser.add_argument("--aggregate", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.aggregate:
        print(json.dumps(measure_aggregation(chosen.aggregate)))
        return
    measured = aggregation(chosen.trials, chosen.images, chosen.metrics, chosen.statistic)
    result = {
        "aggregate_100k_s": measured["seconds"],
        "aggregate_100k_rss_mb": measured["rss_mb"],
        "gemm_over_scipy": round(gemm_over_scipy(chosen.cells, chosen.images)),
    }
    if chosen.json:
        print(json.dumps(result))
    else:
        print(f"aggregation of {chosen.trials:,} trials x {chosen.images} images: ", end="")
        print(f"{measured['seconds']:.1f} s, {measured['rss_mb']:,.0f} MB at the peak")
        print(f"max-T over {chosen.cells} cells: {result['gemm_over_scipy']} times as fast as a loop over scipy")


if __name__ == "__main__":
    main()
