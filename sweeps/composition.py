"""From what Hydra composed to the typed configuration: names, types and values checked, with one line for the user.

``hydra`` and ``omegaconf`` are known here, in ``config`` and in ``launch.py`` only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from circuits.naming import nearest
from circuits.training_settings import training_problem
from circuits.vocabulary import PROMPTS, SOURCE_NAMES
from sweeps.config import (
    CHOICES,
    CORRECTIONS,
    LISTS,
    METRICS,
    MIXED,
    NEED_ROOT,
    Config,
    ConfigError,
    DataConfig,
    StatsConfig,
    as_list,
    as_plain,
    source_specs,
)
from sweeps.logins import has_login
from sweeps.profile_config import profile_problem
from sweeps.search_config import search_problem
from sweeps.settings import settings
from sweeps.uris import is_uri, uri_problem

_NEEDS = {
    "sweep.images": "a number of images",
    "data.root": "a folder of images",
    "model.path": "a diffusers folder or a hub id (owner/name)",
    "run.a": "a run directory, or its name under run.root",
    "run.b": "a run directory, or its name under run.root",
}
_PLAIN_NAME = re.compile(r"[^/\\\x00-\x1f]{1,200}")


def register() -> None:
    """Give Hydra the schema, so that a mistyped key or value is refused when the configuration is composed."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)


def config_folder() -> Path:
    """conf/ beside launch.py in a checkout, inside the ``sweeps`` package in an installed copy."""
    here = Path(__file__).resolve().parent
    checkout = here.parent / "conf"
    return checkout if (checkout / "config.yaml").is_file() else here / "conf"


def typed(composed: DictConfig) -> Config:
    """The composed configuration as dataclasses, checked as far as it can be without loading anything.

    Raises:
        ConfigError: one line that names what was expected and the nearest valid choice.
    """
    known = schema_keys()
    for key in _keys_of(composed):
        if key not in known:
            raise ConfigError(f"unknown key {key!r}{nearest_key(key)}")
    for key in sorted(str(k) for k in OmegaConf.missing_keys(composed)):
        raise _nothing_given(key)
    for key, text in _texts(OmegaConf.to_container(composed, resolve=False)):
        if re.search(r"\$\{[^}]*:", text):  # a secret of the environment would be written to config.yaml
            raise ConfigError(f"{key}: expected a value or a reference as ${{sweep.seed}}; {text!r} calls a function")
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'settings'!s}: {str(error).strip().splitlines()[0]}") from error
    assert isinstance(config, Config)
    _check(config)
    for key, text in _texts(as_plain(config)):
        if has_login(text):
            raise ConfigError(f"{key}: expected an address without a login, which would be written to config.yaml")
    return config


def _texts(node: Any, key: str = "") -> Iterable[tuple[str, str]]:
    """Every text of a configuration, with its key."""
    if isinstance(node, str):
        yield key, node
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in items:
        yield from _texts(child, f"{key}.{name}" if key else str(name))


def _nothing_given(key: str, expected: str | None = None) -> ConfigError:
    return ConfigError(f"{key}: nothing given; expected {expected or _NEEDS.get(key, 'a value')}, {key}=...")


def schema_keys() -> list[str]:
    """Every key of the configuration, dotted."""
    return [setting.key for setting in settings()]


def nearest_key(key: str) -> str:
    """``"; did you mean 'sweep.images'?"`` where there is a key like it: among its neighbours first, then anywhere."""
    keys = schema_keys()
    parent = key.rpartition(".")[0]
    for candidates in ([k for k in keys if k.rpartition(".")[0] == parent], keys):
        close = nearest(key, candidates).partition(" valid:")[0]
        if close != ";":
            return close
    return f"; valid: {', '.join(k for k in keys if '.' not in k)}"


def _keys_of(node: DictConfig, prefix: str = "") -> Iterable[str]:
    for name in map(str, node):
        yield f"{prefix}{name}"
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not (child._is_none() or child._is_missing() or child._is_interpolation()):
            yield from _keys_of(child, f"{prefix}{name}.")


