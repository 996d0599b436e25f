"""The only place that registers hooks; each lives inside a ``with`` and is gone after it, whatever happened inside."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain, repeat
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import nn
from torch.utils._pytree import tree_leaves

Edit = Callable[[torch.Tensor], torch.Tensor]
"""Input of a module -> what it gets instead; a pure function."""

KernelEdit = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(output, value) of an attention kernel, each ``[rows, heads, tokens, head_dim]`` -> what it returns instead."""

CallKey = tuple[str, int]
"""(module path, n-th call of that module in a forward, from 0)."""

LeafKey = tuple[str, int, int]
"""A call and one of the leaves of its output, in the order of ``tree_leaves``."""

KERNEL = "<attention kernel>"
"""The path under which calls of ``scaled_dot_product_attention`` appear beside those of modules."""


@dataclass
class Call:
    """One call of a module or of the attention kernel in a forward.

    Attributes:
        parent: place of the call around it in the list of calls, None for the network's own.
        started, ended: readings of the forward's clock.
        input: the first positional argument, None where there is none.
    """

    path: str
    occurrence: int
    parent: int | None
    started: int
    input: Any
    ended: int = -1
    output: Any = None

    @property
    def key(self) -> CallKey:
        return self.path, self.occurrence


@dataclass
class CallTrace:
    """All calls of a forward in the order in which they began, those still running, and a clock that only counts up."""

    calls: list[Call] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    clock: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def enter(self, path: str, args: tuple[Any, ...]) -> None:
        occurrence = self.counts.get(path, 0)
        self.counts[path] = occurrence + 1
        parent = self.running[-1] if self.running else None
        self.running.append(len(self.calls))
        self.calls.append(Call(path, occurrence, parent, self.tick(), args[0] if args else None))

    def leave(self, output: Any) -> None:
        call = self.calls[self.running.pop()]
        call.ended, call.output = self.tick(), output


@dataclass(frozen=True)
class KernelCall:
    """One call of the attention kernel.

    Attributes:
        ordinal: n-th call since observing began, from 0.
        mask: as the kernel takes it (True or 0 where a key may be attended to), or None.
        scale: of the logits.
        compute: the kernel itself; see ``output``.
    """

    ordinal: int
    query: Float[torch.Tensor, "images heads queries width"]
    key: Float[torch.Tensor, "images heads keys width"]
    value: Float[torch.Tensor, "images heads keys head_dim"]
    mask: torch.Tensor | None
    scale: float
    compute: Callable[[], torch.Tensor]

    @cached_property
    def output(self) -> Float[torch.Tensor, "images heads queries head_dim"]:
        """What the kernel returns; computed when it is first asked for."""
        return self.compute()


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
        _around_calls(stack, network, lambda path, _: running.append(path), lambda _: running.pop())
        _patch_kernel(stack, kernel)
        yield callers


@contextmanager
def observing_kernels(observe: Callable[[KernelCall], torch.Tensor | None]) -> Iterator[None]:
    """Inside, ``observe`` is told of every call of ``scaled_dot_product_attention``, which returns what it always does.

    Args:
        observe: may return the call's output, where it has computed that itself; the kernel then need not run.

    Raises:
        ValueError: causal attention, which no denoiser has.
    """
    real = F.scaled_dot_product_attention
    count = 0

    def kernel(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **kwargs: bool,
    ) -> torch.Tensor:
        nonlocal count
        if is_causal:
            raise ValueError("causal attention has no profile: expected the attention of a denoiser")
        compute = partial(real, query, key, value, attn_mask, dropout_p, scale=scale, **kwargs)
        shared = query.shape[1] // key.shape[1]  # heads that share a key, with grouped queries
        if shared > 1:
            key, value = (tensor.repeat_interleave(shared, dim=1) for tensor in (key, value))
        call = KernelCall(count, query, key, value, attn_mask, scale or query.shape[-1] ** -0.5, compute)
        count += 1
        output = observe(call)
        return call.output if output is None else output

    with ExitStack() as stack:
        _patch_kernel(stack, kernel)
        yield


@contextmanager
def trace_calls(network: nn.Module) -> Iterator[CallTrace]:
    """Record every call of a module and of the attention kernel, with its output, in one forward."""
    trace = CallTrace()
    with ExitStack() as stack:
        _around_calls(stack, network, trace.enter, trace.leave)
        real = F.scaled_dot_product_attention

        def kernel(*args: Any, **kwargs: Any) -> torch.Tensor:
            trace.enter(KERNEL, args)
            output = real(*args, **kwargs)
            trace.leave(output)
            return output

        _patch_kernel(stack, kernel)
        yield trace


