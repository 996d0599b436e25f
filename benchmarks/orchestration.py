"""What it costs to run a large sweep besides the measuring: plan, hand out, record, decide, resume; with no-op engines.

    python -m benchmarks.orchestration [--json] [--trials 100000] [--nodes 2 8] [--sleepers 8]

Simulated nodes (`ray.cluster_utils`), each with its share of the workers, joined as any cluster is: once two of them
and once eight, each time in a process of its own. The workers load no model; they write real parts of all six metrics.
Four of five trials are decided at the first look (16 images), the others at the third (48), by the default stopping
rule. Printed are the worse of both figures, and under ``by_nodes`` those of each:

- ``plan_s``: the grid expanded and trials.parquet written;
- ``per_trial_ms``: plan, leases, records, decisions, progress and the scan of a resumed sweep, by the clock, a trial;
- ``resume_s``: a fresh process finds out that nothing is left (imports and model not counted);
- ``driver_rss_mb``: peak memory of the driver, Ray's client included, without a model;
- ``efficiency_8``: ideal over actual time of 4,000 trials that take 50 ms on 8 workers that sleep.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from circuits.effect_tables import gains
from circuits.vocabulary import DENOISE_METRICS
from sweeps.config import ClusterConfig, Config, DataConfig, ModelConfig, StatsConfig, SweepConfig
from sweeps.leases import Lease, LeaseQueue
from sweeps.plan import Plan, Subject, make_plan
from sweeps.progress import SweepProgress
from sweeps.records import RunDirectory, measurement_table
from sweeps.rounds import Rounds, resumed_rounds
from sweeps.run import LeaseOutcome, RunnerSpec, SubjectSpec
from sweeps.schedule.clusters import connect, disconnect
from sweeps.schedule.pool import Pool
from sweeps.schedule.workers import WorkerFactory
from tests.sweeps.fake_subject import data_set, fake_subject, with_data

IMAGES = 64
LAYERS, HEADS, WINDOWS = 50, 19, 10
MODES = ("zero", "mean", "resample", "resample_across", "identity")
PER_LAYER = (HEADS + 1) * WINDOWS * len(MODES) * 2
UNDECIDED = 0.2  # of the trials, after the first look
SLEEPING_TRIALS, SECONDS_PER_TRIAL = 4_000, 0.05


class NoOpWorker:
    """Measures nothing, and records it: a large effect, or one at the margin, by the trial's id."""

    def __init__(self, spec: RunnerSpec, seconds_per_trial: float) -> None:
        self._directory = RunDirectory(Path(spec.run_dir))
        self._seconds = seconds_per_trial
        self._noise = np.random.default_rng(0).normal(0, 0.1, IMAGES)

    def ping(self) -> int:
        return os.getpid()

    def run(self, lease: Lease) -> LeaseOutcome:
        started = time.monotonic()
        time.sleep(self._seconds * len(lease.trials))
        units = lease.units or range(lease.trials[0].images)
        ids = [trial.trial_id for trial in lease.trials]
        undecided = np.array([int(name[:4], 16) < UNDECIDED * 2**16 for name in ids])
        g = self._noise[None, units.start : units.stop] + np.where(undecided, 0.05, 1.0)[:, None]
        baseline, ablated = np.ones(len(units)), np.exp(g)
        tables = [measurement_table(ids, metric, baseline, ablated, units.start) for metric in DENOISE_METRICS]
        self._directory.write_part(lease.lease_id, pa.concat_tables(tables))
        found = gains(ablated, baseline).astype(np.float32)
        return LeaseOutcome(dict(zip(ids, found, strict=True)), (), 0, time.monotonic() - started)


def settings(layers: int, *, stopped: bool) -> Config:
    """``layers`` of 2,000 trials each; ``stopped``: by the default rule, else all images at once."""
    return Config(
        sweep=SweepConfig(
            name="orchestration", layers="all", windows=WINDOWS, modes=list(MODES), images=IMAGES, samples=0, steps=10
        ),
        model=ModelConfig(name="fake", path="fake"),
        data=DataConfig(name="fake"),
        stats=StatsConfig(name="sequential", statistic="obf" if stopped else "none"),
    )


def subject_of(layers: int) -> Subject:
    data = {"synthetic": data_set("synthetic", 0, 0.0, IMAGES), "natural": data_set("natural", 1, 1.0, IMAGES)}
    return with_data(fake_subject(layers=layers, heads=HEADS), **data)


def assignment(directory: RunDirectory) -> RunnerSpec:
    nothing = SubjectSpec(model_name="", model_path="", dtype="", device="cpu", sources=(), images=0)
    return RunnerSpec(subject=nothing, rows=0, threads=0, run_dir=str(directory.path), metric="noise_mse")


