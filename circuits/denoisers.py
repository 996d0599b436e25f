"""A loaded diffusion model: one call that predicts, whatever the network behind it, and what the experiments need to know of it."""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from diffusers import DDIMScheduler, ModelMixin, SchedulerMixin
from jaxtyping import Float, Int

from circuits.naming import nearest

Images = Float[torch.Tensor, "n c h w"]
PredictionType = Literal["epsilon", "sample", "v_prediction"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ModelError(ValueError):
    """A checkpoint that cannot be used; the message is one line for the user."""


@dataclass(frozen=True)
class Prediction:
    """What the network said, in the model's own target and as noise and clean image, each ``[n, c, h, w]`` float32."""

    target: torch.Tensor
    noise: torch.Tensor
    x0: torch.Tensor


@dataclass
class Denoiser:
    """A diffusion model ready for interventions.

    Attributes:
        network: the denoising network, in eval mode, gradients off.
        scheduler: the checkpoint's own scheduler config; gives the noise levels.
        prediction_type: the training target of the network.
        channels, size: of the images (pixel-space models) it takes.
        classes: number of class labels it is conditioned on; 0 if unconditional.
        revision: hash of weights and configs; part of every trial's id.
    """

    name: str
    network: torch.nn.Module
    scheduler: Any
    prediction_type: PredictionType
    channels: int
    size: int
    classes: int
    revision: str
    device: torch.device

    def __post_init__(self) -> None:
        self._takes_labels = "class_labels" in inspect.signature(self.network.forward).parameters
        self.alphas_cumprod: torch.Tensor = self.scheduler.alphas_cumprod.to(torch.float64)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())

    @property
    def train_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def signal_and_noise(self, t: Int[torch.Tensor, " n"]) -> tuple[torch.Tensor, torch.Tensor]:
        """``alpha_t`` and ``sigma_t`` of x_t = alpha_t x_0 + sigma_t eps, each ``[n, 1, 1, 1]`` float32."""
        bar = self.alphas_cumprod[t.cpu()]
        shape = (-1, 1, 1, 1)
        return (
            bar.sqrt().float().view(shape).to(self.device),
            (1 - bar).sqrt().float().view(shape).to(self.device),
        )

    def add_noise(self, images: Images, noise: Images, t: Int[torch.Tensor, " n"]) -> Images:
        alpha, sigma = self.signal_and_noise(t)
        return alpha * images.to(self.device) + sigma * noise.to(self.device)

    @torch.no_grad()
    def __call__(self, x_t: Images, t: Int[torch.Tensor, " n"], labels: Int[torch.Tensor, " n"] | None) -> Prediction:
        """Predict for rows that may differ in timestep and label."""
        kwargs: dict[str, Any] = {}
        if self._takes_labels and self.classes:
            kwargs["class_labels"] = labels.to(self.device) if labels is not None else None
        dtype = next(self.network.parameters()).dtype
        output = self.network(x_t.to(self.device, dtype), timestep=t.to(self.device), **kwargs).sample.float()
        # DiT checkpoints with a learned variance return it in the second half of the channels.
        output = output[:, : self.channels]
        return self.as_prediction(output, x_t.to(self.device).float(), t)

    def as_prediction(self, output: Images, x_t: Images, t: Int[torch.Tensor, " n"]) -> Prediction:
        alpha, sigma = self.signal_and_noise(t)
        if self.prediction_type == "epsilon":
            return Prediction(output, output, (x_t - sigma * output) / alpha)
        if self.prediction_type == "sample":
            return Prediction(output, (x_t - alpha * output) / sigma, output)
        return Prediction(output, alpha * output + sigma * x_t, alpha * x_t - sigma * output)

    def noise_error(
        self, prediction: Prediction, x0: Images, noise: Images, t: Int[torch.Tensor, " n"]
    ) -> Float[torch.Tensor, "n c h w"]:
        """Error of the noise prediction, computed from the error of the network's own target.

        The two are proportional, and near pure noise (alpha ~ 1e-5) subtracting noises in float32 would leave rounding only.
        """
        alpha, sigma = self.signal_and_noise(t)
        x0, noise = x0.to(self.device), noise.to(self.device)
        if self.prediction_type == "epsilon":
            return prediction.target - noise
        if self.prediction_type == "sample":
            return (x0 - prediction.target) * (alpha / sigma)
        return (prediction.target - (alpha * noise - sigma * x0)) * alpha

    def sampler(self, steps: int) -> DDIMScheduler:
        """Deterministic DDIM over the model's noise levels, "trailing" steps, so that it begins at pure noise."""
        kept = {
            key: self.scheduler.config[key]
            for key in (
                "num_train_timesteps",
                "beta_start",
                "beta_end",
                "beta_schedule",
                "trained_betas",
                "clip_sample",
            )
            if key in self.scheduler.config
        }
        sampler = DDIMScheduler(
            **kept, prediction_type=self.prediction_type, timestep_spacing="trailing", set_alpha_to_one=True
        )
        sampler.set_timesteps(steps)
        return sampler


