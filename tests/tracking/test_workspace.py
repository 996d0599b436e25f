"""mode=workspace: what W&B is asked to show, and what happens without a login or a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sweeps.config import ConfigError, RunConfig
from sweeps.driver import execute
from sweeps.tracking import track_from_records
from sweeps.tracking.plan import Plan
from sweeps.tracking.settings import TrackerSettings
from sweeps.tracking.summary import summary_run
from sweeps.tracking.views import Sweep, report, workspace
from sweeps.tracking.workspace import chosen_runs, make_workspace
from tests.sweeps.tiny import ROOT, composed
from tests.synthetic_run import Cell, write_run
from tests.tracking.api import Server, serving
from tests.tracking.runs import KEY, Seen, effect, folders, make_run, record, write_effects


def sweep_in(run_dir: Path) -> Plan:
    make_run(run_dir, trials=4, heads=2)
    record(run_dir, 0, 1, 2, 3)
    write_effects(run_dir, *(effect(i, 10.0 * i, "degraded" if i else "negligible") for i in range(4)))
    return Plan.read(run_dir)


def panels(section: dict[str, Any]) -> list[tuple[str, Any]]:
    """View type, and what it shows."""
    shown = []
    for panel in section["panels"]:
        config = panel["config"]
        what = config.get("mediaKeys") or config.get("metrics") or config.get("fieldSettings") or config.get("columns")
        shown.append((panel["viewType"], what))
    return shown


def test_the_workspace_shows_what_was_logged(tmp_path):
    plans = [sweep_in(tmp_path / name) for name in ("before", "after")]
    sweeps = [Sweep.of(plan) for plan in plans]
    spec = workspace(sweeps, "me", "circuit-sweep")._to_model().spec.model_dump(by_alias=True, exclude_none=True)
    sections = {section["name"]: section for section in spec["section"]["panelBankConfig"]["sections"]}
    assert list(sections) == [
        "Which heads", "Over the diffusion process", "By layer, mode and data set", "Samples", "Effects",
        "What differs",
    ]  # fmt: skip
    assert panels(sections["Which heads"]) == [
        ("Media Browser", ["map/lfw_faces/denoise/zero"]),
        ("Vega2", {"label": "trial", "value": "percent"}),
    ]
    lines = [what for _, what in panels(sections["Over the diffusion process"])]
    assert ["timesteps/noise_mse"] in lines
    assert ["degraded heads/lfw_faces/zero"] in lines
    assert panels(sections["Samples"]) == [("Media Browser", ["samples"])]
    assert [kind for kind, _ in panels(sections["By layer, mode and data set"])] == [
        *["Bar Chart"] * 6, "Scatter Plot", "Parallel Coordinates Plot",
    ]  # fmt: skip

    # Every chart has something to show: what is logged has these names.
    logged = summary_run(plans[0], 4, samples=True)
    assert {"map/lfw_faces/denoise/zero"} == set(logged.maps)
    assert "top/noise_mse" in logged.bars
    assert "degraded heads/lfw_faces/zero" in logged.history[0]
    assert "tables/effects" in logged.tables

    runset = spec["section"]["runSets"][0]
    assert [key["key"]["name"] for key in runset["sort"]["keys"]] == ["percent"]
    assert runset["runFeed"]["columnOrder"][:3] == ["run:displayName", "summary:verdict", "summary:percent"]
    assert "config:window.value" in runset["runFeed"]["columnOrder"]
    text = str(runset["filters"])
    assert ("before" in text, "after" in text, "group" in text) == (True, True, True)
    assert spec["section"]["customRunColors"] == {plans[0].summary_id(): "#2166ac", plans[1].summary_id(): "#b2182b"}
    assert len(runset["pinnedRunIds"]) == 2


def test_one_sweep_has_nothing_to_differ_from(tmp_path):
    made = workspace([Sweep.of(sweep_in(tmp_path / "alone"))], "me", "p")
    assert "What differs" not in [section.name for section in made.sections]


def test_the_report_names_both_sweeps_and_escapes_them(tmp_path):
    plans = [sweep_in(tmp_path / name) for name in ("a|b *<script>*", "b")]
    made = report([Sweep.of(plan) for plan in plans], "", "p")  # without an entity nothing is asked of a server
    assert made.title == "b against a_b *_script_*"
    spec = made._to_model().spec.model_dump(by_alias=True, exclude_none=True)
    (text,) = [block["content"] for block in spec["blocks"] if block["type"] == "markdown-block"]
    head, _, first, second = text.splitlines()
    assert head == "| sweep | model | data sets | trials | degraded | improved | negligible | inconclusive |"
    assert first == r"| a\|b \*\<script\>\* | tiny\_faces | lfw\_faces | 4 | 3 | 0 | 1 | 0 |"
    assert second.startswith("| b |")
    grids = [block for block in spec["blocks"] if block["type"] == "panel-grid"]
    names = [[runset["name"] for runset in grid["metadata"]["runSets"]] for grid in grids]
    assert names[0] == ["a_b *_script_* (summary)", "b (summary)"]
    assert [name for name in names[1] if name.startswith("b")] == ["b (head)"]
    layouts = [panel["layout"] for panel in grids[0]["metadata"]["panelBankSectionConfig"]["panels"]]
    assert [(layout["x"], layout["w"]) for layout in layouts] == [(0, 12), (12, 12)]


def test_of_many_trials_the_groups_and_layers_are_shown(tmp_path):
    """There is no run of a trial, or of a head, that its charts could be drawn of."""
    plan = sweep_in(tmp_path / "many")
    track_from_records(plan.run_dir, TrackerSettings(mode="offline", max_trial_runs=1))
    sweep = Sweep.of(plan)
    spec = report([sweep], "", "p")._to_model().spec.model_dump(by_alias=True, exclude_none=True)
    grids = [block["metadata"] for block in spec["blocks"] if block["type"] == "panel-grid"]
    names = [runset["name"] for grid in grids for runset in grid["runSets"]]
    assert dict.fromkeys(names) == dict.fromkeys(["many (summary)", "many (layer)", "many (group)"])
    spec = workspace([sweep], "me", "p")._to_model().spec.model_dump(by_alias=True, exclude_none=True)
    sections = {section["name"]: section for section in spec["section"]["panelBankConfig"]["sections"]}
    *bars, _, parallel = panels(sections["By layer, mode and data set"])
    assert bars == [("Bar Chart", ["noise_mse/percent_max"])] * 3
    columns = [column["accessor"] for column in parallel[1]]
    assert columns == ["config:layer_index.value", "config:window.value", "summary:percent"]
    group = Seen(folders(plan.run_dir, "group-L2-w1")[0])
    assert "noise_mse/percent_max" in group.history[0]
    expected = {"percent": 30.0, "verdict": "degraded", "degraded": 2, "strongest": "mid.attn h1 zero t799-600"}
    shown = {**group.summary, "strongest": group.summary["strongest"][: len(expected["strongest"])]}
    assert expected.items() <= shown.items(), "for the run table, which is sorted by it"
    layer = Seen(folders(plan.run_dir, "layer")[0])
    assert (layer.summary["percent"], layer.summary["strongest"].split()[1]) == (30.0, "h1")


def a_run(root: Path, name: str) -> Path:
    return write_run(root / name, [Cell([0.1, 0.2])]).path


def test_runs_are_chosen_by_name_or_as_the_newest_two(tmp_path):
    paths = [a_run(tmp_path, name) for name in ("one", "two", "three")]
    for age, path in enumerate(paths):
        os.utime(path / "config.yaml", (1000 + age, 1000 + age))
    root = str(tmp_path)
    assert chosen_runs(RunConfig(root=root)) == paths[1:]
    assert chosen_runs(RunConfig(root=root, name="one")) == paths[:1]
    assert chosen_runs(RunConfig(root=root, a="three", b="one")) == [paths[2], paths[0]]
    with pytest.raises(ConfigError, match=r"run.b: no run twoo; did you mean 'two'\?"):
        chosen_runs(RunConfig(root=root, a="one", b="twoo"))
    with pytest.raises(ConfigError, match=r"run.b: .* is run.a too"):
        chosen_runs(RunConfig(root=root, a="one", b="one"))
    with pytest.raises(ConfigError, match=r"run.root: no run below"):
        chosen_runs(RunConfig(root=str(tmp_path / "nowhere")))


def test_a_name_that_no_filter_survives_is_found_by_its_digest(tmp_path):
    plan = sweep_in(tmp_path / "it's lr=3 <b>")
    spec = workspace([Sweep.of(plan)], "me", "p")._to_model().spec.model_dump(by_alias=True, exclude_none=True)
    text = str(spec["section"]["runSets"][0]["filters"])
    assert "sweep_id" in text
    assert plan.sweep_id in text
    assert summary_run(plan, 4, samples=False).config["sweep_id"] == plan.sweep_id


def test_without_a_login_nothing_is_begun(tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="mode=workspace: expected a W&B login, got none; `wandb login`"):
        make_workspace(RunConfig(root=str(tmp_path), a="not", b="there"), TrackerSettings())
    assert sorted(tmp_path.rglob("*")) == before


PROCESS = """
import json, sys
from sweeps.config import RunConfig
from sweeps.records import GaveOut
from sweeps.tracking import TrackerSettings, workspace

