"""Experiments, and groups of the user's own: they compose, mean what they say, and mistakes in them cost one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import launch
from sweeps.composition import config_folder
from sweeps.config import Config
from sweeps.driver import load
from sweeps.groups import EXPERIMENT, names, options
from sweeps.plan import Plan, make_plan
from tests.sweeps.conftest import Said
from tests.sweeps.tiny import composed

EXPERIMENTS = names(EXPERIMENT)


@pytest.fixture(scope="module")
def small(pipeline: Path, pictures: Path) -> list[str]:
    return ["model=hub", f"model.path={pipeline}", "data=folder", f"data.root={pictures}", "sweep.images=8"]


def experiment(name: str, *overrides: str) -> Config:
    launch.register()
    assert launch._problem([f"+experiment={name}", *overrides]) is None
    return launch.typed(launch._composed([f"+experiment={name}", *overrides]))


def planned(config: Config) -> Plan:
    return make_plan(config, load(config)[0])


def test_there_are_experiments_that_say_what_they_are_for() -> None:
    assert len(EXPERIMENTS) >= 3
    for option in options()[EXPERIMENT]:
        assert option.file.read_text().startswith("# @package _global_\n# ")
        assert "?" in option.about, "an experiment asks something"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_composes_and_the_command_line_wins(name: str, small: list[str]) -> None:
    assert experiment(name).sweep.name == name
    config = experiment(name, *small, "sweep.seed=7", "sweep.layers=[0]", "sweep.images=12")
    assert (config.sweep.seed, config.sweep.images, config.model.name) == (7, 12, "hub")
    assert {t.intervention.sites[0].layer for t in planned(config).trials} == {"transformer_blocks.0.attn1"}


def test_windows_has_one_for_each_step(small: list[str]) -> None:
    plan = planned(experiment("windows", *small, "sweep.steps=4"))
    assert {trial.window_index for trial in plan.trials} == {0, 1, 2, 3}
    assert {trial.level for trial in plan.trials} == {"head"}
    assert len(plan.trials) == 2 * 2 * 4 * 4


def test_replication_is_the_default_sweep_on_other_noise() -> None:
    first, again = composed("stats=sequential", "sweep.controls=24"), experiment("replication")
    assert (first.sweep.seed, again.sweep.seed) == (0, 1)
    for name in ("levels", "modes", "windows", "heads", "layers", "steps"):
        assert getattr(first.sweep, name) == getattr(again.sweep, name)
    assert again.stats.statistic == "none"
    assert again.stats.alpha < first.stats.alpha


def test_two_checkpoints_are_compared_on_the_same_images() -> None:
    config = experiment("checkpoint")
    assert (config.stats.statistic, config.sweep.controls, config.sweep.images) == ("none", 0, 32)
    other = experiment("checkpoint", "model=hub", "model.name=early", "model.path=training/early/tiny_faces")
    assert (config.sweep, config.stats, config.data) == (other.sweep, other.stats, other.data)


def test_generation_is_of_generated_images(small: list[str]) -> None:
    plan = planned(experiment("generation", *small))
    assert {trial.protocol for trial in plan.trials} == {"sample"}
    assert {trial.intervention.mode for trial in plan.trials} == {"zero", "scale"}


OWN = {
    "model/mine.yaml": "# My own.\nname: mine\npath: /weights/mine\n",
    "data/pairs.yaml": "name: pairs\nroot: /pictures\nsets:\n  - {name: a, source: image_folder, label: 0}\n",
    "sweep/early.yaml": "name: early\nwindows: [[999, 800]]\nmodes: [mean]\n",
    "experiment/night.yaml": "# @package _global_\ndefaults:\n  - override /model: mine\n  - override /data: pairs\n"
    "  - override /sweep: early\n\nstats:\n  alpha: 0.01\n",
    "experiment/lost.yaml": "# @package _global_\ndefaults:\n  - override /model: mien\n",
    "experiment/typo.yaml": "# @package _global_\nswep:\n  images: 8\n",
    "model/typo.yaml": "name: typo\npth: x\n",
    "model/no_yaml.yaml": "name: x\npath: [x\n",
    "model/secret.yaml": "name: ${oc.env:HOME}\npath: x\n",
    "sweep/text.yaml": "name: text\nimages: many\n",
    "sweep/code.yaml": "name: code\n_target_: os.system\n",
    "sweep/values.yaml": "name: values\nmodes: [zeor]\n",
    "zoo/lion.yaml": "name: lion\n",
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("my settings, 1")
    for name, text in OWN.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_own_groups_and_experiments_compose(own: Path, said: Said) -> None:
    code, error, shown = said("--config-dir", str(own), "+experiment=night", "sweep.images=9", "--cfg", "job")
    assert (code, error) == (0, "")
    values = yaml.safe_load(shown)
    assert values["model"]["path"] == "/weights/mine"
    names_given = [values[group]["name"] for group in ("model", "data", "sweep", "stats")]
    assert names_given == ["mine", "pairs", "early", "sequential"]
    assert (values["sweep"]["windows"], values["sweep"]["images"], values["stats"]["alpha"]) == ([[999, 800]], 9, 0.01)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model=mien", "model: unknown 'mien'; did you mean 'mine'? valid: mine, no_yaml, secret, typo, ddpm_celebahq"),
        ("model=tiny_face", "model: unknown 'tiny_face'; did you mean 'tiny_faces'?"),
        ("+experiment=nigt", "experiment: unknown 'nigt'; did you mean 'night'? valid: lost, night, typo, checkpoint"),
        ("+experiment=lost", "model: unknown 'mien'; did you mean 'mine'?"),
        ("+experiment=typo", "experiment/typo.yaml: unknown key 'swep'; did you mean 'sweep'?"),
        ("model=typo", "model/typo.yaml: unknown key 'model.pth'; did you mean 'model.path'?"),
        ("model=no_yaml", "no_yaml.yaml, line 3: no YAML (expected ',' or ']', but got '<stream end>')"),
        ("model=secret", "model.name: expected a value or a reference as ${sweep.seed}; '${oc.env:HOME}' calls"),
        ("sweep=text", "sweep/text.yaml: sweep.images: expected a whole number, got 'many'"),
        ("sweep=code", "sweep/code.yaml: unknown key 'sweep._target_'"),
        ("sweep=values", "sweep.modes: unknown 'zeor'; did you mean 'zero'?"),
        ("+zoo=lion", "zoo/lion.yaml: unknown key 'zoo'; valid: mode, "),
        ("sweep.imags=3", "unknown key 'sweep.imags'; did you mean 'sweep.images'?"),
    ],
)
def test_a_mistake_beside_own_groups_gets_one_line(override: str, line: str, own: Path, said: Said) -> None:
    code, error, out = said("--config-dir", str(own), override)
    assert (code, out) == (2, "")
    assert line in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_folder_that_is_not_there_or_hides_behind_ours(own: Path, tmp_path: Path, said: Said) -> None:
    code, error, _ = said("--config-dir", f"{own}x", "mode=plan")
    assert (code, error) == (2, f"error: --config-dir: no folder {own}x; did you mean {str(own)!r}?\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tiny_faces.yaml").write_text("name: mine\npath: x\n")
    code, error, _ = said("--config-dir", str(tmp_path), "model=tiny_faces")
    assert code == 2
    assert error.endswith("model/tiny_faces.yaml has the name of one that ships; model=tiny_faces would not be yours\n")


def test_every_file_of_ours_is_an_option() -> None:
    """What is installed is what completion, help and messages know."""
    files = set(config_folder().glob("*/*.yaml"))
    assert files == {option.file for found in options().values() for option in found}
