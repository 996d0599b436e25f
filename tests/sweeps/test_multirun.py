"""Several jobs by one command: a run directory for each, and a summary that names them and says how to compare."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from sweeps import multirun
from sweeps.multirun import Job
from tests.sweeps.conftest import Said
from tests.sweeps.tiny import save_pipeline


@pytest.mark.usefixtures("no_report")
def test_models_and_seeds_each_have_a_run_directory(
    said: Said, settings: list[str], pipeline: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = save_pipeline(tmp_path_factory.mktemp("model") / "other", seed=1)
    small = [setting for setting in settings if not setting.startswith("model.path")] + ["sweep.samples=0"]
    swept = [f"model.path={pipeline},{other}", "sweep.seed=0,1"]
    code, error, out = said("--multirun", *small, "sweep.heads=[0]", "sweep.levels=[head]", "sweep.windows=1", *swept)
    assert code == 0, error
    runs = sorted((tmp_path / "runs").iterdir())
    assert len(runs) == 4
    found = [yaml.safe_load((run / "config.yaml").read_text()) for run in runs]
    made = {(config["model"]["path"], config["sweep"]["seed"]) for config in found}
    assert made == {(str(path), seed) for path in (pipeline, other) for seed in (0, 1)}
    summary = out[out.index("4 runs:") :].splitlines()
    for config, run in zip(found, runs):
        swept_values = f"model.path={config['model']['path']} sweep.seed={config['sweep']['seed']}"
        assert [line for line in summary if swept_values in line and f"runs/{run.name}  (complete)" in line]
    first, second = (line.split("/")[-1].split(" ")[0] for line in summary[1:3])
    assert summary[-1] == f"Compare any two: python launch.py mode=compare run.a={first} run.b={second}"
    for job in range(4):
        assert f"Job {job + 1}: model.path=" in error
    assert said("mode=compare", f"run.a={first}", f"run.b={second}")[0] == 0


@pytest.mark.usefixtures("no_report")
def test_one_name_for_all_becomes_one_for_each(said: Said, settings: list[str], tmp_path: Path) -> None:
    small = [*settings, "sweep.heads=[0]", "sweep.levels=[head]", "sweep.samples=0", "sweep.windows=1"]
    code, error, out = said("--multirun", *small, "run.name=faces", "sweep.seed=0,1", "+sweep.modes=[zero]")
    assert code == 0, error
    assert sorted(run.name for run in (tmp_path / "runs").iterdir()) == ["faces,sweep.seed=0", "faces,sweep.seed=1"]
    (line,) = (line for line in out.splitlines() if line.startswith("Compare any two: python launch.py "))
    code, error, out = said(*shlex.split(line.partition("launch.py ")[2]))
    assert (code, error) == (0, ""), "as it is pasted"
    assert "faces,sweep.seed=0" in out


def test_a_plan_for_each_and_no_summary_of_runs(said: Said, settings: list[str]) -> None:
    code, error, out = said("--multirun", "mode=plan", *settings, "sweep.seed=0,1")
    assert code == 0, error
    assert "runs:" not in out


def test_the_summary_says_what_became_of_each() -> None:
    jobs = [Job(("m=a",), "x/", "one", 0), Job(("m=bb",), "x/", "two", 3), Job(("m=c",), "x/", "three", 130)]
    assert multirun.summary(jobs, "circuit-sweep") == [
        "3 runs:",
        "  m=a   x/one  (complete)",
        "  m=bb  x/two  (some trials failed for good)",
        "  m=c   x/three  (interrupted)",
        "Compare any two: circuit-sweep mode=compare run.root=x/ run.a=one run.b=two",
    ]
    stored = [Job(("m=a",), "s3://b/runs?region=x&c=1", name, 0) for name in ("one", "two")]
    first, _, compare = multirun.summary(stored, "circuit-sweep")[1:]
    assert first == "  m=a  s3://b/runs/one  (complete)"
    assert compare.endswith("""mode=compare "run.root='s3://b/runs?region=x&c=1'" run.a=one run.b=two""")
    assert multirun.summary([], "circuit-sweep") == []
    same = [Job(("sweep.samples=0",), "runs", "one", 0), Job(("sweep.samples=2",), "runs", "one", 0)]
    assert not [line for line in multirun.summary(same, "circuit-sweep") if "Compare" in line]


def test_names_are_plain() -> None:
    assert multirun.run_name("faces", ("model=tiny_unet", "sweep.seed=1")) == "faces,model=tiny_unet,sweep.seed=1"
    assert multirun.run_name("faces", ("model.path=/a\\b",)) == "faces,model.path=_a_b"
    assert len(multirun.run_name("x" * 190, ("model.path=" + "y" * 50,))) == 200
    assert multirun.swept(["a=1", "+b=2", "c=3"], ["b", "c"]) == ("+b=2", "c=3")
