"""The stage of a sweep that profiles heads: block by block, each on disk before the next, so that little is ever lost.

It runs in the driver's process, on its device: a profile is one plain forward an image and timestep, which is little
beside a grid of ablations. The types that come of it say which sets of heads are ablated, so their trials join the plan
when the last block is there.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import Progress

from circuits.attention_types import TYPES, AssignedTypes
from circuits.circuit_sizes import nested_circuits
from circuits.complexity import head_complexity
from circuits.engine import Engine
from circuits.head_maps import head_maps
from circuits.interventions import Mode
from circuits.probes import synthetic_part_masks
from circuits.profiles import profile_heads
from circuits.sites import all_heads
from sweeps.config import Config, ConfigError
from sweeps.head_sets import type_trials, types_of
from sweeps.map_table import map_table
from sweeps.plan import Plan, Subject
from sweeps.profile_config import FEWEST_IMAGES
from sweeps.profiles import RANK, ProfileStore
from sweeps.progress import say
from sweeps.records import GaveOut, RunDirectory, RunDirectoryError

MAP_TIMESTEPS = 4
_ROWS = 32  # of a forward, where run.rows does not say
_OURS = (GaveOut, ConfigError, RunDirectoryError)


@dataclass(frozen=True)
class Profiled:
    """The plan with the trials that profiles ask for; the one given, where profiling was interrupted."""

    plan: Plan
    interrupted: bool


def check_profiles(config: Config, subject: Subject) -> None:
    """Refuse what cannot be profiled, before any work.

    Raises:
        ConfigError: too few images, or a model with a single head.
    """
    if not config.sweep.profile.images:
        return
    for name, data in subject.data.items():
        if len(data.measured) < FEWEST_IMAGES:
            raise ConfigError(
                f"sweep.profile.images: expected at least {FEWEST_IMAGES} images of data set {name!r} to profile heads "
                f"on two halves of, got {len(data.measured)}"
            )
    if sum(layer.heads for layer in subject.layers) < 2:
        raise ConfigError(f"sweep.profile.images: {subject.denoiser.name} has a single head, expected at least 2")


def run_profiles(
    config: Config, subject: Subject, plan: Plan, directory: RunDirectory, console: Console, stop: threading.Event
) -> Profiled:
    """Profile what is not profiled yet, and write trials.parquet with the sets of heads to ablate.

    Raises:
        GaveOut: a block cannot be profiled; those before it are kept.
    """
    store = ProfileStore(directory)
    directory.create(store.folder)
    store.clean()
    blocks = Blocks(config, subject, store)
    blocks.write_plan()
    waiting = list(blocks.waiting())
    if waiting:
        started = time.monotonic()
        say(console, f"Profiling {len(all_heads(subject.layers))} heads: {len(waiting)} blocks of images to look at")
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("profiling", total=len(waiting))
            for name, measure in waiting:
                if stop.is_set():
                    return Profiled(plan, interrupted=True)
                with said(name):
                    measure()
                bar.advance(task)
        record(directory, time.monotonic() - started)
    full = with_types(config, subject, plan, store, write=True)
    directory.write_frame(directory.trials, full.frame())
    return Profiled(full, interrupted=False)


def profiled_plan(config: Config, subject: Subject, plan: Plan, directory: RunDirectory) -> Plan:
    """The plan with the sets of heads, where a run directory holds all profiles already; writes nothing."""
    return with_types(config, subject, plan, ProfileStore(directory), write=False)


def with_types(config: Config, subject: Subject, plan: Plan, store: ProfileStore, *, write: bool) -> Plan:
    """Trials of the grid, then those of the sets; with ``write`` also the tables that say which set is whose, and
    maps of some heads."""
    stored = store.read()
    if stored is None:
        return plan
    types = types_of(stored.heads)
    trials, sets = type_trials(config, subject, stored.heads, types)
    if write:
        store.write_frame(store.sets, sets)
        if not store.has_frame(store.maps) and config.sweep.profile.map_heads:
            with said("maps of attention"):
                store.write_frame(store.maps, maps(config, subject, types))
    known = {trial.trial_id for trial in plan.trials}
    return replace(plan, trials=(*plan.trials, *(t for name, t in trials.items() if name not in known)))


def profile_rows(config: Config, subject: Subject) -> int:
    """Rows (one image through the network once) of profiles, circuits, and the sets of all types, at most."""
    profile, steps, heads = config.sweep.profile, config.sweep.steps, len(all_heads(subject.layers))
    rows = 0
    for data in subject.data.values() if profile.images else ():
        most = len(data.measured)
        rows += min(profile.images, most) * steps * (2 if profile.complexity else 1)
        rows += 2 * (heads + 1) * min(profile.circuit_images, most // 2) if profile.complexity else 0
        rows += len(TYPES) * (1 + profile.matched) * min(profile.type_images, most)
    return rows


class Blocks:
    """What is to be measured: heads by data set and timestep, then circuits by data set."""

    def __init__(self, config: Config, subject: Subject, store: ProfileStore) -> None:
        self._config, self._subject, self._store = config, subject, store
        self._timesteps = subject.denoiser.timesteps(config.sweep.steps)
        self._masks: dict[str, torch.Tensor] = {}
        self._engine: Engine | None = None

    def write_plan(self) -> None:
        complexity = self._config.sweep.profile.complexity
        self._store.write_plan(self._subject.layers, list(self._subject.data), self._timesteps, complexity)

    def waiting(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Blocks that are not on disk: a name for people, and what measures and stores it."""
        for dataset in self._subject.data:
            for t in self._timesteps:
                if not self._store.has_part(dataset, t):
                    yield f"data set {dataset!r} at t={t}", functools.partial(self._heads, dataset, t)
        for dataset in self._subject.data if self._config.sweep.profile.complexity else ():
            if not self._store.has_circuits(dataset):
                yield f"circuits of data set {dataset!r}", functools.partial(self._circuits, dataset)

    def _heads(self, dataset: str, t: int) -> None:
        config, denoiser = self._config, self._subject.denoiser
        data = {dataset: self._subject.data[dataset]}
        images = min(config.sweep.profile.images, len(data[dataset].measured)) // 2 * 2
        settings: dict[str, int] = {
            "images": images, "seed": config.sweep.seed, "rows": max(2, config.run.rows or _ROWS),
        }  # fmt: skip
        found = profile_heads(
            denoiser, data, self._subject.layers, timesteps=[t], parts=self._parts(dataset), **settings
        )
        values = {name: measured[:, 0] for name, measured in found.values[dataset].items()}
        if config.sweep.profile.complexity:
            complexity = head_complexity(denoiser, data, self._subject.layers, timesteps=[t], **settings)
            values[RANK] = complexity.effective_rank[dataset][:, 0]
        self._store.write_part(dataset, t, values)

    def _parts(self, dataset: str) -> Mapping[str, torch.Tensor] | None:
        """Masks of parts where they are known; drawn once, since faces are drawn again for them."""
        if dataset not in self._masks:
            masks = synthetic_part_masks(self._subject.data[dataset].measured)
            if masks is None:
                return None
            self._masks[dataset] = masks
        return {dataset: self._masks[dataset]}

    def _circuits(self, dataset: str) -> None:
        config, subject = self._config, self._subject
        if self._engine is None:
            self._engine = Engine(
                subject.denoiser, subject.layers, subject.data,
                steps=config.sweep.steps, seed=config.sweep.seed, rows=config.run.rows,
            )  # fmt: skip
        images = min(2 * config.sweep.profile.circuit_images, len(subject.data[dataset].measured))
        found = nested_circuits(self._engine, dataset, images, Mode(config.sweep.profile.mode), config.stats.metric)
        self._store.write_circuits(dataset, found)


