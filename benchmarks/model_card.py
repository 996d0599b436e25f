"""What the README says of a shipped model: loss per timestep on held-out images, a contact sheet, do its heads work.

python -m benchmarks.model_card [tiny_faces] [--sheet docs/images/tiny_faces_samples.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from circuits import ALL_HEADS, Engine, Intervention, Mode, Site, SourceSpec, Window, find_sites, load_data_set
from circuits.denoisers import load_denoiser
from circuits.seeds import normal_per_index

SOURCES = (SourceSpec("synthetic", "synthetic_faces", 0), SourceSpec("natural", "lfw_faces", 1))
TIMESTEPS = (50, 150, 250, 350, 450, 550, 650, 750, 850, 950)
WINDOWS = tuple(Window(low + 199, low) for low in (800, 600, 400, 200, 0))
SHEET_COLUMNS, SHEET_ROWS = 16, 3


def build_engine(name: str, images: int) -> Engine:
    """The shipped model with its two held-out data sets."""
    denoiser = load_denoiser(name)
    data = {s.name: load_data_set(s, images=images, size=denoiser.size, channels=denoiser.channels) for s in SOURCES}
    return Engine(denoiser, find_sites(denoiser), data, steps=10, seed=0)


def loss_per_timestep(engine: Engine) -> dict[str, dict[int, float]]:
    """Mean noise-prediction MSE on held-out images, per timestep."""
    table: dict[str, dict[int, float]] = {}
    for name, data in engine.data.items():
        x0 = data.measured.images
        noise = normal_per_index(1, f"model card/{name}", list(range(len(x0))), x0.shape[1:])
        for step in TIMESTEPS:
            t = torch.full((len(x0),), step)
            prediction = engine.denoiser(engine.denoiser.add_noise(x0, noise, t), t, data.labels(len(x0)))
            error = engine.denoiser.noise_error(prediction, x0, noise, t).square().mean().item()
            table.setdefault(name, {})[step] = error
    return table


def zero_ablation(engine: Engine, images: int) -> dict[str, np.ndarray]:
    """Percent increase of the noise-prediction error when zeroed: ``[windows, layers, 1 + heads]``, layers first."""
    found = {}
    for name in engine.data:
        windows = []
        for window in WINDOWS:
            layers = []
            for layer in engine.layers.values():
                sites = [Site(layer.name, head) for head in (ALL_HEADS, *range(layer.heads))]
                paired = engine.denoise(name, window, [Intervention(Mode.zero, (s,)) for s in sites], images)[
                    "noise_mse"
                ]
                layers.append(100 * ((paired.ablated / paired.baseline).log().mean(1).exp() - 1).numpy())
            windows.append(layers)
        found[name] = np.array(windows)
    return found


def working_parts(effects: np.ndarray) -> tuple[int, int]:
    """Layers that reach 20% and heads that reach 5% in some window."""
    best = effects.max(axis=0)
    return int((best[:, 0] >= 20).sum()), int((best[:, 1:] >= 5).sum())


def contact_sheet(engine: Engine, target: Path) -> None:
    """Per data set: three rows of samples (DDIM, 50 steps), and a row of real held-out images."""
    sharp = Engine(engine.denoiser, list(engine.layers.values()), engine.data, steps=50, seed=0)
    nothing = Intervention(Mode.zero, (Site(next(iter(engine.layers))),), strength=0.0)
    rows = []
    for name, data in engine.data.items():
        made = sharp.sample(name, WINDOWS[0], [nothing], SHEET_COLUMNS * SHEET_ROWS).baseline
        shown = torch.cat([made, data.measured.images[:SHEET_COLUMNS]])
        rows += [torch.cat(list(row), dim=2) for row in shown.split(SHEET_COLUMNS)]
    pixels = ((torch.cat(rows, dim=1).clamp(-1, 1) + 1) * 127.5).round().byte()[0].numpy()
    image = Image.fromarray(pixels)
    target.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="tiny_faces")
    parser.add_argument("--sheet", type=Path, default=None)
    parser.add_argument("--images", type=int, default=64)
    arguments = parser.parse_args()
    engine = build_engine(arguments.model, arguments.images)
    for name, losses in loss_per_timestep(engine).items():
        print(f"| {name} | " + " | ".join(f"{losses[t]:.3f}" for t in TIMESTEPS) + " |")
    for name, effects in zero_ablation(engine, arguments.images).items():
        layers, heads = working_parts(effects)
        print(f"{name}: {layers} of {effects.shape[1]} layers reach 20%, {heads} heads reach 5%")
        print(
            "  layers by window:", np.array2string(effects[:, :, 0], precision=0, suppress_small=True).replace("\n", "")
        )
    if arguments.sheet:
        contact_sheet(engine, arguments.sheet)
        print(arguments.sheet)


if __name__ == "__main__":
    main()