def load_denoiser(
    path: str | Path, *, name: str | None = None, device: str = "cpu", dtype: str = "float32"
) -> Denoiser:
    """Load any diffusers folder or hub id that holds a pixel-space denoiser, from safetensors only.

    Args:
        path: a pipeline folder (``model_index.json``), a bare model folder, a hub id, or the name of a shipped model.
        name: name in tables; defaults to the last part of ``path``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        ModelError: nothing there, only pickled weights, or a kind of model that is not supported.
    """
    if dtype not in _DTYPES:
        raise ModelError(f"model.dtype: unknown {dtype!r}{nearest(dtype, _DTYPES)}")
    folder = _resolve(str(path))
    network, network_folder = _load_network(folder, _DTYPES[dtype])
    scheduler = _load_scheduler(folder)
    network = network.to(device).eval().requires_grad_(False)
    config = network.config
    size = config["sample_size"]
    if isinstance(size, (tuple, list)):
        size = size[0]
    return Denoiser(
        name=name or Path(str(path)).name,
        network=network,
        scheduler=scheduler,
        prediction_type=scheduler.config.prediction_type,
        channels=int(config["in_channels"]),
        size=int(size),
        classes=int(config.get("num_embeds_ada_norm") or config.get("num_class_embeds") or 0),
        revision=_revision(network_folder, folder),
        device=torch.device(device),
    )


def _resolve(path: str) -> Path:
    """A local folder: given, shipped, or a hub snapshot without any pickle in it."""
    from circuits.shipped import SHIPPED, shipped_path

    if path in SHIPPED:
        return shipped_path(path)
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        hint = nearest(path, SHIPPED)
        raise ModelError(f"model.path: no folder {path!r}, and it is no hub id (owner/name) or shipped model{hint}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except Exception as error:  # every client error means the same to the user: not to be had
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model.path: {path!r} is no local folder and could not be fetched from the hub: {reason}"
        ) from error


def _load_network(folder: Path, dtype: torch.dtype) -> tuple[ModelMixin, Path]:
    candidates = [folder / "transformer", folder / "unet", folder]
    found = next((c for c in candidates if (c / "config.json").is_file()), None)
    if found is None:
        raise ModelError(f"model.path: {folder} has no transformer/config.json, unet/config.json or config.json")
    if not list(found.glob("*.safetensors")):
        raise ModelError(
            f"model.path: {found} has no .safetensors weights (pickled checkpoints are refused: they run code)"
        )
    try:
        class_name = json.loads((found / "config.json").read_text())["_class_name"]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise ModelError(f"model.path: {found / 'config.json'} is not a diffusers model config ({error!r})") from error
    network_class: Any = getattr(diffusers, str(class_name), None)
    if not (isinstance(network_class, type) and issubclass(network_class, ModelMixin)):
        raise ModelError(f"model.path: {found / 'config.json'} names {class_name!r}, which is no diffusers model")
    try:
        return network_class.from_pretrained(found, use_safetensors=True, torch_dtype=dtype), found
    except Exception as error:  # truncated file, wrong shapes, wrong config: one line, the cause in it
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelError(f"model.path: {found} could not be loaded: {reason}") from error


def _load_scheduler(folder: Path) -> SchedulerMixin:
    """The checkpoint's noise levels; a bare model folder gets DDPM's defaults."""
    from diffusers import DDPMScheduler

    config = folder / "scheduler" / "scheduler_config.json"
    if not config.is_file():
        config = folder / "scheduler_config.json"
    if not config.is_file():
        return DDPMScheduler()
    return DDPMScheduler.from_config(json.loads(config.read_text()))


def _revision(network_folder: Path, folder: Path) -> str:
    digest = hashlib.sha256()
    files = [*sorted(network_folder.glob("*.safetensors")), network_folder / "config.json"]
    files += [folder / "scheduler" / "scheduler_config.json"]
    for file in files:
        if file.is_file():
            with file.open("rb") as handle:
                while chunk := handle.read(1 << 22):
                    digest.update(chunk)
    return digest.hexdigest()[:16]
