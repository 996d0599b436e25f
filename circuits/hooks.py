"""The only place that registers hooks; each lives inside a ``with`` and is gone after it, whatever happened inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Edit = Callable[[torch.Tensor], torch.Tensor]
"""Input of a module -> what it gets instead; a pure function."""

KernelEdit = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(output, value) of an attention kernel, each ``[rows, heads, tokens, head_dim]`` -> what it returns instead."""


@contextmanager
def edit_inputs(network: nn.Module, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Replace the first input of the named modules by ``edit(input)``."""
    with ExitStack() as stack:
        for path, edit in edits.items():
            _scoped(stack, network.get_submodule(path).register_forward_pre_hook(_replacing_first(edit)))
        yield


@contextmanager
def capture_inputs(network: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the first input of the named modules; the dictionary fills in the order in which the modules run.

    Raises:
        ValueError: a module runs twice inside, so that it has no single input; it is named.
    """
    captured: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        for path in paths:

            def keep(_: nn.Module, args: tuple[Any, ...], path: str = path) -> None:
                _put(captured, path, args[0])

            _scoped(stack, network.get_submodule(path).register_forward_pre_hook(keep))
        yield captured


@contextmanager
def capture_outputs(network: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the output of the named modules; errors as :func:`capture_inputs`."""
    captured: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        for path in paths:

            def keep(_: nn.Module, __: tuple[Any, ...], output: torch.Tensor, path: str = path) -> None:
                _put(captured, path, output)

            _scoped(stack, network.get_submodule(path).register_forward_hook(keep))
        yield captured


@contextmanager
def edit_attention_kernels(network: nn.Module, edits: Mapping[str, KernelEdit]) -> Iterator[list[str]]:
    """Change what the attention kernel returns inside the named modules: the reference of the site self-test.

    Yields a list that fills with the path of the innermost module of every kernel call, edited or not.
    """
    real = F.scaled_dot_product_attention
    running: list[str] = []
    callers: list[str] = []

    def kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        output = real(query, key, value, *args, **kwargs)
        caller = running[-1] if running else ""
        callers.append(caller)
        return edits[caller](output, value) if caller in edits else output

    with ExitStack() as stack:
        for path, module in network.named_modules():

            def enter(_: nn.Module, __: tuple[Any, ...], path: str = path) -> None:
                running.append(path)

            def leave(*_: Any) -> None:
                running.pop()

            _scoped(stack, module.register_forward_pre_hook(enter))
            _scoped(stack, module.register_forward_hook(leave))
        stack.callback(setattr, F, "scaled_dot_product_attention", real)
        F.scaled_dot_product_attention = kernel
        yield callers


def count_hooks(network: nn.Module) -> int:
    """Hooks registered anywhere in the network; zero outside every ``with`` of this module."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def _scoped(stack: ExitStack, handle: torch.utils.hooks.RemovableHandle) -> None:
    stack.callback(handle.remove)


def _put(captured: dict[str, torch.Tensor], path: str, tensor: torch.Tensor) -> None:
    if path in captured:
        raise ValueError(f"{path} runs more than once in a forward; expected once")
    captured[path] = tensor.detach()


def _replacing_first(edit: Edit) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (edit(args[0]), *args[1:])

    return hook
