"""What a network does in and between its modules' calls: the tensor operations of a forward, and their FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count, shape_wrapper

from circuits.hooks import CallTrace


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


ATTENTION_FLOPS: Mapping[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
}
"""Kernels that torch's own table of FLOPs lacks; the ``custom_mapping`` to give to ``FlopCounterMode``."""

_FLOPS = {**flop_registry, **{packet: shape_wrapper(count) for packet, count in ATTENTION_FLOPS.items()}}


@dataclass(frozen=True)
class Operation:
    """One operation on tensors.

    Attributes:
        time: reading of the forward's clock.
        call: place of the innermost call around it in the trace's list.
        read, written: the memory of its inputs and outputs; a view and its base share theirs, and what is changed in
            place is written.
        flops: of matrix products, convolutions and attention; 0 for all else.
    """

    time: int
    call: int | None
    read: frozenset[int]
    written: frozenset[int]
    flops: int


class OperationTrace(TorchDispatchMode):
    """Inside, the operations of a forward that ``calls`` traces at the same time are collected in ``found``."""

    def __init__(self, calls: CallTrace) -> None:
        super().__init__()
        self.found: list[Operation] = []
        self._calls = calls
        # Keeps every tensor's memory, so that none is freed and given to another under the same identity.
        self._kept: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        count = _FLOPS.get(func._overloadpacket)
        self.found.append(
            Operation(
                time=self._calls.tick(),
                call=self._calls.running[-1] if self._calls.running else None,
                read=frozenset(self._storages((args, kwargs))),
                written=frozenset(self._storages(output)),
                flops=int(count(*args, **kwargs, out_val=output)) if count else 0,
            )
        )
        return output

    def _storages(self, values: Any) -> Iterator[int]:
        for tensor in tree_leaves(values):
            if isinstance(tensor, torch.Tensor):
                identity = storage_of(tensor)
                self._kept.setdefault(identity, tensor.untyped_storage())
                yield identity


def storage_of(tensor: torch.Tensor) -> int:
    """Identity of the memory behind a tensor; unique among tensors that are alive."""
    return tensor.untyped_storage()._cdata
