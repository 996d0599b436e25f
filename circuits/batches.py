"""Work in pieces of as many rows as the device takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Batches:
    """How many rows a forward has.

    Attributes:
        rows: at most so many; halved, for good, when the device runs out of memory.
        rows_run: rows that went through the network so far, repeated pieces counted once.
    """

    rows: int
    rows_run: int = 0

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"a forward has at least 1 row, got rows={self.rows}")

    def run(
        self, items: Sequence[Item], forward: Callable[[list[Item]], Result], forwards: int = 1, rows_each: int = 1
    ) -> list[Result]:
        """``forward`` of consecutive pieces of ``items``, in order; one that runs out of memory is repeated in halves.

        Pieces are as equal as can be, since a small last one would cost almost as much as a full one.

        Args:
            forward: must not keep anything of a piece but what it returns, or a repeated piece would count twice.
            forwards: times each row goes through the network in one call.
            rows_each: rows of an item, which share a forward: 2 under guidance.

        Raises:
            torch.OutOfMemoryError: even one item does not fit.
        """
        results: list[Result] = []
        start = 0
        while start < len(items):
            left = len(items) - start
            most = max(1, self.rows // rows_each)
            piece = list(items[start : start + math.ceil(left / math.ceil(left / most))])
            try:
                results.append(forward(piece))
            except torch.OutOfMemoryError:
                if len(piece) == 1:
                    raise
                self.rows = len(piece) * rows_each // 2
            else:
                self.rows_run += len(piece) * rows_each * forwards
                start += len(piece)
                continue
            # Outside the handler: while the exception lives, its traceback keeps the tensors of the failed forward.
            torch.cuda.empty_cache()
        return results
