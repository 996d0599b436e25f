"""No hook and no patch outlives its ``with``, whatever happens inside."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import circuits
from circuits import hooks
from circuits.denoisers import Denoiser
from circuits.engine import Window
from circuits.interventions import Intervention, Site
from circuits.rows import Variants, intervened
from circuits.vocabulary import ABLATIONS, Mode
from tests.circuits.conftest import IMAGES, make_engine

REAL_KERNEL = F.scaled_dot_product_attention
Context = Callable[[torch.nn.Module, str], AbstractContextManager[Any]]

CONTEXTS: dict[str, Context] = {
    "edit_inputs": lambda network, path: hooks.edit_inputs(network, {path: lambda x: x * 2}),
    "capture_inputs": lambda network, path: hooks.capture_inputs(network, [path]),
    "capture_outputs": lambda network, path: hooks.capture_outputs(network, [path]),
    "edit_attention_kernels": lambda network, path: hooks.edit_attention_kernels(network, {path: lambda o, v: v}),
    "trace_calls": lambda network, path: hooks.trace_calls(network),
    "capture_leaves": lambda network, path: hooks.capture_leaves(network, {(path, 0, 0), (hooks.KERNEL, 0, 0)}),
}


def small() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))


def nothing_left(network: torch.nn.Module) -> bool:
    return (
        hooks.count_hooks(network) == 0
        and hooks.replaced_forwards(network) == []
        and F.scaled_dot_product_attention is REAL_KERNEL
    )


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_gone_after_use_and_after_errors(context: Context) -> None:
    network = small()
    with context(network, "1"):
        assert hooks.count_hooks(network) > 0
        network(torch.ones(2, 3))
    assert nothing_left(network)
    with pytest.raises(RuntimeError), context(network, "1"):
        network(torch.ones(2, 5))
    assert nothing_left(network)
    with pytest.raises(KeyboardInterrupt), context(network, "1"):
        raise KeyboardInterrupt
    assert nothing_left(network)


@pytest.mark.parametrize("name", ["edit_inputs", "capture_inputs", "capture_outputs"])
def test_gone_when_a_module_does_not_exist(name: str) -> None:
    network = small()
    paths: Any = ["0", "nowhere"]
    if name == "edit_inputs":
        paths = dict.fromkeys(paths, lambda x: x)
    with pytest.raises(AttributeError, match="nowhere"), getattr(hooks, name)(network, paths):
        pytest.fail("entered")
    assert nothing_left(network)


def test_captures_in_the_order_of_execution_and_before_or_after_edits() -> None:
    network, x = small(), torch.ones(2, 3)
    with hooks.capture_inputs(network, ["1", "0"]) as inputs, hooks.capture_outputs(network, ["0"]) as outputs:
        network(x)
    assert list(inputs) == ["0", "1"]
    assert torch.equal(outputs["0"], inputs["1"])
    with hooks.edit_inputs(network, {"1": lambda a: a + 1}), hooks.capture_inputs(network, ["1"]) as edited:
        network(x)
    assert torch.equal(edited["1"], inputs["1"] + 1)


def test_a_module_that_runs_twice_has_no_single_input() -> None:
    shared = torch.nn.Linear(3, 3)
    network = torch.nn.Sequential(shared, torch.nn.ReLU(), shared)
    with pytest.raises(ValueError, match="0 runs more than once"), hooks.capture_inputs(network, ["0"]):
        network(torch.ones(2, 3))
    assert nothing_left(network)


def test_none_left_by_the_engine(denoiser: Denoiser) -> None:
    engine = make_engine(denoiser)
    everything = [Intervention(mode, tuple(Site(name) for name in engine.layers)) for mode in ABLATIONS]
    engine.denoise("natural", Window(999, 500), everything, IMAGES)
    engine.sample("natural", Window(999, 500), everything, 2)
    assert nothing_left(denoiser.network)


def test_none_left_when_a_forward_fails(dit: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(dit)
    everything = [Intervention(mode, tuple(Site(name) for name in engine.layers)) for mode in ABLATIONS]
    block = dit.network.transformer_blocks[1].ff  # type: ignore[union-attr,index]

    def fail(*_: object) -> None:
        raise RuntimeError("halfway")

    monkeypatch.setattr(block, "forward", fail)
    for run in (engine.denoise, engine.sample):
        with pytest.raises(RuntimeError, match="halfway"):
            run("natural", Window(999, 500), everything, IMAGES)
    monkeypatch.undo()
    assert nothing_left(dit.network)


def test_rows_that_do_not_match_the_forward_are_caught(dit: Denoiser) -> None:
    engine = make_engine(dit)
    zero = Intervention(Mode.zero, (Site(next(iter(engine.layers))),))
    x, t, labels = torch.zeros(3, 1, 14, 14), torch.zeros(3).long(), torch.zeros(3).long()
    with (
        pytest.raises(AssertionError, match="expected a forward of 2 rows, got 3"),
        intervened(dit, Variants([zero], engine.layers), torch.tensor([0, 0]), torch.tensor([0, 1]), {}),
    ):
        dit(x, t, labels)
    assert nothing_left(dit.network)


def test_hooks_are_registered_in_one_module() -> None:
    root = Path(circuits.__file__).parent
    registering = {p.name for p in root.rglob("*.py") if re.search(r"\.register_\w*hook", p.read_text())}
    assert registering == {"hooks.py"}
