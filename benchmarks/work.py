"""Work of a sweep: FLOPs of its forwards over the FLOPs of its unique work, the same on every machine.

    python -m benchmarks.work [--json] [--models tiny_faces ...] [--images 16] [--samples 2]

The grid is that of ``sweep=full_ablation``: every head and every layer, zero, mean and resample, in five windows of a
sampler of ten steps, as leases bring it to the engine: all trials of a layer and window at once. FLOPs are those of
matrix products, convolutions and attention inside the network (``torch.utils.flop_counter``). Its unique work is

- under ``denoise``: one clean pass per window and image, and per trial and image the part of a forward that comes after
  the trial's site begins;
- under ``sample``: one clean trajectory per seed, and per trial and seed the part after the site of the first ablated
  step, and a whole forward for each step after it;
- for the means, one forward per reference image and timestep, once for both protocols.

The part after a site is read off a plain forward, when its projection is called. What the engine does beyond (its
self-test, clean passes made again, rows that share a forward with others) counts against it; what it saves beyond (the
embedding of the timestep in later layers) counts for it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.subjects import STEPS, build_engine, shipped, windows_of
from circuits.engine import Engine
from circuits.interventions import ALL_HEADS, Intervention, Mode, Site
from circuits.operations import ATTENTION_FLOPS

MODELS = ("tiny_faces",)
MODES = (Mode.zero, Mode.mean, Mode.resample)
WINDOWS = 5
DATA_SET = "natural"


def network_flops(network: nn.Module, run: Callable[[], object]) -> int:
    """FLOPs spent inside the network while something runs."""
    with FlopCounterMode(display=False, custom_mapping=dict(ATTENTION_FLOPS)) as counter:
        run()
    return sum(counter.get_flop_counts().get(type(network).__name__, {}).values())


def flops_after_sites(engine: Engine) -> tuple[int, dict[str, int]]:
    """FLOPs of a forward of one row, and by layer of the part after its site begins."""
    denoiser = engine.denoiser
    x, t = torch.zeros(1, *denoiser.sample_shape), torch.zeros(1, dtype=torch.long)
    before: dict[str, int] = {}
    with FlopCounterMode(display=False, custom_mapping=dict(ATTENTION_FLOPS)) as counter:
        handles = [
            denoiser.network.get_submodule(layer.projection).register_forward_pre_hook(
                lambda *_, name=name: before.__setitem__(name, counter.get_total_flops())
            )
            for name, layer in engine.layers.items()
        ]
        denoiser(x, t, engine.data[DATA_SET].labels(1))
        for handle in handles:
            handle.remove()
    total = counter.get_total_flops()
    return total, {name: total - count for name, count in before.items()}


def trials_of(engine: Engine, layer: str) -> list[Intervention]:
    heads = [ALL_HEADS, *range(engine.layers[layer].heads)]
    return [Intervention(mode, (Site(layer, head),)) for mode, head in product(MODES, heads)]


def run_sweep(engine: Engine, protocol: str, units: int) -> None:
    """The grid, a lease at a time."""
    for window, layer in product(windows_of(engine, WINDOWS), engine.layers):
        trials = trials_of(engine, layer)
        if protocol == "denoise":
            engine.denoise(DATA_SET, window, trials, units)
        else:
            engine.sample(DATA_SET, window, trials, units)


def unique_flops(engine: Engine, protocol: str, units: int) -> int:
    """FLOPs of the unique work, as defined above."""
    forward, after = flops_after_sites(engine)
    references = len(engine.data[DATA_SET].reference) * len(engine.timesteps)
    clean = units * (WINDOWS if protocol == "denoise" else len(engine.timesteps))
    total = (references + clean) * forward
    for window, layer in product(windows_of(engine, WINDOWS), engine.layers):
        later = len(engine.timesteps) - engine.timesteps.index(window.t_start) - 1 if protocol == "sample" else 0
        total += len(trials_of(engine, layer)) * units * (after[layer] + later * forward)
    return total


def ratios(name: str, images: int, samples: int) -> dict[str, float]:
    """FLOPs over unique FLOPs by protocol."""
    found = {}
    for protocol, units in (("denoise", images), ("sample", samples)):
        engine = build_engine(shipped(name), max(images, samples), rows=32)
        assert len(engine.timesteps) == STEPS
        spent = network_flops(engine.denoiser.network, partial(run_sweep, engine, protocol, units))
        found[protocol] = spent / unique_flops(engine, protocol, units)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--samples", type=int, default=2)
    args = parser.parse_args()
    found = {name: ratios(name, args.images, args.samples) for name in args.models}
    if args.json:
        print(json.dumps({name: {p: round(r, 4) for p, r in by.items()} for name, by in found.items()}))
        return
    for name, by_protocol in found.items():
        for protocol, ratio in by_protocol.items():
            print(f"{name} {protocol}: {ratio:.3f} times the FLOPs of the unique work")


if __name__ == "__main__":
    main()
