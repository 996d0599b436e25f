"""The adaptive search: what it proposes and measures, and that it reports what was measured on images it never saw."""

import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel
from hydra import compose, initialize_config_dir
from rich.console import Console

from circuits.engine import Engine, Window
from circuits.interventions import Intervention, Mode, Site
from sweeps import driver, rungs
from sweeps.adaptive import Search, Searched, recall, run_search
from sweeps.aggregate import Registered, effects_of
from sweeps.candidates import Candidate, Evolution, Space, search_plan, search_space
from sweeps.composition import config_folder, register, typed
from sweeps.config import Config, ConfigError
from sweeps.gains import Gains
from sweeps.plan import Subject
from sweeps.records import RunDirectory
from sweeps.summary import confirmed_sets

SPACE = Space(
    datasets=("synthetic", "natural"),
    modes=(Mode.mean, Mode.zero),
    windows=(Window(999, 500), Window(499, 0)),
    strengths=(0.5, 1.0),
    sites=tuple(Site(f"layer{i}", head) for i in range(3) for head in range(4)),
    max_heads=3,
)
SMALL = replace(SPACE, modes=(Mode.mean,), sites=SPACE.sites[:3], max_heads=2, strengths=(1.0,))


def evolve(space: Space, score: Callable[[Candidate], float | None], candidates: int, seed: int = 0) -> Evolution:
    evolution = Evolution(space, candidates=candidates, generation=8, seed=seed)
    while fresh := evolution.next_generation():
        for candidate in fresh:
            evolution.tell(candidate, score(candidate))
    return evolution


# what is proposed


def test_a_space_has_as_many_candidates_as_it_says():
    every = list(SMALL.every())
    assert len(every) == len(set(every)) == SMALL.size() == (3 + 3) * 2 * 2
    assert SPACE.size() == (12 + 66 + 220) * 2 * 2 * 2 * 2


def test_draws_and_children_stay_in_the_space_and_change_something():
    every, rng = set(SMALL.every()), np.random.default_rng(0)
    drawn = [SMALL.draw(rng) for _ in range(200)]
    children = [SMALL.child(a, b, rng) for a, b in pairwise(drawn)]
    assert set(drawn) == every
    assert set(children) == every
    assert {len(c.sites) for c in drawn} == {1, 2}


def test_a_candidate_survives_the_way_to_a_worker():
    candidate = Candidate("natural", Mode.mean, 1, 0.5, (Site("a:b.attn1", 3), Site("c", 0)))
    assert Candidate.from_plain(candidate.plain()) == candidate


def test_the_planted_pair_is_found():
    """The two heads have an effect each, together four times the sum; window and strength multiply it."""
    first, second = Site("layer0", 1), Site("layer2", 3)

    def score(candidate: Candidate) -> float:
        inside = {first, second} & set(candidate.sites)
        effect = {0: 0.0, 1: 0.1, 2: 0.8}[len(inside)] - 0.02 * len(candidate.sites)
        return effect * candidate.strength * (2 if candidate.window_index == 1 else 1)

    def best(evolution: Evolution) -> Candidate:
        return max(evolution.proposed, key=score)

    def is_planted(candidate: Candidate) -> bool:
        return {first, second} <= set(candidate.sites) and candidate.window_index == 1 and candidate.strength == 1

    found = [is_planted(best(evolve(SPACE, score, 160, seed))) for seed in range(20)]
    blind = [is_planted(best(evolve(SPACE, lambda _: 0.0, 160, seed))) for seed in range(20)]
    assert sum(found) >= 18
    assert sum(found) > sum(blind) + 5


def test_proposals_follow_from_the_seed_and_the_scores_alone():
    def score(candidate: Candidate) -> float:
        return len(candidate.sites) + candidate.strength

    one, other = (Evolution(SPACE, candidates=40, generation=8, seed=3) for _ in range(2))
    while fresh := one.next_generation():
        assert other.next_generation() == fresh
        for candidate in fresh:
            one.tell(candidate, score(candidate))
        for candidate in reversed(fresh):
            other.tell(candidate, score(candidate))
            other.tell(candidate, -99.0)  # a later word does not count
    assert one.proposed == other.proposed
    assert len(set(one.proposed)) == 40
    assert one.proposed != evolve(SPACE, score, 40, seed=4).proposed


