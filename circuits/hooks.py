"""The only place that registers hooks; each lives inside a ``with`` and is gone after it, whatever happened in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

Edit = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def edit_inputs(network: nn.Module, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Replace the first input of the named modules by ``edit(input)``; ``edits`` maps module paths to pure functions."""
    handles = []
    try:
        for path, edit in edits.items():
            handles.append(network.get_submodule(path).register_forward_pre_hook(_replacing_first(edit)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def capture_inputs(network: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the first input of the named modules; the dictionary fills in the order in which the modules run."""
    captured: dict[str, torch.Tensor] = {}
    handles = []
    try:
        for path in paths:

            def keep(_: nn.Module, args: tuple, path: str = path) -> None:
                captured[path] = args[0].detach()

            handles.append(network.get_submodule(path).register_forward_pre_hook(keep))
        yield captured
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def capture_outputs(network: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the output of the named modules."""
    captured: dict[str, torch.Tensor] = {}
    handles = []
    try:
        for path in paths:

            def keep(_: nn.Module, __: tuple, output: torch.Tensor, path: str = path) -> None:
                captured[path] = output.detach()

            handles.append(network.get_submodule(path).register_forward_hook(keep))
        yield captured
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def head_zeroed_inside_attention(network: nn.Module, attention: str, head: int) -> Iterator[None]:
    """Zero a head's output inside the attention kernel itself: the independent reference of the site self-test."""
    real = torch.nn.functional.scaled_dot_product_attention
    inside = False

    def enter(*_: object) -> None:
        nonlocal inside
        inside = True

    def leave(*_: object) -> None:
        nonlocal inside
        inside = False

    def zeroing(*args: torch.Tensor, **kwargs: object) -> torch.Tensor:
        output = real(*args, **kwargs)  # type: ignore[arg-type]
        if inside:
            output = output.clone()
            output[:, head] = 0
        return output

    module = network.get_submodule(attention)
    handles = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    torch.nn.functional.scaled_dot_product_attention = zeroing
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = real
        for handle in handles:
            handle.remove()


def count_hooks(network: nn.Module) -> int:
    """Hooks registered anywhere in the network; zero outside every ``with`` of this module."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def _replacing_first(edit: Edit) -> Callable[[nn.Module, tuple], tuple]:
    def hook(_: nn.Module, args: tuple) -> tuple:
        return (edit(args[0]), *args[1:])

    return hook
