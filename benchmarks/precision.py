"""Whether effects measured in bfloat16 (or float16) are those measured in float32, on the models that ship.

python -m benchmarks.precision [--models tiny_faces tiny_unet] [--dtype bfloat16] [--images 64] [--json]

Every head and every layer is zeroed in every window, on the same images and noise. A trial counts as non-negligible
where the equivalence test does not show the float32 effect to lie within the margin of 5%.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float

from benchmarks.model_card import SOURCES, WINDOWS
from circuits import ALL_HEADS, Engine, Intervention, Mode, Site, Window, find_sites, load_data_set
from circuits.denoisers import load_denoiser
from circuits.statistics import effects, equivalence_test, log_ratio

MODELS = ("tiny_faces", "tiny_unet")


@dataclass(frozen=True)
class Agreement:
    """Of the non-negligible trials, how many have the same effect in a lower precision.

    Attributes:
        trials: all of them.
        non_negligible: those that the counts below are of.
        same_sign: mean log ratio of the same sign as in float32.
        within: mean log ratio inside the 95% interval of float32.
        widest: largest difference of mean log ratios, in half-widths of the float32 interval.
        largest: the same difference in percent of the ablated error.
    """

    trials: int
    non_negligible: int
    same_sign: int
    within: int
    widest: float
    largest: float


def zeroed(
    name: str, dtype: str, images: int, windows: Sequence[Window], heads: Sequence[int] | None = None
) -> Float[np.ndarray, "trials images"]:
    """log(ablated / baseline) of the noise-prediction error: data sets x windows x (each layer, and its heads)."""
    denoiser = load_denoiser(name, dtype=dtype)
    data = {s.name: load_data_set(s, images=images, size=denoiser.size, channels=denoiser.channels) for s in SOURCES}
    engine = Engine(denoiser, find_sites(denoiser), data, steps=10, seed=0, rows=32)
    chosen = [
        Intervention(Mode.zero, (Site(layer.name, head),))
        for layer in engine.layers.values()
        for head in (ALL_HEADS, *(range(layer.heads) if heads is None else heads))
    ]
    found = []
    for data_set in data:
        for window in windows:
            paired = engine.denoise(data_set, window, chosen, images)["noise_mse"]
            found.append(log_ratio(paired.ablated.numpy(), paired.baseline.numpy()[None]))
    return np.concatenate(found)


def agreement(full: Float[np.ndarray, "trials images"], lower: Float[np.ndarray, "trials images"]) -> Agreement:
    """Compare the same trials in float32 and in a lower precision."""
    matters = equivalence_test(full).p > 0.05
    reference, mean = effects(full[matters]), lower[matters].mean(axis=1)
    difference = np.abs(mean - reference.mean_log_ratio)
    return Agreement(
        trials=len(full),
        non_negligible=int(matters.sum()),
        same_sign=int((np.sign(mean) == np.sign(reference.mean_log_ratio)).sum()),
        within=int(((mean >= reference.log_low) & (mean <= reference.log_high)).sum()),
        widest=float((difference / (reference.log_high - reference.mean_log_ratio)).max()),
        largest=float(100 * np.expm1(difference).max()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16"))
    parser.add_argument("--images", type=int, default=64)
    args = parser.parse_args()
    found = {
        name: agreement(*(zeroed(name, dtype, args.images, WINDOWS) for dtype in ("float32", args.dtype)))
        for name in args.models
    }
    if args.json:
        print(json.dumps({name: asdict(result) for name, result in found.items()}))
        return
    for name, a in found.items():
        print(
            f"{name}: of {a.trials} trials {a.non_negligible} are not negligible; {a.same_sign} have the same sign and "
            f"{a.within} lie within the interval of float32 (at most {a.widest:.2f} of its half-width, "
            f"{a.largest:.2f}% of the error)"
        )


if __name__ == "__main__":
    main()