root, patience, times = sys.argv[1:]
workspace.PATIENCE = float(patience)
for _ in range(int(times)):
    try:
        said = workspace.make_workspace(RunConfig(root=root), TrackerSettings())
    except GaveOut as error:
        said = f"error: {error}"
    print(json.dumps(said))
"""


def make(root: Path, server: Server, *, patience: float = 200, times: int = 1) -> list[str]:
    """What is said, in a process of its own: wandb reads its settings once a process."""
    login = {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": KEY}
    command = [sys.executable, "-c", PROCESS, str(root), str(patience), str(times)]
    ended = subprocess.run(command, env=os.environ | login, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_the_mode_makes_both_and_brings_them_up_to_date(tmp_path):
    for age, name in enumerate(("before", "after")):
        os.utime(a_run(tmp_path, name) / "config.yaml", (1000 + age, 1000 + age))
    with serving() as server:
        said = make(tmp_path, server, times=2)
    first, second, *rest = said[0].splitlines()
    assert first.startswith(f"workspace: {server.address}/me/circuit-sweep?nw=")
    assert second == f"report: {server.address}/me/circuit-sweep/reports/after-against-before--view1"
    assert rest == [f"{name} was not logged; mode=track run.name={name}" for name in ("before", "after")]
    assert said[0] == said[1]
    kinds = {key: (view["type"], view["displayName"]) for key, view in server.views.items()}
    title = "after against before"
    assert kinds == {"view0": ("project-view", title), "view1": ("runs", title)}, "the second time they were updated"
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), f"{path} holds the key"


def test_a_server_that_refuses_or_does_not_answer_is_one_line(tmp_path):
    a_run(tmp_path, "only")
    with serving() as server:
        server.refuse = True
        (refused,) = make(tmp_path, server)
        with server.silent():
            (unanswered,) = make(tmp_path, server, patience=4)  # less than wandb's own, IMPATIENCE
    assert refused.startswith("error: mode=workspace: ")
    assert len(refused.splitlines()) == 1
    assert KEY not in refused
    assert unanswered == "error: mode=workspace: wandb did not answer within 4 s"
    assert not (tmp_path / "only" / "workspace.json").exists()


def test_the_mode_is_one_of_the_command_line(tmp_path):
    with pytest.raises(ConfigError, match="expected a W&B login"):
        execute(composed("mode=workspace", f"run.root={tmp_path}"))
