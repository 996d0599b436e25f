"""Interventions of one's own: what they put in place, at which heads and rows, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from circuits import ALL_HEADS, Engine, Intervention, Mode, Site, Window, register_intervention
from circuits.denoisers import Denoiser
from circuits.head_functions import _FUNCTIONS, apply_function, registered
from circuits.hooks import capture_inputs
from circuits.rows import Variants, intervened
from tests.circuits.conftest import IMAGES, make_engine, two_data_sets

WINDOW = Window(999, 0)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    before = dict(_FUNCTIONS)
    yield
    _FUNCTIONS.clear()
    _FUNCTIONS.update(before)


@pytest.fixture
def engine(denoiser: Denoiser) -> Engine:
    return make_engine(denoiser)


def sites(engine: Engine, head: int) -> tuple[Site, ...]:
    return tuple(Site(name, head) for name in engine.layers)


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_modes_written_as_functions_have_the_numbers_of_the_modes(engine: Engine, strength: float) -> None:
    register_intervention("nothing", torch.zeros_like)
    register_intervention("thrice", lambda heads: 3 * heads)
    register_intervention("itself", lambda heads: heads)
    pairs = [("nothing", "zero", {}), ("thrice", "scale", {"factor": 3.0})]
    chosen = [
        Intervention(mode, sites(engine, head), strength, **more)
        for own, built_in, more in pairs
        for mode, more in ((own, {}), (built_in, more))
        for head in (1, ALL_HEADS)
    ]
    chosen.append(Intervention("itself", sites(engine, ALL_HEADS), strength))
    found = engine.denoise("natural", WINDOW, chosen, IMAGES)["x0_mse"]
    for place in (0, 1, 4, 5):
        torch.testing.assert_close(found.ablated[place], found.ablated[place + 2], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.ablated[-1], found.baseline, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(found.ablated[0], found.baseline, rtol=1e-3)
    images = engine.sample("natural", Window(999, 500), chosen, 2).ablated
    torch.testing.assert_close(images[0], images[2], rtol=1e-5, atol=1e-5)


def test_only_the_chosen_head_of_its_own_rows_is_changed(dit: Denoiser) -> None:
    """Two functions, a mode and two heads in one forward, seen at the projection itself."""
    engine = make_engine(dit, rows=64)
    name, layer = next(iter(engine.layers.items()))
    register_intervention("ones", torch.ones_like)
    register_intervention("tokens turned", lambda heads: heads.roll(1, dims=1))
    chosen = [
        Intervention("ones", (Site(name, 0),)),
        Intervention("tokens turned", (Site(name, 2),)),
        Intervention("zero", (Site(name, 2),)),
    ]
    variants, rows = Variants(chosen, engine.layers), torch.arange(3)
    data = two_data_sets(dit)["natural"]
    x = data.measured.images[:1].expand(3, -1, -1, -1)
    with capture_inputs(dit.network, [layer.projection]) as clean:
        dit(x, torch.full((3,), 500), data.labels(3))
    with intervened(dit, variants, rows, rows, {}), capture_inputs(dit.network, [layer.projection]) as seen:
        dit(x, torch.full((3,), 500), data.labels(3))
    before = clean[layer.projection].unflatten(2, (layer.heads, -1))
    after = seen[layer.projection].unflatten(2, (layer.heads, -1))
    expected = before.clone()
    expected[0, :, 0] = 1
    expected[1, :, 2] = before[1, :, 2].roll(1, dims=0)
    expected[2, :, 2] = 0
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-6)


def test_the_name_is_data() -> None:
    register_intervention("mine", torch.tanh)
    made = Intervention("mine", (Site("a", 1),))
    assert made == Intervention(Mode.own, (Site("a", 1),), function="mine")
    assert hash(made) == hash(Intervention(Mode.own, (Site("a", 1),), function="mine"))
    assert Intervention("zero", (Site("a"),)) == Intervention(Mode.zero, (Site("a"),))
    assert registered()["mine"] is torch.tanh
    with pytest.raises(TypeError):
        registered()["other"] = torch.tanh
    with pytest.raises(ValueError, match=r"no intervention 'mime'; did you mean 'mine'"):
        Intervention("mime", (Site("a"),))
    with pytest.raises(ValueError, match="no intervention ''"):
        Intervention(Mode.own, (Site("a"),))
    with pytest.raises(ValueError, match="function is for mode own, got 'mine' with mode zero"):
        Intervention(Mode.zero, (Site("a"),), function="mine")
    for taken in ("zero", "own", ""):
        with pytest.raises(ValueError, match="expected a name that no mode has"):
            register_intervention(taken, torch.tanh)


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (lambda heads: heads.mean(dim=1), "intervention 'bad': expected shape (3, 5, 2, 7), got (3, 2, 7)"),
        (lambda heads: heads.mean(dim=0, keepdim=True).expand_as(heads), "expected a function of each row alone"),
        (lambda heads: heads.roll(1, dims=0), "expected a function of each row alone"),
        (lambda heads: heads / 0, "intervention 'bad': its result is not finite"),
    ],
    ids=["shape", "mean over rows", "rows turned", "not finite"],
)
def test_what_is_no_function_of_a_row_is_refused(function: object, line: str) -> None:
    register_intervention("bad", function)
    with pytest.raises(ValueError, match=r"^intervention 'bad'") as raised:
        apply_function("bad", torch.randn(3, 5, 14, generator=torch.Generator().manual_seed(0)), 2)
    assert line in str(raised.value)


def test_a_function_cannot_change_what_it_is_given() -> None:
    register_intervention("in place", lambda heads: heads.mul_(0))
    given = torch.ones(2, 3, 4)
    assert apply_function("in place", given, 2).eq(0).all()
    assert given.eq(1).all()
