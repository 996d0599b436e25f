"""A denoiser of a diffusers pipeline that a notebook has loaded already."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from circuits.checkpoints import ModelError, check_network_class, quiet, scheduler_of
from circuits.denoisers import Denoiser, assembled
from circuits.latents import ImageCodec


def denoiser_of(pipeline: Any, *, name: str | None = None, size: int | None = None) -> Denoiser:
    """The denoiser of any diffusers pipeline object, on the device that it is on.

    The pipeline's own modules are used, not copies: they are put into eval mode and their gradients are turned off.
    Text encoders are read from the folder that the pipeline was loaded from.

    Args:
        name: in tables; by default that of the pipeline's folder, or its class.
        size: height and width of the images in pixels; the model's own by default.

    Raises:
        ModelError: no pipeline with a denoiser, or a kind of model that is not supported.
    """
    parts = getattr(pipeline, "components", {})
    network = parts.get("transformer") or parts.get("unet")
    if network is None or parts.get("scheduler") is None:
        raise ModelError(
            f"expected a diffusers pipeline with a transformer or unet and a scheduler, got {type(pipeline).__name__}"
        )
    check_network_class(type(network))
    source = Path(str(pipeline.config.get("_name_or_path") or ""))
    vae = parts.get("vae")
    scheduler = parts["scheduler"]
    settings = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    levels = settings | {"_class_name": type(scheduler).__name__}
    of_images = vae if type(vae).__name__ == "AutoencoderKL" else None  # that of a video is not used
    with quiet():
        return assembled(
            network,
            None if of_images is None else ImageCodec(of_images.eval().requires_grad_(False)),
            lambda latent: scheduler_of(levels, f"the scheduler of {type(pipeline).__name__}", latent=latent),
            where=type(network).__name__,
            name=name or source.name or type(pipeline).__name__,
            revision=_revision(network, levels),
            size=size,
            folder=source if (source / "model_index.json").is_file() else None,
            device=next(network.parameters()).device,
        )


def _revision(network: torch.nn.Module, levels: dict[str, Any]) -> str:
    """Hash of the weights and of the noise levels."""
    digest = hashlib.sha256(json.dumps(levels, sort_keys=True, default=str).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
