"""torch.compile of the parts of a network in which nothing is ever intervened on.

A compiled region does not notice hooks that come later (dynamo guards neither on them nor on replaced forwards), so
that a network compiled as a whole would ignore interventions. Compiled are therefore feed-forward and residual
convolution blocks only, and whatever touches a module inside one (tracing, replay of a part of it) makes that call an
ordinary one. Attention, and with it every site, is never compiled.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from circuits.checkpoints import ModelError

REGIONS = ("FeedForward", "ResnetBlock2D")
"""Classes of diffusers that hold no attention and take a good part of a forward."""


def compile_regions(network: nn.Module, device: torch.device, backend: str = "inductor") -> list[str]:
    """Compile the regions of a network, each when it first runs; returns their paths.

    Raises:
        ModelError: there is none, or nothing that could compile it.
    """
    paths = [path for path, module in network.named_modules() if type(module).__name__ in REGIONS]
    if not paths:
        raise ModelError(
            f"model.compile: {type(network).__name__} has no part that can be compiled ({', '.join(REGIONS)})"
        )
    if backend == "inductor":
        _check_compiler(device)
    import torch._dynamo  # seconds that only those who compile need to spend

    # All regions of a class share a code object, and with it the number of times it may be compiled: a few shapes each.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * len(paths))
    for path in paths:
        module = network.get_submodule(path)
        module.__dict__["forward"] = _unless_touched(module, torch.compile(module.forward, backend=backend))
    return paths


def _unless_touched(region: nn.Module, compiled: Callable[..., Any]) -> Callable[..., Any]:
    plain, inner = region.forward, list(region.modules())[1:]

    def forward(*args: Any, **kwargs: Any) -> Any:
        return (plain if _touched(inner) else compiled)(*args, **kwargs)

    return forward


def _touched(modules: Sequence[nn.Module]) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in modules)


def _check_compiler(device: torch.device) -> None:
    if device.type == "cpu":
        from torch._inductor import config

        if not any(name and shutil.which(name) for name in config.cpp.cxx):
            raise ModelError("model.compile: no C++ compiler found, which torch.compile needs on a CPU; expected g++")
    elif importlib.util.find_spec("triton") is None:
        raise ModelError(f"model.compile: torch.compile needs the package triton on {device.type}")
