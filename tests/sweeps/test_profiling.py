"""Profiles as a stage of a sweep: stored block by block, resumed, turned into trials, and analysed from disk alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from diffusers import DDPMScheduler
from rich.console import Console

from circuits.attention_types import TYPES as EVERY_TYPE
from circuits.circuit_sizes import nested_circuits
from circuits.complexity import complexity_ratios, faithful_sizes, head_complexity
from circuits.data.sources import DataSet
from circuits.engine import Engine, Window
from circuits.face_metrics import FACE_METRICS
from circuits.head_maps import head_maps
from circuits.interventions import Intervention, Mode, Site
from circuits.profiles import MEASURES, PROBES, profile_heads
from circuits.seeds import numpy_generator
from circuits.sites import find_sites
from circuits.statistics import divergence_band
from circuits.vocabulary import DENOISE_METRICS
from sweeps import profiling
from sweeps.aggregate import aggregate
from sweeps.comparison_names import DIVERGENCE, TYPE_EFFECT, TYPE_ON_IMAGES
from sweeps.config import Config, ConfigError
from sweeps.driver import execute, planned
from sweeps.paper import profile_findings
from sweeps.phases import TYPES, TYPES_CONTROL
from sweeps.plan import Subject, make_plan
from sweeps.profiles import ProfileStore
from sweeps.records import GaveOut, RunDirectory
from sweeps.run import SubjectSpec
from sweeps.tracking import plan as tracked
from sweeps.tracking.summary import summary_run
from tests.circuits.planted_heads import NOISE, PLANTED, planted_denoiser
from tests.sweeps.tiny import COMPARISON_COLUMNS, composed, duplicated_trials, run_whole

pytestmark = pytest.mark.run

Configure = Callable[..., Config]
PROFILE = (
    "sweep.profile.images=8", "sweep.profile.circuit_images=3", "sweep.profile.type_images=6",
    "sweep.profile.matched=4", "sweep.profile.map_heads=2", "sweep.layers=[0]", "sweep.windows=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, RunDirectory]:
    """A tiny sweep with profiles, run whole; not to be changed."""
    root = tmp_path_factory.mktemp("profiled")
    config = composed(*settings, *PROFILE, f"run.root={root}")
    return config, run_whole(root, *settings, *PROFILE)


def test_heads_have_the_columns_that_other_tools_rely_on(run: tuple[Config, RunDirectory], subject: Subject) -> None:
    _, directory = run
    heads = pd.read_parquet(directory.heads)
    expected = ["layer", "layer_index", "head", "dataset", "t", "entropy_nats", "entropy_normalised", "keys"]
    assert heads.columns[: len(expected)].tolist() == expected
    assert {*MEASURES, *PROBES, "type", "type_probability"} <= set(heads.columns)
    keys = ["dataset", "layer_index", "head", "t"]
    assert len(heads) == len(heads.drop_duplicates(keys)) == 2 * 4 * sum(layer.heads for layer in subject.layers)
    # The same numbers as the library gives for all timesteps at once.
    alone = profile_heads(subject.denoiser, subject.data, subject.layers, timesteps=4, images=8).frame()
    both = heads.merge(alone, on=keys, suffixes=("", "_alone"), validate="one_to_one")
    assert len(both) == len(heads)
    for name in ("entropy_nats", "uniform_share", "symmetry", "symmetry_p", "attends_edges", "output_energy"):
        np.testing.assert_allclose(both[name], both[f"{name}_alone"], rtol=1e-4, atol=1e-5)


def test_comparisons_are_those_of_the_library(run: tuple[Config, RunDirectory], subject: Subject) -> None:
    _, directory = run
    table = pd.read_parquet(directory.comparisons)
    assert table.columns.tolist() == COMPARISON_COLUMNS
    profiles = profile_heads(subject.denoiser, subject.data, subject.layers, timesteps=4, images=8)
    a, b = (profiles.per_image(name, "entropy_nats") for name in ("natural", "synthetic"))
    band = divergence_band(a, b, numpy_generator(0, "divergence/entropy_nats/natural"))
    rows = table[(table["name"] == f"{DIVERGENCE}: natural - synthetic") & (table["metric"] == "entropy_nats")]
    assert rows["group"].tolist() == [f"t {t}" for t in profiles.timesteps]
    np.testing.assert_allclose(rows["estimate"].astype(float), band.difference, atol=1e-5)
    np.testing.assert_allclose(rows["ci_low"].astype(float), band.low, atol=1e-4)
    found = head_complexity(subject.denoiser, subject.data, subject.layers, timesteps=4, images=8).effective_rank
    ratios = complexity_ratios(
        subject.layers, found["natural"].astype(float), found["synthetic"].astype(float),
        numpy_generator(0, "complexity/effective_rank/natural"),
    )  # fmt: skip
    rows = table[(table["name"] == "complexity ratio: natural / synthetic") & (table["metric"] == "effective_rank")]
    rows = rows[rows["group"] != "all, over heads"]
    assert rows["group"].tolist() == ratios["layer"].tolist()
    np.testing.assert_allclose(rows["estimate"].astype(float), ratios["estimate"], rtol=1e-5)
    np.testing.assert_allclose(rows["p"].astype(float), ratios["p"], atol=0.02)


def test_sets_are_trials_and_no_findings(run: tuple[Config, RunDirectory]) -> None:
    _, directory = run
    trials, sets = (
        pd.read_parquet(directory.trials),
        ProfileStore(directory).read_frame(directory.path / "profiles/sets.parquet"),
    )
    assert sets is not None
    assert len(sets)
    of_sets = trials[trials["phase"].isin([TYPES, TYPES_CONTROL])]
    assert set(sets["trial_id"]) == set(of_sets["trial_id"])
    assert (of_sets["level"] == "set").all()
    own = sets[sets["draw"] == 0].merge(of_sets, on="trial_id")
    assert own["sites"].map(len).tolist() == own["heads"].tolist()
    measured = directory.measurements()
    natural = of_sets.loc[of_sets["dataset"] == "natural", "trial_id"]
    assert set(measured.loc[measured["trial_id"].isin(natural), "metric"]) == {*DENOISE_METRICS, "symmetry"}
    synthetic = measured[measured["trial_id"].isin(of_sets["trial_id"]) & ~measured["trial_id"].isin(natural)]
    assert set(synthetic["metric"]) == {*DENOISE_METRICS, *FACE_METRICS}
    assert (synthetic.groupby(["trial_id", "metric"]).size() == 6).all()
    effects = pd.read_parquet(directory.effects)
    assert not set(effects["trial_id"]) & set(of_sets["trial_id"])


def test_a_second_run_measures_nothing_and_says_the_same(
    run: tuple[Config, RunDirectory], monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    config, directory = run
    files = {path: path.stat().st_mtime_ns for path in directory.path.glob("profiles/heads-*")}
    before = {path: pd.read_parquet(path) for path in (directory.heads, directory.comparisons)}
    parts = len(list(directory.records.iterdir()))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    for name in ("profile_heads", "head_complexity", "nested_circuits", "head_maps"):
        monkeypatch.setattr(profiling, name, refuse)
    assert execute(config) == 0
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert len(list(directory.records.iterdir())) == parts
    assert duplicated_trials(directory) == 0
    aggregate(directory)
    for path, table in before.items():
        pd.testing.assert_frame_equal(pd.read_parquet(path), table)


def test_an_interruption_loses_the_block_at_most(
    configure: Configure, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(*PROFILE)
    directory = RunDirectory(tmp_path / "cut")
    directory.create(directory.records)
    stop, calls, real = threading.Event(), [], profiling.profile_heads

    def counted(*args: object, timesteps: list[int], **rest: object) -> object:
        calls.append(timesteps[0])
        if len(calls) == 3:
            stop.set()
        return real(*args, timesteps=timesteps, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(profiling, "profile_heads", counted)
    plan = planned(config, subject)
    store = ProfileStore(directory)
    found = profiling.run_profiles(config, subject, plan, directory, Console(quiet=True), stop)
    assert found.interrupted
    assert found.plan is plan
    assert store.read() is None
    assert profile_findings(directory).heads is None  # what is there by half says nothing
    first = sorted(store.folder.glob("heads-*"))
    assert len(first) == len(calls) == 3
    first[1].write_bytes(first[1].read_bytes()[:-100])  # and one is damaged meanwhile
    stop.clear()
    found = profiling.run_profiles(config, subject, plan, directory, Console(quiet=True), stop)
    assert not found.interrupted
    assert len(found.plan) > len(plan)
    assert len(calls) == 3 + 5 + 1
    assert set(found.plan.trials) > set(plan.trials)
    resumed = store.read()
    assert resumed is not None
    whole = real(subject.denoiser, subject.data, subject.layers, timesteps=4, images=8)
    for name, values in whole.values["natural"].items():
        np.testing.assert_allclose(resumed.heads.values["natural"][name], values, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_profiled_is_one_line(
    configure: Configure, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory\nlots of detail")

    monkeypatch.setattr(profiling, "profile_heads", broken)
    directory = RunDirectory(tmp_path / "broken")
    directory.create()
    config = configure(*PROFILE)
    with pytest.raises(
        GaveOut, match=r"^profiling stopped at data set 'synthetic' at t=999 \(RuntimeError: out of memory\)$"
    ):
        profiling.run_profiles(
            config, subject, planned(config, subject), directory, Console(quiet=True), threading.Event()
        )
    for given, expected in (
        ("sweep.profile.images=6", r"sweep\.profile\.images: expected 0 \(no profiles\) or at least 8, got 6"),
        ("sweep.profile.mode=resample", r"sweep\.profile\.mode: unknown 'resample'"),
        ("sweep.profile.matched=0", r"sweep\.profile\.matched: expected at least 1, got 0"),
    ):
        with pytest.raises(ConfigError, match=expected):
            configure("sweep.profile.images=8", given)
    few = Subject(subject.denoiser, subject.layers, {"natural": _first(subject, 5)})
    with pytest.raises(ConfigError, match=r"expected at least 8 images of data set 'natural'.*got 5"):
        planned(config, few)


def _first(subject: Subject, count: int) -> DataSet:
    data = subject.data["natural"]
    return replace(data, measured=data.measured.take(range(count)))


def test_profiles_are_part_of_the_plan_and_leave_other_plans_alone(configure: Configure, subject: Subject) -> None:
    plain, profiled = make_plan(configure(), subject), make_plan(configure("sweep.profile.images=8"), subject)
    more = make_plan(configure("sweep.profile.images=10"), subject)
    assert [t.trial_id for t in plain.trials] == [t.trial_id for t in profiled.trials]
    assert len({plain.digest, profiled.digest, more.digest}) == 3


def test_planted_types_go_through_the_whole_sweep(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    """Built by hand: every type is found, its heads are ablated, and noise stays without one."""
    kinds = [[*PLANTED, NOISE]]
    denoiser, data = planted_denoiser(kinds, 48)
    # Hardly any noise, so that all timesteps show the image.
    denoiser = replace(denoiser, scheduler=DDPMScheduler(beta_start=1e-8, beta_end=1e-8))
    planted = Subject(denoiser, find_sites(denoiser), data)
    config = configure(
        *PROFILE, "sweep.profile.images=48", "sweep.heads=[0]", "sweep.levels=[head]", "sweep.steps=2",
        "sweep.profile.complexity=false", "sweep.samples=0", "run.name=planted",
    )  # fmt: skip
    spec = SubjectSpec("planted", "", "float32", "cpu", (), 48, steps=2)
    monkeypatch.setattr("sweeps.driver.load", lambda _: (planted, spec))
    assert execute(config) == 0
    directory = RunDirectory(Path(config.run.root) / "planted")
    heads = pd.read_parquet(directory.heads).drop_duplicates("head").sort_values("head")
    assert heads["type"].tolist() == [PLANTED[kind] for kind in kinds[0]]
    table = pd.read_parquet(directory.comparisons)
    effects = table[table["name"] == TYPE_EFFECT]
    assert set(effects["group"]) == {f"{kind} | synthetic" for kind in EVERY_TYPE}
    assert set(effects["metric"]) == {*DENOISE_METRICS, *FACE_METRICS}
    cells = table[table["name"] == TYPE_ON_IMAGES]
    assert len(cells) == len(EVERY_TYPE) * 8
    assert cells["q"].between(0, 1).all()
    assert (cells["q"] >= cells["p"]).all()


def test_circuits_by_brute_force(subject: Subject) -> None:
    engine = Engine(subject.denoiser, subject.layers, subject.data, steps=4, seed=0, rows=8)
    found = nested_circuits(engine, "natural", 8, Mode.zero)
    sites = [Site(layer.name, head) for layer in subject.layers for head in range(layer.heads)]
    window = Window(999, 0)
    alone = engine.denoise("natural", window, [Intervention(Mode.zero, (site,)) for site in sites], 4)["noise_mse"]
    damage = (alone.ablated - alone.baseline).mean(dim=1)
    assert found.order.tolist() == damage.argsort(descending=True).tolist()
    assert found.images.tolist() == [4, 5, 6, 7]
    assert found.sizes.tolist() == list(range(len(sites) + 1))
    kept = {sites[head] for head in found.order[:3]}
    rest = tuple(site for site in sites if site not in kept)
    three = engine.denoise("natural", window, [Intervention(Mode.zero, rest)], 4, first=4)["noise_mse"]
    np.testing.assert_allclose(found.errors[3], three.ablated[0], rtol=1e-5)
    np.testing.assert_allclose(found.errors[-1], three.baseline, rtol=1e-5)
    np.testing.assert_array_equal(found.faithful(), faithful_sizes(found.baseline, found.errors))
    with pytest.raises(ValueError, match="at least 4 images"):
        nested_circuits(engine, "natural", 3)


def test_maps_are_the_attention_that_profiles_measure(subject: Subject) -> None:
    layer, t = subject.layers[1], subject.denoiser.timesteps(4)[1]
    (found,) = head_maps(subject.denoiser, subject.data["natural"], [(layer, 2)], [t], image=1, query=(0.99, 0.0))
    assert found.received.shape == found.from_query.shape == (4, 4)
    assert found.received.sum() == pytest.approx(1)
    assert found.from_query.sum() == pytest.approx(1)
    assert found.query == (3, 0)
    # Entropy of every query's map, by the same route, is the profile's.
    profiles = profile_heads(subject.denoiser, {"natural": subject.data["natural"]}, [layer], timesteps=[t], images=4)
    entropies = []
    for row in range(4):
        for column in range(4):
            place = ((row + 0.5) / 4, (column + 0.5) / 4)
            (one,) = head_maps(subject.denoiser, subject.data["natural"], [(layer, 2)], [t], image=1, query=place)
            entropies.append(-(one.from_query * one.from_query.log()).sum().item())
    assert np.mean(entropies) == pytest.approx(profiles.values["natural"]["entropy_nats"][2, 0, 1], rel=1e-4)


def test_the_tracker_gets_the_table_of_heads_and_keeps_sets_apart(run: tuple[Config, RunDirectory]) -> None:
    _, directory = run
    plan = tracked.Plan.read(directory.path)
    content = summary_run(plan, len(plan.trials), samples=False)
    heads = pd.read_parquet(directory.heads)
    assert list(content.tables["tables/heads"].columns) == list(heads.columns)
    assert len(content.tables["tables/heads"].rows) == len(heads)
    assert {"heads.parquet": directory.heads}.items() <= {
        n: f for a in content.makes for n, f in a.files.items()
    }.items()
    of_sets = {name: axes for name, axes in plan.trials.items() if axes["phase"] in (TYPES, TYPES_CONTROL)}
    assert of_sets
    assert all(tracked.is_control(axes) for axes in of_sets.values())
    # Their names say which heads they are, as those of other sets do.
    assert all(axes["sites"][0] in tracked.trial_name(axes) for axes in of_sets.values())


def test_the_plan_says_what_profiles_cost(configure: Configure, subject: Subject) -> None:
    config = configure(*PROFILE)
    heads, steps, datasets = 8, 4, 2
    plain, circuits, sets = 8 * steps * 2, 2 * (heads + 1) * 3, 8 * 5 * 6
    assert profiling.profile_rows(config, subject) == datasets * (plain + circuits + sets)
    assert profiling.profile_rows(configure(), subject) == 0
