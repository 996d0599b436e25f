"""Ray on this machine, out of reach of any other, or on a cluster that runs."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sweeps.config import MIXED, ClusterConfig, ConfigError
from sweeps.records import GaveOut

_CONNECT_SECONDS = 10.0
_OBJECT_STORE_BYTES = 128 * 2**20  # only leases and their outcomes travel
CLIENT = "ray://"
"""How addresses of clusters begin that this machine is not part of."""


def resolve_device(wanted: str, *, elsewhere: bool = False) -> str:
    """``auto`` is the GPU where there is one.

    Args:
        elsewhere: the workers run on other machines; this one takes its GPU if it has one, and the CPU if not.
    """
    if wanted in ("auto", MIXED) or (elsewhere and wanted == "cuda"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("cluster.device: cuda was asked for, and this machine has no usable GPU; valid: auto, cpu")
    return wanted


def connect(cluster: ClusterConfig) -> None:
    """Start Ray on this machine, out of reach of any other, or join the named cluster.

    Raises:
        ConfigError: there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    with _own_signals():
        if cluster.name == "local":
            _start_local(cluster, quiet)
        else:
            _join(cluster, quiet)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's handlers: Ray's own, which it installs when it starts, abort a driver that gets SIGTERM."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # one that was not installed from Python cannot be named
                    signal.signal(number, handler)


def _join(cluster: ClusterConfig, quiet: dict[str, Any]) -> None:
    import ray

    address = cluster.address or "auto"
    try:
        _require_listener(address)
        ray.init(address=address, runtime_env=_code() if cluster.ship_code else None, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"cluster.address: no Ray cluster at {address!r} ({reason})") from error


def _code() -> dict[str, Any]:
    """This checkout's packages, for workers on machines that have others or none; weights travel by another way.

    The configuration goes along as values: only the driver reads conf/.
    """
    here = Path(__file__).resolve().parents[2]
    return {"py_modules": [str(here / package) for package in ("circuits", "sweeps")], "excludes": ["__pycache__"]}


def _require_listener(address: str) -> None:
    """Fail at once where nothing listens: Ray itself asks a cluster that is gone again and again, for minutes.

    Raises:
        OSError: nothing listens there, or ``auto`` finds no cluster.
    """
    from ray._private.services import canonicalize_bootstrap_address

    client = address.startswith(CLIENT)
    if "://" in address and not client:
        raise ValueError(f"expected auto, host:port or {CLIENT}host:port")
    found = address.removeprefix(CLIENT) if client else canonicalize_bootstrap_address(address)
    if found is None:
        raise ConnectionError("no cluster was started on this machine, and RAY_ADDRESS is not set")
    host, _, port = found.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"expected auto, host:port or {CLIENT}host:port")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS):
        pass


def _start_local(cluster: ClusterConfig, quiet: dict[str, Any]) -> None:
    """A Ray of our own, which listens on the loopback only.

    Ray listens on the address it takes for this machine's, and turns a loopback address that it is given into that one.
    Told that it is not to form clusters (its default on Windows and macOS), it takes the loopback for it.

    Raises:
        ConfigError: a worker is to have more GPUs than there are.
        GaveOut: it does not start.
    """
    gpus = torch.cuda.device_count() if resolve_device(cluster.device) == "cuda" else None
    if gpus is not None and cluster.gpus_per_worker != "auto" and float(cluster.gpus_per_worker) > gpus:
        raise ConfigError(f"cluster.gpus_per_worker: this machine has {gpus} GPUs, got {cluster.gpus_per_worker:g}")
    # A secret of this process: the default is a file in the home directory, which Ray leaves readable by all.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray
    import ray._raylet
    from ray._private import ray_constants

    # Ray reads its secret once; a cluster looked for earlier in this process may have made it find another, or none.
    raylet: Any = ray._raylet  # compiled, without types
    raylet.Config.initialize("")
    if hasattr(raylet, "AuthenticationTokenLoader"):
        raylet.AuthenticationTokenLoader.instance().reset_cache()
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for the processes that Ray starts
    try:
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, cluster.workers * cluster.cpus_per_worker),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **quiet,
        )
    except Exception as error:  # Ray raises bare ones, where a busy machine takes longer than it waits, say
        raise GaveOut(f"Ray does not start on this machine ({str(error).strip().split('.')[0]})") from error
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        del os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR]


def disconnect() -> None:
    import ray

    ray.shutdown()
