"""What the benchmark of work counts: skeletons against real runs, and sweeps whose count is known in closed form."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler

from benchmarks import work
from benchmarks.published import PUBLISHED, data_for
from benchmarks.skeletons import META, NoValues, Skeleton
from circuits.clean import Needs, free_bytes, kept_bytes
from circuits.conditioning import draw
from circuits.denoisers import Denoiser
from circuits.engine import Engine
from circuits.hooks import count_hooks, replaced_forwards
from circuits.interventions import ALL_HEADS
from circuits.sites import find_sites
from tests.circuits.architectures import ARCHITECTURES

PROBE_TOKENS = 7
LITTLE = 60_000
"""Bytes: recordings of a layer."""
UNITS = {"denoise": 4, "sample": 2}


def real(name: str) -> Denoiser:
    return ARCHITECTURES[name].denoiser(name)


def shapes(name: str) -> Denoiser:
    """The same network on the meta device."""
    with META:
        network = ARCHITECTURES[name].build().to(META).eval().requires_grad_(False)
    model = real(name)
    return Denoiser(
        name, network, DDPMScheduler(clip_sample=False), "epsilon", model.channels, model.size, model.classes, "", META
    )


def engine_on(denoiser: Denoiser, limit: int | None = None) -> Engine:
    with NoValues():
        sites = find_sites(denoiser)
    engine = Engine(denoiser, sites, data_for(denoiser, 4, PROBE_TOKENS), steps=work.STEPS, seed=0, rows=32)
    if limit is not None:
        engine._forwards.clean._limit = limit
    return engine


@pytest.fixture
def small_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The grid has five windows, three modes and every head; here it is the last but one, two modes, whole layers."""
    windows, trials = work.windows_of, work.trials_of
    monkeypatch.setattr(work, "windows_of", lambda engine, count: windows(engine, count)[3:4])
    monkeypatch.setattr(
        work, "trials_of", lambda engine, layer: [i for i in trials(engine, layer) if i.sites[0].head == ALL_HEADS]
    )
    monkeypatch.setattr(work, "MODES", work.MODES[1:])


@pytest.mark.parametrize(
    ("name", "protocol", "limit"),
    [("sd15", "denoise", LITTLE), ("dit", "sample", None)],
    ids=["U-Net, little kept", "DiT, all kept"],
)
@pytest.mark.usefixtures("small_grid")
def test_a_skeleton_counts_what_a_real_run_counts(name: str, protocol: str, limit: int | None) -> None:
    """To the last FLOP: spent, unique, and after the sites."""
    ran = work.work(engine_on(real(name), limit), protocol, UNITS[protocol])
    engine = engine_on(shapes(name), limit)
    counted = work.work_by_shapes(engine, work.traced(engine), protocol, UNITS[protocol])
    assert counted == ran
    assert ran.spent > 0
    assert 0 < ran.share < 1
    network = engine.denoiser.network
    assert count_hooks(network) == 0
    assert replaced_forwards(network) == []


@pytest.mark.parametrize("name", ["sd15", "dit"])
def test_sites_and_plans_of_shapes_are_those_of_the_real_network(name: str) -> None:
    ran, shaped = engine_on(real(name)), engine_on(shapes(name))
    assert shaped.layers == ran.layers
    assert all(ran.replayable.values())
    with NoValues():
        plans = {layer: shaped._forwards.plans[layer] for layer in shaped.layers}
    for layer, plan in plans.items():
        expected = ran._forwards.plans[layer]
        assert plan is not None
        assert expected is not None
        # Kernels differ between devices in what they are made of, not in FLOPs; views of memory that differ are copies.
        assert plan.calls == expected.calls
        assert plan.fixed_values == expected.fixed_values
        assert plan.share == pytest.approx(expected.share, rel=1e-12)
        assert {key: plan.template(key) for key in plan.live} == {key: expected.template(key) for key in expected.live}


def test_flops_after_a_site_are_those_of_replay() -> None:
    engine = engine_on(real("dit"))
    forward, after = work.flops_after_sites(engine)
    for name in engine.layers:
        plan = engine._forwards.plans[name]
        assert plan is not None
        # Replay also spares later embeddings of the timestep, so what is left is at most what comes after the site.
        assert 0.9 * after[name] < plan.share * forward <= after[name]


def test_a_quarter_of_free_memory_holds_clean_passes_and_never_less_than_a_gibibyte() -> None:
    assert [kept_bytes(free << 30) for free in (0, 3, 4, 20, 140)] == [n << 30 for n in (1, 1, 1, 5, 35)]
    assert free_bytes(torch.device("cpu")) == free_bytes(META) == 0


def test_what_does_not_fit_whole_is_recorded_for_a_stretch_of_layers() -> None:
    engine = engine_on(real("sd15"))
    clean, names = engine._forwards.clean, [*engine.layers]
    asked = Needs(frozenset({names[1]}), replayed=frozenset({names[1]}))
    clean._limit = 1
    assert clean.widened(asked, 4) == asked
    clean._limit = 1 << 30
    assert clean.widened(asked, 4) == clean.everything(4)
    while clean.everything(1):
        clean._limit //= 2
    found = clean.widened(asked, 1)
    assert asked <= found
    assert found.values == frozenset()
    assert sorted(found.replayed) == sorted(names[1 : 1 + len(found.replayed)])
    assert len(found.replayed) > 1


def test_published_networks_have_their_number_of_parameters() -> None:
    model = PUBLISHED["sd15"].denoiser("sd15")
    assert model.device == META
    assert model.parameters == 859_520_964
    with pytest.raises(ValueError, match=r"sd15: expected 860\.0 million parameters, got 859\.5"):
        replace(PUBLISHED["sd15"], parameters=860.0).denoiser("sd15")


def test_prompts_of_a_published_model_have_clips_length() -> None:
    model = shapes("sdxl")
    given = data_for(model, 3)["natural"].condition([0, 2])
    assert {name: tuple(tensor.shape) for name, tensor in given.tensors.items()} == {
        "encoder_hidden_states": (2, 77, 11),
        "text_embeds": (2, 13),
    }


def test_a_skeleton_computes_nothing_and_leaves_the_network_as_it_was() -> None:
    model = shapes("dit")
    engine = engine_on(model)
    skeleton = Skeleton(model.network, work.traced(engine))
    begun, conditioning = skeleton.flops, draw(model.network, 3, torch.Generator())
    with NoValues(), skeleton.standing_in():
        output = model(torch.zeros(3, *model.sample_shape), torch.zeros(3, dtype=torch.long), conditioning).target
    assert output.shape == (3, *model.sample_shape)
    assert output.device == META
    assert (skeleton.flops - begun) * 5 == begun * 3
    assert replaced_forwards(model.network) == []


def test_one_line_of_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    done = {"denoise": work.Work(103, 100, 0.5), "sample": work.Work(99, 100, 0.5)}
    monkeypatch.setattr(work, "measured", lambda *_: done)
    monkeypatch.setattr("sys.argv", ["work", "--json", "--models", "tiny_unet", "sdxl"])
    work.main()
    (line,) = capsys.readouterr().out.splitlines()
    ratios = {"denoise": 1.03, "sample": 0.99}
    assert json.loads(line) == {"tiny_unet": ratios, "sdxl": ratios}