def maps(config: Config, subject: Subject, types: Mapping[str, AssignedTypes]) -> pd.DataFrame:
    """The attention of some heads on the first image of every data set, early to late."""
    heads = all_heads(subject.layers)
    timesteps = subject.denoiser.timesteps(config.sweep.steps)
    chosen = [timesteps[i] for i in np.unique(np.linspace(0, len(timesteps) - 1, MAP_TIMESTEPS).round().astype(int))]
    tables = []
    for dataset, found in types.items():
        shown = heads_to_show(found, config.sweep.profile.map_heads)
        drawn = head_maps(
            subject.denoiser, subject.data[dataset], [heads[i] for i in shown], chosen, seed=config.sweep.seed
        )
        names = {heads[i]: found.names[i] for i in shown}
        tables.append(map_table(dataset, subject.denoiser, subject.data[dataset], drawn, names))
    return pd.concat(tables, ignore_index=True)


def heads_to_show(types: AssignedTypes, count: int) -> list[int]:
    """Heads with the highest score of each type in turn, those that have the type first; in the order of the model."""
    best = np.argsort(-types.scores, axis=0, kind="stable")
    order = sorted(range(len(TYPES)), key=lambda code: not (types.type == code).any())
    ranked = [int(best[place, code]) for place in range(len(types.type)) for code in order]
    return sorted(list(dict.fromkeys(ranked))[:count])


@contextmanager
def said(block: str) -> Iterator[None]:
    """One line for whatever goes wrong with a block."""
    try:
        yield
    except _OURS:
        raise
    except Exception as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        raise GaveOut(f"profiling stopped at {block} ({type(error).__name__}: {line})") from error


def record(directory: RunDirectory, seconds: float) -> None:
    """In run.json: what profiling took."""
    before = directory.read_run()
    directory.write_run(
        {
            "seconds": round(before.get("seconds", 0) + seconds, 1),
            "profiling_seconds": round(before.get("profiling_seconds", 0) + seconds, 1),
        }
    )
