"""What ``mode=plan`` expects of time, cost and power: sums by hand, an earlier run, a pilot, warnings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from circuits.statistics import StoppingRule, by, hierarchical_fdr, signflip_test
from sweeps import plan_summary
from sweeps.config import Config
from sweeps.driver import execute, load, runner_spec
from sweeps.estimate import (
    IMPORTS,
    ROUND,
    TRACKED_RUN,
    Pace,
    Setting,
    estimated,
    expected_rounds,
    pace_of_pilot,
    usual,
    wandb_runs,
    work_of,
)
from sweeps.outlook import expected_images
from sweeps.pilot import Pilot, chosen, crowding, run_pilot
from sweeps.plan import Subject, make_plan
from sweeps.records import RunDirectory
from sweeps.resolving import Families, families_of, needs, warnings
from tests.sweeps.fake_subject import fake_subject
from tests.sweeps.tiny import composed, only_run

pytestmark = [pytest.mark.run, pytest.mark.usefixtures("no_report")]

Configure = Callable[..., Config]
PACE = Pace(
    image=0.01, generated_row=0.02, once=0.5, survival=0.5, starting=10.0, aggregating=2.0, reporting=6.0,
    tracking=3.0, source="here",
)  # fmt: skip
TWO = Setting(workers=2, threads=1, cores=2, loading=1.0, runs=100, ray=True)


def test_work_of_a_fixed_grid_in_closed_form() -> None:
    plan = make_plan(composed("sweep.controls=3"), fake_subject())
    work = work_of(plan, stopped=False, first=16, batch=16)
    assert work.images == work.most_images == 1080 * 64
    assert work.control_images == 2 * 5 * (4 * 3 + 1) * 16
    assert work.generated_rows == 1080 * 4 * 6, "a window's samples begin at its first step: 6 of 10 on average"
    assert (work.clean, work.rounds, work.most_rounds) == (10, 1.0, 1)
    assert work.most_rows == work.rows == plan.rows()


def test_work_under_a_rule_is_expected_and_at_most() -> None:
    plan = make_plan(composed("stats=sequential", "stats.n_max=64"), fake_subject())
    work = work_of(plan, stopped=True, first=16, batch=16)
    assert work.most_images == 1080 * 64
    assert work.images == pytest.approx(1080 * 16 * (1 + 1 / 2 + 1 / 4 + 1 / 8))
    assert 3.9 < work.rounds <= work.most_rounds == 4
    everything = work_of(plan, stopped=True, first=16, batch=16, survival=1.0)
    assert everything.images == everything.most_images


def test_rounds_equal_a_simulation() -> None:
    rng = np.random.default_rng(0)
    images = np.array([256] * 30 + [40] * 30)
    found = []
    for _ in range(3000):
        running, rounds, n = images.copy(), 1, 16
        while (running := running[(running > n) & (rng.random(len(running)) < 0.5)]).size:
            rounds, n = rounds + 1, n + 16
        found.append(rounds)
    assert expected_rounds(images, 16, 16, 0.5) == pytest.approx(np.mean(found), abs=0.15)


def test_parts_add_up_and_workers_share_them() -> None:
    plan = make_plan(composed("sweep.controls=3"), fake_subject())
    work = work_of(plan, stopped=False, first=16, batch=16)
    found = {part.name: part.expected for part in estimated(work, PACE, TWO, profile_seconds=7.0).parts}
    assert found == pytest.approx(
        {
            "starting": IMPORTS + 1.0 + 10.0,
            "profiles": 7.0,
            "ablations": 0.01 * work.images / 2,
            "controls": 0.01 * work.control_images / 2,
            "samples to look at": 0.02 * work.generated_rows / 2,
            "first passes": 0.5 * (10 + 1) / 2,
            "rounds": ROUND,
            "W&B beside it": 100 * TRACKED_RUN / 2,
            "aggregation": 2.0,
            "report": 6.0,
            "W&B at the end": 3.0,
        }
    )
    whole = estimated(work, PACE, TWO)
    assert whole.expected == sum(part.expected for part in whole.parts)
    assert whole.most == pytest.approx(whole.expected + 0.5 * (10 * 2 - 11) / 2), "as if both went everywhere"
    assert whole.cost(3.0) == pytest.approx((whole.expected / 1200 * 2, whole.most / 1200 * 2))
    quiet = {part.name for part in estimated(work, PACE, replace(TWO, runs=0)).parts}
    assert not {name for name in quiet if "W&B" in name}
    idle_core = {part.name for part in estimated(work, PACE, replace(TWO, cores=4)).parts}
    assert "W&B beside it" not in idle_core, "where a core is free, logging costs the sweep nothing"


@pytest.mark.parametrize(
    ("clean", "workers", "passes", "most"),
    [(10, 1, 10, 10), (10, 2, 11, 20), (10, 100, 109, 218), (1, 3, 3, 3), (0, 5, 0, 0)],
)
def test_workers_share_the_first_passes_out(clean: int, workers: int, passes: int, most: int) -> None:
    work = replace(work_of(make_plan(composed(), fake_subject()), stopped=False, first=16, batch=16), clean=clean)
    found = {part.name: part for part in estimated(work, PACE, replace(TWO, workers=workers)).parts}
    expected = (0.5 * passes / workers, 0.5 * most / workers)
    part = found.get("first passes")
    assert ((part.expected, part.most) if part else (0, 0)) == pytest.approx(expected)


def test_wandb_has_a_run_a_trial_up_to_a_limit() -> None:
    trials = make_plan(composed("sweep.controls=3"), fake_subject()).trials
    assert wandb_runs(trials, "auto", 2000) == 1080 + 4 * 5 + 1
    assert wandb_runs(trials, "auto", 1000) == wandb_runs(trials, "group", 2000) == 4 * 5 + 1


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that breaks no line of a table."""
    monkeypatch.setenv("COLUMNS", "240")


