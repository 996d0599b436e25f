"""Train the project's own denoisers: v-prediction, min-SNR weights, EMA, resumable.

The recipe is for tiny data: the real faces are few, so each batch shows them flipped, moved, relit and blended with one
another.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file

from circuits.seeds import torch_generator
from circuits.training_settings import TrainingSettings

Images = Float[torch.Tensor, "n c h w"]


@dataclass(frozen=True)
class TrainingProgress:
    """State of a training run after a step; losses are means since the last report."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    seconds_per_step: float


def learning_rate_at(step: int, settings: TrainingSettings) -> float:
    """Linear warm-up, then a cosine to 1% of the peak."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def augment_faces(images: Images, pool: Images, generator: torch.Generator, blended: float = 0.5) -> Images:
    """Flip, move, turn, zoom and relight faces, and blend a share of them with another face of the pool.

    Blending aligned faces gives plausible new faces; with a few dozen real ones it is what keeps the model from
    learning them by heart. The result has the shape of ``images`` and stays in [-1, 1].
    """
    n = len(images)

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    partner = pool[torch.randint(len(pool), (n,), generator=generator)]
    partner = torch.where((uniform(0, 1) < 0.5)[:, None, None, None], partner.flip(-1), partner)
    share = torch.where(uniform(0, 1) < blended, uniform(0.0, 0.5), torch.zeros(n))[:, None, None, None]
    mixed = (1 - share) * images + share * partner
    angle, zoom = uniform(-0.14, 0.14), uniform(0.9, 1.1)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    dx, dy = uniform(-0.09, 0.09), uniform(-0.09, 0.09)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    affine = torch.stack([torch.stack([cos * mirror, -sin, dx], 1), torch.stack([sin * mirror, cos, dy], 1)], 1)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    moved = F.grid_sample(mixed, grid, mode="bilinear", padding_mode="border", align_corners=False)
    gain, bias = uniform(0.85, 1.15)[:, None, None, None], uniform(-0.1, 0.1)[:, None, None, None]
    return (moved * gain + bias).clamp(-1, 1)


def diffusion_loss(
    network: torch.nn.Module,
    scheduler: DDPMScheduler,
    images: Images,
    labels: Int[torch.Tensor, " n"],
    generator: torch.Generator,
    gamma: float,
) -> torch.Tensor:
    """Mean min-SNR-weighted v-prediction error; for v the weight is min(SNR, gamma) / (SNR + 1).

    Images and labels are on the CPU, where everything is drawn, so that it is the same for networks on any device.
    """
    device = next((p.device for p in network.parameters()), images.device)
    # Stratified timesteps: every batch covers the whole range, which halves the noise of the gradient's scale.
    n, total = len(images), scheduler.config.num_train_timesteps
    t = ((torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n * total).long()
    t = t.clamp(max=total - 1)  # the sum rounds up to n about once in 500,000 draws
    noise = torch.randn(images.shape, generator=generator)
    target = scheduler.get_velocity(images, noise, t)
    noised = scheduler.add_noise(images, noise, t)
    predicted = network(noised.to(device), timestep=t.to(device), class_labels=labels.to(device)).sample
    alpha_bar = scheduler.alphas_cumprod[t]
    snr = alpha_bar / (1 - alpha_bar)
    weight = snr.clamp(max=gamma) / (snr + 1)
    error = (predicted.float() - target.to(device)).square().mean(dim=(1, 2, 3))
    return (weight.to(device) * error).mean()


@contextmanager
def attention_in_float32() -> Iterator[None]:
    """Keep attention on a CPU in float32 under autocast: the bfloat16 kernel for CPUs is several times slower."""
    real = F.scaled_dot_product_attention

    def in_float32(*args: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if args[0].device.type != "cpu":
            return real(*args, **kwargs)  # type: ignore[arg-type]
        with torch.autocast("cpu", enabled=False):
            return real(*(tensor.float() for tensor in args), **kwargs)  # type: ignore[arg-type]

    F.scaled_dot_product_attention = in_float32  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = real


class Averaged:
    """Exponential moving average of a network's weights."""

    def __init__(self, network: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, p in network.state_dict().items():
            if p.is_floating_point():
                self.weights[name].lerp_(p, 1 - decay)
            else:
                self.weights[name].copy_(p)


def train(
    network: torch.nn.Module,
    scheduler: DDPMScheduler,
    synthetic: Images,
    natural: Images,
    settings: TrainingSettings,
    directory: Path,
    report: Callable[[TrainingProgress], None] = lambda _: None,
) -> None:
    """Train until ``settings.steps``, going on from a state in ``directory``; ``network`` ends with the EMA weights.

    Class labels: 0 synthetic, 1 natural. Every step's randomness derives from (seed, step), so an interrupted run that
    goes on equals one that was never interrupted, bit for bit on a CPU. The global random state is left as it was.
    The network is trained on the device that it is on.
    """
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=settings.weight_decay
    )
    averaged = Averaged(network, settings.ema_decay)
    first = _resume(network, averaged, optimizer, directory)
    network.train()
    losses: list[float] = []
    since = time.monotonic()
    for step in range(first, settings.steps):
        generator = torch_generator(settings.seed, "training", step)
        with torch.random.fork_rng(devices=[]):  # label dropout draws from the global state
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            images, labels = _batch(synthetic, natural, settings, step, generator)
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.autocast), attention_in_float32():
                loss = diffusion_loss(network, scheduler, images, labels, generator, settings.min_snr_gamma)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings.gradient_clip)
        rate = learning_rate_at(step, settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        averaged.update(network, step)
        losses.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == settings.steps:
            seconds = (time.monotonic() - since) / len(losses)
            report(TrainingProgress(step + 1, settings.steps, sum(losses) / len(losses), rate, seconds))
            losses, since = [], time.monotonic()
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            _save(network, averaged, optimizer, step + 1, directory)
    network.load_state_dict(averaged.weights)
    network.eval()


def _batch(
    synthetic: Images, natural: Images, settings: TrainingSettings, step: int, generator: torch.Generator
) -> tuple[Images, Int[torch.Tensor, " n"]]:
    """Synthetic faces, half of them flipped, then augmented natural faces; and their labels."""
    focused = step >= settings.focus_from
    n_natural = round(settings.batch_size * (settings.focus_natural_fraction if focused else settings.natural_fraction))
    n_synthetic = settings.batch_size - n_natural
    faces = natural[torch.randint(len(natural), (n_natural,), generator=generator)]
    drawn = synthetic[torch.randint(len(synthetic), (n_synthetic,), generator=generator)]
    flip = torch.rand(n_synthetic, generator=generator) < 0.5
    drawn = torch.where(flip[:, None, None, None], drawn.flip(-1), drawn)
    labels = torch.cat([torch.zeros(n_synthetic), torch.ones(n_natural)]).long()
    blended = settings.focus_blended if focused else settings.blended
    return torch.cat([drawn, augment_faces(faces, natural, generator, blended)]), labels


def _save(
    network: torch.nn.Module, averaged: Averaged, optimizer: torch.optim.Optimizer, step: int, directory: Path
) -> None:
    """One file for the whole state, replaced atomically: a kill while saving loses at most ``save_every`` steps."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {f"network.{k}": v.contiguous() for k, v in network.state_dict().items()}
    tensors |= {f"averaged.{k}": v.contiguous() for k, v in averaged.weights.items()}
    for i, slot in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": torch.as_tensor(value).contiguous() for name, value in slot.items()}
    temporary = directory / ".state.safetensors.part"
    save_file(tensors, temporary, metadata={"step": json.dumps(step)})
    with temporary.open("rb") as handle:
        os.fsync(handle.fileno())
    os.replace(temporary, directory / "state.safetensors")


def _resume(network: torch.nn.Module, averaged: Averaged, optimizer: torch.optim.Optimizer, directory: Path) -> int:
    path = directory / "state.safetensors"
    if not path.exists():
        return 0
    from safetensors import safe_open

    with safe_open(path, "pt") as handle:
        step = int(json.loads(handle.metadata()["step"]))
    tensors = load_file(path)
    network.load_state_dict(_under(tensors, "network."))
    averaged.weights = {name: p.to(averaged.weights[name]) for name, p in _under(tensors, "averaged.").items()}
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in _under(tensors, "optimizer.").items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