def test_a_small_space_is_tried_whole_and_no_candidate_twice():
    assert sorted(evolve(SMALL, lambda _: 0.0, 1000).proposed) == sorted(SMALL.every())


def test_candidates_that_cannot_be_measured_have_no_children_and_end_nothing():
    evolution = evolve(SPACE, lambda c: None if Site("layer0", 0) in c.sites else 1.0, 48)
    assert len(evolution.proposed) == 48
    assert len(evolve(SPACE, lambda _: None, 48).proposed) == 48


@pytest.fixture
def tune() -> ModuleType:
    """`sweeps.search`, imported as a sweep does: Ray reads how to authenticate when it is first imported."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    return import_module("sweeps.search")


def test_halving_is_the_rule_of_tune(tune: ModuleType):
    """Against Ray's own scheduler, on the same scores in the same order."""

    class Trial:
        def __init__(self, trial_id: str) -> None:
            self.trial_id = trial_id

    for reduction in (2, 3):
        asha = tune.AsyncHyperBandScheduler(
            "images", "score", "max", max_t=4 * reduction**3, grace_period=4, reduction_factor=reduction
        )
        halving, rng = rungs.Halving(reduction), np.random.default_rng(reduction)
        dropped = 0
        for index in range(60):
            trial = Trial(str(index))
            asha.on_trial_add(None, trial)
            for images in (4 * reduction**k for k in range(3)):
                score = float(rng.normal())
                stop = asha.on_trial_result(None, trial, {"images": images, "score": score}) == "STOP"
                assert halving.goes_on(images, score) != stop
                if stop:
                    dropped += 1
                    break
        assert 0 < dropped < 60


# what is measured


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DiT of 2 layers x 3 heads at 12 x 12, whose modulation is not zero, so that heads have effects."""
    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = DiTTransformer2DModel(
            num_attention_heads=3, attention_head_dim=4, in_channels=1, out_channels=1, num_layers=2, sample_size=12,
            patch_size=3, num_embeds_ada_norm=2, norm_elementwise_affine=False,
        )  # fmt: skip
        for parameter in network.parameters():
            parameter.data += 0.15 * torch.randn_like(parameter)
    network.save_pretrained(folder / "transformer")
    DDPMScheduler(prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text("{}")
    return folder


def configured(model: Path, root: Path, *more: str) -> Config:
    register()
    overrides = (
        "sweep=search", "model=hub", f"model.path={model}", "cluster=inline", "tracker=none", "sweep.images=8",
        "sweep.search.grace_images=2", "sweep.search.candidates=8", "sweep.search.generation=4", "sweep.steps=4",
        "sweep.windows=2", "sweep.samples=2", "sweep.search.max_heads=2", "sweep.search.confirm=3", "run.rows=16",
        f"run.root={root}", *more,
    )  # fmt: skip
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        return typed(compose("config", overrides=list(overrides)))


class Session:
    """The parts of the driver that a search needs, with a count of what was measured."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.subject, self.spec = driver.load(config)
        plan = search_plan(config, self.subject)
        self.directory = driver.run_directory(config, plan)
        self.directory.create(self.directory.records, self.directory.samples)
        driver.begin(config, self.subject, plan, self.directory)
        self.stop = threading.Event()

    def search(self) -> Searched:
        runner = driver.runner_spec(self.config, self.spec, self.directory)
        console = Console(quiet=True)
        return run_search(self.config, self.subject, runner, self.directory, console, self.stop)

    def parts(self) -> list[str]:
        return sorted(part.name for part in self.directory.records.glob("*.parquet"))


