"""How a process ends that is told its machine is about to go: after its lease, and in time whatever the lease does."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from sweeps import drain
from tests.sweeps.tiny import ROOT, environment

PATIENCE = 300
CODE = """
import os, signal, sys, time
from sweeps import drain
worker = drain.Drain()
def told():
    os.kill(os.getpid(), signal.SIGTERM)
"""


def ended(code: str) -> tuple[int, list[str]]:
    run = subprocess.run(
        [sys.executable, "-c", CODE + code], env=environment(), capture_output=True, text=True, timeout=PATIENCE
    )
    return run.returncode, run.stdout.splitlines()


def test_a_lease_that_takes_too_long_is_left() -> None:
    """It would take a quarter of an hour; the process is given a second."""
    code = (
        "drain.DRAIN_SECONDS = 1 + drain._TO_SPARE\nworker.admit()\nprint('begun', flush=True)\n"
        "told()\ntime.sleep(900)\nprint('done', flush=True)"
    )
    assert ended(code) == (0, ["begun"])


def test_the_lease_at_hand_is_finished_and_no_other_begun() -> None:
    code = (
        "worker.admit()\ntold()\nprint('done', worker.told)\n"
        "try:\n    worker.admit()\nexcept drain.Draining as error:\n    print(error)"
    )
    assert ended(code) == (0, ["done True", "its machine is about to go"])


@pytest.mark.parametrize("name", ["kuberay-cluster.yaml", "kuberay-job.yaml"])
def test_that_is_sooner_than_a_machine_goes(name: str) -> None:
    """20 s, where pods are given more and notices of spot machines leave 30 s or two minutes."""
    assert drain.DRAIN_SECONDS == 20
    (ray,) = (m for m in yaml.safe_load_all((ROOT / "deploy" / name).read_text()) if m["kind"].startswith("Ray"))
    cluster = ray["spec"].get("rayClusterSpec", ray["spec"])
    for group in cluster["workerGroupSpecs"]:
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > drain.DRAIN_SECONDS
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    assert int(compose["services"]["worker"]["stop_grace_period"].removesuffix("s")) > drain.DRAIN_SECONDS
