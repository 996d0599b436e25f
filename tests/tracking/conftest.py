"""No login, no W&B setting and no home directory of whoever runs the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.tracking.runs import make_run


@pytest.fixture(autouse=True)
def _no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs" / "smoke-tiny-01234567")


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, what a test expects to be written during the sweep is."""
    monkeypatch.setattr("sweeps.tracking.tracker.AT_FIRST", 1e6)
