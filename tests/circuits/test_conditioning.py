"""What a network is given besides x_t and t: against diffusers' own pipelines, row by row, and what is refused."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import (
    AuraFlowPipeline,
    ChromaPipeline,
    CogVideoXPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    HunyuanDiTPipeline,
    PixArtAlphaPipeline,
    QwenImagePipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from circuits.conditioning import Conditioning, draw, inputs_of, without_last_text_token
from circuits.denoisers import Denoiser
from circuits.flow import flow_sampler
from circuits.latents import pack, unpack
from tests.circuits.architectures import ARCHITECTURES

ROWS, STEPS = 3, 4
PROMPT_AND_MASK = {"prompt_embeds": "encoder_hidden_states", "prompt_attention_mask": "encoder_attention_mask"}
POOLED = {"prompt_embeds": "encoder_hidden_states", "pooled_prompt_embeds": "pooled_projections"}
PROMPT = {"prompt_embeds": "encoder_hidden_states"}


@dataclass(frozen=True)
class Theirs:
    """A diffusers pipeline: its prompt arguments by ours, and what switches guidance by a second prompt off."""

    pipeline: Any
    prompt: Mapping[str, str]
    without: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    part: str = "transformer"


PIPELINES: dict[str, Theirs] = {
    "sd15": Theirs(
        StableDiffusionPipeline, PROMPT, ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"),
        part="unet",
    ),
    "sdxl": Theirs(
        StableDiffusionXLPipeline,
        {"prompt_embeds": "encoder_hidden_states", "pooled_prompt_embeds": "text_embeds"},
        ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"), part="unet",
    ),
    "pixart": Theirs(
        PixArtAlphaPipeline, PROMPT_AND_MASK, ("vae", "text_encoder", "tokenizer"),
        {"guidance_scale": 1.0, "use_resolution_binning": False},
    ),
    "hunyuan": Theirs(
        HunyuanDiTPipeline,
        {"prompt_embeds": "encoder_hidden_states", "prompt_attention_mask": "text_embedding_mask",
         "prompt_embeds_2": "encoder_hidden_states_t5", "prompt_attention_mask_2": "text_embedding_mask_t5"},
        ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor", "text_encoder_2", "tokenizer_2"),
        {"guidance_scale": 1.0, "use_resolution_binning": False, "original_size": (80, 80)},
    ),
    "sd3": Theirs(
        StableDiffusion3Pipeline, POOLED,
        ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"),
    ),
    "flux": Theirs(
        FluxPipeline, POOLED, ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"), {},
    ),
    "chroma": Theirs(
        ChromaPipeline, PROMPT | {"prompt_attention_mask": "attention_mask"}, ("vae", "text_encoder", "tokenizer"),
    ),
    "qwen": Theirs(
        QwenImagePipeline, PROMPT | {"prompt_embeds_mask": "encoder_hidden_states_mask"},
        ("vae", "text_encoder", "tokenizer"), {},
    ),
    "auraflow": Theirs(
        AuraFlowPipeline, PROMPT, ("vae", "text_encoder", "tokenizer"),
        {"guidance_scale": 1.0, "prompt_attention_mask": torch.ones(ROWS, 7)},
    ),
    "cogvideox": Theirs(CogVideoXPipeline, PROMPT, ("vae", "text_encoder", "tokenizer")),
}  # fmt: skip


def start_of(denoiser: Denoiser) -> tuple[torch.Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn((ROWS, *denoiser.sample_shape), generator=generator), draw(denoiser.network, ROWS, generator)


def sampled(denoiser: Denoiser, x: torch.Tensor, given: Conditioning) -> torch.Tensor:
    sampler = denoiser.sampler(STEPS)
    for t in sampler.timesteps:
        target = denoiser(x, torch.full((ROWS,), int(t)), given).target
        x = sampler.step(target, t, x).prev_sample
    return x


@pytest.mark.parametrize("name", PIPELINES)
def test_samples_equal_those_of_the_diffusers_pipeline(name: str) -> None:
    """Timesteps, positions, sizes, packing and guidance are what the network was trained with."""
    theirs, denoiser = PIPELINES[name], ARCHITECTURES[name].denoiser(name)
    x, given = start_of(denoiser)
    if name == "pixart":
        denoiser.network.register_to_config(sample_size=128)  # where its pipeline tells it the image's size
    packed = name in ("flux", "chroma", "qwen")
    flow = denoiser.prediction_type == "flow"
    scheduler = FlowMatchEulerDiscreteScheduler() if flow else copy.deepcopy(denoiser.sampler(STEPS))
    more = {"requires_safety_checker": False} if "safety_checker" in theirs.without else {}
    parts = {theirs.part: denoiser.network, "scheduler": scheduler} | dict.fromkeys(theirs.without)
    pipeline = theirs.pipeline(**parts, **more)
    pipeline.set_progress_bar_config(disable=True)
    # With equal spacing, not AuraFlow's and Stable Diffusion 3's own, which ends on 1/1000.
    spacing = {"sigmas": [1 - i / STEPS for i in range(STEPS)]} if flow else {}
    found = pipeline(
        prompt=None,
        **{theirs_name: given.tensors[ours] for theirs_name, ours in theirs.prompt.items()},
        **({"negative_prompt": None} if name in ("pixart", "auraflow") else {}),
        height=denoiser.sample_shape[-2] * 8,
        width=denoiser.sample_shape[-1] * 8,
        latents=pack(x) if packed else x,
        num_inference_steps=STEPS,
        output_type="latent",
        return_dict=False,
        **spacing,
        **theirs.settings,
    )[0]
    found = unpack(found, *x.shape[-2:]) if packed else found
    torch.testing.assert_close(sampled(denoiser, x, given), found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_row_has_its_own_timestep_and_conditioning(name: str) -> None:
    denoiser = ARCHITECTURES[name].denoiser(name)
    x, given = start_of(denoiser)
    t = torch.tensor([100, 500, 900])
    together = denoiser(x, t, given).target
    assert together.shape == x.shape
    for i in range(ROWS):
        alone = denoiser(x[i : i + 1], t[i : i + 1], given.rows([i])).target[0]
        torch.testing.assert_close(together[i], alone, rtol=1e-4, atol=1e-5)
    if given.tensors:
        assert not torch.allclose(together, denoiser(x, t, given.rows([1, 2, 0])).target, rtol=1e-3, atol=1e-4)


def test_conditioning_by_rows() -> None:
    given = Conditioning({"a": torch.arange(3.0)[:, None], "mask": torch.tensor([True, False, True])})
    chosen = given.rows(torch.tensor([2, 0, 2, 1]))
    assert chosen.tensors["a"].flatten().tolist() == [2, 0, 2, 1]
    assert len(given) == 3
    assert len(chosen) == 4
    placed = given.to(torch.device("cpu"), torch.bfloat16).tensors
    assert (placed["a"].dtype, placed["mask"].dtype) == (torch.bfloat16, torch.bool)
    with pytest.raises(ValueError, match=r"different numbers of rows: \{'a': 3, 'b': 2\}"):
        Conditioning({"a": torch.zeros(3), "b": torch.zeros(2)})


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ("unet", "dit")])
def test_what_is_missing_is_named(name: str) -> None:
    denoiser = ARCHITECTURES[name].denoiser(name)
    x, given = start_of(denoiser)
    needed = [i.name for i in inputs_of(denoiser.network) if not i.optional]
    for missing in needed:
        some = Conditioning({key: tensor for key, tensor in given.tensors.items() if key != missing})
        with pytest.raises(ValueError, match=f"is conditioned on {missing}; expected a Conditioning with them, got "):
            denoiser(x, torch.full((ROWS,), 3), some)
    with pytest.raises(ValueError, match=f"is conditioned on {', '.join(needed)}; .* got none"):
        denoiser(x, torch.full((ROWS,), 3), None)


def test_one_text_token_less() -> None:
    flux, dit, hunyuan = (ARCHITECTURES[name].denoiser(name).network for name in ("flux", "dit", "hunyuan"))
    given = draw(flux, 2, torch.Generator().manual_seed(0))
    shorter = without_last_text_token(flux, given)
    assert shorter is not None
    assert torch.equal(shorter.tensors["encoder_hidden_states"], given.tensors["encoder_hidden_states"][:, :-1])
    assert torch.equal(shorter.tensors["pooled_projections"], given.tensors["pooled_projections"])
    for network in (dit, hunyuan):
        assert without_last_text_token(network, draw(network, 2, torch.Generator().manual_seed(0))) is None


# flow matching and latents


def test_a_perfect_velocity_is_read_as_the_noise_and_image_it_came_from() -> None:
    denoiser = ARCHITECTURES["sd3"].denoiser("sd3")
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn((5, *denoiser.sample_shape), generator=generator) for _ in range(2))
    t = torch.tensor([0, 249, 499, 749, 999])
    x_t = denoiser.add_noise(x0, noise, t)
    s = (t + 1).view(-1, 1, 1, 1) / 1000
    torch.testing.assert_close(x_t, (1 - s) * x0 + s * noise)
    found = denoiser.as_prediction(noise - x0, x_t, t)
    torch.testing.assert_close(found.noise, noise, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.x0, x0, rtol=1e-5, atol=1e-5)
    assert not denoiser.noise_error(found, x0, noise, t).any()
    wrong = denoiser.as_prediction(noise - x0 + 0.5, x_t, t)
    torch.testing.assert_close(denoiser.noise_error(wrong, x0, noise, t), torch.full_like(x0, 0.5))
    assert denoiser.train_timesteps == 1000


def test_the_flow_sampler_follows_a_straight_path_to_its_end() -> None:
    """A velocity that is constant along the path is integrated without error."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn((2, 2, 3, 5, 5), generator=generator)
    sampler, x = flow_sampler(FlowMatchEulerDiscreteScheduler(shift=3.0), 7, 25), noise
    for t in sampler.timesteps:
        x = sampler.step(noise - x0, int(t), x).prev_sample
    torch.testing.assert_close(x, x0, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="timestep 3 is none of the sampler's"):
        sampler.step(noise, 3, noise)


