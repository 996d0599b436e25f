"""Layer replay: the same numbers as plain forwards, on every architecture, for the work after the site alone."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from circuits import hooks
from circuits.clean import CleanForwards, Needs
from circuits.conditioning import draw
from circuits.denoisers import Denoiser
from circuits.engine import Engine, Generated, Window
from circuits.interventions import ALL_HEADS, Intervention, Site
from circuits.operations import ATTENTION_FLOPS
from circuits.replay_plans import ReplayPlans
from circuits.rows import Start, Variants, intervened, why_not
from circuits.sites import AttentionLayer, find_sites
from circuits.vocabulary import ABLATIONS, Mode
from tests.circuits.architectures import ARCHITECTURES
from tests.circuits.conftest import EVERY_MODE, IMAGES, make_engine

REAL_KERNEL = F.scaled_dot_product_attention
UNITS = 3


def replayable(denoiser: Denoiser) -> tuple[tuple[AttentionLayer, ...], ReplayPlans]:
    layers = find_sites(denoiser)
    return layers, ReplayPlans(denoiser, layers)


def plain(engine: Engine) -> Engine:
    """The same engine without layer replay."""
    engine._forwards.plans._plans = dict.fromkeys(engine.layers)
    return engine


def variants_from(layers: tuple[AttentionLayer, ...], first: int) -> list[Intervention]:
    """Every mode at a head of the layer, and at a set of it and all later layers."""
    layer, later = layers[first], layers[first + 1 :]
    found = []
    for mode in EVERY_MODE:
        if any(why_not(mode, x) for x in (layer, *later)):
            continue
        whole = layer.heads - 1 if mode is Mode.subspace else ALL_HEADS
        found.append(Intervention(mode, (Site(layer.name, layer.heads - 1),)))
        behind = (Site(x.name, min(whole, x.heads - 1)) for x in later)
        found.append(Intervention(mode, (Site(layer.name, 0), *behind), 0.7))
    return found


@pytest.fixture(params=ARCHITECTURES)
def any_denoiser(request: pytest.FixtureRequest) -> Denoiser:
    return ARCHITECTURES[request.param].denoiser(request.param)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_every_site_of_every_architecture_in_every_mode(any_denoiser: Denoiser) -> None:
    denoiser = any_denoiser
    layers, plans = replayable(denoiser)
    assert plans.of_all().keys() == {layer.name for layer in layers}, plans.why_not
    generator = torch.Generator().manual_seed(5)
    x = torch.randn((UNITS, *denoiser.sample_shape), generator=generator)
    t, conditioning = torch.tensor([7, 430, 960]), draw(denoiser.network, UNITS, generator)
    forwards = CleanForwards(denoiser, layers, plans)
    needs = Needs(*(frozenset(layer.name for layer in layers if what(layer)) for what in (
        lambda _: True, lambda layer: bool(layer.value_modules), lambda _: True)))  # fmt: skip
    with forwards.recording(needs) as recorded:
        denoiser(x, t, conditioning)
    clean = recorded({})
    by_name = {layer.name: layer for layer in layers}
    other = {name: activation.flip(0) * 1.5 for name, activation in clean.activations.items()}
    replacements = dict.fromkeys(
        (Mode.mean, Mode.noise, Mode.resample, Mode.resample_across), lambda layer, unit: other[layer.name][unit]
    )
    for first, layer in enumerate(layers):
        variants = Variants(variants_from(layers, first), by_name)
        # Rows in no order, some images more often than others, and none of them at its own place.
        variant = torch.arange(len(variants.interventions)).repeat_interleave(2)
        unit = (torch.arange(len(variant)) * 2 + 1) % UNITS
        plan = plans[layer.name]
        assert plan is not None
        found = []
        for start in (Start(plan, clean, unit), None):
            with intervened(denoiser, variants, variant, unit, replacements, start):
                found.append(denoiser(x[unit], t[unit], conditioning.rows(unit)).target)
        replayed, expected = found
        assert (replayed - expected).abs().max() <= 1e-5 * expected.abs().max(), layer.name
    assert_nothing_left(denoiser.network)


def assert_nothing_left(network: nn.Module) -> None:
    assert hooks.count_hooks(network) == 0
    assert hooks.replaced_forwards(network) == []
    assert F.scaled_dot_product_attention is REAL_KERNEL


def interventions_of(engine: Engine) -> list[Intervention]:
    """Each mode on a head of every layer and on sets, in no order of layers."""
    names = list(engine.layers)
    heads = [Intervention(mode, (Site(name, 1),)) for mode in ABLATIONS for name in reversed(names)]
    sets = [Intervention(mode, (Site(names[-1]), Site(names[1], 0)), 0.6) for mode in ABLATIONS]
    return heads + sets


@pytest.mark.parametrize("rows", [5, 32])
def test_denoise_equals_plain_forwards(denoiser: Denoiser, rows: int) -> None:
    engine, reference = make_engine(denoiser, rows), plain(make_engine(denoiser, rows))
    interventions = interventions_of(engine)
    assert all(engine.replayable.values())
    assert not any(reference.replayable.values())
    for window in (Window(999, 500), Window(500, 100)):
        found = engine.denoise("natural", window, interventions, IMAGES)
        for name, expected in reference.denoise("natural", window, interventions, IMAGES).items():
            torch.testing.assert_close(found[name].baseline, expected.baseline, rtol=1e-5, atol=1e-8)
            torch.testing.assert_close(found[name].ablated, expected.ablated, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("window", [Window(999, 900), Window(900, 300), Window(250, 0)], ids=str)
def test_samples_equal_plain_forwards(denoiser: Denoiser, window: Window) -> None:
    # A random network that predicts epsilon amplifies rounding fourfold a step, so both are read as predicting v.
    as_v = replace(denoiser, prediction_type="v_prediction")
    engine, reference = make_engine(as_v), plain(make_engine(as_v))
    interventions = interventions_of(engine)
    found: Generated = engine.sample("synthetic", window, interventions, 3, first_seed=2)
    expected = reference.sample("synthetic", window, interventions, 3, first_seed=2)
    torch.testing.assert_close(found.baseline, expected.baseline, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.ablated, expected.ablated, rtol=1e-5, atol=1e-5)


def test_little_memory_changes_no_number(dit: Denoiser) -> None:
    engine, small = make_engine(dit), make_engine(dit)
    small._forwards.clean._limit = 1  # nothing but what is needed is kept, and only until the next
    interventions = interventions_of(engine)
    for chosen in (interventions, interventions[:1], interventions[-1:]):
        a, b = (e.denoise("natural", Window(999, 500), chosen, 6)["x0_mse"] for e in (engine, small))
        torch.testing.assert_close(a.ablated, b.ablated, rtol=1e-5, atol=1e-8)
        c, d = (e.sample("natural", Window(500, 0), chosen, 2) for e in (engine, small))
        torch.testing.assert_close(c.ablated, d.ablated, rtol=1e-5, atol=1e-5)
    assert len(small._forwards.clean._kept) == 1
    assert small.rows_run > engine.rows_run


# work


def flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False, custom_mapping=dict(ATTENTION_FLOPS)) as counter:
        run()
    return counter.get_total_flops()


def test_only_what_comes_after_the_site_is_computed(dit: Denoiser) -> None:
    """In closed form: 49 tokens, width 20, MLP of 80, 4 pixels a patch; a product of [m, k] and [k, n] is 2 m k n."""
    layers, plans = replayable(dit)
    tokens, width = 49, 20
    square = 2 * tokens * width * width
    block, after_site = 3 * square + 4 * tokens * tokens * width, square + 2 * 4 * square
    head = 2 * tokens * width * 4
    expected = {layers[0].name: after_site + block + after_site + head, layers[1].name: after_site + head}
    rows, x = 11, torch.zeros(11, 1, 14, 14)
    t, labels = torch.arange(rows), torch.zeros(rows).long()
    full = flops(lambda: dit(x, t, labels))
    forwards = CleanForwards(dit, layers, plans)
    for layer in layers:
        with forwards.recording(Needs(*(frozenset({layer.name}),) * 3)) as recorded:
            dit(x[:2], t[:2], labels[:2])
        variants = Variants([Intervention(Mode.zero, (Site(layer.name, 0),))], {layer.name: layer})
        plan, index = plans[layer.name], torch.arange(rows) % 2
        assert plan is not None
        with intervened(dit, variants, torch.zeros(rows).long(), index, {}, Start(plan, recorded({}), index)):
            found = flops(lambda: dit(x, t, labels))
        assert found == rows * expected[layer.name]
        assert plan.share == pytest.approx(found / full)


def test_only_what_is_read_after_the_site_is_recorded(dit: Denoiser) -> None:
    layers, plans = replayable(dit)
    last = plans[layers[-1].name]
    assert last is not None
    block = "transformer_blocks.1.norm1"
    assert {key for key in last.live if key[0].startswith(("transformer_blocks.0", "pos_embed")) and key[1] == 0} == {
        ("transformer_blocks.0", 0, 0)
    }
    assert {leaf for path, _, leaf in last.live if path == block} == {1, 2, 3, 4}, "gates and shifts, not the input"
    assert not {path for path, _, _ in last.live if path.endswith(("to_q", "to_k", "to_v", hooks.KERNEL))}
    assert last.fixed_values == {layer.values for layer in layers}


def test_trials_of_all_layers_share_one_clean_pass(dit: Denoiser) -> None:
    engine = make_engine(dit)
    for n, name in enumerate(engine.layers, start=1):
        engine.denoise("natural", Window(999, 500), [Intervention(Mode.zero, (Site(name, 0),))], 5)
        assert engine.rows_run == 5 + 5 * n
    once = engine.rows_run
    for n, name in enumerate(engine.layers, start=1):
        engine.sample("natural", Window(500, 0), [Intervention(Mode.zero, (Site(name, 0),))], 3)
        assert engine.rows_run == once + 3 * 5 + n * 3 * 2, "5 steps once, then the last two of 5 for each"


def test_few_rows_of_a_later_layer_join_those_of_the_one_before(dit: Denoiser) -> None:
    engine = make_engine(dit, rows=64)
    first, last = engine.layers
    forwards = engine._forwards

    def groups(at_first: int, at_last: int, steps: int = 1) -> list[list[int]]:
        chosen = [Intervention(Mode.zero, (Site(first, 0),))] * at_first
        chosen += [Intervention(Mode.zero, (Site(last, 0),))] * at_last
        return [g.variants for g in forwards._groups(Variants(chosen, engine.layers), 1, steps)]

    assert groups(2, 1) == [[0, 1, 2]]
    assert [len(g) for g in groups(30, 30)] == [30, 30]
    assert [len(g) for g in groups(62, 2)] == [64], "as many forwards"
    assert [len(g) for g in groups(64, 4)] == [64, 4], "no forward is saved"
    assert [len(g) for g in groups(30, 30, steps=10)] == [60], "nine more steps follow, which all share"


# networks that cannot be replayed, or only with care


class Tricky(nn.Module):
    """An attention over pixels, with something odd before it."""

    def __init__(self, odd: Callable[["Tricky", torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = {"in_channels": 1, "sample_size": 14}
        self.embed, self.twice = nn.Linear(1, 12), nn.Linear(12, 12)
        self.attention = Attention(query_dim=12, heads=3, dim_head=4)
        self.after, self.head = nn.Linear(12, 12), nn.Linear(12, 1)
        self.odd = odd

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> SimpleNamespace:
        tokens = self.embed(sample.flatten(1)[..., None]) + timestep[:, None, None] / 1000
        tokens = self.odd(self, tokens)
        tokens = self.after(tokens + self.attention(tokens))
        return SimpleNamespace(sample=self.head(tokens)[..., 0].view_as(sample))


def tricky(odd: Callable[[Tricky, torch.Tensor], torch.Tensor]) -> Denoiser:
    with torch.random.fork_rng(devices=[]):
        network = Tricky(odd).eval().requires_grad_(False)
    return Denoiser("tricky", network, DDPMScheduler(), "epsilon", 1, 14, 0, "", torch.device("cpu"))


def changed_in_place(network: Tricky, tokens: torch.Tensor) -> torch.Tensor:
    tokens = network.twice(tokens)
    return tokens.mul_(0.5).add_(1)


def called_twice(network: Tricky, tokens: torch.Tensor) -> torch.Tensor:
    return network.twice(network.twice(tokens).sin())


def rows_in_one_axis(network: Tricky, tokens: torch.Tensor) -> torch.Tensor:
    return network.twice(tokens.flatten(0, 1)).sin().view_as(tokens)


def rows_last(network: Tricky, tokens: torch.Tensor) -> torch.Tensor:
    return network.twice(tokens.transpose(0, 1)).sin().transpose(0, 1)


def read_by_python(network: Tricky, tokens: torch.Tensor) -> torch.Tensor:
    return network.twice(tokens) if float(network.embed(tokens[:, :1, :1]).isnan().sum()) == 0 else tokens


REPLAYED = (changed_in_place, called_twice, rows_in_one_axis, rows_last, read_by_python)


def mean_of_the_batch(network: Tricky, tokens: torch.Tensor) -> torch.Tensor:
    return tokens + network.twice(tokens.mean(0, keepdim=True))


def as_many_calls_as_rows(network: Tricky, tokens: torch.Tensor) -> torch.Tensor:
    return torch.stack([network.twice(row) for row in tokens])


@pytest.mark.parametrize("odd", [*REPLAYED, as_many_calls_as_rows])
def test_odd_networks_have_the_numbers_of_plain_forwards(odd: Callable) -> None:
    denoiser = tricky(odd)
    engine, reference = make_engine(denoiser), plain(make_engine(denoiser))
    chosen = [Intervention(mode, (Site("attention", head),)) for mode in EVERY_MODE for head in (0, 2)]
    assert engine.replayable == {"attention": odd in REPLAYED}
    for found, expected in zip(
        engine.denoise("natural", Window(999, 500), chosen, IMAGES).values(),
        reference.denoise("natural", Window(999, 500), chosen, IMAGES).values(),
        strict=True,
    ):
        torch.testing.assert_close(found.ablated, expected.ablated, rtol=1e-5, atol=1e-7)
    assert_nothing_left(denoiser.network)


def test_why_a_layer_is_not_replayed_is_said() -> None:
    _, plans = replayable(tricky(as_many_calls_as_rows))
    assert plans["attention"] is None
    assert plans.why_not == {"attention": "NotReplayable: the network makes other calls for 3 rows than for 2"}


def test_what_depends_on_the_other_rows_is_not_replayed() -> None:
    denoiser = tricky(mean_of_the_batch)
    _, plans = replayable(denoiser)
    plan = plans["attention"]
    assert plan is None or "twice" not in plan.calls


def test_a_wrong_plan_is_caught_by_the_self_test(dit: Denoiser) -> None:
    layers, plans = replayable(dit)
    plan = plans[layers[-1].name]
    assert plan is not None
    plans._check(plan)
    live = sorted(plan.live)
    for missing in live:
        with pytest.raises(Exception, match=r"differs from a plain forward by nan"):
            plans._check(replace(plan, live=frozenset({*live} - {missing})))


def test_nothing_is_left_after_errors(dit: Denoiser) -> None:
    layers, plans = replayable(dit)
    forwards = CleanForwards(dit, layers, plans)
    x, t, labels = torch.zeros(2, 1, 14, 14), torch.tensor([3, 4]), torch.zeros(2).long()
    name = layers[-1].name
    with forwards.recording(Needs(*(frozenset({name}),) * 3)) as recorded:
        dit(x, t, labels)
    clean, plan, index = recorded({}), plans[name], torch.tensor([0, 1])
    assert plan is not None
    variants = Variants([Intervention(Mode.zero, (Site(name, 0),))], {layer.name: layer for layer in layers})
    with intervened(dit, variants, torch.zeros(2).long(), index, {}, Start(plan, clean, index)):
        assert hooks.replaced_forwards(dit.network)
        assert F.scaled_dot_product_attention is not REAL_KERNEL
    assert_nothing_left(dit.network)
    broken = Start(plan, replace(clean, leaves={}), index)
    with pytest.raises(KeyError), intervened(dit, variants, torch.zeros(2).long(), index, {}, broken):
        dit(x, t, labels)
    assert_nothing_left(dit.network)


def test_replaced_calls_give_way_to_the_forward_that_was_there(dit: Denoiser) -> None:
    module = dit.network.get_submodule("pos_embed")
    wrapped = module.forward
    module.__dict__["forward"] = wrapped  # as libraries do that move weights
    with hooks.replace_calls(dit.network, {"pos_embed": [None, lambda: 7]}):
        x = torch.zeros(1, 1, 14, 14)
        assert torch.equal(module(x), wrapped(x))
        assert module(x) == 7
        assert torch.equal(module(x), wrapped(x)), "after the last result"
    assert module.__dict__["forward"] is wrapped


def test_captured_leaves_are_copies() -> None:
    class Changes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x: torch.Tensor) -> Any:
            return self.inner(x).add_(1)

    network, x = Changes(), torch.zeros(3)
    with hooks.capture_leaves(network, {("inner", 0, 0)}) as found:
        network(x)
    assert found["inner", 0, 0].tolist() == [0, 0, 0]
    assert x.tolist() == [1, 1, 1]