@contextmanager
def capture_leaves(network: nn.Module, wanted: Collection[LeafKey]) -> Iterator[dict[LeafKey, torch.Tensor]]:
    """Collect copies of the wanted tensors in outputs of calls: a model may go on to change its own in place."""
    captured: dict[LeafKey, torch.Tensor] = {}
    counts: dict[str, int] = {}
    paths = {path for path, _, _ in wanted}

    def keep(path: str, output: Any) -> None:
        occurrence = counts.get(path, 0)
        counts[path] = occurrence + 1
        for leaf, tensor in enumerate(tree_leaves(output)):
            if (path, occurrence, leaf) in wanted:
                captured[path, occurrence, leaf] = tensor.detach().clone()

    with ExitStack() as stack:
        for path in paths - {KERNEL}:

            def kept(_: nn.Module, __: tuple[Any, ...], output: Any, path: str = path) -> None:
                keep(path, output)

            _scoped(stack, network.get_submodule(path).register_forward_hook(kept))
        if KERNEL in paths:
            real = F.scaled_dot_product_attention

            def kernel(*args: Any, **kwargs: Any) -> torch.Tensor:
                output = real(*args, **kwargs)
                keep(KERNEL, output)
                return output

            _patch_kernel(stack, kernel)
        yield captured


@contextmanager
def replace_calls(network: nn.Module, results: Mapping[str, Sequence[Callable[[], Any] | None]]) -> Iterator[None]:
    """Let the first calls of some modules return ``result()`` instead of computing, in one forward.

    Args:
        results: by module path (or ``KERNEL``), for its first, second, ... call; it is computed as ever where there is
            None, and after the last.
    """
    with ExitStack() as stack:
        for path, sequence in results.items():
            if path == KERNEL:
                _patch_kernel(stack, _returning(F.scaled_dot_product_attention, sequence))
                continue
            module = network.get_submodule(path)
            stack.callback(_restore_forward, module, module.__dict__.get("forward"))
            module.__dict__["forward"] = _returning(module.forward, sequence)
        yield


def replaced_forwards(network: nn.Module) -> list[str]:
    """Modules whose ``forward`` is not that of their class; none outside every ``with`` of this module."""
    return [path for path, module in network.named_modules() if "forward" in module.__dict__]


def count_hooks(network: nn.Module) -> int:
    """Hooks registered anywhere in the network; zero outside every ``with`` of this module."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def _around_calls(
    stack: ExitStack,
    network: nn.Module,
    enter: Callable[[str, tuple[Any, ...]], None],
    leave: Callable[[Any], object],
) -> None:
    """Tell of every module's call: ``enter(path, args)`` before it, ``leave(output)`` after it."""
    for path, module in network.named_modules():

        def before(_: nn.Module, args: tuple[Any, ...], path: str = path) -> None:
            enter(path, args)

        def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            leave(output)

        _scoped(stack, module.register_forward_pre_hook(before))
        _scoped(stack, module.register_forward_hook(after))


def _scoped(stack: ExitStack, handle: torch.utils.hooks.RemovableHandle) -> None:
    stack.callback(handle.remove)


def _patch_kernel(stack: ExitStack, kernel: Callable[..., torch.Tensor]) -> None:
    stack.callback(setattr, F, "scaled_dot_product_attention", F.scaled_dot_product_attention)
    F.scaled_dot_product_attention = kernel


def _returning(real: Callable[..., Any], results: Sequence[Callable[[], Any] | None]) -> Callable[..., Any]:
    coming = chain(results, repeat(None))

    def forward(*args: Any, **kwargs: Any) -> Any:
        result = next(coming)
        return real(*args, **kwargs) if result is None else result()

    return forward


def _restore_forward(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    module.__dict__.pop("forward", None)
    if forward is not None:  # somebody else's, such as a library's that moves weights
        module.__dict__["forward"] = forward


def _put(captured: dict[str, torch.Tensor], path: str, tensor: torch.Tensor) -> None:
    if path in captured:
        raise ValueError(f"{path} runs more than once in a forward; expected once")
    captured[path] = tensor.detach()


def _replacing_first(edit: Edit) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (edit(args[0]), *args[1:])

    return hook
