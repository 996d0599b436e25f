"""Sweeps whose runs lie in a store: a server that speaks S3, and file://, which takes the same way."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from sweeps.config import Config, ConfigError
from sweeps.driver import execute
from sweeps.records import RunDirectory
from tests.sweeps.stores.conftest import TRIALS, Place, a_page, copy_in
from tests.sweeps.stores.s3_server import LOGIN, S3Server
from tests.sweeps.tiny import assert_same_effects, composed


def test_a_sweep_is_in_the_store_and_goes_on_from_there(
    place: Place,
    sweep: Callable[..., Config],
    machine: Callable[[str], Path],
    undisturbed: RunDirectory,
    measured: list[str],
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sweeps.claims.BEAT_SECONDS", 3600.0)  # how many requests it takes, however slow the machine is
    server: S3Server | None = request.getfixturevalue("server") if place.root.startswith("s3:") else None
    assert execute(sweep()) == 0
    out = capsys.readouterr().out
    asked = list(server.requests) if server is not None else []
    name, stored = place.run()
    here = copy_in(machine("a"))
    local = {str(file.relative_to(here.path)): file.read_bytes() for file in here.path.rglob("*") if file.is_file()}
    assert local.pop(".sync") == b""
    assert stored == local, "every finished file, and nothing else: no lock, no claim, nothing half written"
    assert {"config.yaml", "trials.parquet", "run.json", "effects.parquet", "report/index.html"} < set(stored)
    assert len([n for n in stored if n.startswith("samples/")]) == TRIALS
    assert yaml.safe_load(stored["config.yaml"])["run"]["root"] == place.root
    assert not [n for n, content in stored.items() if LOGIN["AWS_SECRET_ACCESS_KEY"].encode() in content]
    assert_same_effects(here, undisturbed)
    shown = place.root.partition("?")[0]
    assert f"run directory: {shown}/{name}\n" in out
    assert f"report: {shown}/{name}/report/index.html (here: {here.path}/report/index.html)\n" in out
    if asked:
        assert_few_requests(asked, len(stored))

    measured.clear()
    assert execute(sweep()) == 0, "the same machine again"
    machine("b")
    assert execute(sweep()) == 0, "another one, which has nothing yet"
    assert measured == []
    assert f"{TRIALS} of {TRIALS} trials are recorded already" in capsys.readouterr().err
    again = copy_in(machine("b"))
    assert_same_effects(again, undisturbed)
    assert {p.name for p in again.samples.iterdir()} == {p.name for p in here.samples.iterdir()}
    unchanged = {n for n, content in place.run()[1].items() if stored.get(n) == content}
    assert {n for n in stored if n.startswith(("records/", "samples/"))} < unchanged


def assert_few_requests(asked: list[tuple[str, str]], files: int) -> None:
    """A LIST to open the root, one under the claim, and a PUT a file, but for the two that grow."""
    keys = {operation: [key for found, key in asked if found == operation] for operation, _ in asked}
    assert set(keys) == {"PUT", "LIST", "HEAD", "DELETE"}, "nothing was there to fetch"
    assert len(keys["LIST"]) == 2
    put = Counter(key.partition("/")[2].partition("/")[2] for key in keys["PUT"])
    claims = {name: times for name, times in put.items() if name.startswith("claims/")}
    assert sum(claims.values()) + len(keys["HEAD"]) + len(keys["DELETE"]) <= 10
    assert put["run.json"] <= 8, "as often as it is written"
    once = [times for name, times in put.items() if name not in {*claims, "run.json", "progress.json"}]
    assert len(once) == files - 2
    assert sum(once) <= files, "a busy server may be asked again"


def test_modes_that_read(
    place: Place,
    sweep: Callable[..., Config],
    machine: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each on a machine of its own, which has nothing but the URI."""
    assert execute(sweep("sweep.samples=0")) == 0
    name, stored = place.run()
    shown = f"{place.root.partition('?')[0]}/{name}"

    machine("plans")
    assert execute(sweep("sweep.samples=0", "mode=plan")) == 0
    assert pd.read_parquet(copy_in(machine("plans")).trials)["trial_id"].is_unique

    machine("aggregates")
    assert execute(sweep("mode=aggregate", f"run.name={name}", "stats.margin=0.2")) == 0
    assert f"{shown}/effects.parquet (here: " in capsys.readouterr().out
    before = pd.read_parquet(io.BytesIO(stored["effects.parquet"]))
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(place.run()[1]["effects.parquet"])), before)

    machine("reports")
    assert execute(sweep("mode=report", "sweep.samples=0")) == 0, "found by its plan"
    assert f"{shown}/report/index.html (here: " in capsys.readouterr().out

    assert set(place.run()[1]) == set(stored)

    with pytest.raises(ConfigError, match=rf"^run\.name: no run .*/smoke-hub; did you mean '{name}'\?"):
        execute(sweep("mode=report", "run.name=smoke-hub"))