@contextmanager
def simulated_cluster(nodes: int, workers: int) -> Iterator[ClusterConfig]:
    """Nodes on this machine, each with its share of CPUs that are not there: nobody here computes."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=workers // nodes)
        wanted = ClusterConfig(name="ray", address=cluster.address, workers=workers, device="cpu", ship_code=False)
        yield wanted
    finally:
        cluster.shutdown()


def run_pool(rounds: Rounds, plan: Plan, directory: RunDirectory, cluster: ClusterConfig, seconds: float) -> float:
    """As the driver does, from workers that are up to the last decision; returns seconds."""
    connect(cluster)
    leases = LeaseQueue(rounds.tasks(), cluster.lease_seconds, rounds.following)
    factory = WorkerFactory(cluster, assignment(directory), NoOpWorker, seconds)
    pool = Pool(leases, factory, cluster.lease_timeout, threading.Event())
    while pool.answered() < cluster.workers:
        time.sleep(0.1)
    console = Console(stderr=True, quiet=True)
    started = time.perf_counter()
    with SweepProgress({t.trial_id: t for t in plan.trials}, len(rounds.done), console) as progress:
        for _, outcome in pool.outcomes():
            rounds.add(outcome.gains)
            rounds.take_done()
            progress.add(outcome.gains, len(rounds.done), len(outcome.failures), outcome.rows)
    elapsed = time.perf_counter() - started
    if len(rounds.done) != len(plan):
        raise RuntimeError(f"{len(plan) - len(rounds.done)} trials were lost")
    disconnect()
    return elapsed


def orchestrate(path: Path, layers: int, cluster: ClusterConfig) -> dict[str, float]:
    """Plan and run; the driver's memory is that of this process."""
    config, subject = settings(layers, stopped=True), subject_of(layers)
    directory = RunDirectory(path)
    directory.create(directory.records)
    started = time.perf_counter()
    plan = make_plan(config, subject)
    directory.write_frame(directory.trials, plan.frame())
    plan_s = time.perf_counter() - started
    run_s = run_pool(resumed_rounds(config, plan, directory), plan, directory, cluster, 0.0)
    return {"trials": len(plan), "plan_s": plan_s, "run_s": run_s, "driver_rss_mb": peak_mb()}


def resume(path: Path, layers: int) -> dict[str, float]:
    """What a finished sweep does when it is started again, up to finding that nothing is left."""
    config, subject, directory = settings(layers, stopped=True), subject_of(layers), RunDirectory(path)
    started = time.perf_counter()
    plan = make_plan(config, subject)
    directory.write_frame(directory.trials, plan.frame())
    if directory.clean():
        raise RuntimeError("a part is damaged")
    rounds = resumed_rounds(config, plan, directory)
    if rounds.tasks():
        raise RuntimeError("the sweep was not finished")
    return {"resume_s": time.perf_counter() - started, "resume_rss_mb": peak_mb()}


def efficiency(path: Path, cluster: ClusterConfig) -> float:
    """Ideal over actual time of trials that sleep."""
    config, subject = settings(2, stopped=False), subject_of(2)
    directory = RunDirectory(path)
    directory.create(directory.records)
    plan = make_plan(config, subject)
    seconds = run_pool(resumed_rounds(config, plan, directory), plan, directory, cluster, SECONDS_PER_TRIAL)
    return len(plan) * SECONDS_PER_TRIAL / cluster.workers / seconds


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def figures(trials: int, nodes: int, sleepers: int) -> dict[str, Any]:
    layers = max(1, round(trials / PER_LAYER))
    with tempfile.TemporaryDirectory() as folder:
        with simulated_cluster(nodes, sleepers) as cluster:
            found = orchestrate(Path(folder) / "run", layers, cluster)
            efficient = efficiency(Path(folder) / "sleep", cluster)
        command = [sys.executable, "-m", "benchmarks.orchestration", "--resume", f"{folder}/run", "--trials"]
        done = subprocess.run([*command, str(trials)], stdout=subprocess.PIPE, text=True, check=True)
    again = json.loads(done.stdout)
    spent = found["plan_s"] + found["run_s"] + again["resume_s"]
    return {
        "trials": int(found["trials"]),
        "nodes": nodes,
        "plan_s": round(found["plan_s"], 2),
        "run_s": round(found["run_s"], 1),
        "per_trial_ms": round(1000 * spent / found["trials"], 3),
        "resume_s": round(again["resume_s"], 1),
        "driver_rss_mb": round(max(found["driver_rss_mb"], again["resume_rss_mb"])),
        f"efficiency_{sleepers}": round(efficient, 3),
    }


def worst(each: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """Of every figure the worse one, and under ``by_nodes`` those of each number of nodes."""
    names = [name for name in next(iter(each.values())) if name != "nodes"]
    values = {name: [found[name] for found in each.values()] for name in names}
    chosen = {name: min(v) if name.startswith("efficiency") else max(v) for name, v in values.items()}
    return chosen | {"by_nodes": {str(nodes): dict(found) for nodes, found in each.items()}}


def measured(trials: int, nodes: int, sleepers: int) -> dict[str, float]:
    """The figures on so many nodes, from a process whose memory is of that alone."""
    command = [sys.executable, "-m", "benchmarks.orchestration", "--json", "--trials", str(trials)]
    command += ["--nodes", str(nodes), "--sleepers", str(sleepers)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--trials", type=int, default=100_000, help=f"rounded to {PER_LAYER} a layer")
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 8], help="simulated; 2 8 measures twice")
    parser.add_argument("--sleepers", type=int, default=8, help="workers, over all nodes")
    parser.add_argument("--resume", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if arguments.resume:
        print(json.dumps(resume(arguments.resume, max(1, round(arguments.trials / PER_LAYER)))))
        return
    trials, nodes, sleepers = arguments.trials, arguments.nodes, arguments.sleepers
    if len(nodes) == 1:
        found = figures(trials, nodes[0], sleepers)
    else:
        found = worst({count: measured(trials, count, sleepers) for count in nodes})
    print(json.dumps(found) if arguments.json else "\n".join(f"{key}: {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
