"""Where to intervene: the attention layers of a denoiser in execution order, found and verified on the loaded model.

The site is the input of the output projection, which holds the concatenated heads; zeroing a head there equals zeroing
it inside attention. Zeroing columns of the projection's *output* is a different and wrong thing, since it mixes the
heads. No architecture is known by name: what a layer attends to, and which tokens of it reach which projection, is read
off what the attention kernels do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import nn

from circuits.attention_values import relative_difference, tolerance_of, with_checked_keys, with_checked_values
from circuits.denoisers import Denoiser, ModelError
from circuits.hooks import capture_inputs, edit_attention_kernels, edit_inputs
from circuits.interventions import replace_heads
from circuits.kernel_traces import Probe, ProbeForwards, Trace, forwards_of, probe_of, traced

Kind = Literal["self", "cross", "joint"]
Stream = Literal["image", "text", "joint"]


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer and the site of its heads.

    Attributes:
        index: position in execution order.
        name: module path of the attention, e.g. ``transformer_blocks.0.attn1``; the layer's name in every table. Where
            one attention has a site for each stream, the text's is ``transformer_blocks.0.attn:text``.
        projection: module path whose first input holds the concatenated heads.
        values: module path whose output holds V of the site's tokens, or None where there is no such module.
        heads: number of heads; head h is the columns [h * head_dim, (h + 1) * head_dim) of the site. A site may have
            more columns than heads (Flux puts its MLP's features behind them).
        tokens: query tokens at the model's own image size.
        kind: ``self``; ``cross``, to the text; ``joint``, where image and text attend to each other and themselves.
        stream: whose tokens the site holds; ``joint`` where image and text are one sequence.
        values_from: first column of V in the output of ``values``, which may hold Q and K before it.
        key_values: modules whose outputs together hold V of all keys, image and text, each with V's first column; empty
            where there are none, or where a mask closes some keys.
    """

    index: int
    name: str
    projection: str
    values: str | None
    heads: int
    head_dim: int
    tokens: int
    kind: Kind
    stream: Stream = "image"
    values_from: int = 0
    key_values: tuple[tuple[str, int], ...] = ()

    @property
    def value_modules(self) -> frozenset[str]:
        """Paths of the modules that hold V, of the site's tokens or of the keys."""
        own = {self.values} if self.values is not None else set()
        return frozenset(own | {path for path, _ in self.key_values})

    @property
    def module(self) -> str:
        """Path of the attention module."""
        return self.name.partition(":")[0]

    @property
    def width(self) -> int:
        """Columns of the site that hold heads."""
        return self.heads * self.head_dim


@dataclass(frozen=True)
class _Found:
    """A layer, the first of its tokens among those of the kernel, and how many the kernel has."""

    layer: AttentionLayer
    start: int
    queries: int


def all_heads(layers: Iterable[AttentionLayer]) -> tuple[tuple[AttentionLayer, int], ...]:
    """Layer and head of every head, numbered through layer by layer."""
    return tuple((layer, head) for layer in layers for head in range(layer.heads))


def find_sites(denoiser: Denoiser) -> tuple[AttentionLayer, ...]:
    """The attention layers of a denoiser in execution order.

    Proved on the model at hand, for all layers and heads: heads scaled at the sites, each by its own factor, give what
    the same heads give when scaled inside the attention kernels.

    Raises:
        ModelError: the model has no attention, or a block this version does not know; it names the block.
    """
    network = denoiser.network
    attentions = {name: m for name, m in network.named_modules() if _is_attention(m)}
    if not attentions:
        raise ModelError(f"{type(network).__name__} has no attention layers to intervene on")
    projections = {path: name for name, module in attentions.items() for path in _projections(network, name, module)}
    try:
        probe = probe_of(denoiser)
        forwards = forwards_of(denoiser, probe, list(projections))
    except Exception as error:  # whatever a network raises when it is not given what it takes
        raise ModelError(f"{denoiser.name} ({type(network).__name__}) cannot be swept: {error}") from error
    kernels, inputs = forwards.whole.kernels, forwards.whole.inputs
    strangers = kernels.keys() - attentions.keys()
    if strangers:
        strangers -= _blind(denoiser, probe, forwards.whole)
    for caller in kernels:
        if caller in strangers:
            raise ModelError(f"block {_block(network, caller)} computes attention in a way that is not supported")
    found = [_describe(index, path, projections[path], network, forwards) for index, path in enumerate(inputs)]
    for caller in (kernels.keys() & attentions.keys()) - {f.layer.name for f in found}:
        raise ModelError(f"block {_block(network, caller)} is not supported: its heads reach no known projection")
    found = _named_apart(found)
    _check_sites(denoiser, found, probe)
    return with_checked_keys(denoiser, with_checked_values(denoiser, [f.layer for f in found], probe), probe)


