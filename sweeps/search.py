"""The adaptive search on Ray Tune: a Tune trial a candidate, ASHA over the images, workers that keep the model."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper
from rich.console import Console

from sweeps.adaptive import Search
from sweeps.candidates import Candidate
from sweeps.config import Config
from sweeps.records import GaveOut, RunDirectory
from sweeps.run import RunnerSpec
from sweeps.schedule.workers import start_workers

MAX_FAILURES = 3
TRIAL_CPUS = 0.01  # of a worker's share: a Tune trial only waits for its worker
_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the driver's own handler stops the search
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a candidate that cannot be measured reports nothing
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # Tune's own state is not used: the ledger is
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the older output is the one that verbose=0 silences
}


def search_on_tune(
    search: Search, spec: RunnerSpec, directory: RunDirectory, console: Console, stop: threading.Event
) -> None:
    """Search to the end, or until ``stop``, on a Ray that is connected.

    Raises:
        GaveOut: no worker comes up.
    """
    os.environ.update(_TUNE_ENVIRONMENT)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    config = search.config
    scratch = directory.path / "tune"
    workers = start_workers(config.cluster, spec, _worker_class(), config, spare_cpus=TRIAL_CPUS, retries=1)
    try:
        ray.get([worker.ping.options(max_task_retries=0).remote() for worker in workers])
    except ray.exceptions.RayError as error:
        raise GaveOut(f"no worker stays alive: {str(error).strip().splitlines()[-1]}") from error
    try:
        climb = tune.with_parameters(_climb(search.rungs, config.cluster.lease_timeout), workers=workers)
        tune.Tuner(
            tune.with_resources(climb, {"cpu": TRIAL_CPUS}),
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                search_alg=_Proposals(search, len(workers), console, stop),
                scheduler=AsyncHyperBandScheduler(
                    time_attr="images",
                    grace_period=search.rungs[0],
                    max_t=search.rungs[-1],
                    reduction_factor=config.sweep.search.reduction,
                ),
                num_samples=search.evolution.total,
                max_concurrent_trials=len(workers),
                reuse_actors=False,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(scratch),
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                stop=_StopAll(stop),
                verbose=0,
            ),
        ).fit()
        console.print(search.said(), highlight=False, soft_wrap=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _worker_class() -> type:
    """The actor that keeps a `CandidateRunner`.

    A local class, because Ray sends those by value: with a module's class every Tune trial, which holds a handle to its
    worker, would import that module, and with it torch, which takes longer than a rung.
    """

    class CandidateWorker:
        def __init__(self, spec: RunnerSpec, config: Config) -> None:
            from sweeps.rungs import CandidateRunner

            self._runner = CandidateRunner(spec, config)

        def ping(self) -> bool:
            return True

        def measure(self, candidate: dict[str, Any], images: int) -> dict[str, float] | None:
            return self._runner.measure(candidate, images)

    return CandidateWorker


def _climb(steps: tuple[int, ...], patience: float) -> Any:
    """The function of a Tune trial: one rung after another, until ASHA ends it.

    A closure, for the same reason as the worker's class.
    """

    def climb(config: dict[str, Any], workers: list[Any]) -> None:
        worker = workers[config["worker"]]
        for images in steps:
            try:
                found = ray.get(worker.measure.remote(config["candidate"], images), timeout=patience)
            except ray.exceptions.GetTimeoutError:
                ray.kill(worker, no_restart=False)
                raise
            if found is None:
                return
            tune.report(found)

    return climb


class _Proposals(Searcher):
    """Hands the candidates of `Evolution` to Tune, each with a worker that is free."""

    def __init__(self, search: Search, workers: int, console: Console, stop: threading.Event) -> None:
        super().__init__(metric="score", mode="max")
        self._search = search
        self._free = list(range(workers))
        self._console = console
        self._stop = stop
        self._waiting: list[Candidate] = []
        self._running: dict[str, tuple[Candidate, int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its settings for Tuner.restore, which is never used

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the state."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        evolution = self._search.evolution
        if not self._waiting and not evolution.waiting:
            if evolution.proposed:
                self._console.print(self._search.said(), highlight=False, soft_wrap=True)
            self._waiting = self._search.propose()
            if not self._waiting:
                return Searcher.FINISHED
        if not self._waiting or not self._free:
            return None
        candidate, worker = self._waiting.pop(0), self._free.pop(0)
        self._running[trial_id] = candidate, worker
        return {"candidate": candidate.plain(), "worker": worker}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        candidate, _ = self._running[trial_id]
        if "score" in result:
            images = int(result["images"])
            if images not in self._search.scores.get(candidate, {}):
                self._search.rows += int(result["rows"])
            self._search.learn(candidate, images, float(result["score"]))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id not in self._running:
            return
        if result:
            self.on_trial_result(trial_id, result)
        candidate, worker = self._running.pop(trial_id)
        self._free.append(worker)
        if candidate not in self._search.scores and not self._stop.is_set():
            self._search.give_up(candidate)


class _StopAll(Stopper):
    """Ends the search when the driver was told to stop."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._stop.is_set()
