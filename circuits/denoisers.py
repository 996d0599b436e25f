"""A loaded diffusion model: one call that predicts, whatever the network behind it, and its noise levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler
from jaxtyping import Float, Int

from circuits.checkpoints import (
    ModelError,
    first_line,
    load_codec,
    load_network,
    load_scheduler,
    network_folder,
    quiet,
    resolve,
    revision,
    scheduler_file,
)
from circuits.compiled import compile_regions
from circuits.conditioning import Conditioning, NetworkInput, inputs_of, predict, signature_of
from circuits.flow import FlowSampler, flow_sampler, flow_sigmas
from circuits.latents import ImageCodec
from circuits.naming import nearest

Images = Float[torch.Tensor, "n c h w"]
PredictionType = Literal["epsilon", "sample", "v_prediction", "flow"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Of networks that come without their autoencoder: all of those known here were trained on latents of 8 x 8 pixels.
_PIXELS_OF_A_LATENT = 8


@dataclass(frozen=True)
class Prediction:
    """What the network said, in the model's own target and as noise and clean image, float32, shaped like ``x_t``."""

    target: torch.Tensor
    noise: torch.Tensor
    x0: torch.Tensor


@dataclass
class Denoiser:
    """A diffusion model ready for interventions; "images" are pixels in [-1, 1], or the latents of a latent model.

    Attributes:
        name: in tables.
        network: in eval mode, gradients off; called as its entry in ``circuits.conditioning`` says.
        scheduler: the checkpoint's own noise levels (``alphas_cumprod``, or flow matching) and sampler settings.
        prediction_type: the training target of the network; ``flow`` is the velocity eps - x_0.
        channels: of the images it takes; 1 (gray) or 3 (rgb) for pixels.
        size: height of the images, in pixels of a model of pixels and in latent pixels of a latent model.
        classes: number of class labels it is conditioned on; 0 if unconditional or conditioned on text.
        revision: hash of weights and configs; part of every trial's id.
        codec: the autoencoder of a latent model, where it came with one.
        folder: where it was loaded from.
        sample_shape: of one row of ``x_t``; ``(channels, size, size)`` unless it is a video.
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
    codec: ImageCodec | None = None
    sample_shape: tuple[int, ...] = ()
    folder: Path | None = None

    def __post_init__(self) -> None:
        self.sample_shape = self.sample_shape or (self.channels, self.size, self.size)
        if self.prediction_type == "flow":
            sigmas = flow_sigmas(self.scheduler.config.num_train_timesteps)
            self._signal, self._noise = 1 - sigmas, sigmas
        else:
            self.alphas_cumprod: torch.Tensor = self.scheduler.alphas_cumprod.to(torch.float64)
            self._signal, self._noise = self.alphas_cumprod.sqrt(), (1 - self.alphas_cumprod).sqrt()

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def train_timesteps(self) -> int:
        """Number of noise levels; timesteps run from 0 (least noise) to this minus 1."""
        return len(self._signal)

    @property
    def pixels(self) -> int:
        """Image pixels that a pixel of ``x_t`` stands for, along each side; 1 for a model of pixels."""
        if self.codec is not None:
            return self.codec.pixels
        return 1 if self.channels in (1, 3) else _PIXELS_OF_A_LATENT

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images behind ``x_t``: its own, or those that the autoencoder takes."""
        channels = self.channels if self.pixels == 1 else 3
        return channels, self.sample_shape[-2] * self.pixels, self.sample_shape[-1] * self.pixels

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's weights."""
        return next(self.network.parameters()).dtype

    def signal_and_noise(
        self, t: Int[torch.Tensor, " n"]
    ) -> tuple[Float[torch.Tensor, "n 1 1 1"], Float[torch.Tensor, "n 1 1 1"]]:
        """``alpha_t`` and ``sigma_t`` of x_t = alpha_t x_0 + sigma_t eps, float32, on the device."""
        shape = (-1, *(1 for _ in self.sample_shape))
        return (
            self._signal[t.cpu()].float().view(shape).to(self.device),
            self._noise[t.cpu()].float().view(shape).to(self.device),
        )

    def add_noise(self, images: Images, noise: Images, t: Int[torch.Tensor, " n"]) -> Images:
        """x_t = alpha_t x_0 + sigma_t eps, on the device."""
        alpha, sigma = self.signal_and_noise(t)
        return alpha * images.to(self.device) + sigma * noise.to(self.device)

    @torch.no_grad()
    def __call__(
        self, x_t: Images, t: Int[torch.Tensor, " n"], labels: Int[torch.Tensor, " n"] | Conditioning | None
    ) -> Prediction:
        """Predict for rows that may differ in timestep and conditioning.

        Args:
            labels: class labels, or all that the network is conditioned on; an unconditional model ignores labels.

        Raises:
            ValueError: the model is conditioned on something that it is not given.
        """
        conditioning = self.conditioning(labels)
        # Flow models count their noise levels from 1: a network is told s T, which is t + 1.
        told = t.to(self.device) + 1 if self.prediction_type == "flow" else t.to(self.device)
        given = conditioning.to(self.device, self.dtype).tensors
        output = predict(NetworkInput(self.network, x_t.to(self.device, self.dtype), told, given, self.pixels)).float()
        # Checkpoints with a learned variance return it in the second half of the channels.
        output = output.narrow(-3, 0, self.channels)
        return self.as_prediction(output, x_t.to(self.device).float(), t)

    def conditioning(self, labels: Int[torch.Tensor, " n"] | Conditioning | None) -> Conditioning:
        """Class labels as the network's conditioning, which is returned as it is; errors as when called."""
        if isinstance(labels, Conditioning):
            return labels
        if not self.classes:
            return Conditioning({})
        if labels is None:
            raise ValueError(f"{self.name} is conditioned on {self.classes} classes; expected labels, got None")
        return Conditioning({"class_labels": labels})

    def as_prediction(self, output: Images, x_t: Images, t: Int[torch.Tensor, " n"]) -> Prediction:
        """Read the network's output at ``x_t`` as noise and clean image (Salimans & Ho, arXiv 2202.00512, app. D)."""
        alpha, sigma = self.signal_and_noise(t)
        if self.prediction_type == "epsilon":
            return Prediction(output, output, (x_t - sigma * output) / alpha)
        if self.prediction_type == "sample":
            return Prediction(output, (x_t - alpha * output) / sigma, output)
        if self.prediction_type == "flow":
            return Prediction(output, x_t + alpha * output, x_t - sigma * output)
        return Prediction(output, alpha * output + sigma * x_t, alpha * x_t - sigma * output)

    def noise_error(
        self, prediction: Prediction, x0: Images, noise: Images, t: Int[torch.Tensor, " n"]
    ) -> Float[torch.Tensor, "n c h w"]:
        """Error of the noise prediction, computed from the error of the network's own target.

        The two are proportional, and near pure noise (alpha ~ 1e-5) a difference of noises would be rounding only. Of a
        flow model it is the error of the velocity itself: at pure noise (alpha = 0) the noise is known whatever the
        network says. Latent models are judged in the space of their latents.
        """
        alpha, sigma = self.signal_and_noise(t)
        x0, noise = x0.to(self.device), noise.to(self.device)
        if self.prediction_type == "epsilon":
            return prediction.target - noise
        if self.prediction_type == "sample":
            return (x0 - prediction.target) * (alpha / sigma)
        if self.prediction_type == "flow":
            return prediction.target - (noise - x0)
        return (prediction.target - (alpha * noise - sigma * x0)) * alpha

    def sampler(self, steps: int) -> DDIMScheduler | FlowSampler:
        """Deterministic DDIM over the model's noise levels, "trailing" steps, so that it begins at pure noise.

        A flow model takes Euler steps over the noise levels of its own scheduler.

        Raises:
            ValueError: ``steps`` is not between 1 and the number of noise levels.
        """
        if not 1 <= steps <= self.train_timesteps:
            raise ValueError(f"a sampler has 1 to {self.train_timesteps} steps, got {steps}")
        if self.prediction_type == "flow":
            patch = 2 if signature_of(self.network).packed else 1
            height, width = (side // patch for side in self.sample_shape[-2:])
            return flow_sampler(self.scheduler, steps, height * width)
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

    def timesteps(self, chosen: int | Sequence[int]) -> tuple[int, ...]:
        """Training timesteps: those chosen, or the ones of a sampler of so many steps, the noisiest first."""
        given = self.sampler(chosen).timesteps.tolist() if isinstance(chosen, int) else chosen
        return tuple(int(t) for t in given)


def load_denoiser(
    path: str | Path,
    *,
    name: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    size: int | None = None,
    channels_last: bool = False,
    compiled: bool = False,
) -> Denoiser:
    """Load any diffusers folder or hub id that holds a denoiser, from safetensors only.

    Args:
        path: a pipeline folder (``model_index.json``), a bare model folder, a hub id, or the name of a shipped model.
        name: name in tables; defaults to the last part of ``path``.
        dtype: of the weights: ``float32``, ``bfloat16`` or ``float16``.
        size: height and width of the images in pixels; defaults to the model's own.
        channels_last: lay the weights of convolutions out so that channels are next to each other in memory.
        compiled: torch.compile the parts that no intervention reaches (see ``circuits.compiled``).

    Raises:
        ModelError: nothing there, only pickled weights, damaged files, or a kind of model that is not supported.
    """
    if dtype not in _DTYPES:
        raise ModelError(f"model.dtype: unknown {dtype!r}{nearest(dtype, _DTYPES)}")
    folder = resolve(str(path))
    network_dir = network_folder(folder)
    levels = scheduler_file(folder)
    with quiet():
        network = load_network(network_dir, _DTYPES[dtype])
        codec = load_codec(folder, _DTYPES[dtype])
        denoiser = assembled(
            network,
            codec,
            lambda latent: load_scheduler(levels, latent=latent),
            where=str(network_dir),
            name=name or Path(str(path)).name,
            revision=revision([*sorted(network_dir.glob("*.safetensors")), network_dir / "config.json", levels]),
            size=size,
            folder=folder,
            device=torch.device(device),
        )
    if channels_last:
        denoiser.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        compile_regions(denoiser.network, denoiser.device)
    return denoiser


def assembled(
    network: Any,
    codec: ImageCodec | None,
    scheduler_for: Callable[[bool], Any],
    *,
    where: str,
    name: str,
    revision: str,
    size: int | None,
    folder: Path | None,
    device: torch.device,
) -> Denoiser:
    """A denoiser of its parts, moved to ``device``.

    Args:
        scheduler_for: the noise levels, of a latent model or of one of pixels.
        where: the network is from; errors name it.

    Raises:
        ModelError: a kind of model that is not supported, or a size that it cannot have.
    """
    packed = signature_of(network).packed
    channels = _channels(network, where, 4 if packed else 1)
    scheduler = scheduler_for(channels not in (1, 3))
    pixels = codec.pixels if codec is not None else 1 if channels in (1, 3) else _PIXELS_OF_A_LATENT
    if size is not None and (size < 1 or size % pixels):
        raise ModelError(f"model.size: expected a multiple of {pixels} pixels, got {size}")
    shape = _sample_shape(network, where, channels, None if size is None else size // pixels)
    flow = "beta_schedule" not in scheduler.config
    if network.dtype == torch.float32:
        _exact_float32()
    return Denoiser(
        name=name,
        network=network.to(device).eval().requires_grad_(False),
        scheduler=scheduler,
        prediction_type="flow" if flow else scheduler.config.prediction_type,
        channels=channels,
        size=shape[-2],
        classes=_classes(network, where),
        revision=revision,
        device=device,
        codec=None if codec is None else ImageCodec(codec.autoencoder.to(device)),
        sample_shape=shape,
        folder=folder,
    )


def _exact_float32() -> None:
    """Whole factors in this process's float32 products: a GPU's default for convolutions rounds them to 10 bits (TF32).

    A trial has the same numbers on every device, within 1e-5, and rounded so they would be some 1e-3 from a CPU's.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _channels(network: Any, where: str, packed: int) -> int:
    """Of ``x_t``; ``packed`` channels of the network hold one of them."""
    channels = network.config.get("in_channels")
    if not isinstance(channels, int) or channels % packed:
        raise ModelError(f"model.path: {where} has in_channels {channels}; expected a multiple of {packed}")
    out = network.config.get("out_channels") or channels
    if not packed > 1 and out not in (channels, 2 * channels):
        raise ModelError(
            f"model.path: {where} takes {channels} channels and returns {out}; supported are models that return "
            "what they take, with or without a variance (no inpainting, no control images)"
        )
    return channels // packed


def _classes(network: Any, where: str) -> int:
    try:
        return next((i.classes for i in inputs_of(network) if i.kind == "label"), 0)
    except ValueError as error:
        raise ModelError(f"model.path: {where} ({type(network).__name__}): {first_line(error)}") from error


def _sample_shape(network: Any, where: str, channels: int, size: int | None) -> tuple[int, ...]:
    """Shape of one row: square images, or the video that the network's config is made for."""
    config = network.config
    if "sample_frames" in config:
        frames = (config["sample_frames"] - 1) // config["temporal_compression_ratio"] + 1
        return frames, channels, config["sample_height"], config["sample_width"]
    own = config.get("sample_size") or signature_of(network).sample_size
    if isinstance(own, (tuple, list)) and len(set(own)) == 1:
        own = own[0]
    side = own if size is None else size
    if not isinstance(side, int):
        raise ModelError(f"model.path: {where} has sample_size {own}; expected one number of pixels (square images)")
    return channels, side, side
