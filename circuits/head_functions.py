"""Interventions of your own: pure functions of the heads' outputs, registered under a name from Python.

The name is what an :class:`~circuits.Intervention` holds, so that it stays plain data. Configurations cannot name one:
what a sweep runs must be reproducible from its files alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float

from circuits.vocabulary import Mode

HeadFunction = Callable[
    [Float[torch.Tensor, "rows tokens heads head_dim"]], Float[torch.Tensor, "rows tokens heads head_dim"]
]
"""Outputs of all heads of a layer, before the output projection -> what stands in their place at the chosen heads."""

_FUNCTIONS: dict[str, HeadFunction] = {}


def register_intervention(name: str, function: HeadFunction) -> str:
    """Make ``Intervention(name, sites)`` put ``function(heads)`` in place of the chosen heads; returns the name.

    Args:
        name: any that no mode has; registered again, the new function counts.
        function: pure, row by row: a row is one image at one timestep, and its result may depend on nothing else, since
            rows of many trials share a forward. Checked wherever it is used.

    Raises:
        ValueError: the name of a mode, or no name.
    """
    if not name or name in [mode.value for mode in Mode]:
        raise ValueError(f"expected a name that no mode has, got {name!r}; modes: {', '.join(Mode)}")
    _FUNCTIONS[name] = function
    return name


def registered() -> Mapping[str, HeadFunction]:
    """The functions by name."""
    return MappingProxyType(_FUNCTIONS)


def apply_function(
    name: str, activation: Float[torch.Tensor, "rows tokens width"], heads: int
) -> Float[torch.Tensor, "rows tokens width"]:
    """What the function puts in place of these rows.

    Raises:
        ValueError: a result of another shape, one that is not finite, or one that depends on the other rows.
    """
    split = activation.unflatten(2, (heads, -1))
    found = _FUNCTIONS[name](split.clone())
    if found.shape != split.shape:
        raise ValueError(f"intervention {name!r}: expected shape {tuple(split.shape)}, got {tuple(found.shape)}")
    alone = _FUNCTIONS[name](split[-1:].clone())
    if not torch.allclose(alone, found[-1:], rtol=1e-3, atol=1e-5, equal_nan=True):
        raise ValueError(f"intervention {name!r}: expected a function of each row alone, got one that mixes rows")
    if split.isfinite().all() and not found.isfinite().all():
        raise ValueError(f"intervention {name!r}: its result is not finite")
    return found.to(activation.dtype).flatten(2)
