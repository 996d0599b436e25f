"""Every supported architecture: its sites, and zeroing a head there against zeroing it inside attention."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import CogVideoXTransformer3DModel, LuminaNextDiT2DModel, SanaTransformer2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor, IPAdapterAttnProcessor2_0
from torch import nn

from circuits.conditioning import SIGNATURES, Conditioning, Input, Signature, draw
from circuits.denoisers import Denoiser, ModelError
from circuits.hooks import KernelEdit, capture_inputs, count_hooks, edit_attention_kernels, edit_inputs
from circuits.interventions import Intervention, Mode, Site, replace_heads
from circuits.rows import Variants, intervened
from circuits.sites import AttentionLayer, find_sites
from tests.circuits.architectures import ARCHITECTURES

ROWS = 3
# In the last block of Qwen-Image nothing reads the text any more.
WITHOUT_EFFECT = {("qwen", "transformer_blocks.1.attn:text")}
# FusedJointAttnProcessor2_0 of diffusers 0.42 fails on dual attention, which has no text.
NOT_FUSED_BY_DIFFUSERS = {"sd35"}


class Subject:
    """A tiny denoiser of an architecture, its sites, and an input with rows that differ in everything."""

    def __init__(self, name: str, change: Callable[[Any], object] = lambda network: None) -> None:
        self.name, self.architecture = name, ARCHITECTURES[name]
        self.denoiser = self.architecture.denoiser(name)
        change(self.denoiser.network)
        self.layers = find_sites(self.denoiser)
        self.x, self.t, self.given = an_input(self.denoiser)

    def __call__(self) -> torch.Tensor:
        return self.denoiser(self.x, self.t, self.given).target

    def ablated_at_site(self, layer: AttentionLayer, head: int) -> torch.Tensor:
        weight = torch.zeros(ROWS, layer.heads)
        weight[:, head] = 1
        edit = {layer.projection: lambda a: replace_heads(a, 0.0, weight, layer.head_dim)}
        with edit_inputs(self.denoiser.network, edit):
            return self()

    def ablated_inside(
        self, layer: AttentionLayer, head: int, new: KernelEdit = lambda output, value: torch.zeros_like(output)
    ) -> torch.Tensor:
        """The reference: where a stream's tokens lie is told by the architecture, not by the layer.

        ``new`` is given the output at these tokens and the values of all, ``[rows, tokens, head_dim]``.
        """

        def edit(output: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            edited, tokens = output.clone(), output.shape[2]
            at_end = (layer.stream == "image") == self.architecture.text_first
            start = tokens - layer.tokens if at_end else 0
            there = (slice(None), head, slice(start, start + layer.tokens))
            edited[there] = new(output[there], value[:, head])
            return edited

        with edit_attention_kernels(self.denoiser.network, {layer.module: edit}):
            return self()


def an_input(denoiser: Denoiser) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((ROWS, *denoiser.sample_shape), generator=generator)
    return x, torch.tensor([100, 500, 900]), draw(denoiser.network, ROWS, generator)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def subject(request: pytest.FixtureRequest) -> Subject:
    return Subject(request.param)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def test_sites_in_execution_order(subject: Subject) -> None:
    found = [(layer.name, layer.heads, layer.kind, layer.stream) for layer in subject.layers]
    assert found == list(subject.architecture.sites)
    assert [layer.index for layer in subject.layers] == list(range(len(found)))
    assert len({layer.name for layer in subject.layers}) == len(found)
    assert subject.denoiser.parameters < 300_000
    assert count_hooks(subject.denoiser.network) == 0


def test_zeroing_a_head_at_its_site_is_zeroing_it_inside_attention(subject: Subject) -> None:
    clean = subject()
    for layer in subject.layers:
        for head in range(layer.heads):
            found = subject.ablated_at_site(layer, head)
            assert difference(found, subject.ablated_inside(layer, head)) <= 1e-6, (layer.name, head)
            if (subject.name, layer.name) in WITHOUT_EFFECT:
                assert torch.equal(found, clean)
            else:
                assert difference(found, clean) > 1e-5, f"{layer.name} {head}: this shows nothing"


def test_streams_of_one_attention_are_apart(subject: Subject) -> None:
    """Zeroing the heads at one stream's site leaves the other stream's site as it was."""
    network = subject.denoiser.network
    for text in (layer for layer in subject.layers if layer.name.endswith(":text")):
        image = next(layer for layer in subject.layers if layer.name == text.module)
        assert (image.stream, text.stream) == ("image", "text")
        assert image.projection != text.projection
        assert image.tokens != text.tokens
        for edited, other in ((image, text), (text, image)):
            with capture_inputs(network, [other.projection]) as before:
                subject()
            with (
                edit_inputs(network, {edited.projection: torch.zeros_like}),
                capture_inputs(network, [edited.projection, other.projection]) as after,
            ):
                subject()
            assert torch.equal(before[other.projection], after[other.projection])
            assert not after[edited.projection].any()


def test_values_are_known_wherever_tokens_attend_to_themselves(subject: Subject) -> None:
    for layer in subject.layers:
        made_by = "add_v_proj" if layer.stream == "text" else "to_v"
        assert layer.values == (None if layer.kind == "cross" else f"{layer.module}.{made_by}"), layer.name
        assert layer.values_from == 0


def test_values_of_all_keys_are_known_but_where_a_mask_may_close_some(subject: Subject) -> None:
    """Of an attention with two streams, at either site, those of the image and of the text."""
    for layer in subject.layers:
        masked = subject.name in ("chroma", "qwen") or (subject.name, layer.kind) == ("pixart", "cross")
        two = layer.kind == "joint" and layer.stream != "joint"
        names = ("to_v", "add_v_proj") if two else ("to_v",)
        expected = () if masked else tuple((f"{layer.module}.{name}", 0) for name in names)
        assert layer.key_values == expected, layer.name


def test_uniform_attention_at_the_site_is_uniform_inside_attention(subject: Subject) -> None:
    """A head of every layer, in part; a joint attention is uniform over the keys of both streams."""
    layers = {layer.name: layer for layer in subject.layers}
    rows = torch.arange(ROWS)
    clean = subject()
    for layer in subject.layers:
        head = layer.heads - 1
        chosen = [Intervention(Mode.uniform, (Site(layer.name, head),), 0.7)]
        if not layer.key_values:
            with pytest.raises(ValueError, match=f"uniform needs value projections .* not so at layer {layer.name}$"):
                Variants(chosen, layers)
            continue
        with intervened(subject.denoiser, Variants(chosen, layers), torch.zeros(ROWS).long(), rows, {}):
            found = subject()
        expected = subject.ablated_inside(layer, head, lambda o, v: 0.3 * o + 0.7 * v.mean(1, keepdim=True))
        assert difference(found, expected) <= 5e-6, layer.name
        if (subject.name, layer.name) not in WITHOUT_EFFECT:
            assert difference(found, clean) > 2e-5, f"{layer.name}: this shows nothing"


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in NOT_FUSED_BY_DIFFUSERS])
def test_fused_projections_have_the_same_sites_and_heads(name: str) -> None:
    separate = Subject(name)
    if not hasattr(separate.denoiser.network, "fuse_qkv_projections"):
        assert name in ("unet", "dit"), "diffusers offers it for all others"
        return
    fused = Subject(name, lambda network: network.fuse_qkv_projections())
    # Fused, SD3 projects the image before the text; everything else runs in the same order.
    alike = [
        {replace(layer, index=0, values=None, values_from=0, key_values=()) for layer in s.layers}
        for s in (separate, fused)
    ]
    assert alike[0] == alike[1]
    moved = [layer for layer in fused.layers if (layer.values or "").endswith("qkv")]
    assert all(layer.values_from == 2 * layer.width for layer in moved)
    assert bool(moved) == (name != "qwen"), "diffusers leaves Qwen-Image as it is"
    for before, after in zip(*(sorted(s.layers, key=lambda layer: layer.name) for s in (separate, fused)), strict=True):
        assert [start for _, start in after.key_values] == [
            {"to_qkv": 2, "to_added_qkv": 2, "to_kv": 1}.get(path.rpartition(".")[2], 0) * after.width
            for path, _ in after.key_values
        ]
        assert len(after.key_values) == len(before.key_values)
        assert difference(fused.ablated_at_site(after, 1), separate.ablated_at_site(before, 1)) < 1e-5
        assert difference(fused.ablated_at_site(after, 1), fused.ablated_inside(after, 1)) <= 1e-6


def test_half_precision_passes_the_self_test(subject: Subject) -> None:
    half = subject.architecture.denoiser(subject.name)
    half.network.to(torch.bfloat16)
    found = [(layer.name, layer.tokens, layer.kind, layer.stream) for layer in find_sites(half)]
    assert found == [(layer.name, layer.tokens, layer.kind, layer.stream) for layer in subject.layers]


def test_text_of_a_fixed_length_is_known_to_share_the_sequence() -> None:
    """CogVideoX with sine-cosine positions: the text cannot be shortened to see what that changes."""
    architecture = replace(
        ARCHITECTURES["cogvideox"],
        build=lambda: CogVideoXTransformer3DModel(
            num_attention_heads=3, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=10,
            text_embed_dim=11, num_layers=1, sample_width=10, sample_height=6, sample_frames=9, max_text_seq_length=7,
        ),
    )  # fmt: skip
    (layer,) = find_sites(architecture.denoiser("cogvideox"))
    assert (layer.kind, layer.stream, layer.tokens) == ("joint", "joint", 3 * 5 * 3 + 7)


def test_columns_behind_the_heads_are_left_alone() -> None:
    """Flux's single blocks project attention and MLP features together."""
    flux = Subject("flux")
    layer = flux.layers[-1]
    network = flux.denoiser.network
    with capture_inputs(network, [layer.projection]) as clean:
        flux()
    activation = clean[layer.projection]
    assert layer.width == 24
    assert activation.shape[2] > layer.width
    everything = torch.ones(ROWS, layer.heads)
    edited = replace_heads(activation, torch.full_like(activation, 7.0), everything, layer.head_dim)
    assert torch.equal(edited[..., layer.width :], activation[..., layer.width :])
    assert (edited[..., : layer.width] == 7).all()


