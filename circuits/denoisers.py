"""A loaded diffusion model: one call that predicts, whatever the network behind it, and its noise levels."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import diffusers
import torch
from diffusers import DDIMScheduler, DDPMScheduler, ModelMixin
from diffusers.utils import logging as diffusers_logging
from jaxtyping import Float, Int

from circuits.naming import nearest, nearest_folder

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
    """A pixel-space diffusion model ready for interventions; images are in [-1, 1].

    Attributes:
        name: in tables.
        network: in eval mode, gradients off; called as ``network(x_t, timestep=t[, class_labels=y]).sample``.
        scheduler: the checkpoint's own, variance-preserving noise levels (``alphas_cumprod``) and sampler settings.
        prediction_type: the training target of the network.
        channels: of the images it takes, 1 (gray) or 3 (rgb).
        size: height and width of the images in pixels.
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
        """Number of weights."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def train_timesteps(self) -> int:
        """Number of noise levels; timesteps run from 0 (least noise) to this minus 1."""
        return len(self.alphas_cumprod)

    def signal_and_noise(
        self, t: Int[torch.Tensor, " n"]
    ) -> tuple[Float[torch.Tensor, "n 1 1 1"], Float[torch.Tensor, "n 1 1 1"]]:
        """``alpha_t`` and ``sigma_t`` of x_t = alpha_t x_0 + sigma_t eps, float32, on the device."""
        bar = self.alphas_cumprod[t.cpu()]
        shape = (-1, 1, 1, 1)
        return (
            bar.sqrt().float().view(shape).to(self.device),
            (1 - bar).sqrt().float().view(shape).to(self.device),
        )

    def add_noise(self, images: Images, noise: Images, t: Int[torch.Tensor, " n"]) -> Images:
        """x_t = alpha_t x_0 + sigma_t eps, on the device."""
        alpha, sigma = self.signal_and_noise(t)
        return alpha * images.to(self.device) + sigma * noise.to(self.device)

    @torch.no_grad()
    def __call__(self, x_t: Images, t: Int[torch.Tensor, " n"], labels: Int[torch.Tensor, " n"] | None) -> Prediction:
        """Predict for rows that may differ in timestep and label; an unconditional model ignores ``labels``.

        Raises:
            ValueError: the model is class-conditional and there are no labels.
        """
        conditioning: dict[str, torch.Tensor] = {}
        if self._takes_labels and self.classes:
            if labels is None:
                raise ValueError(f"{self.name} is conditioned on {self.classes} classes; expected labels, got None")
            conditioning["class_labels"] = labels.to(self.device)
        dtype = next(self.network.parameters()).dtype
        output = self.network(x_t.to(self.device, dtype), timestep=t.to(self.device), **conditioning).sample.float()
        # DiT checkpoints with a learned variance return it in the second half of the channels.
        output = output[:, : self.channels]
        return self.as_prediction(output, x_t.to(self.device).float(), t)

    def as_prediction(self, output: Images, x_t: Images, t: Int[torch.Tensor, " n"]) -> Prediction:
        """Read the network's output at ``x_t`` as noise and clean image (Salimans & Ho, arXiv 2202.00512, app. D)."""
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

        The two are proportional, and near pure noise (alpha ~ 1e-5) a difference of noises would be rounding only.
        """
        alpha, sigma = self.signal_and_noise(t)
        x0, noise = x0.to(self.device), noise.to(self.device)
        if self.prediction_type == "epsilon":
            return prediction.target - noise
        if self.prediction_type == "sample":
            return (x0 - prediction.target) * (alpha / sigma)
        return (prediction.target - (alpha * noise - sigma * x0)) * alpha

    def sampler(self, steps: int) -> DDIMScheduler:
        """Deterministic DDIM over the model's noise levels, "trailing" steps, so that it begins at pure noise.

        Raises:
            ValueError: ``steps`` is not between 1 and the number of noise levels.
        """
        if not 1 <= steps <= self.train_timesteps:
            raise ValueError(f"a sampler has 1 to {self.train_timesteps} steps, got {steps}")
        clipping = (
            "clip_sample",
            "clip_sample_range",
            "thresholding",
            "dynamic_thresholding_ratio",
            "sample_max_value",
        )
        sampler = DDIMScheduler(
            num_train_timesteps=self.train_timesteps,
            trained_betas=self.scheduler.betas.tolist(),  # whatever schedule made them, and rescaled already if need be
            prediction_type=self.prediction_type,
            timestep_spacing="trailing",
            set_alpha_to_one=True,
            **{key: self.scheduler.config[key] for key in clipping if key in self.scheduler.config},
        )
        sampler.set_timesteps(steps)
        # diffusers steps by a float stride, which for 61, 103, ... steps leaves an extra timestep of -1 at the end.
        sampler.timesteps = sampler.timesteps[:steps]
        return sampler


def load_denoiser(
    path: str | Path, *, name: str | None = None, device: str = "cpu", dtype: str = "float32"
) -> Denoiser:
    """Load any diffusers folder or hub id that holds a pixel-space denoiser, from safetensors only.

    Args:
        path: a pipeline folder (``model_index.json``), a bare model folder, a hub id, or the name of a shipped model.
        name: name in tables; defaults to the last part of ``path``.
        dtype: of the weights: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        ModelError: nothing there, only pickled weights, damaged files, or a kind of model that is not supported.
    """
    if dtype not in _DTYPES:
        raise ModelError(f"model.dtype: unknown {dtype!r}{nearest(dtype, _DTYPES)}")
    folder = _resolve(str(path))
    network_folder = _network_folder(folder)
    scheduler_file = _scheduler_file(folder)
    with _quiet():
        network = _load_network(network_folder, _DTYPES[dtype])
        scheduler = _load_scheduler(scheduler_file)
    channels, size, classes = _image_shape(network, network_folder)
    return Denoiser(
        name=name or Path(str(path)).name,
        network=network.to(device).eval().requires_grad_(False),
        scheduler=scheduler,
        prediction_type=scheduler.config.prediction_type,
        channels=channels,
        size=size,
        classes=classes,
        revision=_revision(
            [*sorted(network_folder.glob("*.safetensors")), network_folder / "config.json", scheduler_file]
        ),
        device=torch.device(device),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """diffusers reports harmless details of loading as warnings; what matters is checked here and raised."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)