def test_two_runs_in_a_store_are_compared(
    place: Place,
    sweep: Callable[..., Config],
    machine: Callable[[str], Path],
    tmp_path: Path,
    settings: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sweeps.compare.write_comparison_page", a_page)
    small = ("sweep.samples=0", "sweep.windows=1", "sweep.levels=[layer]")
    assert execute(sweep(*small, "run.name=first run")) == 0
    assert execute(sweep(*small, "run.name='second%20run?#ü'", "sweep.seed=1")) == 0
    assert execute(composed(*settings, *small, f"run.root={tmp_path / 'runs'}", "run.name=here", "sweep.seed=2")) == 0
    base, _, query = place.root.partition("?")
    second = f"{base}/second%2520run%3F%23%C3%BC" + (f"?{query}" if query else "")
    machine("b")
    capsys.readouterr()
    assert execute(sweep("mode=compare", "run.a=first run", "run.b='second%20run?#ü'")) == 0
    said = capsys.readouterr().out
    assert "second%20run?#ü against first run" in said
    assert f"report: {base}/compare-first%20run-second%2520run%3F%23%C3%BC/report/index.html (here: " in said
    in_store = [n for n in place.files() if n.startswith("compare-")]
    folder = "compare-first run-second%20run?#ü"
    assert {f"{folder}/compare.json", f"{folder}/comparisons.parquet", f"{folder}/report/index.html"} <= set(in_store)

    machine("c")
    local = f"run.root={tmp_path / 'runs'}"
    assert execute(composed(*settings, "mode=compare", local, "run.a=here", f"run.b='{second}'")) == 0
    assert "second%20run?#ü against here" in capsys.readouterr().out
    assert (tmp_path / "runs" / "compare-here-second%20run?#ü" / "report" / "index.html").is_file()

    with pytest.raises(ConfigError, match=r"^run\.b: no run frst run; did you mean 'first run'\?"):
        execute(sweep("mode=compare", "run.a=first run", "run.b=frst run"))
    with pytest.raises(ConfigError, match=r"^run\.b: expected a path without '\.'"):
        execute(sweep("mode=compare", "run.a=first run", "run.b=../../../x"))
    assert not (tmp_path / "x").exists()
    (tmp_path / "no run").mkdir()
    with pytest.raises(ConfigError, match=r"^run\.b: no run \S+/no run;"):
        execute(sweep("mode=compare", "run.a=first run", f"run.b='{tmp_path / 'no run'}'"))
    assert list((tmp_path / "no run").iterdir()) == []


def test_what_was_logged_to_wandb_is_known_elsewhere(
    server: S3Server, settings: list[str], machine: Callable[[str], Path]
) -> None:
    line = [o for o in settings if o != "tracker=none"] + [
        f"run.root='{server.uri('bucket/tracked')}'", "run.name=mine", "sweep.samples=0", "sweep.windows=1",
        "sweep.levels=[layer]", "tracker.mode=offline",
    ]  # fmt: skip
    assert execute(composed(*line, "tracker=none")) == 0
    machine("b")
    assert execute(composed(*line, "tracker=wandb", "mode=track")) == 0
    stored = server.files("bucket/tracked/mine")
    assert stored["tracking.jsonl"] == (copy_in(machine("b")).path / "tracking.jsonl").read_bytes()
    assert not [name for name in stored if name.startswith("wandb/")], "its files are of the machine that syncs them"

    machine("c")
    assert execute(composed(*line, "tracker=wandb", "mode=track")) == 0
    folder = copy_in(machine("c")).path / "wandb"
    assert list(folder.glob("offline-run-*")), "what was not uploaded went with b's copy, and is written anew"
