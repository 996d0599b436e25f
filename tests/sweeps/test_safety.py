"""What must not happen, tried: see SECURITY.md. (A pickled checkpoint is tried in test_command_line.py, markup in the
report in tests/report, clients without a token in test_ray_nodes.py.)"""

from __future__ import annotations

import io
import json
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import launch
from sweeps.composition import schema_keys
from sweeps.logins import has_login, without_login
from sweeps.plan import Trial, make_plan
from sweeps.progress import SweepProgress
from sweeps.provenance import shell_command
from sweeps.records import RunDirectory
from sweeps.travel import deliver
from tests.fuzzing import fuzz
from tests.sweeps.fake_subject import fake_subject
from tests.sweeps.tiny import composed, only_run
from tests.sweeps.tiny import launch as launch_process

WORDS = ("sweep", "images", "modes", "model", "path", "hydra", "run", "name", "cluster", "stats", "${oc.env:HOME}")


@pytest.fixture(autouse=True)
def _registered() -> None:
    launch.register()


# Configurations


@pytest.mark.parametrize(
    "override",
    [
        "+model._target_=os.system",
        "+sweep._target_=builtins.exec",
        "sweep.windows={_target_: os.system, command: touch x}",
        "+_target_=os.system",
    ],
)
def test_a_target_is_an_unknown_key(override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    problem = launch._problem([override])
    assert problem is not None
    assert "unknown key" in problem
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "override",
    [
        "run.name=${oc.env:A_SECRET}",
        "tracker.project=${oc.env:A_SECRET,none}",
        "sweep.modes=['${oc.env:A_SECRET}']",
        "data.sets=[{name:'${oc.env:A_SECRET}',source:lfw_faces}]",
        "run.name=x${oc.decode:'${oc.env:A_SECRET}'}",
        "sweep.name=${ oc.env:A_SECRET}",
    ],
)
def test_settings_cannot_read_the_environment(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "tell-nobody")
    problem = launch._problem([override])
    assert problem is not None
    assert "tell-nobody" not in problem
    assert "\n" not in problem


def test_settings_may_refer_to_one_another() -> None:
    assert composed("sweep.seed=7", "sweep.images=${sweep.seed}").sweep.images == 7


@pytest.mark.parametrize("name", ["../../etc", "/etc/passwd", "a/b", "blocks.0.attn1/../x"])
def test_sites_are_names_of_the_model_and_never_paths(name: str) -> None:
    with pytest.raises(ValueError, match=r"^sweep\.layers: the model has no layer "):
        make_plan(composed(f"sweep.layers=['{name}']"), fake_subject())


# Names on the terminal


@pytest.mark.parametrize("name", ["[/x]", "[red]alert[/red]", "[link=file:///etc]x[/link]", "\x1b[2Jx"])
def test_markup_in_names_is_printed_as_it_is(name: str) -> None:
    trial = SimpleNamespace(trial_id="t", head=0, phase="grid", label=f"layer 0 head 0, zero, t 9-0, {name}")
    console = Console(force_terminal=True, width=200, record=True, file=io.StringIO())
    with SweepProgress({"t": cast(Trial, trial)}, 0, console) as progress:
        progress.add({"t": np.array([0.1])}, 1, 0, 1)
        console.print(progress._top())
    shown = console.export_text()
    assert name.replace("\x1b", "") in shown.replace("\x1b", "")


# What comes from workers


