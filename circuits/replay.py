"""Layer replay: what a network computed before a site is taken from the clean pass instead of computed again.

In the first ablated forward everything before the site equals the clean pass. A forward is traced once as a tree of
calls and the operations between them. For a site, the maximal calls that had ended before it began return their
recorded outputs, those of the row's image, instead of computing. The network is called with all rows from the start,
so every shape is right and no architecture needs to be known.

Most recorded outputs only feed calls that are replayed themselves. Those are neither recorded nor gathered: a scalar
NaN, expanded to the right shape, stands for them, so that a model in which one is read after all shows it at once. Each
layer's replay is compared with a plain forward before it is used; where they differ the layer is computed plainly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import nn
from torch.utils._pytree import TreeSpec, tree_unflatten

from circuits.hooks import CallKey, LeafKey, replace_calls
from circuits.sites import AttentionLayer


@dataclass(frozen=True)
class TensorTemplate:
    """A tensor in a recorded output.

    Attributes:
        shape: for a single row.
        axis: where the rows lie, as blocks of ``shape[axis]``; None for what all rows share, such as position
            embeddings.
    """

    shape: tuple[int, ...]
    axis: int | None
    dtype: torch.dtype

    def rows_of(self, recorded: torch.Tensor, index: Int[torch.Tensor, " rows"]) -> torch.Tensor:
        """The chosen rows of a recorded tensor; never the recorded memory itself, which a model might change."""
        if self.axis is None:
            return recorded.clone()
        block = self.shape[self.axis]
        if block == 1:
            return recorded.index_select(self.axis, index)
        blocks = recorded.unflatten(self.axis, (-1, block)).index_select(self.axis, index)
        return blocks.flatten(self.axis, self.axis + 1)

    def unread(self, rows: int, device: torch.device, dense: bool) -> torch.Tensor:
        """Stands for a tensor that nothing computed from now on depends on; takes the memory of one number or, if
        ``dense``, that of the tensor."""
        shape = list(self.shape)
        if self.axis is not None:
            shape[self.axis] *= rows
        filling = torch.nan if self.dtype.is_floating_point else 0
        if dense:
            return torch.full(shape, filling, dtype=self.dtype, device=device)
        return torch.full((), filling, dtype=self.dtype, device=device).expand(shape)

    @property
    def bytes_per_row(self) -> int:
        count = self.dtype.itemsize
        for length in self.shape:
            count *= length
        return count


@dataclass(frozen=True)
class OutputTemplate:
    """The structure of a call's output: tensors, and what else is in it and the same in every forward."""

    structure: TreeSpec
    leaves: tuple[TensorTemplate | Any, ...]


@dataclass(frozen=True)
class ReplayPlan:
    """How a forward begins at a layer's site.

    Attributes:
        calls: by path, for its first, second, ... call: the recorded call that stands for it, or None to compute.
        outputs: of the recorded calls.
        live: the tensors in them that something computed after the site depends on: those to record.
        fixed_values: modules that hold V and do not run, so that theirs must come from the clean pass too.
        share: of a forward's FLOPs, what is left to compute.
        dense: tensors that nothing depends on have memory of their own, since the network writes to them or takes them
            for complex numbers.
    """

    layer: AttentionLayer
    calls: Mapping[str, tuple[CallKey | None, ...]]
    outputs: Mapping[CallKey, OutputTemplate]
    live: frozenset[LeafKey]
    fixed_values: frozenset[str]
    share: float
    dense: bool = False

    def template(self, key: LeafKey) -> TensorTemplate:
        return self.outputs[key[:2]].leaves[key[2]]


@contextmanager
def replaying(
    network: nn.Module,
    plan: ReplayPlan,
    recorded: Mapping[LeafKey, torch.Tensor],
    index: Int[torch.Tensor, " rows"],
) -> Iterator[None]:
    """Inside, one forward of ``len(index)`` rows computes from the plan's site on; row r was recorded at ``index[r]``.

    What reaches the site itself is meaningless: whoever uses this must put the recorded activation there.
    """

    def result(key: CallKey) -> Callable[[], Any]:
        def output() -> Any:
            template = plan.outputs[key]
            leaves = [leaf_of((*key, i), leaf) for i, leaf in enumerate(template.leaves)]
            return tree_unflatten(leaves, template.structure)

        return output

    def leaf_of(key: LeafKey, leaf: TensorTemplate | Any) -> Any:
        if not isinstance(leaf, TensorTemplate):
            return leaf
        if key in plan.live:
            return leaf.rows_of(recorded[key], index)
        return leaf.unread(len(index), index.device, plan.dense)

    results = {path: [None if key is None else result(key) for key in keys] for path, keys in plan.calls.items()}
    with replace_calls(network, results):
        yield