def _is_attention(module: nn.Module) -> bool:
    return hasattr(module, "heads") and any(hasattr(module, name) for name in ("to_q", "to_qkv", "to_qkv_mlp_proj"))


def _block(network: nn.Module, path: str) -> str:
    return f"{path} ({type(network.get_submodule(path)).__name__})"


def _projections(network: nn.Module, name: str, module: nn.Module) -> list[str]:
    """Linear modules whose input may be this attention's heads; which of them are is left to the self-test."""
    paths = []
    for attribute in ("to_out", "to_add_out", "to_out_t"):
        found = getattr(module, attribute, None)
        if isinstance(found, nn.ModuleList) and len(found) and isinstance(found[0], nn.Linear):
            paths.append(f"{name}.{attribute}.0")
        elif isinstance(found, nn.Linear):
            paths.append(f"{name}.{attribute}")
    block = name.rpartition(".")[0]
    # A block whose attention and MLP share one projection has it outside the attention.
    if not paths and isinstance(getattr(network.get_submodule(block), "proj_out", None), nn.Linear):
        paths.append(f"{block}.proj_out".lstrip("."))
    if not paths:
        raise ModelError(f"block {_block(network, name)} is not supported: it has no output projection to_out")
    return paths


def _blind(denoiser: Denoiser, probe: Probe, trace: Trace) -> set[str]:
    """Modules whose attention never sees the image: poolers of the prompt, no layers of the denoiser."""
    other = traced(denoiser, replace(probe, x=probe.x.flip(0)), [])
    return {
        caller
        for caller, kernels in trace.kernels.items()
        if all(torch.equal(a.output, b.output) for a, b in zip(kernels, other.kernels[caller], strict=True))
    }


def _describe(index: int, path: str, name: str, network: nn.Module, forward: ProbeForwards) -> _Found:
    """The layer of a projection that ran."""
    block = _block(network, name)
    kernels = forward.whole.kernels.get(name, [])
    if not kernels:
        raise ModelError(f"block {block} is not supported: it computes attention without scaled_dot_product_attention")
    if len(kernels) > 1:
        raise ModelError(f"block {block} is not supported: it sums {len(kernels)} attentions into its heads")
    kernel, activation = kernels[0], forward.whole.inputs[path]
    heads = int(network.get_submodule(name).heads)  # type: ignore[arg-type]
    if kernel.output.dim() != 4 or kernel.output.shape[1] != heads:
        raise ModelError(
            f"block {block} is not supported: its attention returns {tuple(kernel.output.shape[1:])}, "
            f"expected [{heads} heads, tokens, head_dim]"
        )
    head_dim = kernel.output.shape[3]
    if activation.dim() != 3 or activation.shape[2] < heads * head_dim or activation.shape[1] > kernel.queries:
        raise ModelError(
            f"block {block} is not supported: the input of {path} has shape {tuple(activation.shape)}, expected "
            f"[rows, {kernel.queries} tokens or fewer, {heads} heads x {head_dim} or more]"
        )
    cross = bool(getattr(network.get_submodule(name), "is_cross_attention", False))
    kind, stream = _attended(path, name, forward, cross)
    tokens = activation.shape[1]
    joined = kernel.output.transpose(1, 2).flatten(2)
    site = activation[:1, :, : heads * head_dim]
    # Text may come before or behind the image; where the heads at the site are found tells which.
    start = min(
        (0, kernel.queries - tokens), key=lambda s: (joined[:, s : s + tokens] - site).float().abs().mean().item()
    )
    return _Found(AttentionLayer(index, name, path, None, heads, head_dim, tokens, kind, stream), start, kernel.queries)


def _attended(path: str, name: str, forward: ProbeForwards, cross: bool) -> tuple[Kind, Stream]:
    """What a layer attends to and whose tokens its site holds: read off what a shorter text changes.

    Args:
        cross: the module says that it is cross-attention; asked only where the text has a fixed length.
    """
    kernel, tokens = forward.whole.kernels[name][0], forward.whole.inputs[path].shape[1]
    if forward.shorter is None:
        if tokens < kernel.queries:
            return "joint", "image" if path.startswith(f"{name}.to_out") and not path.endswith("_t") else "text"
        if forward.one_sequence:
            return "joint", "joint"
        return "cross" if cross else "self", "image"
    less = forward.shorter.kernels[name][0]
    if less.queries == kernel.queries:
        if less.keys == kernel.keys:
            return "self", "image"
        return "joint" if kernel.keys == kernel.queries + forward.text else "cross", "image"
    if tokens < kernel.queries:
        return "joint", "image" if forward.shorter.inputs[path].shape[1] == tokens else "text"
    return ("self", "text") if kernel.queries == forward.text else ("joint", "joint")