# what is refused


def refused(denoiser: Denoiser) -> str:
    with pytest.raises(ModelError) as caught:
        find_sites(denoiser)
    message = str(caught.value)
    assert "\n" not in message
    assert count_hooks(denoiser.network) == 0
    return message


def text_and_image(width: int, **more: Input) -> Signature:
    return Signature(lambda _: (Input("encoder_hidden_states", (7, width), text=True), *more.values()))


def test_linear_attention_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIGNATURES, "SanaTransformer2DModel", text_and_image(11))
    with torch.random.fork_rng(devices=[]):
        network = SanaTransformer2DModel(
            in_channels=4, out_channels=4, num_attention_heads=3, attention_head_dim=4, num_layers=1, sample_size=8,
            num_cross_attention_heads=3, cross_attention_head_dim=4, cross_attention_dim=12, caption_channels=11,
        ).eval()  # fmt: skip
    sana = replace(ARCHITECTURES["sd15"].denoiser("sana"), network=network, sample_shape=(4, 8, 8))
    assert refused(sana).startswith(
        "block transformer_blocks.0.attn1 (Attention) is not supported: it computes attention without"
    )


def test_attentions_summed_before_the_projection_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng(devices=[]):
        network = LuminaNextDiT2DModel(
            sample_size=8, hidden_size=24, num_layers=1, num_attention_heads=3, in_channels=4, cross_attention_dim=11,
            num_kv_heads=3, ffn_dim_multiplier=1.0,
        ).eval()  # fmt: skip
    lumina = replace(ARCHITECTURES["sd15"].denoiser("lumina"), network=network, sample_shape=(4, 8, 8))
    assert refused(lumina).startswith("block layers.0.attn1 (Attention) is not supported: it has no output projection")