def stop_after(measurements: int, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the search, as Ctrl-C does, during this measurement."""
    measure, calls = rungs.CandidateRunner.measure, []

    def stopping(self: rungs.CandidateRunner, plain: dict, images: int) -> dict | None:
        calls.append(images)
        if len(calls) == measurements:
            session.stop.set()
        return measure(self, plain, images)

    monkeypatch.setattr(rungs.CandidateRunner, "measure", stopping)


def numbers(directory: RunDirectory) -> pd.DataFrame:
    return directory.measurements().set_index(["trial_id", "unit", "metric"]).sort_index()


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A whole inline run, report included."""
    config = configured(model, tmp_path_factory.mktemp("runs"), "run.name=whole")
    assert driver.execute(config) == 0
    return config


def run_of(config: Config) -> RunDirectory:
    assert config.run.name
    return RunDirectory(Path(config.run.root) / config.run.name)


def test_confirmation_images_are_disjoint_from_those_of_the_search(finished: Config):
    directory = run_of(finished)
    trials = pd.read_parquet(directory.trials).set_index("trial_id")
    assert trials["phase"].value_counts().to_dict() == {"search": 8, "confirm": 3}
    assert (trials["level"] == "set").all()
    assert (trials["head"] == -1).all()
    measured = directory.measurements()
    noise = measured[measured["metric"] == "noise_mse"]
    units = noise.groupby("trial_id")["unit"].agg(["min", "max", "size"]).join(trials["phase"])
    searched, confirmed = units[units["phase"] == "search"], units[units["phase"] == "confirm"]
    assert (searched["min"] == 0).all()
    assert set(searched["size"]) <= {2, 4, 8}
    assert (searched["max"] == searched["size"] - 1).all()
    assert (confirmed[["min", "max", "size"]] == (8, 15, 8)).all(axis=None)


def test_a_candidate_is_listed_at_the_most_images_it_reached(finished: Config):
    directory = run_of(finished)
    listed = set(pd.read_parquet(directory.trials)["trial_id"])
    counts = directory.measurements().query("metric == 'noise_mse'").groupby("trial_id").size()
    # All candidates are at the first rung; the rule of ASHA drops some of them there and at the next.
    sizes = counts.value_counts()
    assert sizes[2] == 8
    assert 8 > sizes[4] > 0
    reached = counts[counts.index.isin(listed)]
    assert (reached == 8).sum() == sizes[8]  # the 3 confirmations, and whoever reached the last rung
    assert (reached == 2).sum() == 8 - sizes[4]


def test_a_later_fold_is_the_same_measurement_as_those_images_of_a_larger_one(model: Path, tmp_path: Path):
    subject, _ = driver.load(configured(model, tmp_path))
    engine = Engine(subject.denoiser, subject.layers, subject.data, steps=4, seed=0, rows=5)
    sites = (Site(subject.layers[0].name, 1), Site(subject.layers[1].name, 2))
    chosen = [Intervention(Mode.mean, sites), Intervention(Mode.zero, sites, 0.5)]
    whole = engine.denoise("natural", Window(999, 500), chosen, 12)["noise_mse"]
    fold = engine.denoise("natural", Window(999, 500), chosen, 7, first=5)["noise_mse"]
    torch.testing.assert_close(fold.baseline, whole.baseline[5:], rtol=1e-5, atol=0)
    torch.testing.assert_close(fold.ablated, whole.ablated[:, 5:], rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="16 images to measure, got n=7, first=10"):
        engine.denoise("natural", Window(999, 500), chosen, 7, first=10)


def test_the_same_command_measures_nothing_again(finished: Config):
    directory = run_of(finished)
    before, numbers_before = sorted(directory.records.iterdir()), numbers(directory)
    trials = pd.read_parquet(directory.trials)
    assert driver.execute(finished) == 0
    assert sorted(directory.records.iterdir()) == before
    pd.testing.assert_frame_equal(numbers(directory), numbers_before)
    pd.testing.assert_frame_equal(pd.read_parquet(directory.trials), trials)


def test_an_interrupted_search_goes_on_with_the_same_candidates(
    finished: Config, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    session = Session(configured(model, tmp_path, "run.name=cut"))
    stop_after(9, session, monkeypatch)
    assert session.search().interrupted
    assert "selected" not in session.directory.read_run()["search"]
    parts = session.parts()
    assert len(parts) == 9
    listed = pd.read_parquet(session.directory.trials)
    assert set(listed["phase"]) == {"search"}
    assert driver.execute(session.config) == 0
    assert set(parts) < set(session.parts())
    leases = [name.rpartition("-")[0] for name in session.parts()]
    assert len(leases) == len(set(leases))
    expected = run_of(finished)
    pd.testing.assert_frame_equal(pd.read_parquet(session.directory.trials), pd.read_parquet(expected.trials))
    # Distances between almost equal samples hold the rounding of their pixels, hence atol.
    pd.testing.assert_frame_equal(numbers(session.directory), numbers(expected), rtol=1e-5, atol=1e-6)


def test_a_score_from_the_ledger_is_the_score_that_was_reported(model: Path, tmp_path: Path):
    session = Session(configured(model, tmp_path, "run.name=scores"))
    runner = rungs.CandidateRunner(
        driver.runner_spec(session.config, session.spec, session.directory), session.config, session.subject
    )
    space = search_space(session.config, session.subject)
    plain = space.draw(np.random.default_rng(1)).plain()
    told = runner.measure(plain, 8)
    assert told is not None
    assert told["rows"] > 0
    (score,) = rungs.known_scores(session.directory, "noise_mse").values()
    assert score == told["score"]
    assert runner.measure(plain, 8) == {**told, "rows": 0}

    elsewhere = Session(configured(model, tmp_path, "run.name=elsewhere"))
    spec = driver.runner_spec(elsewhere.config, elsewhere.spec, elsewhere.directory)
    known = rungs.known_scores(session.directory, "noise_mse")
    away = rungs.CandidateRunner(spec, elsewhere.config, elsewhere.subject, known)
    assert away.measure(plain, 8) == {**told, "rows": 0}, "the driver's ledger counts where it is not at hand"
    assert elsewhere.parts() == []


def test_a_candidate_that_cannot_be_measured_is_left_out_and_not_tried_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    session = Session(configured(model, tmp_path, "run.name=poison"))
    measure = rungs.CandidateRunner.measure
    poison = next(iter(Search(session.config, session.subject, {}).propose())).plain()
    asked = []

    def failing(self: rungs.CandidateRunner, plain: dict, images: int) -> dict | None:
        asked.append(plain)
        return None if plain == poison else measure(self, plain, images)

    monkeypatch.setattr(rungs.CandidateRunner, "measure", failing)
    found = session.search()
    assert session.directory.read_run()["search"]["failed"] == [poison]
    phases = [t.phase for t in found.plan.trials]
    assert phases.count("search") == 8  # the failed one is listed, so that the driver tries and records it
    assert [c.plain() for c in Search(session.config, session.subject, {"failed": [poison]}).propose()].count(
        poison
    ) == 0
    session.directory.write_run({"search": {"failed": [poison]}})
    asked.clear()
    again = session.search()
    assert poison not in asked
    assert [t.trial_id for t in again.plan.trials] == [t.trial_id for t in found.plan.trials]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sweep.protocols=[denoise,sample]", "sweep.protocols: a search measures under [denoise] alone"),
        ("sweep.search.grace_images=9", "sweep.search.grace_images: expected at most sweep.images=8, got 9"),
        ("sweep.search.max_heads=7", "sweep.search.max_heads: expected at most 6, the heads chosen, got 7"),
        ("sweep.modes=[resample]", "sweep.search.grace_images: resample needs 2 images a sampler step"),
        ("sweep.heads=[5]", "sweep.heads: there is no 5"),
    ],
)
def test_a_wrong_setting_says_what_is_expected(model: Path, tmp_path: Path, override: str, says: str):
    config = configured(model, tmp_path, override)
    subject, _ = driver.load(config)
    with pytest.raises(ConfigError) as error:
        search_space(config, subject)
    assert says in str(error.value)


