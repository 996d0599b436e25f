"""torch.compile and channels_last: the same numbers, and interventions still act."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._dynamo

from circuits.checkpoints import ModelError
from circuits.compiled import compile_regions
from circuits.denoisers import Denoiser, load_denoiser
from circuits.engine import Engine, Window
from circuits.hooks import edit_inputs
from circuits.interventions import Intervention, Mode, Site
from circuits.sites import find_sites
from tests.circuits.conftest import IMAGES, MODELS, make_engine

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def engine_of(denoiser: Denoiser) -> Engine:
    """Read as predicting v: a random network that predicts epsilon amplifies rounding at each step."""
    return make_engine(replace(denoiser, prediction_type="v_prediction"), rows=8)


def assert_same_numbers(found: Engine, expected: Engine) -> None:
    """Clean, ablated at once, from a replayed beginning and over a trajectory."""
    chosen = [Intervention(mode, (Site(name, 1),)) for mode in (Mode.zero, Mode.mean) for name in expected.layers]
    assert found.replayable == expected.replayable
    a, b = (engine.denoise("natural", Window(999, 500), chosen, IMAGES)["noise_mse"] for engine in (found, expected))
    torch.testing.assert_close(a.ablated, b.ablated, rtol=1e-5, atol=1e-7)
    assert (b.ablated - b.baseline).abs().max(dim=1).values.min() > 1e-5, "every intervention acts"
    c, d = (engine.sample("natural", Window(500, 300), chosen[:2], 2) for engine in (found, expected))
    torch.testing.assert_close(c.ablated, d.ablated, rtol=1e-4, atol=1e-4)


def test_interventions_act_in_a_compiled_network(model_folders: dict[str, Path]) -> None:
    """Captured by dynamo and run as captured, which needs no C++ compiler."""
    plain, compiled = load_denoiser(model_folders["dit"]), load_denoiser(model_folders["dit"])
    compile_regions(compiled.network, CPU, backend="eager")
    assert_same_numbers(engine_of(compiled), engine_of(plain))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "something was compiled"


def test_interventions_act_in_a_compiled_u_net(model_folders: dict[str, Path]) -> None:
    plain, compiled = load_denoiser(model_folders["unet"]), load_denoiser(model_folders["unet"])
    compile_regions(compiled.network, CPU, backend="eager")
    x, t = torch.randn((2, 3, 14, 14), generator=torch.Generator().manual_seed(0)), torch.tensor([300, 800])
    clean = plain(x, t, None).target
    torch.testing.assert_close(compiled(x, t, None).target, clean)
    for layer in find_sites(plain)[::3]:
        with edit_inputs(plain.network, {layer.projection: torch.zeros_like}):
            expected = plain(x, t, None).target
        with edit_inputs(compiled.network, {layer.projection: torch.zeros_like}):
            torch.testing.assert_close(compiled(x, t, None).target, expected)
        assert (expected - clean).abs().max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_another_memory_layout_changes_no_number(model_folders: dict[str, Path], name: str) -> None:
    other = load_denoiser(model_folders[name], channels_last=True)
    layouts = {p.is_contiguous(memory_format=torch.channels_last) for p in other.network.parameters() if p.ndim == 4}
    assert layouts == {True}
    assert_same_numbers(engine_of(other), engine_of(load_denoiser(model_folders[name])))


def test_a_network_compiled_as_a_whole_would_ignore_interventions(dit: Denoiser) -> None:
    """Why only regions are: dynamo does not look at hooks again once a forward is compiled."""
    x, t, labels = torch.randn(2, 1, 14, 14), torch.tensor([300, 800]), torch.tensor([0, 1])
    site = {"transformer_blocks.1.attn1.to_out.0": torch.zeros_like}
    with edit_inputs(dit.network, site):
        expected = dit(x, t, labels).target
    clean = dit(x, t, labels).target
    dit.network.forward = torch.compile(dit.network.forward, backend="eager")
    torch.testing.assert_close(dit(x, t, labels).target, clean)
    with edit_inputs(dit.network, site):
        found = dit(x, t, labels).target
    torch.testing.assert_close(found, clean)
    assert (found - expected).abs().max() > 1e-3


def test_hooks_inside_a_compiled_region_act(dit: Denoiser) -> None:
    x, t, labels = torch.randn(2, 1, 14, 14), torch.tensor([300, 800]), torch.tensor([0, 1])
    inside = {"transformer_blocks.1.ff.net.2": torch.zeros_like}
    with edit_inputs(dit.network, inside):
        expected = dit(x, t, labels).target
    regions = compile_regions(dit.network, CPU, backend="eager")
    assert regions == ["transformer_blocks.0.ff", "transformer_blocks.1.ff"]
    clean = dit(x, t, labels).target
    with edit_inputs(dit.network, inside):
        found = dit(x, t, labels).target
    torch.testing.assert_close(found, expected)
    assert (found - clean).abs().max() > 1e-3
    torch.testing.assert_close(dit(x, t, labels).target, clean)


def test_what_cannot_be_compiled_is_said(
    monkeypatch: pytest.MonkeyPatch, model_folders: dict[str, Path], dit: Denoiser
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(ModelError, match=r"^model\.compile: no C\+\+ compiler found, .* expected g\+\+$"):
        load_denoiser(model_folders["dit"], compiled=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"needs the package triton on cuda"):
        compile_regions(dit.network, torch.device("cuda"))
    with pytest.raises(ModelError, match=r"Linear has no part that can be compiled \(FeedForward, ResnetBlock2D\)"):
        compile_regions(torch.nn.Linear(2, 2), CPU)