# The pilot


def test_the_pilot_measures_leases_of_the_grid_and_leaves_nothing(configure: Configure, subject: Subject) -> None:
    config = configure("sweep.modes=[zero,mean]")
    _, spec = load(config)
    plan = make_plan(config, subject)
    runner = runner_spec(config, spec, RunDirectory(Path(config.run.root) / "run"))
    found = run_pilot(subject, runner, plan, row_seconds=1e-4, workers=1, threads=1)
    assert found is not None
    assert found.image > 0
    assert found.generated_row > 0
    assert found.crowding == 1.0
    assert found.trials == sum(map(len, chosen(plan)))
    assert set(found.spreads) >= {"noise_mse", "edge"}
    assert all(value > 0 for value in found.spreads.values())
    assert not Path(config.run.root).exists()
    assert run_pilot(subject, runner, plan, row_seconds=10.0, workers=1, threads=1) is None, "it would take minutes"


def test_leases_of_the_pilot_are_drawn_from_all_of_the_grid() -> None:
    groups = chosen(make_plan(composed("sweep.controls=3"), fake_subject()))
    assert len(groups) == 8
    assert all(trial.phase == "grid" and trial.images == 16 for group in groups for trial in group)
    assert len({group[0].window for group in groups}) >= 3
    assert len({group[0].layer for group in groups}) >= 3
    modes = [trial.intervention.mode.value for group in groups for trial in group]
    assert all(modes.count(mode) >= 5 for mode in ("zero", "mean", "resample"))


def test_crowding_is_the_ratio_of_two_times() -> None:
    times = iter([0.0, 3.0, 0.0, 2.4, 0.0, 1.5, 0.0, 1.2])
    assert crowding(2, lambda: next(times)) == pytest.approx(2.4 / 1.2)
    assert crowding(1, lambda: next(times)) == 1.0


def test_a_crowd_slows_every_worker() -> None:
    pilot = Pilot(image=0.1, generated_row=0.2, once=0.3, crowding=1.5, spreads={"edge": 0.4}, trials=32)
    pace = pace_of_pilot(pilot, TWO, 100)
    assert (pace.image, pace.generated_row, pace.once) == pytest.approx((0.15, 0.3, 0.45))
    assert pace.starting == usual(TWO, 100).starting > usual(replace(TWO, ray=False), 100).starting
    assert pace.source == "a pilot of 32 trials here"


# An earlier run