def test_the_identity_of_a_search_is_what_decides_its_trials(model: Path, tmp_path: Path):
    def digest(*more: str) -> str:
        config = configured(model, tmp_path, *more)
        return search_plan(config, driver.load(config)[0]).digest

    assert digest() == digest("run.rows=3", "run.name=other")
    others = ("sweep.seed=1", "sweep.images=9", "sweep.search.candidates=9", "stats.alpha=0.1", "sweep.heads=[0,1]")
    assert len({digest(), *map(digest, others)}) == 1 + len(others)


# Tune


@pytest.fixture
def proposals(model: Path, tmp_path: Path, tune: ModuleType):
    config = configured(model, tmp_path)
    subject, _ = driver.load(config)
    return tune._Proposals(Search(config, subject, {}), 2, Console(quiet=True), threading.Event(), lambda: None)


def result(score: float, images: int = 2) -> dict:
    return {"images": images, "score": score, "rows": 4}


def test_tune_gets_a_generation_before_the_next_and_a_free_worker_for_each(proposals):
    first, second = proposals.suggest("a"), proposals.suggest("b")
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert {first["worker"], second["worker"]} == {0, 1}
    assert proposals.suggest("c") is None  # no worker is free
    proposals.on_trial_result("a", result(0.5))
    proposals.on_trial_complete("b", result(0.1))  # what ASHA drops comes with its last result
    third, fourth = proposals.suggest("c"), None
    assert isinstance(third, dict)
    assert third["worker"] == second["worker"]
    proposals.on_trial_complete("a", {**result(0.4, 4), "done": True})
    fourth = proposals.suggest("d")
    assert isinstance(fourth, dict)
    proposals.on_trial_complete("d", None, error=True)
    assert proposals.suggest("e") is None  # the third has no score yet
    proposals.on_trial_complete("c", result(0.2))
    assert isinstance(proposals.suggest("e"), dict)
    state = proposals._search
    assert [c.plain() for c in state.failed] == [fourth["candidate"]]
    assert state.scores[Candidate.from_plain(first["candidate"])] == {2: 0.5, 4: 0.4}
    assert state.rows == 16