def test_an_image_prompt_adapter_is_refused_by_name() -> None:
    denoiser = ARCHITECTURES["sd15"].denoiser("adapted")
    path = "mid_block.attentions.0.transformer_blocks.0.attn2"
    attention: Any = denoiser.network.get_submodule(path)
    attention.set_processor(IPAdapterAttnProcessor2_0(hidden_size=21, cross_attention_dim=11, num_tokens=(2,)).eval())
    whole = attention.forward

    def with_image_tokens(hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: object) -> Any:
        return whole(hidden_states, (encoder_hidden_states, [encoder_hidden_states[:, None, :2]]))

    attention.forward = with_image_tokens
    assert f"block {path}" in refused(denoiser)


@pytest.mark.parametrize("name", ["sd15", "pixart", "hunyuan"])
def test_attention_that_is_spelled_out_is_refused_by_name(name: str) -> None:
    denoiser = ARCHITECTURES[name].denoiser(name)
    path = find_sites(denoiser)[1].module
    attention: Any = denoiser.network.get_submodule(path)
    attention.set_processor(AttnProcessor())
    assert refused(denoiser).startswith(f"block {path} (Attention) is not supported: it computes attention without")


class TextPastTheSite:
    """Joint attention whose text leaves by a projection that nobody knows."""

    def __call__(
        self, attn: Attention, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: object
    ) -> Any:
        image, text = (
            [project(x).unflatten(2, (attn.heads, -1)).transpose(1, 2) for project in projections]
            for x, projections in (
                (hidden_states, (attn.to_q, attn.to_k, attn.to_v)),
                (encoder_hidden_states, (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)),
            )
        )
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(image, text, strict=True))
        heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = hidden_states.shape[1]
        unknown: Any = attn.leaves_here
        return attn.to_out[0](heads[:, :tokens]), unknown(heads[:, tokens:])


def test_a_stream_that_gets_past_the_sites_is_refused_by_name() -> None:
    denoiser = ARCHITECTURES["sd3"].denoiser("sd3")
    attention: Any = denoiser.network.get_submodule("transformer_blocks.0.attn")
    attention.set_processor(TextPastTheSite())
    attention.leaves_here = nn.Linear(20, 20)
    message = refused(denoiser)
    assert message == (
        "block transformer_blocks.0.attn (Attention) is not supported: some of its tokens reach the output past "
        "transformer_blocks.0.attn.to_out.0"
    )
