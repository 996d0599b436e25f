"""The grid: which trials, in which order, under which ids."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuits.engine import Window
from circuits.interventions import ALL_HEADS, Intervention, Site
from circuits.vocabulary import ABLATIONS, Mode
from sweeps.config import Config, ConfigError
from sweeps.leases import share_key
from sweeps.plan import (
    Plan,
    Subject,
    choose_layers,
    choose_windows,
    default_run_name,
    generated,
    make_plan,
    make_trial,
)
from sweeps.targets import find_targets
from tests.fuzzing import fuzz
from tests.sweeps.fake_subject import fake_subject, moved, trailing_timesteps, with_data
from tests.sweeps.tiny import TRIAL_COLUMNS, composed

# Changing what a trial is, on purpose, changes this; anything else that changes it would measure old sweeps anew.
PINNED_TRIAL, PINNED_PLAN = "ce22b04bbfddb8cb", "b3c0d2ad12f55d63"


def trial_of(config: Config, subject: Subject, mode: Mode = Mode.zero, **changes: object) -> str:
    arguments = {"dataset": "natural", "protocol": "denoise", "window": Window(999, 800), "strength": 1.0, "head": 3}
    given = arguments | changes
    intervention = Intervention(mode, (Site("blocks.1.attn1", given["head"]),), given["strength"])  # type: ignore[arg-type]
    return make_trial(
        config, subject, given["dataset"], given["protocol"], intervention, given["window"], 0, level="head"  # type: ignore[arg-type]
    ).trial_id  # fmt: skip


def first_trial() -> str:
    return trial_of(composed(), fake_subject())


# Counts, order, columns


def test_full_ablation_of_the_issue() -> None:
    plan = make_plan(composed(), fake_subject(layers=4, heads=8))
    assert len(plan) == 4 * (8 + 1) * 5 * 3 * 2 == 1080
    frame = plan.frame()
    assert frame["trial_id"].is_unique
    counts = {column: frame[column].value_counts().to_dict() for column in ("dataset", "mode", "level", "window_index")}
    assert counts["dataset"] == {"synthetic": 540, "natural": 540}
    assert counts["mode"] == {"zero": 360, "mean": 360, "resample": 360}
    assert counts["level"] == {"head": 960, "layer": 120}
    assert counts["window_index"] == dict.fromkeys(range(5), 216)
    assert set(frame.loc[frame["level"] == "layer", "head"]) == {ALL_HEADS}
    assert sorted(frame.loc[frame["level"] == "head", "head"].unique()) == list(range(8))


def test_columns_are_those_of_the_architecture() -> None:
    frame = make_plan(composed("sweep=smoke"), fake_subject()).frame()
    columns = list(frame.columns)
    assert columns[: len(TRIAL_COLUMNS)] == TRIAL_COLUMNS
    assert set(columns) - set(TRIAL_COLUMNS) == {"phase", "images", "draw", "factor"}
    row = frame.iloc[0].to_dict()
    expected = {
        "model": "tiny_faces", "dataset": "synthetic", "protocol": "denoise", "level": "head",
        "layer": "blocks.0.attn1", "layer_index": 0, "head": 0, "stream": "image", "mode": "zero", "strength": 1.0,
        "window_index": 0, "t_start": 999, "t_end": 500, "sites": ["blocks.0.attn1:0"],
    }  # fmt: skip
    assert {key: row[key] for key in expected} == expected
    assert (frame["t_start"] >= frame["t_end"]).all()


def test_trials_that_share_a_clean_pass_and_a_layer_are_neighbours() -> None:
    plan = make_plan(composed(), fake_subject())
    keys = [share_key(trial) for trial in plan.trials]
    runs = 1 + sum(a != b for a, b in itertools.pairwise(keys))
    assert runs == len(set(keys)) == 2 * 5 * 4


def test_the_order_is_data_protocol_window_layer_head_mode() -> None:
    config = composed("sweep.protocols=[denoise,sample]", "sweep.windows=2", "sweep.layers=[0,1]", "sweep.heads=[0,1]")
    frame = make_plan(config, fake_subject()).frame()
    frame["dataset"] = pd.Categorical(frame["dataset"], ["synthetic", "natural"], ordered=True)
    frame["mode"] = pd.Categorical(frame["mode"], ["zero", "mean", "resample"], ordered=True)
    frame["head"] = frame["head"].where(frame["head"] >= 0, 99)
    axes = ["dataset", "protocol", "window_index", "layer_index", "head", "mode"]
    pd.testing.assert_frame_equal(frame[axes], frame[axes].sort_values(axes, ignore_index=True))


def test_a_trial_named_twice_is_planned_once() -> None:
    once = make_plan(composed("sweep.windows=[[999,500]]", "sweep.modes=[zero]"), fake_subject())
    twice = make_plan(composed("sweep.windows=[[999,500],[999,500]]", "sweep.modes=[zero,zero]"), fake_subject())
    assert twice.trials == once.trials
    assert twice.digest == once.digest


def test_rows_are_counted_in_closed_form() -> None:
    plan = make_plan(composed(), fake_subject())
    trials, images, samples, steps = 1080, 64, 4, 10
    inside = (10 + 8 + 6 + 4 + 2) / 5  # steps from the window's first one on, over the windows
    clean = 2 * 5 * images + 2 * samples * steps
    assert plan.rows() == trials * (images + samples * inside) + clean
    sampled = make_plan(composed("sweep.protocols=[sample]", "stats.metric=contrast"), fake_subject())
    assert sampled.rows() == trials * images * inside + 2 * images * steps
    assert generated(sampled.trials[0]) == 64
    assert [plan.rows_of(plan.trials[i]) for i in (0, -1)] == [images + samples * steps, images + samples * 2]


# Ids


def test_ids_are_pinned() -> None:
    plan = make_plan(composed(), fake_subject())
    assert first_trial() == PINNED_TRIAL
    assert plan.digest[:16] == PINNED_PLAN


NO_PART_OF_A_TRIAL = [
    "cluster=inline", "cluster.workers=7", "cluster.lease_seconds=9", "cluster.device=cpu", "tracker=none",
    "tracker.project=other", "run.rows=5", "run.name=other", "run.root=/tmp/elsewhere", "model.name=renamed",
    "sweep.name=renamed", "sweep.heads=[3]", "sweep.layers=[1]", "sweep.modes=[zero]", "sweep.windows=1",
    "stats.margin=0.1", "mode=plan",
]  # fmt: skip
PART_OF_A_TRIAL = ["sweep.images=63", "sweep.samples=3", "sweep.steps=11", "sweep.seed=1", "model.dtype=float16"]


@pytest.mark.parametrize("override", NO_PART_OF_A_TRIAL)
def test_an_id_does_not_depend_on_how_it_is_run(override: str) -> None:
    assert trial_of(composed(override), fake_subject()) == first_trial()


@pytest.mark.parametrize("override", PART_OF_A_TRIAL)
def test_an_id_depends_on_what_is_measured(override: str) -> None:
    assert trial_of(composed(override), fake_subject()) != first_trial()


@pytest.mark.parametrize(
    "change",
    [{"dataset": "synthetic"}, {"protocol": "sample"}, {"window": Window(999, 801)}, {"window": Window(998, 800)},
     {"strength": 0.5}, {"head": 2}, {"head": ALL_HEADS}, {"mode": Mode.mean}, {"mode": Mode.identity}],
    ids=str,
)  # fmt: skip
def test_an_id_depends_on_the_intervention(change: dict[str, object]) -> None:
    mode = change.pop("mode", Mode.zero)
    assert trial_of(composed(), fake_subject(), mode, **change) != first_trial()  # type: ignore[arg-type]


def test_an_id_depends_on_weights_labels_and_pixels() -> None:
    config, subject = composed(), fake_subject()
    natural = subject.data["natural"]
    variants = {
        "weights": fake_subject(revision="r1"),
        "label": with_data(subject, natural=replace(natural, label=0)),
        "first pixel": with_data(subject, natural=moved(natural, 0)),
        "last pixel": with_data(subject, natural=moved(natural, 63)),
    }
    ids = {name: trial_of(config, variant) for name, variant in variants.items()}
    assert len({first_trial(), *ids.values()}) == 5
    assert trial_of(config, with_data(subject, natural=moved(natural, 64))) == first_trial(), "the 65th is not measured"
    assert trial_of(config, fake_subject(layers=9, heads=9)) == first_trial()


@pytest.mark.parametrize("mode", list(ABLATIONS))
def test_an_id_depends_on_the_images_that_its_replacement_comes_from(mode: Mode) -> None:
    config, subject = composed(), fake_subject()
    natural, synthetic = subject.data["natural"], subject.data["synthetic"]
    reference = replace(natural.reference, images=natural.reference.images + 1)
    before = trial_of(config, subject, mode)
    other_reference = trial_of(config, with_data(subject, natural=replace(natural, reference=reference)), mode)
    other_data = trial_of(config, with_data(subject, synthetic=moved(synthetic, 0)), mode)
    other_label = trial_of(config, with_data(subject, synthetic=replace(synthetic, label=1)), mode)
    assert (other_reference != before) == (mode in (Mode.mean, Mode.noise))
    assert (other_data != before) == (other_label != before) == (mode is Mode.resample_across)


def test_an_id_does_not_depend_on_how_many_images_were_loaded() -> None:
    """A search loads twice the images that one of its trials measures."""
    config, subject = composed(), fake_subject()
    fewer = {name: replace(data, measured=data.measured.take(range(64))) for name, data in subject.data.items()}
    for mode in ABLATIONS:
        assert trial_of(config, with_data(subject, **fewer), mode) == trial_of(config, subject, mode)


def test_the_plan_is_another_when_its_analysis_is() -> None:
    """The margin and the level are registered before the run, with the trials."""
    plans = [
        make_plan(composed("sweep=smoke", *o), fake_subject())
        for o in ([], ["stats.margin=0.1"], ["stats.alpha=0.1"], ["stats.metric=edge"], ["sweep.seed=1"])
    ]
    assert len({plan.digest for plan in plans}) == 5
    assert len({plan.trials for plan in plans}) == 2


def test_the_run_is_named_after_sweep_model_and_plan() -> None:
    config = composed("sweep=smoke", "model=hub", "model.path=a/b", "model.name=a/b")
    plan = Plan((), (), "0123456789abcdef")
    assert default_run_name(config, plan) == "smoke-b-01234567"


# Layers and windows


def test_layers_by_index_range_and_name() -> None:
    layers = fake_subject().layers
    assert choose_layers("all", layers) == list(layers)
    assert choose_layers("1-2", layers) == list(layers[1:3])
    assert choose_layers([3, 0], layers) == [layers[0], layers[3]]
    assert choose_layers(["blocks.2.attn1", "blocks.0.attn1"], layers) == [layers[0], layers[2]]
    assert choose_layers("blocks.2.attn1", layers) == [layers[2]]


@fuzz(100)
@given(st.integers(1, 120), st.integers(2, 120))
def test_windows_by_count_tile_all_timesteps(count: int, total: int) -> None:
    count = min(count, total)
    every = list(range(total))[::-1]
    windows = choose_windows(count, every, total)
    assert len(windows) == count
    assert [t for window in windows for t in window.select(every)] == every
    sizes = {window.t_start - window.t_end + 1 for window in windows}
    assert max(sizes) - min(sizes) <= 1


def test_windows_of_the_default_sampler() -> None:
    steps = [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    windows = choose_windows(5, steps, 1000)
    assert windows == [Window(999, 800), Window(799, 600), Window(599, 400), Window(399, 200), Window(199, 0)]
    assert [window.select(steps) for window in windows] == [steps[i : i + 2] for i in range(0, 10, 2)]


@fuzz(100)
@given(st.integers(1, 1000))
def test_a_count_that_divides_the_steps_gives_each_window_about_as_many(steps: int) -> None:
    """Sampler and windows round to whole timesteps, each in its own way."""
    timesteps = trailing_timesteps(1000, steps)
    for count in (c for c in range(1, min(steps, 50) + 1) if steps % c == 0):
        windows = choose_windows(count, timesteps, 1000)
        assert all(abs(len(window.select(timesteps)) - steps // count) <= 1 for window in windows)


def test_a_count_that_leaves_a_window_empty_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"\[986, 975\] .* t=987 \(sweep\.steps=80 gives 999, .* 949, \.\.\., .* 11\)"
    ):
        choose_windows(79, trailing_timesteps(1000, 80), 1000)


def test_windows_as_given() -> None:
    assert choose_windows([[999, 0], [99, 99]], [999, 99], 1000) == [Window(999, 0), Window(99, 99)]
    with pytest.raises(
        ConfigError, match=r"\[98, 0\] holds no sampler step; the nearest is t=99 \(sweep\.steps=2 gives"
    ):
        choose_windows([[98, 0]], [999, 99], 1000)


def test_heads_are_checked_against_each_layer() -> None:
    subject = fake_subject(layers=2, heads=8)
    narrow = replace(subject.layers[1], heads=4)
    uneven = Subject(subject.denoiser, (subject.layers[0], narrow), subject.data)
    assert len(make_plan(composed("sweep.modes=[zero]", "sweep.windows=1"), uneven)) == (8 + 1 + 4 + 1) * 2
    with pytest.raises(ConfigError, match=r"^sweep\.heads: there is no 7; did you mean 3\?"):
        make_plan(composed("sweep.heads=7"), uneven)


def uneven_subject() -> Subject:
    """A U-Net with cross-attention: two blocks in its first stage, one in the second, and a bare attention."""
    paths = [
        *(f"down_blocks.0.attentions.{i}.transformer_blocks.0.attn{j}" for i in (0, 1) for j in (1, 2)),
        *(f"mid_block.attentions.0.transformer_blocks.0.attn{j}" for j in (1, 2)),
        "up_blocks.1.attentions.0",
    ]
    subject = fake_subject(layers=len(paths), heads=2)
    layers = tuple(replace(layer, name=path) for layer, path in zip(subject.layers, paths, strict=True))
    return Subject(subject.denoiser, layers, subject.data)


def test_blocks_and_stages_are_planned_once_behind_their_first_layer() -> None:
    overrides = ("sweep.modes=[zero]", "sweep.windows=1", "sweep.heads=0", "sweep.levels=[head,layer,block,stage]")
    subject = uneven_subject()
    plan = make_plan(composed(*overrides), subject)
    frame = plan.frame()
    here = frame[frame["dataset"] == "natural"]
    # The block in the middle is a stage too, and the last layer is both.
    assert here["level"].value_counts().to_dict() == {"head": 7, "layer": 7, "block": 3, "stage": 1}
    first = here[here["layer_index"] == 0]
    assert first["level"].tolist() == ["head", "layer", "block", "stage"]
    assert first["layer"].tolist()[2:] == ["down_blocks.0.attentions.0", "down_blocks.0"]
    names = [layer.name for layer in subject.layers]
    assert [[s.removesuffix(":-1") for s in sites] for sites in first["sites"][2:]] == [names[:2], names[:4]]
    assert set(here.loc[here["level"].isin(["block", "stage"]), "head"]) == {ALL_HEADS}
    assert [trial.label.split(",")[0] for trial in plan.trials if trial.level == "stage"] == ["stage down_blocks.0"] * 2
    keys = [share_key(trial) for trial in plan.trials]
    assert 1 + sum(a != b for a, b in itertools.pairwise(keys)) == len(set(keys)), (
        "they share their first layer's lease"
    )
    targets = find_targets(composed(*overrides), subject.layers, subject.layers)
    assert targets.repeated == {"block": 1, "stage": 2}


def test_a_block_is_whole_whichever_of_its_layers_were_chosen() -> None:
    overrides = ("sweep.modes=[zero]", "sweep.windows=1", "sweep.layers=[1,6]", "sweep.levels=[block,stage]")
    frame = make_plan(composed(*overrides), uneven_subject()).frame()
    here = frame[frame["dataset"] == "natural"]
    assert list(zip(here["level"], here["layer"], here["layer_index"], here["sites"].map(len))) == [
        ("block", "down_blocks.0.attentions.0", 0, 2), ("stage", "down_blocks.0", 0, 4),
        ("block", "up_blocks.1.attentions.0", 6, 1),
    ]  # fmt: skip


def test_a_block_of_one_layer_has_the_id_of_the_layer() -> None:
    ids = [
        set(make_plan(composed("sweep.modes=[zero]", "sweep.windows=1", f"sweep.levels=[{level}]"), fake_subject())
            .frame()["trial_id"])
        for level in ("layer", "block", "stage")
    ]  # fmt: skip
    assert ids[0] == ids[1]
    assert len(ids[2]) == 2
    assert not ids[2] & ids[0]


def test_the_factor_is_part_of_what_a_scaled_trial_is_and_of_no_other() -> None:
    subject = fake_subject()
    twice, thrice = composed(), composed("sweep.scale=3")
    assert trial_of(thrice, subject) == first_trial()
    assert trial_of(twice, subject, Mode.scale) != trial_of(thrice, subject, Mode.scale)
    plan = make_plan(composed("sweep.modes=[zero,scale]", "sweep.scale=3", "sweep.windows=1"), subject)
    assert plan.frame().groupby("mode")["factor"].unique().map(list).to_dict() == {"scale": [3.0], "zero": [1.0]}
    assert {t.intervention.factor for t in plan.trials if t.intervention.mode is Mode.scale} == {3.0}
    assert plan.trials[1].label == "layer 0 head 0, scale x3, t 999-0, synthetic"


@pytest.mark.parametrize("scale", ["-1", "inf", "nan"])
def test_a_factor_is_a_finite_number(scale: str) -> None:
    with pytest.raises(ConfigError, match=r"^sweep\.scale: expected a finite number, 0 or more, got "):
        composed(f"sweep.scale={scale}")


def test_uniform_needs_the_values_of_all_keys_of_every_layer_in_a_block() -> None:
    subject = uneven_subject()
    with_keys = tuple(replace(x, key_values=() if x.index == 3 else ((f"{x.name}.to_v", 0),)) for x in subject.layers)
    subject = Subject(subject.denoiser, with_keys, subject.data)
    overrides = ("sweep.modes=[uniform]", "sweep.windows=1", "sweep.layers=[0,2]")
    assert make_plan(composed(*overrides), subject).trials
    message = r"^sweep\.modes: uniform needs value projections of all keys, .* layer down_blocks\.0\..*1\..*\.attn2$"
    with pytest.raises(ConfigError, match=message):
        make_plan(composed(*overrides, "sweep.levels=[block]"), subject)


def test_identity_needs_values() -> None:
    subject = fake_subject(layers=1)
    bare = Subject(subject.denoiser, (replace(subject.layers[0], values=None),), subject.data)
    with pytest.raises(ConfigError, match=r"identity needs self-attention .* layer blocks\.0\.attn1 has none"):
        make_plan(composed("sweep.modes=[identity]"), bare)


def test_resampling_under_protocol_sample_needs_two_seeds_only() -> None:
    overrides = ("sweep.protocols=[sample]", "stats.metric=contrast", "sweep.modes=[resample]", "sweep.windows=1")
    assert make_plan(composed(*overrides, "sweep.images=2", "sweep.samples=1"), fake_subject()).trials
    with pytest.raises(ConfigError, match="resample needs 2 images a sampler step of a window, 20 in all, got 2"):
        make_plan(composed(*overrides[2:], "sweep.images=2"), fake_subject())
