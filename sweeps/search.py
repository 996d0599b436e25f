"""The adaptive search on Ray Tune: a Tune trial a candidate, ASHA over the images, workers that keep the model."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable
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
from sweeps.rungs import known_scores
from sweeps.schedule.luggage import at_the_driver, packed
from sweeps.schedule.workers import last_line, start_workers
from sweeps.travel import Luggage, Mailbox, deliver

MAX_FAILURES = 3
_OF_THE_DRIVERS_NODE = 0.001  # that a Tune trial takes: it only waits for its worker
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
    mailbox = at_the_driver(Mailbox, config.cluster)
    known = known_scores(directory, config.stats.metric)
    arguments = (config, packed(config.cluster, spec), known, mailbox)
    workers = start_workers(config.cluster, spec, _worker_class(), *arguments, retries=1)
    try:
        ray.get([worker.ping.options(max_task_retries=0).remote() for worker in workers])
    except ray.exceptions.RayError as error:
        raise GaveOut(f"no worker stays alive: {last_line(error)}") from error

    def received() -> None:
        deliver(ray.get(mailbox.take.remote()), directory.path)

    try:
        climb = tune.with_parameters(_climb(search.rungs, config.cluster.lease_timeout), workers=workers)
        tune.Tuner(
            tune.with_resources(climb, _beside_the_driver()),
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                search_alg=_Proposals(search, len(workers), console, stop, received),
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
        received()
        console.print(search.said(), highlight=False, soft_wrap=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _beside_the_driver() -> dict[str, float]:
    """Where Tune trials run: they write into a folder of Tune's, which the machines of a cluster need not share."""
    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == here)
    (name,) = (name for name in node["Resources"] if name.startswith("node:") and name != "node:__internal_head__")
    return {"cpu": 0, name: _OF_THE_DRIVERS_NODE}


def _worker_class() -> type:
    """The actor that keeps a `CandidateRunner`.

    A local class, because Ray sends those by value: with a module's class every Tune trial, which holds a handle to its
    worker, would import that module, and with it torch, which takes longer than a rung.
    """

    class CandidateWorker:
        def __init__(
            self, spec: RunnerSpec, config: Config, luggage: Luggage | None, known: dict[str, float], mailbox: Any
        ) -> None:
            from sweeps.rungs import CandidateRunner
            from sweeps.schedule.luggage import arrived

            spec, self._away = arrived(spec, luggage)
            self._mailbox = mailbox
            self._runner = CandidateRunner(spec, config, known=known)

        def ping(self) -> bool:
            return True

        def measure(self, candidate: dict[str, Any], images: int) -> dict[str, float] | None:
            found = self._runner.measure(candidate, images)
            if self._away is not None:  # what the driver is told of lies in its mailbox already
                from sweeps.travel import take_files

                ray.get(self._mailbox.leave.remote(take_files(self._away)))
            return found

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
    """Hands the candidates of `Evolution` to Tune, each with a worker that is free.

    Args:
        received: publishes what workers have sent back.
    """

    def __init__(
        self,
        search: Search,
        workers: int,
        console: Console,
        stop: threading.Event,
        received: Callable[[], None],
    ) -> None:
        super().__init__(metric="score", mode="max")
        self._search = search
        self._free = list(range(workers))
        self._console = console
        self._stop = stop
        self._received = received
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
        self._received()
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
