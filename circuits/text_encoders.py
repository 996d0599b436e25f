"""Prompts as the network sees them: encoded by the text encoders that a pipeline folder comes with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline

from circuits.checkpoints import ModelError, first_line, quiet, read_json
from circuits.conditioning import Conditioning, inputs_of
from circuits.denoisers import Denoiser

# Where the pipeline's encode_prompt returns what the network takes.
RETURNED: dict[str, Mapping[str, int]] = {
    "UNet2DConditionModel": {"encoder_hidden_states": 0, "text_embeds": 2},
    "PixArtTransformer2DModel": {"encoder_hidden_states": 0, "encoder_attention_mask": 1},
    "HunyuanDiT2DModel": {"encoder_hidden_states": 0, "text_embedding_mask": 2},
    "SD3Transformer2DModel": {"encoder_hidden_states": 0, "pooled_projections": 2},
    "AuraFlowTransformer2DModel": {"encoder_hidden_states": 0},
    "FluxTransformer2DModel": {"encoder_hidden_states": 0, "pooled_projections": 1},
    "ChromaTransformer2DModel": {"encoder_hidden_states": 0, "attention_mask": 2},
    "QwenImageTransformer2DModel": {"encoder_hidden_states": 0, "encoder_hidden_states_mask": 1},
    "CogVideoXTransformer3DModel": {"encoder_hidden_states": 0},
}
# Where it returns what the unconditional branch of guidance takes; Flux and Qwen-Image have none there.
UNCONDITIONAL: dict[str, Mapping[str, int]] = {
    "UNet2DConditionModel": {"encoder_hidden_states": 1, "text_embeds": 3},
    "PixArtTransformer2DModel": {"encoder_hidden_states": 2, "encoder_attention_mask": 3},
    "HunyuanDiT2DModel": {"encoder_hidden_states": 1, "text_embedding_mask": 3},
    "SD3Transformer2DModel": {"encoder_hidden_states": 1, "pooled_projections": 3},
    "AuraFlowTransformer2DModel": {"encoder_hidden_states": 2},
    "ChromaTransformer2DModel": {"encoder_hidden_states": 3, "attention_mask": 5},
    "CogVideoXTransformer3DModel": {"encoder_hidden_states": 1},
}
_LIBRARIES = ("diffusers", "transformers")


def encode_prompts(denoiser: Denoiser, prompts: Sequence[str]) -> Conditioning:
    """One row a prompt, on the CPU; the text encoders are loaded for the call and dropped after it.

    Raises:
        ModelError: the model takes no text, or its folder has no text encoders that can be loaded.
    """
    return _conditioning(denoiser, prompts, RETURNED)


def encode_unconditional(denoiser: Denoiser) -> Conditioning:
    """One row, what the pipeline guides away from where nothing else is said: the empty prompt, or zeros (SDXL).

    Raises:
        ModelError: as :func:`encode_prompts`.
    """
    return _conditioning(denoiser, [""], UNCONDITIONAL, do_classifier_free_guidance=True)


def _conditioning(
    denoiser: Denoiser, prompts: Sequence[str], known: Mapping[str, Mapping[str, int]], **settings: Any
) -> Conditioning:
    network = type(denoiser.network).__name__
    if network not in known:
        raise ModelError(f"{denoiser.name} ({network}) takes no text")
    places = known[network]
    pipeline = _text_pipeline(denoiser)
    device = denoiser.device
    try:
        with torch.no_grad(), quiet():
            found = _encoded(pipeline, prompts, device, places, **settings)
            if network == "HunyuanDiT2DModel":
                second = _encoded(pipeline, prompts, device, places, text_encoder_index=1, **settings)
                found |= {f"{name}_t5": tensor for name, tensor in second.items()}
    except Exception as error:  # whatever a text encoder raises on what it is given
        raise ModelError(f"{denoiser.name}: its prompts could not be encoded: {first_line(error)}") from error
    wanted = {i.name for i in inputs_of(denoiser.network)}
    return Conditioning({name: tensor.cpu() for name, tensor in found.items() if name in wanted})


def _encoded(
    pipeline: Any, prompts: Sequence[str], device: torch.device, places: Mapping[str, int], **settings: Any
) -> dict[str, torch.Tensor]:
    takes = inspect.signature(pipeline.encode_prompt).parameters
    given = {
        "prompt": list(prompts), "device": device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False,
        "prompt_2": None, "prompt_3": None,
    } | settings  # fmt: skip
    returned = pipeline.encode_prompt(**{name: value for name, value in given.items() if name in takes})
    # A mask that would hide nothing is None.
    return {name: returned[i] for name, i in places.items() if i < len(returned) and returned[i] is not None}


def _text_pipeline(denoiser: Denoiser) -> DiffusionPipeline:
    """The pipeline with its text encoders and without the rest; of diffusers' and transformers' own code only."""
    folder = denoiser.folder
    if folder is None or not (folder / "model_index.json").is_file():
        raise ModelError(f"{denoiser.name} has no pipeline folder (model_index.json), so it has no text encoders")
    index = read_json(folder / "model_index.json")
    named = getattr(diffusers, str(index.get("_class_name")), None)
    if not (isinstance(named, type) and issubclass(named, DiffusionPipeline)):
        raise ModelError(f"model.path: {folder} names {index.get('_class_name')!r}, which is no diffusers pipeline")
    pipeline_class: Any = named
    parts = {name: part for name, part in index.items() if isinstance(part, list) and not name.startswith("_")}
    texts = [name for name in parts if name.startswith(("text_encoder", "tokenizer"))]
    if not any(parts[name][0] for name in texts if name.startswith("text_encoder")):
        raise ModelError(f"model.path: {folder} has no text encoder")
    for name in texts:
        if parts[name][0] is not None and parts[name][0] not in _LIBRARIES:
            raise ModelError(f"model.path: {folder} wants its {name} from {parts[name][0]!r}; expected {_LIBRARIES}")
    # An optional encoder that is not there, as Stable Diffusion 3's third, is null in the index.
    left_out = [name for name in parts if parts[name][0] is None or name not in (*texts, "scheduler")]
    given: dict[str, Any] = dict.fromkeys(left_out)
    given |= {name: denoiser.network for name in ("unet", "transformer") if name in parts}
    try:
        with quiet():
            return pipeline_class.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, torch_dtype=denoiser.dtype, **given
            ).to(denoiser.device)
    except Exception as error:  # a missing or damaged file, or a library that is not installed
        raise ModelError(
            f"model.path: the text encoders of {folder} could not be loaded: {first_line(error)}"
        ) from error
