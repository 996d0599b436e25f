"""What a network takes besides the noisy sample and the timestep, and how each class of network is called with it.

A network's inputs are named as in its ``forward``. Those that belong to a prompt or a class come from the data; those
that follow from the sample's shape (positions, sizes) are made here, as the network's own diffusers pipeline does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed, get_3d_rotary_pos_embed

from circuits.latents import pack, unpack

DISTILLED_GUIDANCE = 3.5
"""Guidance that a guidance-distilled network is told; the default of the Flux pipeline."""
_PROBE_TEXT_TOKENS = 7


@dataclass(frozen=True)
class Conditioning:
    """What rows are conditioned on: tensors by the name of the network's argument, the first axis is the rows."""

    tensors: Mapping[str, torch.Tensor]

    def __post_init__(self) -> None:
        lengths = {name: len(tensor) for name, tensor in self.tensors.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"conditioning of different numbers of rows: {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values()))) if self.tensors else 0

    def rows(self, indices: Sequence[int] | torch.Tensor) -> Conditioning:
        """The conditioning of these rows, in this order; a row may appear many times."""
        chosen = indices if isinstance(indices, torch.Tensor) else torch.tensor(list(indices), dtype=torch.long)
        return Conditioning({name: tensor[chosen.to(tensor.device)] for name, tensor in self.tensors.items()})

    def followed_by(self, other: Conditioning) -> Conditioning:
        """These rows, then those of another.

        Raises:
            ValueError: other tensors, or rows of another shape.
        """
        shapes = [{name: tuple(t.shape[1:]) for name, t in given.tensors.items()} for given in (self, other)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"conditioning of different shapes cannot share a forward: {shapes[0]}, {shapes[1]}")
        return Conditioning({name: torch.cat([t, other.tensors[name]]) for name, t in self.tensors.items()})

    def to(self, device: torch.device, dtype: torch.dtype) -> Conditioning:
        """On the device; floating-point tensors in the network's dtype, labels and masks as they are."""
        return Conditioning(
            {
                name: tensor.to(device, dtype if tensor.is_floating_point() else None)
                for name, tensor in self.tensors.items()
            }
        )


@dataclass(frozen=True)
class Input:
    """One tensor that a network is conditioned on.

    Attributes:
        shape: of one row.
        kind: embedding (of a prompt), mask (1 for tokens that count), label (of a class).
        text: the first axis of ``shape`` is text tokens, of which there may be any number.
        classes: number of labels.
        optional: a network that is not given it does without.
        nested: it reaches the network inside another argument, which :attr:`Signature.arguments` makes.
    """

    name: str
    shape: tuple[int, ...]
    kind: Literal["embedding", "mask", "label"] = "embedding"
    text: bool = False
    classes: int = 0
    optional: bool = False
    nested: bool = False


@dataclass(frozen=True)
class NetworkInput:
    """One forward: the network, ``x_t`` in its own layout ``[n, (f,) c, h, w]``, ``t`` and what it is conditioned on.

    Attributes:
        pixels: image pixels a latent pixel stands for, along each side; 1 for a model of pixels.
    """

    network: Any
    x_t: torch.Tensor
    t: torch.Tensor
    given: Mapping[str, torch.Tensor]
    pixels: int

    def per_row(self, *values: float) -> torch.Tensor:
        """The same values for every row, in the dtype of the sample."""
        return self.x_t.new_tensor(values).repeat(len(self.x_t), 1)


Arguments = Callable[[NetworkInput], dict[str, Any]]


@dataclass(frozen=True)
class Signature:
    """How a class of network is called.

    Attributes:
        arguments: all arguments but the sample, the timestep and what is in ``inputs``.
        inputs: what the data condition it on, read off the network's config.
        timestep_scale: the network takes the training timestep times this.
        packed: the sample is passed as tokens, 2 x 2 latent pixels each.
        sample_size: latent size of the pipeline's own images, where the config of the network names none.
        one_sequence: text and image are one sequence in every block.
        casts_timestep: the network wants the timestep in the dtype of its weights.
    """

    inputs: Callable[[Any], tuple[Input, ...]] = field(default=lambda _: ())
    arguments: Arguments = field(default=lambda _: {})
    timestep_scale: float = 1.0
    packed: bool = False
    sample_size: int | None = None
    one_sequence: bool = False
    casts_timestep: bool = False


def signature_of(network: Any) -> Signature:
    """How this network is called; one that is not in the table takes an image, a timestep and at most class labels."""
    return next((SIGNATURES[c.__name__] for c in type(network).__mro__ if c.__name__ in SIGNATURES), PLAIN)


def inputs_of(network: Any) -> tuple[Input, ...]:
    """What the data condition this network on.

    Raises:
        ValueError: a setting in its config that this version does not know.
    """
    signature = signature_of(network)
    if signature is not PLAIN:
        return signature.inputs(network.config)
    config = getattr(network, "config", {})
    classes = config.get("num_embeds_ada_norm") or config.get("num_class_embeds") or 0
    takes = classes and _takes_labels(type(network).forward)
    return (Input("class_labels", (), "label", classes=int(classes)),) if takes else ()


@cache
def _takes_labels(forward: Callable[..., Any]) -> bool:
    """Asked in every forward, and slow to find out."""
    return "class_labels" in inspect.signature(forward).parameters


def predict(call: NetworkInput) -> torch.Tensor:
    """The network's output in the layout of ``x_t``; DiT-like networks may append a learned variance to its channels.

    Raises:
        ValueError: a tensor that the network is conditioned on is missing; it is named.
    """
    signature = signature_of(call.network)
    inputs = inputs_of(call.network)
    missing = [i.name for i in inputs if not i.optional and i.name not in call.given]
    if missing:
        raise ValueError(
            f"{type(call.network).__name__} is conditioned on {', '.join(missing)}; "
            f"expected a Conditioning with them, got {', '.join(call.given) or 'none'}"
        )
    passed = {i.name: call.given[i.name] for i in inputs if i.name in call.given and not i.nested}
    arguments = passed | signature.arguments(call)
    x = pack(call.x_t) if signature.packed else call.x_t
    t = call.t if signature.timestep_scale == 1 else call.t * signature.timestep_scale
    output = call.network(x, timestep=t.to(x.dtype) if signature.casts_timestep else t, **arguments).sample
    return unpack(output, *call.x_t.shape[-2:]) if signature.packed else output


def draw(network: Any, rows: int, generator: torch.Generator) -> Conditioning:
    """Random conditioning for a probe: normal embeddings of a few text tokens, all of which count; labels in turn."""
    drawn = {}
    for i in inputs_of(network):
        if i.kind == "embedding":
            drawn[i.name] = torch.randn((rows, *i.shape), generator=generator)
        elif i.kind == "mask":
            drawn[i.name] = torch.ones((rows, *i.shape), dtype=torch.bool)
        else:
            drawn[i.name] = torch.arange(rows) % i.classes
    return Conditioning(drawn)


def without_last_text_token(network: Any, conditioning: Conditioning) -> Conditioning | None:
    """The same with one text token less; None where the network takes no text, or a fixed number of tokens."""
    text = {i.name for i in inputs_of(network) if i.text}
    if not text:
        return None
    return Conditioning({name: t[:, :-1] if name in text else t for name, t in conditioning.tensors.items()})


def with_last_text_token_masked(network: Any, conditioning: Conditioning) -> Conditioning:
    """The same with the last token closed in every mask."""
    masks = {i.name for i in inputs_of(network) if i.kind == "mask"}
    return Conditioning(
        {
            name: torch.cat([t[:, :-1], torch.zeros_like(t[:, -1:])], dim=1) if name in masks else t
            for name, t in conditioning.tensors.items()
        }
    )


def _text(width: int, name: str = "encoder_hidden_states", tokens: int | None = None) -> Input:
    """Embeddings of text tokens; ``tokens`` where their number is fixed."""
    return Input(name, (_PROBE_TEXT_TOKENS if tokens is None else tokens, width), text=tokens is None)


def _mask(name: str, tokens: int | None = None) -> Input:
    count = _PROBE_TEXT_TOKENS if tokens is None else tokens
    return Input(name, (count,), "mask", text=tokens is None, optional=tokens is None)


# U-Nets


def _unet_inputs(config: Any) -> tuple[Input, ...]:
    for key, known in (("addition_embed_type", (None, "text_time")), ("encoder_hid_dim_type", (None,))):
        if config[key] not in known:
            raise ValueError(f"{key} {config[key]!r} is not supported (expected one of {known})")
    width = config["cross_attention_dim"]
    widths = set(width) if isinstance(width, list | tuple) else {width}
    if len(widths) != 1:
        raise ValueError(f"cross_attention_dim {width} is not supported: expected the same in every block")
    inputs = [_text(widths.pop())]
    if config["num_class_embeds"]:
        inputs.append(Input("class_labels", (), "label", classes=config["num_class_embeds"]))
    if config["addition_embed_type"] == "text_time":
        sizes = 6 * config["addition_time_embed_dim"]
        inputs.append(Input("text_embeds", (config["projection_class_embeddings_input_dim"] - sizes,), nested=True))
    return tuple(inputs)


def _unet_arguments(call: NetworkInput) -> dict[str, Any]:
    if "text_embeds" not in call.given:
        return {}
    height, width = (side * call.pixels for side in call.x_t.shape[-2:])
    # Original size, top left of the crop, target size: an image that was neither resized nor cropped (SDXL, sec. 2.2).
    time_ids = call.per_row(height, width, 0, 0, height, width)
    return {"added_cond_kwargs": {"text_embeds": call.given["text_embeds"], "time_ids": time_ids}}


# transformers of images


def _pixart_inputs(config: Any) -> tuple[Input, ...]:
    return (_text(config["caption_channels"] or config["cross_attention_dim"]), _mask("encoder_attention_mask"))


def _pixart_arguments(call: NetworkInput) -> dict[str, Any]:
    if not call.network.use_additional_conditions:
        return {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    height, width = (side * call.pixels for side in call.x_t.shape[-2:])
    return {
        "added_cond_kwargs": {"resolution": call.per_row(height, width), "aspect_ratio": call.per_row(height / width)}
    }


def _pooled_inputs(config: Any) -> tuple[Input, ...]:
    return (_text(config["joint_attention_dim"]), Input("pooled_projections", (config["pooled_projection_dim"],)))


def _joint_inputs(config: Any) -> tuple[Input, ...]:
    return (_text(config["joint_attention_dim"]),)


def _positions(call: NetworkInput) -> dict[str, Any]:
    """Positions of the packed image tokens (0, row, column); those of the text are all zero."""
    height, width = (side // 2 for side in call.x_t.shape[-2:])
    ids = torch.zeros(height, width, 3)
    ids[..., 1] += torch.arange(height)[:, None]
    ids[..., 2] += torch.arange(width)[None, :]
    text = call.given["encoder_hidden_states"].shape[1]
    return {"img_ids": ids.view(-1, 3).to(call.x_t), "txt_ids": torch.zeros(text, 3).to(call.x_t)}


def _flux_arguments(call: NetworkInput) -> dict[str, Any]:
    if not call.network.config["guidance_embeds"]:
        return _positions(call)
    return _positions(call) | {"guidance": call.per_row(DISTILLED_GUIDANCE).flatten()}


def _chroma_inputs(config: Any) -> tuple[Input, ...]:
    return (_text(config["joint_attention_dim"]), _mask("attention_mask"))


def _chroma_arguments(call: NetworkInput) -> dict[str, Any]:
    if "attention_mask" not in call.given:
        return _positions(call)
    height, width = (side // 2 for side in call.x_t.shape[-2:])
    text = call.given["attention_mask"]
    return _positions(call) | {"attention_mask": torch.cat([text, text.new_ones(len(text), height * width)], dim=1)}


def _qwen_inputs(config: Any) -> tuple[Input, ...]:
    return (_text(config["joint_attention_dim"]), _mask("encoder_hidden_states_mask"))


def _qwen_arguments(call: NetworkInput) -> dict[str, Any]:
    height, width = (side // 2 for side in call.x_t.shape[-2:])
    shapes = {"img_shapes": [[(1, height, width)]] * len(call.x_t)}
    guided = call.network.config["guidance_embeds"]
    return shapes | ({"guidance": call.per_row(DISTILLED_GUIDANCE).flatten()} if guided else {})


def _hunyuan_inputs(config: Any) -> tuple[Input, ...]:
    clip, t5 = config["text_len"], config["text_len_t5"]
    return (
        _text(config["cross_attention_dim"], tokens=clip),
        _mask("text_embedding_mask", clip),
        _text(config["cross_attention_dim_t5"], "encoder_hidden_states_t5", t5),
        _mask("text_embedding_mask_t5", t5),
    )


def _hunyuan_arguments(call: NetworkInput) -> dict[str, Any]:
    grid = tuple(side // call.network.config["patch_size"] for side in call.x_t.shape[-2:])
    # Positions are relative to an image of 512 pixels, whose latents have 64.
    base = 64 // call.network.config["patch_size"]
    crops = _centre_crop(grid, (base, base))
    head_dim = call.network.inner_dim // call.network.num_heads
    rotary = get_2d_rotary_pos_embed(head_dim, crops, grid, device=call.x_t.device, output_type="pt")
    height, width = (side * call.pixels for side in call.x_t.shape[-2:])
    sizes = call.per_row(height, width, height, width, 0, 0)
    style = torch.zeros(len(call.x_t), dtype=torch.long, device=call.x_t.device)
    return {"image_meta_size": sizes, "style": style, "image_rotary_emb": rotary}


# transformers of video


def _cogvideox_inputs(config: Any) -> tuple[Input, ...]:
    # Sine-cosine positions are added to a text of full length; rotary ones leave the text alone.
    fixed = None if config["use_rotary_positional_embeddings"] else config["max_text_seq_length"]
    return (_text(config["text_embed_dim"], tokens=fixed),)


def _cogvideox_arguments(call: NetworkInput) -> dict[str, Any]:
    config = call.network.config
    if not config["use_rotary_positional_embeddings"]:
        return {}
    patch, frames = config["patch_size"], call.x_t.shape[1]
    grid = tuple(side // patch for side in call.x_t.shape[-2:])
    base = (config["sample_height"] // patch, config["sample_width"] // patch)
    settings: dict[str, Any]
    if config["patch_size_t"] is None:
        settings = {"crops_coords": _centre_crop(grid, base), "temporal_size": frames}
    else:
        count = -(-frames // config["patch_size_t"])
        settings = {"crops_coords": None, "temporal_size": count, "grid_type": "slice", "max_size": base}
    rotary = get_3d_rotary_pos_embed(config["attention_head_dim"], grid_size=grid, device=call.x_t.device, **settings)
    return {"image_rotary_emb": rotary}


def _centre_crop(grid: tuple[int, ...], base: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Top left and bottom right of the grid, enlarged until it just fits into ``base``, at its centre."""
    (rows, columns), (most_rows, most_columns) = grid, base
    if rows / columns > most_rows / most_columns:
        height, width = most_rows, round(most_rows / rows * columns)
    else:
        height, width = round(most_columns / columns * rows), most_columns
    top, left = round((most_rows - height) / 2), round((most_columns - width) / 2)
    return (top, left), (top + height, left + width)


PLAIN = Signature()
"""Of a network that takes an image, a timestep and at most class labels."""

# Sizes are those of the pipelines' own images: 1024 pixels, 8 to a latent pixel.
SIGNATURES: dict[str, Signature] = {
    "UNet2DConditionModel": Signature(_unet_inputs, _unet_arguments),
    "PixArtTransformer2DModel": Signature(_pixart_inputs, _pixart_arguments),
    "HunyuanDiT2DModel": Signature(_hunyuan_inputs, _hunyuan_arguments, casts_timestep=True),
    "SD3Transformer2DModel": Signature(_pooled_inputs),
    "AuraFlowTransformer2DModel": Signature(_joint_inputs, timestep_scale=1e-3),
    "FluxTransformer2DModel": Signature(_pooled_inputs, _flux_arguments, 1e-3, packed=True, sample_size=128),
    "ChromaTransformer2DModel": Signature(_chroma_inputs, _chroma_arguments, 1e-3, packed=True, sample_size=128),
    "QwenImageTransformer2DModel": Signature(_qwen_inputs, _qwen_arguments, 1e-3, packed=True, sample_size=128),
    "CogVideoXTransformer3DModel": Signature(_cogvideox_inputs, _cogvideox_arguments, one_sequence=True),
}