def _named_apart(found: Sequence[_Found]) -> list[_Found]:
    """Where an attention has two sites, the text's gets a name of its own."""
    modules = [f.layer.name for f in found]
    return [
        replace(f, layer=replace(f.layer, name=f"{f.layer.name}:text"))
        if f.layer.stream == "text" and modules.count(f.layer.name) > 1
        else f
        for f in found
    ]


def _check_sites(denoiser: Denoiser, found: Sequence[_Found], probe: Probe) -> None:
    """Scale every head by its own factor (head 0 is zeroed) at all sites, and inside all kernels: each site must agree.

    Compared are the inputs of the projections, so that a layer is tested even where it hardly moves the model's output;
    and the output, so that nothing gets past them.
    """
    network = denoiser.network
    layers = [f.layer for f in found]
    paths = [layer.projection for layer in layers]

    def at_site(layer: AttentionLayer, activation: torch.Tensor) -> torch.Tensor:
        shrunk = (1 - _factors(layer)).expand(len(activation), -1).to(activation.device)
        return replace_heads(activation, 0.0, shrunk, layer.head_dim)

    def inside(sites: Sequence[_Found], output: torch.Tensor) -> torch.Tensor:
        scale = output.new_ones(output.shape[1:3])
        for site in sites:
            scale[:, site.start : site.start + site.layer.tokens] = _factors(site.layer).to(output)[:, None]
        return output * scale[:, :, None]

    edits = {layer.projection: lambda a, layer=layer: at_site(layer, a) for layer in layers}
    with edit_inputs(network, edits), capture_inputs(network, paths) as edited:
        expected = denoiser(probe.x, probe.t, probe.conditioning).target
    by_module: dict[str, list[_Found]] = {}
    for f in found:
        by_module.setdefault(f.layer.module, []).append(f)
    kernels = {name: lambda output, _, sites=sites: inside(sites, output) for name, sites in by_module.items()}
    with edit_attention_kernels(network, kernels), capture_inputs(network, paths) as reference:
        output = denoiser(probe.x, probe.t, probe.conditioning).target
    tolerance = tolerance_of(denoiser)
    for layer in layers:
        difference = relative_difference(edited[layer.projection], reference[layer.projection])
        if not difference <= tolerance:
            raise ModelError(
                f"block {_block(network, layer.module)}: editing its heads at "
                f"{layer.projection} differs from editing them inside attention by {difference:.1e} of their size "
                f"(expected <= {tolerance:.0e}); this kind of block is not supported"
            )
    difference = relative_difference(expected, output)
    if not difference <= tolerance:
        raise ModelError(
            f"{denoiser.name} ({type(network).__name__}): heads reach the output past {', '.join(paths)} "
            f"({difference:.1e} of it, expected <= {tolerance:.0e}); this kind of model is not supported"
        )
    for name, sites in by_module.items():
        if sum(site.layer.tokens for site in sites) < sites[0].queries:
            _check_unused(denoiser, name, sites, probe)


def _check_unused(denoiser: Denoiser, name: str, sites: Sequence[_Found], probe: Probe) -> None:
    """Tokens that reach no site (the text in the last block of Stable Diffusion 3) must not reach the output either."""

    def cut(output: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        kept = torch.zeros_like(output)
        for site in sites:
            tokens = slice(site.start, site.start + site.layer.tokens)
            kept[:, :, tokens] = output[:, :, tokens]
        return kept

    clean = denoiser(probe.x, probe.t, probe.conditioning).target
    with edit_attention_kernels(denoiser.network, {name: cut}):
        without = denoiser(probe.x, probe.t, probe.conditioning).target
    if not relative_difference(without, clean) <= tolerance_of(denoiser):
        known = ", ".join(site.layer.projection for site in sites)
        raise ModelError(
            f"block {_block(denoiser.network, name)} is not supported: some of its tokens reach the output past {known}"
        )


def _factors(layer: AttentionLayer) -> Float[torch.Tensor, " heads"]:
    """h / 2^k in [0, 1): exact in every dtype, so that both ways round alike."""
    return torch.arange(layer.heads) / 2 ** math.ceil(math.log2(layer.heads))