def test_an_interruption_condemns_no_candidate(proposals):
    proposals.suggest("a")
    proposals._stop.set()
    proposals.on_trial_complete("a", None)
    assert not proposals._search.failed


def kill_a_worker(directory: RunDirectory, parts: int, killed: list[int]) -> None:
    """SIGKILL to one of this process's own workers, once there are so many parts."""
    while not killed:
        time.sleep(0.05)
        there = len(list(directory.records.glob("*.parquet")))
        for process in psutil.Process().children(recursive=True) if there >= parts else ():
            with suppress(psutil.Error):
                if not killed and any("CandidateWorker" in word for word in process.cmdline()):
                    process.kill()
                    killed.append(process.pid)


@pytest.mark.run
def test_tune_goes_on_with_the_same_candidates_and_numbers_through_the_loss_of_a_worker(
    finished: Config, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Begun in process and interrupted, ended on two workers of which one is killed."""
    session = Session(configured(model, tmp_path, "run.name=tuned", "cluster.workers=2"))
    with monkeypatch.context() as patch:
        stop_after(5, session, patch)
        assert session.search().interrupted
    begun = session.parts()
    assert len(begun) == 5
    config = replace(session.config, cluster=replace(session.config.cluster, name="local"))
    here, killed = Path.cwd(), []
    killer = threading.Thread(target=kill_a_worker, args=(session.directory, 7, killed), daemon=True)
    killer.start()
    assert driver.execute(config) == 0
    assert len(killed) == 1
    assert Path.cwd() == here
    assert set(begun) < set(session.parts())
    leases = [name.rpartition("-")[0] for name in session.parts()]
    assert len(leases) - len(set(leases)) <= 1  # what the killed worker may have written without saying so
    inline, tuned = run_of(finished), session.directory
    assert not (tuned.path / "tune").exists()
    axes = ["dataset", "mode", "strength", "window_index", "sites"]

    def candidates(directory: RunDirectory) -> list:
        trials = pd.read_parquet(directory.trials).query("phase == 'search'")
        return [(*row[:-1], tuple(row[-1])) for row in trials[axes].itertuples(index=False, name=None)]

    assert candidates(tuned) == candidates(inline)
    one, other = numbers(inline).query("unit < 8"), numbers(tuned).query("unit < 8")  # those of the search
    shared = one.index.intersection(other.index)
    assert len(shared) >= 8 * 2 * 6  # every candidate's first rung of two images, in six metrics
    pd.testing.assert_frame_equal(one.loc[shared], other.loc[shared], rtol=1e-5)
    assert pd.read_parquet(tuned.trials)["phase"].value_counts().to_dict() == {"search": 8, "confirm": 3}


# what is reported

REGISTERED = Registered("noise_mse", alpha=0.05, margin=0.05)


def fake_search(rng: np.random.Generator, effect: float, sets: int = 150, n: int = 16, confirm: int = 5):
    """Trials and log ratios of a search whose sets all have the same effect, and of the confirmation of its best."""
    searched = effect + 0.2 * rng.standard_normal((sets, n))
    best = np.argsort(-searched.mean(axis=1))[:confirm]
    confirmed = effect + 0.2 * rng.standard_normal((confirm, n))
    g = np.full((sets + confirm, 2 * n), np.nan, dtype=np.float32)
    g[:sets, :n], g[sets:, n:] = searched, confirmed
    ids = np.array([f"s{i}" for i in range(sets)] + [f"c{i}" for i in best], dtype=object)
    trials = pd.DataFrame(
        {"trial_id": ids, "layer_index": -1, "window_index": 0, "phase": ["search"] * sets + ["confirm"] * confirm}
    )
    return trials, {"noise_mse": Gains(ids, g)}


def test_under_no_effect_the_best_of_the_search_look_strong_and_the_confirmed_do_not():
    rng = np.random.default_rng(11)
    chosen, confirmed, called, wrongly_called, repeats = [], [], 0, 0, 40
    for _ in range(repeats):
        trials, gains = fake_search(rng, effect=0.0)
        effects = effects_of(trials, gains, REGISTERED).set_index("trial_id")
        fresh = effects[effects.index.str.startswith("c")]
        chosen += effects.loc[["s" + i[1:] for i in fresh.index], "mean_log_ratio"].tolist()
        confirmed += fresh["mean_log_ratio"].tolist()
        called += (fresh["verdict"] == "degraded").any()
        # The control: the same sets tested on the images that they were chosen by.
        naive = trials[trials["trial_id"].isin(["s" + i[1:] for i in fresh.index])].assign(phase="confirm")
        part = Gains(naive["trial_id"].to_numpy(), gains["noise_mse"].of(naive["trial_id"].tolist()))
        wrongly_called += (effects_of(naive, {"noise_mse": part}, REGISTERED)["verdict"] == "degraded").any()
    error = 0.2 / 4 / np.sqrt(5 * repeats)
    assert np.mean(chosen) > 0.05  # two standard errors of a single set
    assert abs(np.mean(confirmed)) < 3.5 * error
    assert called <= 6  # expected at most 2 of 40
    assert wrongly_called >= 0.7 * repeats


def test_a_real_effect_is_confirmed_at_its_size():
    trials, gains = fake_search(np.random.default_rng(2), effect=0.3)
    effects = effects_of(trials, gains, REGISTERED).merge(trials, on="trial_id")
    fresh = effects[effects["phase"] == "confirm"]
    assert (fresh["verdict"] == "degraded").all()
    assert ((fresh["ci_low"] < 100 * np.expm1(0.3)) & (fresh["ci_high"] > 100 * np.expm1(0.3))).sum() >= 4


def test_what_a_search_chose_from_has_no_verdict_and_weighs_on_no_other():
    trials, gains = fake_search(np.random.default_rng(3), effect=0.1)
    effects = effects_of(trials, gains, REGISTERED).merge(trials, on="trial_id")
    searched = effects[effects["phase"] == "search"]
    assert searched[["ci_low", "ci_high", "p", "q", "q_by"]].isna().all(axis=None)
    assert set(searched["verdict"]) == {"inconclusive"}
    alone = trials[trials["phase"] == "confirm"]
    part = Gains(alone["trial_id"].to_numpy(), gains["noise_mse"].of(alone["trial_id"].tolist()))
    without = effects_of(alone, {"noise_mse": part}, REGISTERED)
    columns = ["trial_id", "percent", "ci_low", "ci_high", "p", "q", "q_by", "verdict"]
    pd.testing.assert_frame_equal(
        effects.loc[effects["phase"] == "confirm", columns].reset_index(drop=True), without[columns], rtol=1e-6
    )


def test_the_end_of_a_search_names_the_confirmed_sets_and_how_they_were_chosen(
    finished: Config, capsys: pytest.CaptureFixture[str]
):
    assert driver.execute(finished) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Strongest sets, on fresh images" in said
    assert "chosen as the strongest of 8 sets" in said
    directory = run_of(finished)
    effects = pd.read_parquet(directory.effects)
    subject: Subject = driver.load(finished)[0]
    sets = confirmed_sets(recall(finished, subject, directory).plan(), effects, "noise_mse")
    assert len(sets) == 3
    assert sets["percent"].is_monotonic_decreasing
    for row in sets.itertuples():
        assert f"{row.percent:+.1f}%" in said
        assert f"{row.percent_searched:+.1f}%" in said
