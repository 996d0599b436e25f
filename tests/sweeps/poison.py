"""Trials that cannot be measured: a head whose ablation gives NaN, another whose ablation raises."""

from __future__ import annotations

import pytest
import torch

from circuits import rows
from circuits.interventions import replace_heads

NAN_HEAD, RAISING_HEAD = 2, 3


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Single heads 2 and 3 of every layer cannot be measured any more; whole layers and the other heads can."""

    def poisoned(activation: torch.Tensor, replacement: torch.Tensor | float, weight: torch.Tensor) -> torch.Tensor:
        alone = weight.sum(dim=1) == 1
        if (alone & (weight[:, RAISING_HEAD] == 1)).any():
            raise ArithmeticError("this head\ncannot be replaced")
        replaced = replace_heads(activation, replacement, weight)
        replaced[alone & (weight[:, NAN_HEAD] == 1)] = float("nan")
        return replaced

    monkeypatch.setattr(rows, "replace_heads", poisoned)


def is_poisoned(head: int) -> bool:
    return head in (NAN_HEAD, RAISING_HEAD)