@pytest.mark.parametrize(
    "name",
    ["../x.parquet", "records/../../x.parquet", "/etc/passwd", "config.yaml", "records/a/b-c.parquet", "samples/x.sh"],
)
def test_a_worker_cannot_write_anywhere_but_records_and_samples(name: str, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create(directory.records, directory.samples)
    with pytest.raises(ValueError, match="no record and no sample"):
        deliver({name: b"x"}, directory.path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    deliver({"records/0a-1b.parquet": b"x", "samples/0a.png": b"y"}, directory.path)
    assert (directory.records / "0a-1b.parquet").read_bytes() == b"x"


# Secrets


@pytest.mark.run
def test_no_secret_of_the_environment_is_in_any_file_or_line(settings: list[str], tmp_path: Path) -> None:
    """A whole sweep with logins in its environment, of W&B, the hub, Ray and a cloud, and one in its command line."""
    tokens = {
        name: secrets.token_hex(20)
        for name in ("WANDB_API_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD")
    }
    chosen = [o for o in settings if not o.startswith("tracker=")]
    ended = launch_process(
        *chosen, "sweep.windows=1", f"run.root={tmp_path / 'runs'}", "tracker=wandb",
        f"+hydra.job.env_set.A_PASSWORD={tokens['MY_PASSWORD']}", cwd=tmp_path, timeout=600,
        HOME=str(tmp_path / "home"), **tokens,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    directory = only_run(tmp_path / "runs")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"config.yaml", "run.json", "index.html", "tracking.jsonl"} <= names
    assert any(name.endswith(".wandb") for name in names)
    for name, token in tokens.items():
        assert token not in ended.stdout + ended.stderr, name
        assert [str(path) for path in files if token.encode() in path.read_bytes()] == [], name
    assert "api_key" not in (directory.path / "config.yaml").read_text().lower()
    assert set(yaml.safe_load(directory.config.read_text())) <= set(schema_keys())
    assert "environ" not in json.loads(directory.run.read_text())
    assert directory.read_run()["command"].endswith("'+hydra.job.env_set.A_PASSWORD=***'")


ADDRESSES = [
    "s3://AKIA5:hush-hush@bucket/runs",
    "https://hush-hush@host/x",
    "gs://bucket/x?secret_key=hush-hush&region=a",
    "s3://bucket?region=a&session_token=hush-hush",
]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("key", ["model.path", "data.root", "cluster.address", "tracker.project"])
def test_an_address_with_a_login_is_refused_and_not_repeated(key: str, address: str) -> None:
    problem = launch._problem([f"{key}='{address}'"])
    assert problem == f"{key}: expected an address without a login, which would be written to config.yaml"


@pytest.mark.parametrize(
    "address", ["s3://AKIA5:hush-hush@bucket/runs", ADDRESSES[2], ADDRESSES[3], "s3://a:hush-hush"]
)
def test_a_store_with_a_login_is_refused_and_not_repeated(address: str) -> None:
    problem = launch._problem([f"run.root='{address}'"])
    assert problem is not None
    assert problem.startswith(
        "run.root: expected no credentials in the URI, which is written to config.yaml; got some in"
    )
    assert "hush" not in problem


@pytest.mark.parametrize(
    "address", ["s3://bucket/a", "ray://host:10001", "me@host", "gs://b/x?region=a", "a/b@c", "abfss://box@a.net/x"]
)
def test_an_address_without_a_login_is_none(address: str) -> None:
    assert not has_login(address)
    assert without_login(f"run.root={address}") == f"run.root={address}"


@pytest.mark.parametrize(
    "argument",
    [
        *(f"run.root={address}" for address in ADDRESSES),
        "hydra.job.env_set.WANDB_API_KEY=hush-hush",
        "+hydra.job.env_set.AWS_SECRET_ACCESS_KEY='hush-hush'",
        "tracker.apikey=hush-hush",
        "x.password=hush-hush=",
    ],
)
def test_a_repeated_command_line_hides_logins(argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written to run.json, and said where a run was interrupted."""
    monkeypatch.setattr(sys, "argv", ["launch.py", "sweep=smoke", argument, "sweep.heads=[0,3]"])
    said = shell_command()
    assert "hush" not in said
    assert said.startswith(f"python launch.py sweep=smoke '{argument.partition('=')[0]}=")
    assert said.endswith("'sweep.heads=[0,3]'")


# Command lines at random


def wrong_lines() -> st.SearchStrategy[list[str]]:
    """Overrides of real and invented keys with values of every kind; the last one is always wrong."""
    keys = st.one_of(
        st.sampled_from(schema_keys()),
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(".".join),
        st.text("abcxyz._/\\+~@${}[]'\"=:, \t", max_size=12),
    )
    values = st.one_of(
        st.integers().map(str),
        st.floats().map(str),
        st.text(max_size=12).filter(lambda text: "\x00" not in text),
        st.sampled_from(["null", "[]", "{}", "???", "${nowhere}", "${oc.env:HOME}", "../x", "[[", "a=b", "1e999", "'"]),
    )
    prefix = st.sampled_from(["", "", "", "+", "++", "~"])
    lines = st.lists(st.tuples(prefix, keys, values).map(lambda t: f"{t[0]}{t[1]}={t[2]}"), max_size=2)
    wrong = st.sampled_from(
        ["sweep.imags=3", "sweep=x", "mode=rn", "stats.alpha=7", "+a.b=1", "run.name=../x", "sweep.images=z", "zz", "="]
    )
    return st.tuples(lines, wrong).map(lambda pair: [*pair[0], pair[1]])


def assert_refused_in_one_line(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """``main`` as a shell calls it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["launch.py", "--", *overrides])
        with pytest.raises(SystemExit) as ended:
            launch.main()
    said = capsys.readouterr()
    assert ended.value.code == 2, overrides
    assert said.err.startswith("error: "), said.err
    assert said.err.count("\n") == 1, said.err
    assert said.out == ""


Refused = Callable[[list[str], pytest.CaptureFixture[str]], None]


@fuzz(40)
@given(wrong_lines())
def test_bad_command_lines_get_exit_code_2_and_one_line(
    capsys: pytest.CaptureFixture[str], overrides: list[str]
) -> None:
    assert_refused_in_one_line(overrides, capsys)


@pytest.mark.soak
@fuzz(1000)
@given(wrong_lines())
def test_a_thousand_bad_command_lines(capsys: pytest.CaptureFixture[str], overrides: list[str]) -> None:
    assert_refused_in_one_line(overrides, capsys)
