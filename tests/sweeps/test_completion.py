"""Tab completion, asked as the shell asks for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.completion import FLAGS, candidates, install
from sweeps.config import LISTS, RUN_MODES
from sweeps.settings import settings
from tests.sweeps.conftest import Said
from tests.sweeps.tiny import ROOT, environment


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("sw", ["sweep=", "sweep."]),
        ("m", ["model=", "mode=", "model."]),
        ("sweep=", ["sweep=full_ablation", "sweep=paper", "sweep=search", "sweep=smoke"]),
        ("sweep=s", ["sweep=search", "sweep=smoke"]),
        ("sweep=zzz", []),
        ("mode=t", ["mode=track", "mode=train"]),
        ("sweep.mo", ["sweep.modes="]),
        ("sweep.search.g", ["sweep.search.generation=", "sweep.search.grace_images="]),
        ("sweep.modes=me", ["sweep.modes=mean"]),
        ("sweep.modes=[zero,me", ["sweep.modes=[zero,mean"]),
        ("sweep.modes=[zero,z", []),
        ("'sweep.levels=[head,bl", ["sweep.levels=[head,block"]),
        ("cluster.device=", [f"cluster.device={device}" for device in ("auto", "cpu", "cuda", "mixed")]),
        ("model.channels_last=t", ["model.channels_last=true"]),
        ("sweep.steps=", ["sweep.steps=10"]),
        ("sweep.steps=2", []),
        ("model.name=", []),
        ("zzz=", []),
        ("exp", ["+experiment="]),
        ("+", ["+experiment="]),
        ("+experiment=w", ["+experiment=windows"]),
        ("~sweep.im", ["~sweep.images="]),
        ("model=tiny_faces,", []),
        ("--multirun model=tiny_faces,tiny_", ["model=tiny_faces,tiny_unet"]),
        ("--multirun sweep=smoke,sm", []),
        ("--m", ["--multirun"]),
        ("--cfg ", ["all", "hydra", "job"]),
        ("--cfg j", ["job"]),
    ],
)
def test_what_is_offered(typed: str, offered: list[str]) -> None:
    for program in ("python launch.py", "/usr/bin/python3 ./launch.py", "circuit-sweep"):
        assert candidates(f"{program} {typed}") == offered


def test_every_group_and_every_key_can_be_reached() -> None:
    """One level at a time from nothing: what ends in a dot leads on."""
    reached, open_ends = set(), [""]
    while open_ends:
        for found in candidates(f"python launch.py {open_ends.pop()}"):
            reached.add(found)
            open_ends += [found] if found.endswith(".") else []
    assert reached >= {f"{s.key}." if s.is_group else f"{s.key}=" for s in settings()}
    assert reached >= {"sweep=", "model=", "data=", "cluster=", "tracker=", "stats="}


def test_known_values_are_all_offered() -> None:
    assert candidates("circuit-sweep mode=") == [f"mode={mode}" for mode in RUN_MODES]
    assert candidates("circuit-sweep sweep.modes=[") == [f"sweep.modes=[{mode}" for mode in LISTS["sweep.modes"]]
    assert candidates("circuit-sweep --") == list(FLAGS)


def test_files_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "prompts.txt").touch()
    (tmp_path / ".hidden").touch()
    for run in ("runs/one", "runs/two", "elsewhere/three", "runs/nothing"):
        (tmp_path / run).mkdir(parents=True)
        if run != "runs/nothing":
            (tmp_path / run / "run.json").touch()
    assert candidates("circuit-sweep data.root=p") == ["data.root=pictures/", "data.root=prompts.txt"]
    assert candidates(f"circuit-sweep data.root={tmp_path}/pi") == [f"data.root={tmp_path}/pictures/"]
    assert candidates("circuit-sweep data.root=no/such/f") == []
    assert candidates("circuit-sweep --config-dir p") == ["pictures/", "prompts.txt"]
    assert candidates("circuit-sweep mode=report run.name=") == ["run.name=one", "run.name=two"]
    assert candidates("circuit-sweep run.root=elsewhere run.a=") == ["run.a=three"]
    assert candidates("circuit-sweep run.a=pic") == ["run.a=pictures/"]
    assert candidates("circuit-sweep run.name=pic") == [], "a name is no path"


@pytest.mark.parametrize("flag", ["--config-dir {}", "--config-dir={}", "-cd {}"])
def test_the_users_own_groups_are_offered(flag: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("name: mine\n")
    line = f"python launch.py {flag.format(tmp_path)} model=m"
    assert candidates(line) == ["model=mine"]
    assert candidates("python launch.py --config-dir /no/such/folder model=m") == []


def test_the_shell_gets_one_a_line(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_LINE", "python launch.py sweep=s")
    assert said("-sc", "query=bash") == (0, "", "sweep=search\nsweep=smoke\n")
    monkeypatch.setenv("COMP_LINE", "python launch.py zzz")
    assert said("-sc", "query=fish") == (0, "", "")
    assert "complete -o nospace -o default -F _circuit_sweep python python3" in said("-sc", "install=bash")[2]
    assert "complete -r python python3" in said("-sc", "uninstall=bash")[2]
    assert install("circuit-sweep").endswith("-F _circuit_sweep circuit-sweep")
    assert "function hydra_fish_completion" in said("-sc", "install=fish")[2]


BASH = """
set -u
eval "$("$PYTHON" launch.py -sc install=bash)"
ask() {
    COMP_LINE="$1" COMP_POINT=${#1} COMPREPLY=()
    _circuit_sweep
    echo "$1 -> ${COMPREPLY[*]-}"
}
complete -p python python3 | grep -c _circuit_sweep
ask "$PYTHON launch.py sweep=sm"
ask "$PYTHON launch.py 'sweep.modes=[zero,me"
ask "$PYTHON other.py sweep=sm"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_itself_completes() -> None:
    """Bash puts what is offered behind the last "=" of a plain word, and in place of a quoted one."""
    ended = subprocess.run(
        ["bash", "-c", BASH], cwd=ROOT, env=environment(PYTHON=sys.executable), capture_output=True, text=True
    )
    python = sys.executable
    assert ended.stderr == ""
    assert os.path.basename(python).startswith("python")
    assert ended.stdout.splitlines() == [
        "2",
        f"{python} launch.py sweep=sm -> smoke",
        f"{python} launch.py 'sweep.modes=[zero,me -> sweep.modes=[zero,mean",
        f"{python} other.py sweep=sm -> ",
    ]
