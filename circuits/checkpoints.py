"""The files of a diffusers checkpoint: found, read from safetensors only, and checked; errors are one line each."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    ModelMixin,
)
from diffusers.utils import logging as diffusers_logging

from circuits.conditioning import SIGNATURES
from circuits.latents import ImageCodec
from circuits.naming import nearest, nearest_folder

VARIANCE_PRESERVING = ("epsilon", "sample", "v_prediction")
"""Training targets of networks whose noise levels are a beta schedule."""


class ModelError(ValueError):
    """A checkpoint that cannot be used; the message is one line for the user."""


@contextmanager
def quiet() -> Iterator[None]:
    """diffusers reports harmless details of loading as warnings; what matters is checked here and raised."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)


def resolve(path: str) -> Path:
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
            f"model.path: {path!r} is no local folder and could not be fetched from the hub: {first_line(error)}"
        ) from error


def network_folder(folder: Path) -> Path:
    """Where the network's config and weights are: of a pipeline folder, or of a bare model folder."""
    candidates = [folder / "transformer", folder / "unet", folder]
    found = next((c for c in candidates if (c / "config.json").is_file()), None)
    if found is None:
        raise ModelError(f"model.path: {folder} has no transformer/config.json, unet/config.json or config.json")
    if not list(found.glob("*.safetensors")):
        raise ModelError(
            f"model.path: {found} has no .safetensors weights (pickled checkpoints are refused: they run code)"
        )
    return found


def load_network(folder: Path, dtype: torch.dtype) -> Any:
    """The network of a folder, with exactly the weights that its config asks for."""
    network_class = _network_class(folder / "config.json")
    try:
        network, loaded = network_class.from_pretrained(
            folder, use_safetensors=True, torch_dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # truncated file, wrong shapes, wrong config: one line, the cause in it
        raise ModelError(f"model.path: {folder} could not be loaded: {first_line(error)}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loaded[problem]:
            raise ModelError(
                f"model.path: the weights in {folder} do not fit its config.json: {len(loaded[problem])} "
                f"{problem.replace('_', ' ')}, such as {min(str(key) for key in loaded[problem])}"
            )
    return network


def _network_class(file: Path) -> Any:
    """The diffusers model that a config names."""
    name = read_json(file).get("_class_name")
    found = getattr(diffusers, str(name), None)
    if not (isinstance(found, type) and issubclass(found, ModelMixin)):
        raise ModelError(f"model.path: {file} names {name!r}, which is no diffusers model")
    check_network_class(found)
    return found


def check_network_class(network_class: Any) -> None:
    """
    Raises:
        ModelError: no denoiser, or one whose inputs are not known (see ``circuits.conditioning``).
    """
    name = network_class.__name__
    arguments = list(inspect.signature(network_class.forward).parameters.values())[2:]  # after self and the image
    if "timestep" not in [a.name for a in arguments]:
        raise ModelError(f"model.path: {name} takes no timestep, so it is no denoiser")
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    required = [a.name for a in arguments if a.default is a.empty and a.kind in plain and a.name != "timestep"]
    if required and name not in SIGNATURES:
        raise ModelError(
            f"model.path: {name} needs {', '.join(required)}; supported are denoisers of images and class labels, "
            f"and {', '.join(SIGNATURES)}"
        )


def scheduler_file(folder: Path) -> Path:
    """Where the noise levels are: of a pipeline folder, or beside a bare model's weights."""
    nested = folder / "scheduler" / "scheduler_config.json"
    return nested if nested.is_file() else folder / "scheduler_config.json"


def load_scheduler(file: Path, *, latent: bool = False) -> Any:
    """The checkpoint's noise levels; a bare model folder gets DDPM's defaults (1000 linear levels, epsilon).

    Args:
        latent: the model is one of latents, which are not bounded, so that clipping is for those that ask for it only.

    Raises:
        ModelError: neither a beta schedule nor flow matching, or settings that cannot be used.
    """
    if not file.is_file():
        return DDPMScheduler(clip_sample=not latent)
    return scheduler_of(read_json(file), str(file), latent=latent)


def scheduler_of(config: Mapping[str, Any], where: str, *, latent: bool) -> Any:
    """The noise levels of a scheduler's config; errors, those of ``load_scheduler``, name ``where`` it is from."""
    config = dict(config)
    flow = str(config.get("_class_name")).startswith("FlowMatch")
    if "beta_schedule" not in config and not flow:
        raise ModelError(
            f"model.path: {where} is a {config.get('_class_name')} without a beta_schedule; "
            "supported are variance-preserving noise levels (DDPM, DDIM, ...) and flow matching"
        )
    predicted = config.get("prediction_type", "epsilon")
    if not flow and predicted not in VARIANCE_PRESERVING:
        raise ModelError(
            f"model.path: {where} has prediction_type {predicted!r}{nearest(predicted, VARIANCE_PRESERVING)}"
        )
    try:
        if flow:
            return FlowMatchEulerDiscreteScheduler.from_config(config)
        return _variance_preserving({"clip_sample": False} | config if latent else config)
    except Exception as error:
        raise ModelError(f"model.path: {where} could not be used: {first_line(error)}") from error


def _variance_preserving(config: dict[str, Any]) -> DDPMScheduler:
    if config.get("snr_shift_scale", 1.0) == 1.0:
        return DDPMScheduler.from_config(config)
    # CogVideoX shifts the signal-to-noise ratio of its levels, which no other scheduler of betas does.
    bar = CogVideoXDDIMScheduler.from_config(config).alphas_cumprod.double()
    betas = 1 - bar / torch.cat([bar.new_ones(1), bar[:-1]])
    shifted = {"trained_betas": betas.tolist(), "rescale_betas_zero_snr": False}
    return DDPMScheduler.from_config(config | shifted)


def load_codec(folder: Path, dtype: torch.dtype) -> ImageCodec | None:
    """The autoencoder of a latent model; None where there is none, or none of images (those of video are not)."""
    file = folder / "vae" / "config.json"
    if not file.is_file() or read_json(file).get("_class_name") != "AutoencoderKL":
        return None
    from diffusers import AutoencoderKL  # a second of import time that only latent models need

    if dtype == torch.float16 and read_json(file).get("force_upcast", True):
        dtype = torch.float32  # activations of these autoencoders, SDXL's among them, overflow

    try:
        autoencoder = AutoencoderKL.from_pretrained(
            file.parent, use_safetensors=True, torch_dtype=dtype, local_files_only=True
        )
    except Exception as error:
        raise ModelError(f"model.path: {file.parent} could not be loaded: {first_line(error)}") from error
    return ImageCodec(autoencoder.eval().requires_grad_(False))


def read_json(file: Path) -> dict[str, Any]:
    """A config file."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:  # ValueError covers bad JSON and bad UTF-8
        raise ModelError(f"model.path: {file} is not readable JSON: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ModelError(f"model.path: {file} is no diffusers config: expected an object, got {type(content).__name__}")
    return content


def first_line(error: Exception) -> str:
    """What the user is told of an error of a library."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)


def revision(files: list[Path]) -> str:
    """Hash of the files' content."""
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            with file.open("rb") as handle:
                while chunk := handle.read(1 << 22):
                    digest.update(chunk)
    return digest.hexdigest()[:16]
