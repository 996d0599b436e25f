"""What profiling heads costs: CPU time of ``profile_heads`` over that of plain forwards of the same images.

    python -m benchmarks.profiling [--json] [--models tiny_faces ...] [--threads 1] [--repetitions 5] [--flops]

A whole call, with all that it does once: finding the kernels, drawing the noise, the features of the images; the sites
of the model are given, since whoever loads a model has found and proved them. Plain forwards take the same noised
images at the same timesteps, as many rows at a time. The two take turns, and the ratio is that of their medians. CPU
time of the process, on one thread by default, so that other work on the machine matters little.

- tiny_faces, tiny_unet: the shipped models, on the faces that they were trained on the like of, both data sets;
- dit_384: a DiT with random weights, 12 heads of 32 dimensions over 256 tokens, on generated faces with their parts;
- sd_like: a U-Net with random weights and the widths of Stable Diffusion 1.5 at its two outer levels, self- and
  cross-attention of 8 heads over 4,096 and 1,024 tokens; a sample of queries is looked at where there are 4,096.

With ``--flops`` the ratio of counted operations (matrix products, convolutions, attention), the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.subjects import shipped, small_dit
from circuits.conditioning import draw
from circuits.data.image_sets import ImageSet
from circuits.data.prompts import PromptedSet
from circuits.data.source_spec import SourceSpec
from circuits.data.sources import DataSet, load_data_set
from circuits.denoisers import Denoiser
from circuits.operations import ATTENTION_FLOPS
from circuits.profiles import profile_heads
from circuits.sites import AttentionLayer, find_sites

FACES = (SourceSpec("synthetic", "synthetic_faces", 0), SourceSpec("natural", "lfw_faces", 1))
SEED = 0


@dataclass(frozen=True)
class Subject:
    """A model, its data, and how it is profiled."""

    denoiser: Denoiser
    data: Mapping[str, DataSet]
    images: int
    rows: int
    timesteps: int

    @cached_property
    def layers(self) -> tuple[AttentionLayer, ...]:
        return find_sites(self.denoiser)

    def profile(self) -> None:
        profile_heads(
            self.denoiser,
            self.data,
            self.layers,
            timesteps=self.timesteps,
            images=self.images,
            seed=SEED,
            rows=self.rows,
        )


def _shipped(name: str) -> Subject:
    denoiser = shipped(name)
    data = {s.name: load_data_set(s, images=32, size=denoiser.size, channels=denoiser.channels) for s in FACES}
    return Subject(denoiser, data, images=32, rows=32, timesteps=10)


def _wide_dit() -> Subject:
    denoiser = small_dit(layers=6, heads=12, width=384, tokens=256)
    data = load_data_set(FACES[0], images=16, size=denoiser.size, channels=denoiser.channels)
    return Subject(denoiser, {"synthetic": data}, images=16, rows=16, timesteps=4)


def _sd_like() -> Subject:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet2DConditionModel(
            sample_size=64, block_out_channels=(320, 640), layers_per_block=1, attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
            cross_attention_dim=768,
        )  # fmt: skip
    denoiser = Denoiser(
        name="sd_like",
        network=network.eval().requires_grad_(False),
        scheduler=DDPMScheduler(beta_schedule="scaled_linear"),
        prediction_type="epsilon",
        channels=4,
        size=64,
        classes=0,
        revision="random",
        device=torch.device("cpu"),
    )
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn((4, *denoiser.sample_shape), generator=generator)
    images = ImageSet("prompts", latents, ("a", "b", "c", "d"), None, "")
    prompts = draw(network, len(latents), generator)
    data = PromptedSet("prompts", None, images, images, prompts, prompts)
    return Subject(denoiser, {"prompts": data}, images=4, rows=4, timesteps=2)


MODELS: dict[str, Callable[[], Subject]] = {
    "tiny_faces": lambda: _shipped("tiny_faces"),
    "tiny_unet": lambda: _shipped("tiny_unet"),
    "dit_384": _wide_dit,
    "sd_like": _sd_like,
}


def plain_forwards(subject: Subject) -> Callable[[], None]:
    """The forwards of a profile, and nothing else."""
    denoiser, inputs = subject.denoiser, []
    for source in subject.data.values():
        x0, noise = source.measured.images[: subject.images], source.noise(range(subject.images), SEED)
        for t in denoiser.timesteps(subject.timesteps):
            for start in range(0, len(x0), subject.rows):
                units = list(range(start, min(start + subject.rows, len(x0))))
                times = torch.full((len(units),), t)
                inputs.append((denoiser.add_noise(x0[units], noise[units], times), times, source.condition(units)))

    def run() -> None:
        for given in inputs:
            denoiser(*given)

    return run


def cpu_seconds(run: Callable[[], None]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def time_ratio(subject: Subject, repetitions: int) -> float:
    """Median CPU time of a profile over that of the plain forwards, taken in turn after a warm-up of each."""
    plain = plain_forwards(subject)
    plain()
    subject.profile()
    pairs = [(cpu_seconds(subject.profile), cpu_seconds(plain)) for _ in range(repetitions)]
    return statistics.median(p for p, _ in pairs) / statistics.median(f for _, f in pairs)


def flop_ratio(subject: Subject) -> float:
    """Counted operations of a profile over those of the plain forwards."""

    def counted(run: Callable[[], None]) -> int:
        with FlopCounterMode(display=False, custom_mapping=dict(ATTENTION_FLOPS)) as counter:
            run()
        return counter.get_total_flops()

    return counted(subject.profile) / counted(plain_forwards(subject))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON line")
    parser.add_argument("--flops", action="store_true", help="count operations instead of CPU time")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = {}
    for name in args.models:
        subject = MODELS[name]()
        found[name] = round(flop_ratio(subject) if args.flops else time_ratio(subject, args.repetitions), 3)
    if args.json:
        print(json.dumps(found))
        return
    for name, ratio in found.items():
        print(f"{name}: a profile takes {ratio:.2f} times the {'operations' if args.flops else 'CPU time'} of forwards")


if __name__ == "__main__":
    main()