def test_an_earlier_run_like_this_one_says_how_fast_it_was(
    configure: Configure, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert execute(configure("run.name=earlier")) == 0
    directory = RunDirectory(tmp_path / "runs" / "earlier")
    about = directory.read_run()
    assert set(about["timings"]) == {"loading", "exploring", "starting", "measuring", "aggregating", "reporting"}
    work = about["work"]
    assert work["rows"] == about["counts"]["rows"]
    assert 0 < work["worker_seconds"] <= about["seconds"] + 0.06, "rounded to tenths"
    assert work["workers"] == 1
    directory.write_run(
        {
            "work": work | {"rows": 1000, "worker_seconds": 200.0, "survival": 0.25},
            "timings": {"starting": 11.0, "aggregating": 4.0, "reporting": 6.0},
        }
    )
    monkeypatch.setattr(plan_summary, "run_pilot", lambda *_, **__: pytest.fail("there is an earlier run"))
    capsys.readouterr()
    half = ["sweep.layers=[1]", "cluster.price_per_hour=36", "mode=plan"]
    assert execute(configure(*half)) == 0
    said = capsys.readouterr().out
    plan = make_plan(configure(*half), load(configure())[0])
    rows = sum(plan.rows_of(trial) for trial in plan.trials)
    table = {cells[1].strip(): cells[2].strip() for line in said.splitlines() if len(cells := line.split("│")) == 4}
    assert table["estimated time"].endswith("1 worker here, by the run earlier: 5 rows/s a worker")
    measuring = seconds(table["ablations"]) + seconds(table["samples to look at"])
    assert measuring == pytest.approx(rows * 0.2, abs=1)
    assert seconds(table["report"]) == 3, "half as many trials"
    assert seconds(table["aggregation"]) == 2
    assert " at most " not in table["estimated time"]
    whole = seconds(table["estimated time"].partition(";")[0])
    assert table["cost"] == f"{float(table['cost'].split(',')[0]):.2f}, at 36 an hour for each of 1 worker"
    assert float(table["cost"].split(",")[0]) == pytest.approx(whole / 100, abs=0.01)


def test_a_search_has_a_price_too(
    configure: Configure, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_summary, "probe", lambda _: (1e9, 10.0))
    search = ["sweep=search", "sweep.images=8", "sweep.windows=1", "sweep.samples=0", "cluster.price_per_hour=36"]
    assert execute(configure("mode=plan", *search, "sweep.search.confirm=0", "sweep.search.candidates=2")) == 0
    said = capsys.readouterr().out
    assert "at most 32 rows of one image" in said, "two sets and their baselines, on 8 images"
    assert "at most 3.20 of measuring, at 36 an hour of a worker" in said


def seconds(clock: str) -> int:
    minutes, _, rest = clock.partition(":")
    return 60 * int(minutes) + int(rest)


def test_runs_that_are_unlike_say_nothing(
    configure: Configure, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_summary, "run_pilot", lambda *_, **__: None)
    small = ["sweep.layers=[0]", "sweep.heads=[0]"]
    assert execute(configure("run.name=earlier", *small)) == 0
    earlier = tmp_path / "runs" / "earlier"
    assert json.loads((earlier / "run.json").read_text())["work"]["rows"] > 0
    for changed in (
        "sweep.samples=3",
        "cluster=local",
        "model.channels_last=true",
        f"run.root={tmp_path / 'elsewhere'}",
        "sweep.protocols=[denoise,sample]",
    ):
        capsys.readouterr()
        assert execute(configure("mode=plan", *small, changed)) == 0
        assert "by one forward here" in capsys.readouterr().out
    capsys.readouterr()
    assert execute(configure("mode=plan", *small, "sweep.protocols=denoise")) == 0
    assert "by the run earlier" in capsys.readouterr().out, "a list of one, as users write it"
    (earlier / "run.json").write_text("damaged")
    assert execute(configure("mode=plan", "run.name=other", *small)) == 0
    assert "by one forward here" in capsys.readouterr().out


def test_a_slow_model_is_measured_by_one_forward(
    configure: Configure, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_summary, "probe", lambda _: (1e9, 100.0))
    assert execute(configure("mode=plan", "stats=sequential", "stats.n_max=16")) == 0
    said = capsys.readouterr().out
    assert "by one forward here; without replay, so too much" in said
    assert "expected" not in said.split("estimated time")[1].split("\n")[0], "all of 8 images are a first look"
    assert "What it can find" not in said
    assert "No power table: no trial was measured here, so how much images differ is not known.\n" in said
    assert "warning: natural: an effect alone in the grid cannot be significant: with 8 images p is never below" in said


def test_under_a_rule_the_plan_says_expected_and_at_most(
    configure: Configure, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_summary, "probe", lambda _: (1e9, 10.0))
    rule = ["stats=sequential", "sweep.images=20", "stats.first=8", "stats.batch=4"]
    assert execute(configure("mode=plan", *rule)) == 0
    said = capsys.readouterr().out
    for row in ("forwards", "estimated time", "  ablations"):
        line = next(line for line in said.splitlines() if row in line)
        assert " expected, " in line
        assert " at most" in line
    assert "a look, every 4 images, leaves 50% of the trials running" in said
    assert [path.name for path in only_run(tmp_path / "runs").path.iterdir()] == ["trials.parquet"]


def test_where_the_run_lies_is_said_on_one_line(
    configure: Configure, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_summary, "run_pilot", lambda *_, **__: None)
    monkeypatch.setenv("COLUMNS", "40")
    assert execute(configure("mode=plan")) == 0
    assert f"run directory: {only_run(tmp_path / 'runs').path}" in capsys.readouterr().out.splitlines()


# What it can find

FAMILIES = Families(count=20, largest=54)


def test_families_are_counted() -> None:
    frame = make_plan(composed(), fake_subject()).frame()
    assert families_of(frame, ["layer", "window"]) == FAMILIES
    assert families_of(frame, []) == Families(1, 1080)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_correction_for_any_dependence_leaves_less(share: float) -> None:
    frame = make_plan(composed(), fake_subject()).frame()
    families = families_of(frame, ["layer", "window"], StoppingRule(correction="by"))
    level = families.level(0.05, share)
    strong = np.arange(max(1, int(20 * share))) * 54
    for p, found in ((0.999 * level, len(strong)), (1.001 * level, 0)):
        every = np.full(1080, 0.9)
        every[strong] = p
        assert np.count_nonzero(by(every) <= 0.05) == found
    assert level < FAMILIES.level(0.05, share) / 7


def test_needs_fall_with_the_effect_and_with_company() -> None:
    five, ten, quarter = needs(0.2, FAMILIES, 0.05, None)
    assert [need.percent for need in (five, ten, quarter)] == [5, 10, 25]
    assert five.alone > ten.alone > quarter.alone
    assert all(need.among < need.alone for need in (five, ten, quarter))
    boundary = needs(0.2, FAMILIES, 0.05, StoppingRule())
    assert all(under.alone > fixed.alone for under, fixed in zip(boundary, (five, ten, quarter), strict=True))


def test_the_table_holds_in_a_simulated_grid() -> None:
    """One effect of 25% among 1,080 trials: found in about 80% of the grids at the table's n, in few at a third."""
    rng = np.random.default_rng(3)
    need = needs(0.3, FAMILIES, 0.05, None)[-1].alone
    family = np.repeat(np.arange(20), 54)

    def found(n: int, grids: int = 150) -> float:
        hits = 0
        for _ in range(grids):
            p = rng.uniform(size=1080)
            p[0] = signflip_test(np.log(1.25) + 0.3 * rng.standard_normal((1, n)), "greater").p[0]
            hits += bool(hierarchical_fdr(p, family, 0.05).rejected[0])
        return hits / grids

    assert found(need) == pytest.approx(0.8, abs=0.1)
    assert found(need // 3) < 0.2


def test_warnings_say_what_cannot_be() -> None:
    rule = None
    (floor,) = warnings({"natural": 4}, "noise_mse", np.nan, FAMILIES, 0.05, rule)
    assert floor == (
        "natural: no trial can be significant: with 4 images p is never below 2^-4 = 0.062, and alpha is 0.05; "
        "it takes 5 images at least"
    )
    (alone,) = warnings({"natural": 14}, "noise_mse", np.nan, FAMILIES, 0.05, rule)
    assert alone.startswith("natural: an effect alone in the grid cannot be significant: with 14 images ")
    assert alone.endswith("and 1080 trials in 20 families take 4.6e-05; it takes 15 images at least")
    assert warnings({"natural": 15}, "noise_mse", np.nan, FAMILIES, 0.05, rule) == []
    five, ten, _ = needs(0.2, FAMILIES, 0.05, rule)
    (few,) = warnings({"natural": ten.among - 1, "synthetic": five.among}, "noise_mse", 0.2, FAMILIES, 0.05, rule)
    assert few == (
        f"natural: {ten.among - 1} images are too few for effects of 10% and less of noise_mse: 10% takes {ten.among} "
        f"images, {ten.alone} where it is alone in the grid"
    )


def test_the_plan_prints_power_and_warnings(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(configure("mode=plan", "sweep.images=4")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "What it can find" in said
    assert "4 families of up to 10 trials" in said, "2 layers x 2 windows; 5 targets on 2 data sets"
    assert said.count("warning: synthetic: no trial can be significant") == 1
    assert "warning: natural: no trial can be significant" in said
    assert execute(configure("mode=plan", "stats=sequential", "stats.statistic=sign")) == 0
    assert "No power table: of statistic=sign there is no formula." in capsys.readouterr().out


def test_generated_images_have_a_power_table_of_their_own(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    generation = ["sweep.protocols=[sample]", "stats.metric=contrast", "stats=sequential"]
    assert execute(configure("mode=plan", *generation)) == 0
    said = capsys.readouterr().out
    named = [cells[1].strip() for line in said.splitlines() if len(cells := line.split("│")) == 7]
    assert named == ["contrast", "edge_energy", "high_frequency_energy"]
    assert "a one-sided t test of as many images" in said, "no stopping rule governs them"
    assert "warning: natural: an effect alone in the grid cannot be significant: with 8 images" in said


def test_expected_images_are_what_the_default_sweep_took() -> None:
    """1,080 trials of up to 256 and 64 images took 37,400 and clean ones: half of the trials end at each look."""
    images = np.repeat([256, 64], 540) - 16
    assert 16 * 1080 + expected_images(images, 16, 0.5).sum() + 5 * (256 + 64) == pytest.approx(37_400, rel=0.1)