def _resolve(path: str) -> Path:
    """A local folder: given, shipped, or a hub snapshot without any pickle in it."""
    from circuits.shipped import SHIPPED, shipped_path

    if path in SHIPPED:
        return shipped_path(path)
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        hint = nearest_folder(local, SHIPPED)
        raise ModelError(f"model.path: no folder {path!r}, and it is no hub id (owner/name) or shipped model{hint}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except Exception as error:  # every client error means the same to the user: not to be had
        raise ModelError(
            f"model.path: {path!r} is no local folder and could not be fetched from the hub: {_first_line(error)}"
        ) from error


def _network_folder(folder: Path) -> Path:
    candidates = [folder / "transformer", folder / "unet", folder]
    found = next((c for c in candidates if (c / "config.json").is_file()), None)
    if found is None:
        raise ModelError(f"model.path: {folder} has no transformer/config.json, unet/config.json or config.json")
    if not list(found.glob("*.safetensors")):
        raise ModelError(
            f"model.path: {found} has no .safetensors weights (pickled checkpoints are refused: they run code)"
        )
    return found


def _load_network(folder: Path, dtype: torch.dtype) -> Any:
    network_class = _network_class(folder / "config.json")
    try:
        network, loaded = network_class.from_pretrained(
            folder, use_safetensors=True, torch_dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # truncated file, wrong shapes, wrong config: one line, the cause in it
        raise ModelError(f"model.path: {folder} could not be loaded: {_first_line(error)}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loaded[problem]:
            raise ModelError(
                f"model.path: the weights in {folder} do not fit its config.json: {len(loaded[problem])} "
                f"{problem.replace('_', ' ')}, such as {min(str(key) for key in loaded[problem])}"
            )
    return network


def _network_class(file: Path) -> Any:
    """The diffusers model that a config names; it must take a noisy image, a timestep and at most class labels."""
    name = _read_json(file).get("_class_name")
    found = getattr(diffusers, str(name), None)
    if not (isinstance(found, type) and issubclass(found, ModelMixin)):
        raise ModelError(f"model.path: {file} names {name!r}, which is no diffusers model")
    network_class: Any = found
    arguments = list(inspect.signature(network_class.forward).parameters.values())[2:]  # after self and the image
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    required = [a.name for a in arguments if a.default is a.empty and a.kind in plain and a.name != "timestep"]
    if "timestep" not in [a.name for a in arguments]:
        raise ModelError(f"model.path: {name} takes no timestep, so it is no denoiser")
    if required:
        raise ModelError(
            f"model.path: {name} needs {', '.join(required)}; supported are denoisers of images and class labels"
        )
    return network_class


def _image_shape(network: Any, folder: Path) -> tuple[int, int, int]:
    """Channels, size and number of classes from the network's config."""
    config = network.config
    channels, size = config.get("in_channels"), config.get("sample_size")
    if channels not in (1, 3):
        raise ModelError(f"model.path: {folder} takes {channels} channels; supported are pixels, 1 (gray) or 3 (rgb)")
    if isinstance(size, (tuple, list)) and len(set(size)) == 1:
        size = size[0]
    if not isinstance(size, int):
        raise ModelError(
            f"model.path: {folder} has sample_size {size!r}; expected one number of pixels (square images)"
        )
    return channels, size, int(config.get("num_embeds_ada_norm") or config.get("num_class_embeds") or 0)


def _scheduler_file(folder: Path) -> Path:
    nested = folder / "scheduler" / "scheduler_config.json"
    return nested if nested.is_file() else folder / "scheduler_config.json"


def _load_scheduler(file: Path) -> DDPMScheduler:
    """The checkpoint's noise levels; a bare model folder gets DDPM's defaults (1000 linear levels, epsilon)."""
    if not file.is_file():
        return DDPMScheduler()
    config = _read_json(file)
    if "beta_schedule" not in config:
        raise ModelError(
            f"model.path: {file} is a {config.get('_class_name')} without a beta_schedule; "
            "supported are variance-preserving noise levels (DDPM, DDIM, ...)"
        )
    predicted = config.get("prediction_type", "epsilon")
    if predicted not in get_args(PredictionType):
        raise ModelError(
            f"model.path: {file} has prediction_type {predicted!r}{nearest(predicted, get_args(PredictionType))}"
        )
    try:
        return DDPMScheduler.from_config(config)
    except Exception as error:
        raise ModelError(f"model.path: {file} could not be used: {_first_line(error)}") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:  # ValueError covers bad JSON and bad UTF-8
        raise ModelError(f"model.path: {file} is not readable JSON: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise ModelError(f"model.path: {file} is no diffusers config: expected an object, got {type(content).__name__}")
    return content


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)


def _revision(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            with file.open("rb") as handle:
                while chunk := handle.read(1 << 22):
                    digest.update(chunk)
    return digest.hexdigest()[:16]
