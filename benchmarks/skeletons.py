"""Networks too large to run, as skeletons: their modules are called with the right shapes and compute nothing.

A network on the meta device is traced once. From then on each of its modules only calls the modules that it called in
the trace, returns tensors of the traced shapes, for however many rows, and adds the FLOPs of its own operations to a
count. Hooks and replaced calls work on a skeleton as on any network, so the engine runs on it unchanged and takes its
own decisions: which rows share a forward, where it begins, what is recorded, kept and made again. What a real run of
the same network counts is what its skeleton counts, to the last FLOP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_unflatten

from circuits.hooks import KERNEL
from circuits.operations import Operation
from circuits.replay import OutputTemplate, TensorTemplate
from circuits.traced_forward import TracedForward

META = torch.device("meta")
_TRACED_ROWS = 2


class NoValues(TorchDispatchMode):
    """Inside, tensors on the meta device can be read: every number is 0, and tensors of equal shapes are equal.

    Self-tests, which compare two computations, then pass. What they prove is proved on real models.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, aten = kwargs or {}, torch.ops.aten
        first = args[0] if args else None
        if isinstance(first, torch.Tensor) and first.device == META:
            if func is aten._local_scalar_dense.default:
                return torch.zeros((), dtype=first.dtype).item()
            if func is aten.equal.default:
                return first.shape == args[1].shape
            if func is aten._to_copy.default and kwargs.get("device") == torch.device("cpu"):
                return torch.zeros(first.shape, dtype=kwargs.get("dtype") or first.dtype)
        return func(*args, **kwargs)


class Skeleton:
    """Stands in for the computation of a network's modules, inside :meth:`standing_in`.

    Attributes:
        flops: of matrix products, convolutions and attention so far, those of the trace included.
    """

    def __init__(self, network: nn.Module, trace: TracedForward) -> None:
        # Making the trace took a forward of 2 rows and one of 3.
        self.flops = sum(o.flops for o in trace.operations) * 5 // _TRACED_ROWS
        self._network = network
        self._trace = trace
        self._modules = dict(network.named_modules())
        self._script = _script(trace)
        self._rows = 0
        # Which call of the trace the one that begins now is.
        self._place = 0

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Inside, the network is a skeleton; no other network may run."""
        real = F.scaled_dot_product_attention
        paths = {call.path for call in self._trace.calls} - {KERNEL}
        for path in paths:
            self._modules[path].__dict__["forward"] = self._forward(path)
        F.scaled_dot_product_attention = lambda *_, **__: self._run()
        try:
            yield
        finally:
            F.scaled_dot_product_attention = real
            for path in paths:
                del self._modules[path].__dict__["forward"]

    def _forward(self, path: str) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not path:
                self._rows, self._place = len(args[0]), 0
            return self._run()

        return forward

    def _run(self) -> Any:
        """What the call that begins now does when it computes."""
        place = self._place
        for event in self._script[place]:
            if isinstance(event, Operation):
                self.flops += event.flops * self._rows // _TRACED_ROWS
                continue
            self._place, call = event, self._trace.calls[event]
            given = () if call.input is None else (self._scaled(call.input),)
            # As the network would: whatever is hooked there or replaces it comes into its own.
            if call.path == KERNEL:
                F.scaled_dot_product_attention(*given)
            else:
                self._modules[call.path](*given)
        return self._output(self._trace.outputs[self._trace.calls[place].key])

    def _scaled(self, tensor: Any) -> Any:
        """An input of the trace for as many rows as run now."""
        if not isinstance(tensor, torch.Tensor) or not tensor.dim() or tensor.shape[0] % _TRACED_ROWS:
            return tensor
        length = tensor.shape[0] // _TRACED_ROWS * self._rows
        return torch.empty((length, *tensor.shape[1:]), dtype=tensor.dtype, device=META)

    def _output(self, template: OutputTemplate) -> Any:
        return tree_unflatten([self._leaf(leaf) for leaf in template.leaves], template.structure)

    def _leaf(self, leaf: TensorTemplate | Any) -> Any:
        if not isinstance(leaf, TensorTemplate):
            return leaf
        shape = list(leaf.shape)
        if leaf.axis is not None:
            shape[leaf.axis] *= self._rows
        return torch.empty(shape, dtype=leaf.dtype, device=META)


def _script(trace: TracedForward) -> list[list[Operation | int]]:
    """For each call, in order: its own operations that have FLOPs, and the places of the calls that it makes."""
    script: list[list[tuple[int, Operation | int]]] = [[] for _ in trace.calls]
    for operation in trace.operations:
        if operation.flops:
            assert operation.call is not None, "FLOPs outside of the network"
            script[operation.call].append((operation.time, operation))
    for place, call in enumerate(trace.calls):
        if call.parent is not None:
            script[call.parent].append((call.started, place))
    return [[event for _, event in sorted(events, key=lambda timed: timed[0])] for events in script]
