"""Time of the engine against a plain loop of forward hooks, against nnsight, and against what the machine allows.

    python -m benchmarks.speed [--json] [--threads 2] [--images 16] [--samples 4] [--repetitions 3]

A DiT with random weights of 6 layers, 8 heads, width 192 and 64 tokens; every head is set to zero, alone. ``denoise``:
all metrics on 16 images at ten timesteps. ``sample``: 4 images per head in each of five windows of ten steps. The loop
and nnsight take one forward per head (and step) with all images in it, as one would write it; the engine chooses its
rows itself. All give the same numbers, which is asserted, and compute the same metrics. One repetition of each in turn,
medians of all; the engine makes its clean passes anew in each, its self-test is over. nnsight is no dependency: its
figures are null where it is not installed.

``ours_over_limit``: over the time of the unique work alone (see ``benchmarks.work``) at the best rate of the bare
network, any number of rows. ``hooks_over_bare``: rows per second with an intervention in every row over those of the
bare network, with as many rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import rivals
from benchmarks.subjects import build_engine, small_dit, windows_of, zeroed_heads
from benchmarks.work import DATA_SET, flops_after_sites
from circuits.engine import Engine, Window
from circuits.row_count import FEWEST, forward_seconds
from circuits.rows import Variants, intervened
from circuits.sampling import Seeds
from circuits.sites import all_heads

WINDOWS = 5
EVERYTHING = Window(999, 0)
Timed = dict[str, list[float]]


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = run()
    return time.perf_counter() - began, found


def forget(engine: Engine) -> None:
    """Clean passes and trajectories; what is drawn from seeds and proved about the model stays."""
    engine._forwards.clean._kept.clear()
    engine._sampling._trajectories.clear()


def ours_denoise(engine: Engine, images: int) -> torch.Tensor:
    forget(engine)
    found = engine.denoise(DATA_SET, EVERYTHING, zeroed_heads(list(engine.layers.values())), images)
    ablated = torch.stack([pair.ablated for pair in found.values()], dim=1)
    return torch.cat([ablated, torch.stack([pair.baseline for pair in found.values()])[None]])


def ours_sample(engine: Engine, samples: int) -> torch.Tensor:
    forget(engine)
    heads = zeroed_heads(list(engine.layers.values()))
    return torch.stack([engine.sample(DATA_SET, w, heads, samples).ablated for w in windows_of(engine, WINDOWS)])


def compare(ways: dict[str, Callable[[], torch.Tensor]], repetitions: int) -> Timed:
    """Seconds of each way, in turn; all must give what the first gives, within 1e-5 of the largest."""
    times: Timed = {name: [] for name in ways}
    for _ in range(repetitions):
        found = {}
        for name, way in ways.items():
            taken, found[name] = seconds(way)
            times[name].append(taken)
        reference = found["loop"]
        for name, values in found.items():
            difference = ((values - reference).abs().max() / reference.abs().max()).item()
            assert difference < 1e-5, f"{name} differs from the loop by {difference:.1e}"
    return times


def best_rate(engine: Engine) -> float:
    """Rows per second of the bare network, at the best number of rows."""
    measure = forward_seconds(engine.denoiser)
    return max(rows / measure(rows) for rows in (FEWEST * 2**i for i in range(6)))


def forwards_needed(engine: Engine, units: int, protocol: str) -> float:
    """Rows of whole forwards that the unique work amounts to."""
    whole, after = flops_after_sites(engine)
    steps = len(engine.timesteps)
    if protocol == "denoise":
        return units + sum(units * layer.heads * after[name] / whole for name, layer in engine.layers.items())
    needed = float(units * steps)
    for window in windows_of(engine, WINDOWS):
        later = steps - engine.timesteps.index(window.t_start) - 1
        needed += sum(units * layer.heads * (after[name] / whole + later) for name, layer in engine.layers.items())
    return needed


def hooks_over_bare(engine: Engine, repetitions: int) -> float:
    """Rate of forwards with an edit in every row over that of bare ones, at the engine's number of rows."""
    denoiser, rows = engine.denoiser, engine.rows
    variants = Variants(zeroed_heads(list(engine.layers.values())), engine.layers)
    x, t = torch.zeros(rows, *denoiser.sample_shape), torch.zeros(rows, dtype=torch.long)
    labels, unit = engine.data[DATA_SET].labels(rows), torch.zeros(rows, dtype=torch.long)
    # As the engine's forwards are: all rows at one layer.
    variant = torch.arange(rows) % next(iter(engine.layers.values())).heads

    def edited() -> None:
        with intervened(denoiser, variants, variant, unit, {}):
            denoiser(x, t, labels)

    def bare() -> None:
        denoiser(x, t, labels)

    pairs = [(seconds(bare)[0], seconds(edited)[0]) for _ in range(10 * repetitions)]
    return statistics.median(b for b, _ in pairs) / statistics.median(e for _, e in pairs)


def figures(images: int, samples: int, repetitions: int) -> dict[str, Any]:
    """All figures, rounded to three digits."""
    denoiser = small_dit()
    engine = build_engine(denoiser, max(images, samples), rows=0)
    layers = list(engine.layers.values())
    heads = all_heads(layers)
    targets = {"loop": rivals.by_hook(denoiser), "nnsight": rivals.by_nnsight(denoiser)}
    noised = engine._denoising._noised(engine.data[DATA_SET], engine.timesteps, range(images))
    labels = engine.data[DATA_SET].labels(images)
    seeds, windows = Seeds(engine.data[DATA_SET], 0, samples), windows_of(engine, WINDOWS)
    assert labels is not None
    assert all(engine.replayable.values())
    found: dict[str, Any] = {}
    for protocol, units in (("denoise", images), ("sample", samples)):
        ways: dict[str, Callable[[], torch.Tensor]] = {}
        for name, target in targets.items():
            if target is not None and protocol == "denoise":
                ways[name] = partial(rivals.denoise, engine, target, noised, labels, heads)
            elif target is not None:
                ways[name] = partial(rivals.sample, engine, target, seeds, windows, heads)
        ways["ours"] = partial(ours_denoise if protocol == "denoise" else ours_sample, engine, units)
        rate = best_rate(engine)
        times = {name: statistics.median(taken) for name, taken in compare(ways, repetitions).items()}
        print(f"{protocol}: {times}, {engine.rows} rows", file=sys.stderr)
        limit = forwards_needed(engine, units, protocol) / max(rate, best_rate(engine))
        found[protocol] = {
            "loop_over_ours": round(times["loop"] / times["ours"], 3),
            "nnsight_over_ours": round(times["nnsight"] / times["ours"], 3) if "nnsight" in times else None,
            "ours_over_limit": round(times["ours"] / limit, 3),
        }
    return found | {"hooks_over_bare": round(hooks_over_bare(engine, repetitions), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = figures(args.images, args.samples, args.repetitions)
    print(json.dumps(found) if args.json else json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