@pytest.mark.parametrize("settings", [
    {}, {"shift": 3.0}, {"use_dynamic_shifting": True}, {"use_dynamic_shifting": True, "shift_terminal": 0.02},
])  # fmt: skip
@pytest.mark.parametrize("tokens", [25, 4096])
def test_flow_timesteps_are_those_of_the_checkpoints_scheduler(settings: dict[str, Any], tokens: int) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(**settings)
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    theirs.set_timesteps(sigmas=[1 - i / 20 for i in range(20)], mu=mu)
    found = flow_sampler(theirs, 20, tokens).timesteps
    torch.testing.assert_close((found + 1).float(), theirs.timesteps, rtol=0, atol=0.5001)
    assert int(found[0]) == 999
    assert found.tolist() == sorted(set(found.tolist()), reverse=True)


def test_too_many_flow_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="900 steps are too many: some share one of the 1000 noise levels"):
        flow_sampler(FlowMatchEulerDiscreteScheduler(shift=3.0), 900, 25)


def test_packing_and_its_inverse() -> None:
    latents = torch.arange(2 * 3 * 4 * 10).view(2, 3, 4, 10)
    tokens = pack(latents)
    assert tokens.shape == (2, 10, 12)
    assert torch.equal(unpack(tokens, 4, 10), latents)
    # Token 1 is rows 0 and 1, columns 2 and 3, of the first channel, then of the next.
    assert tokens[0, 1, :4].tolist() == [2, 3, 12, 13]
    with pytest.raises(ValueError, match="expected an even height and width, got 3 x 10"):
        pack(latents[:, :, :3])