def _check(config: Config) -> None:
    sweep, cluster, stats = config.sweep, config.cluster, config.stats
    for key, valid in CHOICES.items():
        one_of(key, attrgetter(key)(config), valid)
    for key, given in (("run.a", config.run.a), ("run.b", config.run.b)):
        if config.mode == "compare" and not given:
            raise _nothing_given(key)
    for key, valid in LISTS.items():
        chosen = as_list(attrgetter(key)(config), key)
        if not chosen and key != "stats.families":
            raise ConfigError(f"{key}: nothing chosen{nearest('', valid)}")
        for value in chosen:
            one_of(key, value, valid)
    if sweep.kind == "search" and sweep.images is None:
        raise _nothing_given("sweep.images")
    if sweep.kind == "search" and "://" in (cluster.address or ""):  # Tune would run away from the driver's ledger
        raise ConfigError(f"cluster.address: sweep=search expected auto or host:port, got {cluster.address}")
    protocols = as_list(sweep.protocols, "sweep.protocols")
    training = config.model.training
    for problem in (
        profile_problem(sweep.profile, sweep.kind, protocols),
        search_problem(sweep.search),
        training_problem(training) if training else None,
    ):
        if problem:
            raise ConfigError(problem)
    _check_stopping(stats)
    one_of("cluster", cluster.name, ("inline", "local", "ray"))
    if cluster.device == MIXED:
        _check_mixed(config)
    one_of("tracker", config.tracker.name, ("wandb", "none"))
    tested = [metric for protocol in as_list(sweep.protocols, "sweep.protocols") for metric in METRICS[protocol]]
    if stats.metric not in tested:
        raise ConfigError(
            f"stats.metric: {stats.metric!r} is not measured by sweep.protocols={sweep.protocols}"
            f"{nearest(stats.metric, tested)}"
        )
    if not config.model.path:
        raise _nothing_given("model.path")
    _check_sources(config.data)
    for name, number, least in (
        ("sweep.images", sweep.images if sweep.images is not None else 2, 2),
        ("model.size", config.model.size if config.model.size is not None else 1, 1),
        ("model.guidance", config.model.guidance if config.model.guidance is not None else 1, 1),
        ("sweep.controls", sweep.controls, 0),
        ("sweep.control_images", sweep.control_images, 2),
        ("stats.n_max", stats.n_max, 2),
        ("stats.first", stats.first, 2),
        ("stats.batch", stats.batch, 1),
        ("sweep.samples", sweep.samples, 0),
        ("sweep.steps", sweep.steps, 1),
        ("sweep.seed", sweep.seed, 0),
        ("run.rows", config.run.rows, 0),
        ("cluster.workers", cluster.workers, 0),
        ("cluster.cpus_per_worker", cluster.cpus_per_worker, 1),
        ("tracker.max_trial_runs", config.tracker.max_trial_runs, 0),
        ("cluster.price_per_hour", cluster.price_per_hour or 0.0, 0),
        ("run.report_every", config.run.report_every, 0),
    ):
        if not least <= number < float("inf"):
            raise ConfigError(f"{name}: expected at least {least}, got {number}")
    strengths = [("sweep.search.strengths", s) for s in as_list(sweep.search.strengths, "sweep.search.strengths")]
    if not strengths:
        raise ConfigError("sweep.search.strengths: nothing chosen; expected numbers above 0 and at most 1")
    for name, share in (("sweep.strength", sweep.strength), ("stats.margin", stats.margin), *strengths):
        if not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise ConfigError(f"{name}: expected a number above 0 and at most 1, got {share}")
    if not 0 <= sweep.scale < float("inf"):
        raise ConfigError(f"sweep.scale: expected a finite number, 0 or more, got {sweep.scale}")
    if not 0 < stats.alpha < 1:
        raise ConfigError(f"stats.alpha: expected a number between 0 and 1, both excluded, got {stats.alpha}")
    share = cluster.gpus_per_worker
    if share != "auto" and (isinstance(share, bool) or not isinstance(share, (int, float))):
        raise ConfigError(f"cluster.gpus_per_worker: expected auto or a number above 0, got {share}")
    for name, amount in (
        ("cluster.gpus_per_worker", 1.0 if share == "auto" else float(share)),
        ("cluster.lease_seconds", cluster.lease_seconds),
        ("cluster.lease_timeout", cluster.lease_timeout),
    ):
        if not 0 < amount < float("inf"):
            raise ConfigError(f"{name}: expected a number above 0, got {amount}")
    for key, place in (("run.root", config.run.root), ("run.a", config.run.a), ("run.b", config.run.b)):
        problem = uri_problem(key, place) if place and is_uri(place) else None
        if problem:
            raise ConfigError(problem)
    plain_name("sweep.name", sweep.name)
    if config.run.name is not None:
        plain_name("run.name", config.run.name)


def _check_mixed(config: Config) -> None:
    """Trials are measured on whatever device is free, so all devices must give the same numbers."""
    for key, given, needed in (
        ("cluster", config.cluster.name, "ray"),
        ("model.dtype", config.model.dtype, "float32"),
        ("sweep.kind", config.sweep.kind, "grid"),
    ):
        if given != needed:
            raise ConfigError(f"{key}: cluster.device=mixed expected {needed}, got {given}; or take auto, cpu or cuda")


def _check_stopping(stats: StatsConfig) -> None:
    if stats.correction is not None and stats.statistic != "none":
        one_of("stats.correction", stats.correction, CORRECTIONS[stats.statistic])
    if not 0 <= stats.clear < float("inf"):
        raise ConfigError(f"stats.clear: expected a share of the margin, 0 or more, got {stats.clear}")
    if stats.futility is not None and not 0 < stats.futility < 1:
        raise ConfigError(f"stats.futility: expected null or a number between 0 and 1, got {stats.futility}")


def _check_sources(data: DataConfig) -> None:
    for spec in data.sets:
        one_of(f"data.sets.{spec.name}.source", spec.source, (*SOURCE_NAMES, PROMPTS))
    names = [s.name for s in data.sets]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"data.sets: expected data sets with different names, got {names}")
    for found in source_specs(data):
        if found.source in NEED_ROOT and not (found.root or found.prompts):
            expected = "a text file of prompts, or data.prompts=[...]" if found.source == PROMPTS else None
            raise _nothing_given("data.root", expected)


def plain_name(key: str, name: str) -> None:
    """A folder name that cannot lead out of ``run.root``."""
    if not _PLAIN_NAME.fullmatch(name) or name in {".", ".."}:
        raise ConfigError(f"{key}: expected a plain folder name, got {name!r}; choose where runs lie with run.root")


def one_of(key: str, value: Any, valid: Any) -> None:
    if value not in list(valid):
        raise ConfigError(f"{key}: unknown {value!r}{nearest(value, valid)}")
