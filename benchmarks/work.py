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

Shipped models are run. Published ones (SD 1.5, SDXL, DiT-XL/2) are too large for most machines: the engine runs on
their skeletons (see ``benchmarks.skeletons``), whose modules have the published shapes and compute nothing, with the
memory of a GPU of 24 GiB.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.published import PUBLISHED, data_for
from benchmarks.skeletons import NoValues, Skeleton
from benchmarks.subjects import STEPS, build_engine, shipped, windows_of
from circuits.clean import kept_bytes
from circuits.engine import Engine
from circuits.interventions import ALL_HEADS, Intervention, Mode, Site
from circuits.operations import ATTENTION_FLOPS
from circuits.shipped import SHIPPED
from circuits.sites import find_sites
from circuits.traced_forward import TracedForward

MODELS = (*SHIPPED, *PUBLISHED)
GPU_BYTES = 24 << 30
"""Of the device that a published model is thought to be on; what the weights leave free bounds what is kept."""
ROWS, ROWS_BY_SHAPES = 32, 512
"""Of a forward; work does not depend on them, but for the rows that share a forward with others."""
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
    with FlopCounterMode(display=False, custom_mapping=dict(ATTENTION_FLOPS)) as counter:
        return _after_sites(engine, counter.get_total_flops)


def _after_sites(engine: Engine, count: Callable[[], int]) -> tuple[int, dict[str, int]]:
    """As :func:`flops_after_sites`; ``count`` returns the FLOPs so far."""
    denoiser = engine.denoiser
    x, t = torch.zeros(1, *denoiser.sample_shape), torch.zeros(1, dtype=torch.long)
    before: dict[str, int] = {}
    handles = [
        denoiser.network.get_submodule(layer.projection).register_forward_pre_hook(
            lambda *_, name=name: before.__setitem__(name, count())
        )
        for name, layer in engine.layers.items()
    ]
    began = count()
    denoiser(x, t, engine.data[DATA_SET].condition([0]))
    for handle in handles:
        handle.remove()
    ended = count()
    return ended - began, {name: ended - reached for name, reached in before.items()}


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


def unique_flops(engine: Engine, protocol: str, units: int, forward: int, after: Mapping[str, int]) -> int:
    """FLOPs of the unique work, as defined above.

    Args:
        forward, after: FLOPs of a forward, and of the part after each layer's site.
    """
    references = len(engine.data[DATA_SET].reference) * len(engine.timesteps)
    clean = units * (WINDOWS if protocol == "denoise" else len(engine.timesteps))
    total = (references + clean) * forward
    for window, layer in product(windows_of(engine, WINDOWS), engine.layers):
        later = len(engine.timesteps) - engine.timesteps.index(window.t_start) - 1 if protocol == "sample" else 0
        total += len(trials_of(engine, layer)) * units * (after[layer] + later * forward)
    return total


@dataclass(frozen=True)
class Work:
    """FLOPs of a sweep, and of its unique work.

    Attributes:
        share: of a forward, what comes after the site, averaged over heads.
    """

    spent: int
    unique: int
    share: float

    @property
    def ratio(self) -> float:
        return self.spent / self.unique


def work(engine: Engine, protocol: str, units: int) -> Work:
    """Of a sweep that is run."""
    spent = network_flops(engine.denoiser.network, partial(run_sweep, engine, protocol, units))
    forward, after = flops_after_sites(engine)
    return Work(spent, unique_flops(engine, protocol, units, forward, after), _share(engine, forward, after))


@torch.no_grad()
def work_by_shapes(engine: Engine, trace: TracedForward, protocol: str, units: int) -> Work:
    """Of a sweep that is run on the skeleton of a network on the meta device.

    Args:
        engine: it has made no forward so far; ``trace`` is taken for its own.
    """
    engine._forwards.plans._traced = trace
    skeleton = Skeleton(engine.denoiser.network, trace)
    with NoValues(), skeleton.standing_in():
        run_sweep(engine, protocol, units)
        spent = skeleton.flops
        forward, after = _after_sites(engine, lambda: skeleton.flops)
    return Work(spent, unique_flops(engine, protocol, units, forward, after), _share(engine, forward, after))


def traced(engine: Engine) -> TracedForward:
    """A forward of an engine's network on the meta device, with what its data are conditioned on."""
    denoiser, data = engine.denoiser, engine.data[DATA_SET]

    def forward(rows: int) -> object:
        x, t = torch.zeros(rows, *denoiser.sample_shape), torch.zeros(rows, dtype=torch.long)
        return denoiser(x, t, data.condition([0] * rows)).target

    with NoValues():
        return TracedForward.of(denoiser.network, list(engine.layers.values()), forward)


def _share(engine: Engine, forward: int, after: Mapping[str, int]) -> float:
    heads = {name: layer.heads for name, layer in engine.layers.items()}
    return sum(after[name] * count for name, count in heads.items()) / forward / sum(heads.values())


def measured(name: str, images: int, samples: int) -> dict[str, Work]:
    """Of a shipped or published model, by protocol."""
    units = {"denoise": images, "sample": samples}
    most = max(images, samples)
    if name not in PUBLISHED:
        model = shipped(name)
        return {p: work(build_engine(model, most, rows=ROWS), p, count) for p, count in units.items()}
    model = PUBLISHED[name].denoiser(name)
    with NoValues():
        sites = find_sites(model)

    def engine() -> Engine:
        built = Engine(model, sites, data_for(model, most), steps=STEPS, seed=0, rows=ROWS_BY_SHAPES)
        weights = sum(p.numel() * p.itemsize for p in model.network.parameters())
        built._forwards.clean._limit = kept_bytes(GPU_BYTES - weights)
        return built

    trace = traced(engine())
    return {protocol: work_by_shapes(engine(), trace, protocol, count) for protocol, count in units.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--samples", type=int, default=2)
    args = parser.parse_args()
    found = {name: measured(name, args.images, args.samples) for name in args.models}
    if args.json:
        print(json.dumps({name: {p: round(w.ratio, 4) for p, w in by.items()} for name, by in found.items()}))
        return
    for name, by_protocol in found.items():
        print(f"{name}: {by_protocol['denoise'].share:.3f} of a forward comes after the site, averaged over heads")
        for protocol, done in by_protocol.items():
            print(f"{name} {protocol}: {done.ratio:.4f} times the FLOPs of the unique work")


if __name__ == "__main__":
    main()
