"""What a command line becomes, and what a wrong one gets: exit code 2, one line, nothing written, no work started."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from subprocess import run

import pytest
import yaml

import launch
from sweeps.composition import config_folder, nearest_key, register, schema_keys
from sweeps.config import METRICS, Config, as_indices, as_list, as_plain
from sweeps.config import ConfigError as Refused
from sweeps.groups import EXPERIMENT
from tests.sweeps.conftest import Said
from tests.sweeps.tiny import ROOT, composed, environment, save_pipeline
from tests.sweeps.tiny import launch as launch_process

GROUPS = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
    for folder in config_folder().iterdir()
    if folder.is_dir() and folder.name != EXPERIMENT and list(folder.glob("*.yaml"))
}
NEEDED = {
    "data=prompts": ["data.prompts=[a cat]"],
    "model=hub": ["model.path=x"],
    "data=folder": ["data.root=x"],
    "data=celeba": ["data.root=x"],
}


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    """As `launch.main` does before it looks at a command line."""
    register()


# Every YAML composes, and means what its name says.


@pytest.mark.parametrize(("group", "name"), [(g, n) for g, names in GROUPS.items() for n in names])
def test_every_option_composes_into_typed_settings(group: str, name: str) -> None:
    choice = f"{group}={name}"
    config = composed(choice, *NEEDED.get(choice, []))
    assert isinstance(config, Config)
    assert getattr(config, group).name == name


def test_defaults_are_the_binding_ones() -> None:
    config = composed()
    chosen = (config.sweep.name, config.model.name, config.data.name, config.tracker.name, config.mode)
    assert chosen == ("full_ablation", "tiny_faces", "faces", "wandb", "run")
    assert config.run.root == "runs"
    assert config.stats.metric == METRICS["denoise"][0]


def test_groups_are_those_of_the_defaults_list() -> None:
    listed = yaml.safe_load((config_folder() / "config.yaml").read_text())["defaults"]
    assert {key for entry in listed if isinstance(entry, dict) for key in entry if "/" not in key} == set(GROUPS)


def test_plain_settings_survive_yaml(tmp_path: Path) -> None:
    plain = as_plain(composed("sweep=smoke", "sweep.windows=[[999,500],[499,0]]"))
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain
    assert plain["sweep"]["windows"] == [[999, 500], [499, 0]]


def test_no_setting_is_called_target() -> None:
    assert not [key for key in schema_keys() if "_target_" in key]


# Wrong settings, found before anything is loaded: (override, what the line must say).

WRONG = [
    ("sweep=full_ablaton", "sweep: unknown 'full_ablaton'; did you mean 'full_ablation'? valid: full_ablation"),
    ("model=tinyfaces", "model: unknown 'tinyfaces'; did you mean 'tiny_faces'?"),
    ("data=face", "data: unknown 'face'; did you mean 'faces'?"),
    ("cluster=locl", "cluster: unknown 'locl'; did you mean 'local'? valid: inline, local, ray"),
    ("tracker=wand", "tracker: unknown 'wand'; did you mean 'wandb'?"),
    ("stats=fix", "stats: unknown 'fix'; did you mean 'fixed'?"),
    ("sweep=a/smoke", "sweep: unknown 'a/smoke'; did you mean 'smoke'?"),
    ("sweep=", "sweep: unknown ''; valid: full_ablation"),
    ("sweep=null", "sweep=null: cannot be used"),
    ("mode=rn", "mode: unknown 'rn'; did you mean 'run'? valid: run, plan"),
    ("format=late", "format: unknown 'late'; did you mean 'latex'? valid: latex, csv, parquet"),
    ("sweeps=smoke", "unknown key 'sweeps'; did you mean 'sweep'?"),
    ("experiment=windows", "experiment: is added to the other groups: +experiment=NAME; valid: checkpoint, gen"),
    ("+experiment=windos", "experiment: unknown 'windos'; did you mean 'windows'? valid: checkpoint, generation, rep"),
    ("seep.images=3", "unknown key 'seep.images'; did you mean 'sweep.images'?"),
    ("sweep.imags=3", "unknown key 'sweep.imags'; did you mean 'sweep.images'?"),
    ("sweep.search.max_head=3", "unknown key 'sweep.search.max_head'; did you mean 'sweep.search.max_heads'?"),
    ("model.pth=x", "unknown key 'model.pth'; did you mean 'model.path'?"),
    ("model.training.step=3", "unknown key 'model.training.step'; did you mean 'model.training.steps'?"),
    ("data.rot=x", "unknown key 'data.rot'; did you mean 'data.root'?"),
    ("cluster.worker=3", "unknown key 'cluster.worker'; did you mean 'cluster.workers'?"),
    ("tracker.projct=x", "unknown key 'tracker.projct'; did you mean 'tracker.project'?"),
    ("stats.alph=0.1", "unknown key 'stats.alph'; did you mean 'stats.alpha'?"),
    ("run.nme=x", "unknown key 'run.nme'; did you mean 'run.name'?"),
    ("+sweep.imags=3", "unknown key 'sweep.imags'; did you mean 'sweep.images'?"),
    ("+zzz=1", "unknown key 'zzz'; valid: mode, format, sweep, model"),
    ("hydra.foo=1", "unknown key 'hydra.foo'"),
    ("~sweep.images", "~sweep.images: cannot be used"),
    ("sweep.images=abc", "sweep.images: expected a whole number, got 'abc'"),
    ("sweep.images=1.5", "sweep.images: expected a whole number, got '1.5'"),
    ("sweep.images=${nowhere}", "cannot be used (Interpolation key 'nowhere' not found)"),
    ("sweep.strength=x", "sweep.strength: expected a number, got 'x'"),
    ("sweep.images=-1", "sweep.images: expected at least 2, got -1"),
    ("sweep.images=1", "sweep.images: expected at least 2, got 1"),
    ("sweep.samples=-1", "sweep.samples: expected at least 0, got -1"),
    ("sweep.steps=0", "sweep.steps: expected at least 1, got 0"),
    ("sweep.seed=-1", "sweep.seed: expected at least 0, got -1"),
    ("run.rows=-1", "run.rows: expected at least 0, got -1"),
    ("cluster.workers=-1", "cluster.workers: expected at least 0, got -1"),
    ("cluster.workers=null", "cluster.workers=null: cannot be used"),
    ("cluster.lease_seconds=0", "cluster.lease_seconds: expected a number above 0, got 0.0"),
    ("cluster.gpus_per_worker=0", "cluster.gpus_per_worker: expected a number above 0, got 0.0"),
    ("sweep.strength=0", "sweep.strength: expected a number above 0 and at most 1, got 0.0"),
    ("sweep.strength=2", "sweep.strength: expected a number above 0 and at most 1, got 2.0"),
    ("sweep.strength=nan", "sweep.strength: expected a number above 0 and at most 1, got nan"),
    ("stats.alpha=1", "stats.alpha: expected a number between 0 and 1, both excluded, got 1.0"),
    ("stats.margin=-1", "stats.margin: expected a number above 0 and at most 1, got -1.0"),
    ("stats.metric=nois_mse", "stats.metric: 'nois_mse' is not measured by sweep.protocols=['denoise']; did you mean"),
    ("sweep.protocols=[sample]", "stats.metric: 'noise_mse' is not measured by sweep.protocols=['sample']"),
    ("sweep.modes=[zro]", "sweep.modes: unknown 'zro'; did you mean 'zero'? valid: zero, mean, resample"),
    ("sweep.modes=[]", "sweep.modes: nothing chosen; valid: zero, mean, resample"),
    ("sweep.modes=null", "sweep.modes: expected a list, got nothing"),
    ("sweep.modes={a:1}", "sweep.modes={a:1}: cannot be used"),
    ("sweep.levels=[hed]", "sweep.levels: unknown 'hed'; did you mean 'head'? valid: head, layer"),
    ("sweep.protocols=[denois]", "sweep.protocols: unknown 'denois'; did you mean 'denoise'?"),
    ("sweep.kind=gird", "sweep.kind: unknown 'gird'; did you mean 'grid'?"),
    ("cluster.device=tpu", "cluster.device: unknown 'tpu'; did you mean 'cpu'? valid: auto, cpu, cuda, mixed"),
    ("cluster.device=mixed", "cluster: cluster.device=mixed expected ray, got local; or take auto, cpu or cuda"),
    ("tracker.mode=onlin", "tracker.mode: unknown 'onlin'; did you mean 'online'?"),
    ("tracker.granularity=tril", "tracker.granularity: unknown 'tril'; did you mean 'trial'?"),
    ("model.dtype=float8", "model.dtype: unknown 'float8'; did you mean 'float32'?"),
    ("run.name=a/b", "run.name: expected a plain folder name, got 'a/b'; choose where runs lie with run.root"),
    ("run.name=..", "run.name: expected a plain folder name, got '..'"),
    ("run.name=.", "run.name: expected a plain folder name, got '.'"),
    ("run.name=", "run.name: expected a plain folder name, got ''"),
    (f"run.name={'x' * 300}", "run.name: expected a plain folder name, got 'xxx"),
    ("sweep.name=../../x", "sweep.name: expected a plain folder name, got '../../x'"),
    ("run.root=s4://bucket/runs", "run.root: unknown scheme 's4'; did you mean 's3'? valid: file, s3, gs"),
    ("run.root=s3:///runs", "run.root: expected s3://bucket/folder, got 's3:///runs'"),
    ("run.root=file://runs", "run.root: expected file:///folder with an absolute path, got 'file://runs'"),
    ("run.root=gs://bucket/../runs", "run.root: expected a path without '.', '..'"),
    ("run.root='s3://bucket/a#b'", "run.root: expected no '#' in a URI"),
    ("run.a=s5://bucket/run", "run.a: unknown scheme 's5'; did you mean 's3'?"),
    ("model=hub", "model.path: nothing given; expected a diffusers folder or a hub id (owner/name)"),
    ("model.path=''", "model.path: nothing given"),
    ("data=folder", "data.root: nothing given; expected a folder of images, data.root=..."),
    ("data=celeba", "data.root: nothing given"),
    ("data.sets=[]", "data.sets: expected data sets with different names, got []"),
    ("data.sets=[{name:a,source:lfw}]", "data.sets.a.source: unknown 'lfw'; did you mean 'lfw_faces'?"),
    ("data.sets=[{name:a}]", "data.sets[0].source: nothing given"),
    ("sweep.heads=[0", "'sweep.heads=[0' is no setting; expected key=value"),
    ("sweep.heads=0,1", "sweep.heads: a list needs quotes and brackets, 'sweep.heads=[0,1]'"),
    ("smoke", "'smoke' is no setting; expected key=value"),
    ("=3", "=3: cannot be used"),
    ("run=3", "run=3: cannot be used"),
    ("sweep.search.strengths=[]", "sweep.search.strengths: nothing chosen; expected numbers above 0 and at most 1"),
    ("model.training.steps=-7", "model.training.steps: expected at least 1, got -7"),
    ("model.training.batch_size=0", "model.training.batch_size: expected at least 1, got 0"),
    ("model.training.blended=nan", "model.training.blended: expected a number from 0 to 1, got nan"),
    ("model.training.learning_rate=nan", "model.training.learning_rate: expected a number above 0, got nan"),
    ("model.training.weight_decay=-1", "model.training.weight_decay: expected at least 0, got -1.0"),
    ("sweep.search.strengths=[2]", "sweep.search.strengths: expected a number above 0 and at most 1, got 2"),
]


@pytest.mark.parametrize(("override", "line"), WRONG, ids=[o[:40] for o, _ in WRONG])
def test_a_wrong_setting_gets_one_line_before_anything_is_loaded(override: str, line: str) -> None:
    problem = launch._problem([override])
    assert problem is not None
    assert problem.startswith(line) or line in problem, problem
    assert "\n" not in problem


def test_a_backslash_cannot_lead_out_of_the_root() -> None:
    assert "plain folder name" in (launch._problem(["run.name='..\\\\x'"]) or "")


@pytest.mark.parametrize(
    "overrides",
    [
        ["sweep.heads=all", "sweep.layers=0-2"],
        ["sweep.heads=[0,3]"],
        ["sweep.heads=3"],
        ["sweep.modes=zero"],
        ["sweep.modes='zero,mean'"],
        ["sweep.windows=[[999,800],[199,0]]"],
        ["sweep.windows=3"],
        ["sweep.protocols=[sample]", "stats.metric=contrast"],
        ["run.name=5"],
        ["run.name='seed=1 (a)'"],
        ["data.sets.1.name=faces"],
        ["sweep=smoke", "sweep=search"],
    ],
)
def test_right_settings_are_accepted(overrides: list[str]) -> None:
    assert launch._problem(overrides) is None


# Wrong settings that only the model, the data or the sampler can refuse.

REFUSED = [
    (["sweep.heads=[7]"], "sweep.heads: there is no 7; did you mean 3? valid: 0 to 3"),
    (["sweep.heads=-1"], "sweep.heads: '-1' is no index or range; valid: all, 0-3, or a list of them"),
    (["sweep.heads=3-1"], "sweep.heads: '3-1' is no index or range"),
    (["sweep.heads=x"], "sweep.heads: 'x' is no index or range"),
    (["sweep.heads=[]"], "sweep.heads: nothing chosen"),
    (["sweep.layers=[2]"], "sweep.layers: there is no 2; did you mean 1? valid: 0 to 1"),
    (
        ["sweep.layers=transformer_blocks.0.atn1"],
        "did you mean 'transformer_blocks.0.attn1'? valid: transformer_blocks.0",
    ),
    (["sweep.layers=-1"], "sweep.layers: '-1' is no index or range"),
    (["sweep.windows=0"], "sweep.windows: expected a count from 1 to 4 (sweep.steps), got 0"),
    (["sweep.windows=5"], "sweep.windows: expected a count from 1 to 4 (sweep.steps), got 5"),
    (["sweep.windows=-5"], "sweep.windows: expected a count or a list of [t_start, t_end]"),
    (["sweep.windows=true"], "sweep.windows: expected a count or a list of [t_start, t_end]"),
    (["sweep.windows=[]"], "sweep.windows: nothing chosen; expected a count or a list of [t_start, t_end]"),
    (["sweep.windows=[999,500]"], "expected a count or a list of [t_start, t_end] such as [[999,500]], got 999"),
    (["sweep.windows=[[500,999]]"], "sweep.windows: expected 999 >= t_start >= t_end >= 0, got [500, 999]"),
    (["sweep.windows=[[1000,0]]"], "sweep.windows: expected 999 >= t_start >= t_end >= 0, got [1000, 0]"),
    (["sweep.windows=[[999,500,1]]"], "sweep.windows: expected a count or a list of [t_start, t_end]"),
    (["sweep.windows=[[700,600]]"], "sweep.windows: [700, 600] holds no sampler step; the nearest is t=749"),
    (["sweep.steps=1001"], "sweep.steps: the model has 1000 timesteps; expected 1 to 1000, got 1001"),
    (["sweep=search", "sweep.steps=1001"], "sweep.steps: the model has 1000 timesteps; expected 1 to 1000, got 1001"),
    (["sweep.images=41"], "sweep.images=41, but data set 'natural' has 40 images to measure; ask for at most 40"),
    (
        ["sweep.images=3", "sweep.modes=[resample]"],
        "sweep.images: resample needs 2 images a sampler step of a window, 4",
    ),
    (["sweep.samples=1", "sweep.modes=[resample]"], "sweep.samples: resample needs 0 or at least 2 samples, got 1"),
    (
        ["data.sets.1.label=2"],
        "data.sets: 'natural' has label 2, and model=hub is conditioned on classes; valid: 0 to 1",
    ),
    (["data.sets.1.label=null"], "data.sets: 'natural' has label none, and model=hub is conditioned on classes"),
    (["data.root=/no/such/folder"], "data set 'natural' (image_folder): no folder /no/such/folder"),
    (["model.path=/no/such/model"], "model.path: no folder '/no/such/model'"),
    (
        ["model.path=tiny_face"],
        "model.path: no folder 'tiny_face', and it is no hub id (owner/name) or shipped model; did",
    ),
    (["cluster.device=cuda"], "cluster.device: cuda was asked for, and this machine has no usable GPU"),
    (["tracker=wandb", "tracker.project=a/b"], "tracker.project: expected 1 to 128 characters"),
    (["run.root=/dev/null/x"], "run.root: /dev/null/x/smoke-hub-"),
    (["mode=aggregate"], "run.name: no run "),
    (["mode=report", "run.name=other"], "run.name: no run "),
    (["mode=train"], "mode=train trains the project's own models, not model=hub; valid: tiny_faces"),
    (["sweep.modes=[resample_across]", "data.sets=[{name:a,source:synthetic_faces,label:0}]"], "needs two data sets"),
]


@pytest.mark.parametrize(("overrides", "line"), REFUSED, ids=[" ".join(o)[:50] for o, _ in REFUSED])
def test_what_the_model_or_data_lack_is_refused_before_ray_starts(
    overrides: list[str], line: str, settings: list[str], said: Said, tmp_path: Path
) -> None:
    if "cluster.device=cuda" in overrides:
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU, so cuda is right here")
    code, error, _ = said(*settings, "cluster=local", *overrides)
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert line in error
    assert not list(tmp_path.iterdir()), "something was written"


def test_a_pickled_checkpoint_is_refused(
    settings: list[str], said: Said, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = save_pipeline(tmp_path_factory.mktemp("pickled") / "model")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    code, error, _ = said(*settings, f"model.path={folder}")
    assert code == 2
    assert "no .safetensors weights (pickled checkpoints are refused: they run code)" in error
    assert error.count("\n") == 1


def test_a_named_ray_cluster_that_is_not_there(settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.schedule import clusters

    # Discard's port: nobody listens there. Ray's own test clusters must not be found by "auto".
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    for address in ("auto", "127.0.0.1:9"):
        with pytest.raises(Refused, match=rf"^cluster\.address: no Ray cluster at '{address}' \([^\n]*\)$"):
            clusters.connect(composed(*settings, "cluster=ray", f"cluster.address={address}").cluster)


# In real processes.


@pytest.mark.run
def test_exit_code_2_and_one_line_in_a_process_of_its_own(tmp_path: Path) -> None:
    ended = launch_process("sweep.imags=3", cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == "error: unknown key 'sweep.imags'; did you mean 'sweep.images'?\n"
    assert ended.stdout == ""
    assert not list(tmp_path.iterdir())


CTRL_C = "lambda: os.kill(os.getpid(), signal.SIGINT)"


@pytest.mark.parametrize(
    ("when", "entry", "code", "traceback"),
    [
        (f"atexit.register({CTRL_C})", "console", -signal.SIGINT, False),
        (f"atexit.register({CTRL_C})", "main", 0, True),
        (f"launch.register = {CTRL_C}", "console", launch.INTERRUPTED, False),
        (f"launch.register = {CTRL_C}", "main", -signal.SIGINT, True),
    ],
)
def test_ctrl_c_before_or_after_the_work(when: str, entry: str, code: int, traceback: bool) -> None:
    """Of the console only: ``main`` leaves the handlers of the process that calls it alone, as the controls show."""
    handler = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell's "&" has it ignored
    lines = f"import atexit, os, signal, launch; {handler}; {when}; launch.{entry}()"
    done = run([sys.executable, "-c", lines, "--help"], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ("Traceback" in done.stderr) == traceback, done.stderr
    assert traceback or not done.stderr


# What Hydra's own flags do.


@pytest.mark.parametrize("flags", [("--cfg", "job"), ("--cfg", "job", "--resolve", "sweep=smoke")])
def test_flags_that_only_show_something(flags: tuple[str, ...], said: Said, tmp_path: Path) -> None:
    code, error, out = said(*flags)
    assert (code, error) == (0, "")
    shown = yaml.safe_load(out[out.index("mode: run") :].partition("\n\n")[0])
    assert shown["sweep"]["name"] == ("smoke" if "sweep=smoke" in flags else "full_ablation")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags", [("--swep=smoke",), ("--cfg",), ("--help", "sweep.imags=3"), ("--experimental-rerun", "config.pickle")]
)
def test_wrong_flags_get_one_line(flags: tuple[str, ...], said: Said) -> None:
    code, error, _ = said(*flags)
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_multirun_checks_every_job_before_the_first_starts(said: Said, settings: list[str], tmp_path: Path) -> None:
    code, error, _ = said("--multirun", *settings, "sweep.seed=0,1,-1")
    assert (code, error) == (2, "error: sweep.seed: expected at least 0, got -1\n")
    assert not list(tmp_path.iterdir())


# Lists and indices as users write them.


@pytest.mark.parametrize(
    ("value", "indices"),
    [("all", [0, 1, 2, 3]), ([0, 3], [0, 3]), ("0-3", [0, 1, 2, 3]), (3, [3]), ("3", [3]), ("0,2-3", [0, 2, 3]),
     ([3, 0, 3], [0, 3]), (["1-2", 0], [0, 1, 2]), ("[0, 1]", [0, 1])],
)  # fmt: skip
def test_indices(value: object, indices: list[int]) -> None:
    assert as_indices(value, 4, "sweep.heads") == indices


@pytest.mark.parametrize(
    "value", ["4", "0-4", -1, "-1", "a", "1-", "-", "2-1", [], "", None, True, 1.5, "²", "0--1", "9" * 30]
)
def test_indices_that_are_none(value: object) -> None:
    with pytest.raises(Refused, match=r"^sweep\.heads: "):
        as_indices(value, 4, "sweep.heads")


@pytest.mark.parametrize(
    ("value", "items"), [("a,b", ["a", "b"]), ("[a, b]", ["a", "b"]), (["a"], ["a"]), ("a", ["a"]), (3, [3]), ("", [])]
)
def test_lists(value: object, items: list[object]) -> None:
    assert as_list(value, "key") == items


def test_nearest_key_prefers_the_same_group() -> None:
    assert nearest_key("cluster.nme") == "; did you mean 'cluster.name'?"
    assert "valid: mode, format, sweep" in nearest_key("qqqqqqqq")
