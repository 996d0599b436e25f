"""Whole pipelines of tiny random parts, saved in the diffusers layout and loaded by their folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from circuits.checkpoints import ModelError
from circuits.conditioning import Conditioning
from circuits.data.image_sets import ImageSet
from circuits.data.prompts import _sampled, prompt_set, prompted_data_set
from circuits.denoisers import Denoiser, load_denoiser
from circuits.guidance import guidance_of
from circuits.latents import encoded
from circuits.sites import find_sites
from circuits.text_encoders import encode_prompts, encode_unconditional
from tests.circuits.architectures import ARCHITECTURES

PROMPTS = ["a cat", "two dogs at sea"]
STEPS = 4


def tokenizer(tokens: int = 7) -> CLIPTokenizer:
    """Letters, and letters that end a word."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=tokens)


def clip(width: int, projected: int | None = None) -> Any:
    config = CLIPTextConfig(
        vocab_size=54, hidden_size=width, intermediate_size=13, num_hidden_layers=2, num_attention_heads=1,
        max_position_embeddings=7, projection_dim=projected or width, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip
    return (CLIPTextModel if projected is None else CLIPTextModelWithProjection)(config).eval()


def t5(width: int) -> Any:
    config = T5Config(vocab_size=54, d_model=width, d_kv=4, d_ff=13, num_layers=1, num_heads=2, pad_token_id=53)
    return T5EncoderModel(config).eval()


def autoencoder(**settings: Any) -> AutoencoderKL:
    """Four blocks, so that a latent pixel is 8 x 8 pixels, as all these pipelines expect."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(2, 2, 4, 4), layers_per_block=1, latent_channels=4, norm_num_groups=2, sample_size=80,
        scaling_factor=0.7, **settings,
    ).eval()  # fmt: skip


def ddim() -> DDIMScheduler:
    return DDIMScheduler(timestep_spacing="trailing", clip_sample=False)


def sd15(network: Any) -> Any:
    return StableDiffusionPipeline(
        autoencoder(), clip(11), tokenizer(), network, ddim(), None, None, requires_safety_checker=False  # type: ignore[arg-type]
    )  # fmt: skip


def sdxl(network: Any) -> Any:
    return StableDiffusionXLPipeline(
        autoencoder(), clip(5), clip(6, 13), tokenizer(), tokenizer(), network, ddim(), add_watermarker=False
    )


def sd3(network: Any) -> Any:
    """Without T5, which is optional: diffusers puts zeros in its place."""
    return StableDiffusion3Pipeline(
        network, FlowMatchEulerDiscreteScheduler(), autoencoder(shift_factor=0.3), clip(5, 6), tokenizer(),
        clip(6, 7), tokenizer(), None, None,  # type: ignore[arg-type]
    )  # fmt: skip


def flux(network: Any) -> Any:
    return FluxPipeline(
        FlowMatchEulerDiscreteScheduler(), autoencoder(shift_factor=0.3), clip(13), tokenizer(), t5(11), tokenizer(),  # type: ignore[arg-type]
        network,
    )  # fmt: skip


BUILT: dict[str, Callable[[Any], Any]] = {"sd15": sd15, "sdxl": sdxl, "sd3": sd3, "flux": flux}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, build in BUILT.items():
            pipeline = build(ARCHITECTURES[name].denoiser(name).network)
            pipeline.save_pretrained(root / name)
        dit = DiTPipeline(ARCHITECTURES["dit"].denoiser("dit").network, autoencoder(), ddim())  # type: ignore[arg-type]
        dit.save_pretrained(root / "dit")
    return {name: root / name for name in (*BUILT, "dit")}


@pytest.fixture(params=BUILT)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def loaded(folders: dict[str, Path], name: str) -> Denoiser:
    return load_denoiser(folders[name], size=80 if name == "flux" else None)


def test_a_pipeline_folder_loads_with_its_autoencoder(folders: dict[str, Path], name: str) -> None:
    denoiser, architecture = loaded(folders, name), ARCHITECTURES[name]
    assert denoiser.sample_shape == architecture.sample == (4, 10, 10)
    assert (denoiser.pixels, denoiser.classes) == (8, 0)
    assert denoiser.image_shape == (3, 80, 80)
    assert denoiser.prediction_type == ("flow" if architecture.flow else "epsilon")
    found = [(layer.name, layer.heads, layer.kind, layer.stream) for layer in find_sites(denoiser)]
    assert found == list(architecture.sites)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_images_made_from_prompts_equal_those_of_the_diffusers_pipeline(
    folders: dict[str, Path], name: str, scale: float
) -> None:
    """Text encoders, network, noise levels, sampler, guidance and autoencoder, from the folder to pixels."""
    if name == "flux" and scale > 1:
        pytest.skip("guidance-distilled")
    denoiser = loaded(folders, name)
    theirs = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline, "sd3": StableDiffusion3Pipeline,
              "flux": FluxPipeline}[name].from_pretrained(
        folders[name], **dict.fromkeys(("text_encoder_3", "tokenizer_3") if name == "sd3" else ())
    )  # fmt: skip
    theirs.set_progress_bar_config(disable=True)
    given = encode_prompts(denoiser, PROMPTS)
    assert len(given) == 2
    x = torch.randn((2, 4, 10, 10), generator=torch.Generator().manual_seed(5))
    settings: dict[str, Any] = {"sigmas": [1 - i / STEPS for i in range(STEPS)]} if name in ("sd3", "flux") else {}
    if name != "flux":
        settings["guidance_scale"] = scale
    latents = x if name != "flux" else theirs._pack_latents(x, 2, 4, 10, 10)
    images = theirs(
        PROMPTS, height=80, width=80, num_inference_steps=STEPS, latents=latents, output_type="pt", **settings
    ).images
    x = _sampled(denoiser, x, given, STEPS, guidance_of(denoiser, scale))
    assert denoiser.codec is not None
    found = (denoiser.codec.decode(x) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(found, images, rtol=1e-4, atol=1e-4)
    assert images.std() > 1e-3


def test_guided_images_of_classes_equal_those_of_the_diffusers_pipeline(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1, sample_size=6,
            patch_size=2, num_embeds_ada_norm=1000, norm_elementwise_affine=False,  # its null class is 1000
        )  # fmt: skip
        network.eval()  # in training it drops labels at random
        pipeline = DiTPipeline(network, autoencoder(), ddim())  # type: ignore[arg-type]
    pipeline.save_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    denoiser, labels = load_denoiser(tmp_path), torch.tensor([7, 411])
    images = pipeline(
        labels.tolist(), guidance_scale=4.0, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images  # fmt: skip
    x = torch.randn((2, 4, 6, 6), generator=torch.Generator().manual_seed(5))
    x = _sampled(denoiser, x, denoiser.conditioning(labels), STEPS, guidance_of(denoiser, 4.0))
    assert denoiser.codec is not None
    found = (denoiser.codec.decode(x) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, torch.from_numpy(images), rtol=1e-4, atol=1e-4)


def test_an_empty_prompt_is_zeros_where_the_pipeline_says_so(folders: dict[str, Path], tmp_path: Path) -> None:
    """SDXL's default; with ``force_zeros_for_empty_prompt`` off it is the encoded one."""
    denoiser = loaded(folders, "sdxl")
    assert all(not tensor.any() for tensor in encode_unconditional(denoiser).tensors.values())
    denoiser.folder = shutil.copytree(folders["sdxl"], tmp_path / "sdxl")
    index = json.loads((denoiser.folder / "model_index.json").read_text())
    (denoiser.folder / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
    empty = encode_prompts(denoiser, [""]).tensors
    for name, tensor in encode_unconditional(denoiser).tensors.items():
        torch.testing.assert_close(tensor, empty[name])
        assert tensor.any()


def test_prompts_are_encoded_each_for_itself(folders: dict[str, Path], name: str) -> None:
    denoiser = loaded(folders, name)
    together, alone = encode_prompts(denoiser, PROMPTS), encode_prompts(denoiser, PROMPTS[1:])
    for key, tensor in together.tensors.items():
        torch.testing.assert_close(tensor[1:], alone.tensors[key], rtol=1e-5, atol=1e-6)
    assert any(not torch.allclose(tensor[0], tensor[1]) for tensor in together.tensors.values())


def test_a_latent_model_of_classes(folders: dict[str, Path]) -> None:
    denoiser = load_denoiser(folders["dit"])
    assert (denoiser.channels, denoiser.size, denoiser.classes, denoiser.pixels) == (4, 14, 3, 8)
    assert [layer.name for layer in find_sites(denoiser)] == [row[0] for row in ARCHITECTURES["dit"].sites]
    assert denoiser.scheduler.config.clip_sample is False
    with pytest.raises(ModelError, match=r"^dit \(DiTTransformer2DModel\) takes no text$"):
        encode_prompts(denoiser, PROMPTS)


def test_encoding_is_the_posteriors_mean_scaled(folders: dict[str, Path]) -> None:
    codec = loaded(folders, "sd3").codec
    assert codec is not None
    images = torch.rand((11, 3, 80, 80), generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = codec.encode(images)
    mean = codec.autoencoder.encode(images).latent_dist.mean
    torch.testing.assert_close(found, (mean - 0.3) * 0.7, rtol=1e-4, atol=1e-5)
    pictures = ImageSet("p", images, tuple("abcdefghijk"), None, "")
    assert torch.equal(encoded(pictures, codec).images, found)
    assert encoded(pictures, codec).ids == pictures.ids
    torch.testing.assert_close(codec.decode(found), codec.autoencoder.decode(mean).sample, rtol=1e-4, atol=1e-5)


def test_another_image_size_is_one_of_whole_latent_pixels(folders: dict[str, Path]) -> None:
    assert load_denoiser(folders["sd15"], size=64).sample_shape == (4, 8, 8)
    with pytest.raises(ModelError, match=r"model\.size: expected a multiple of 8 pixels, got 60"):
        load_denoiser(folders["sd15"], size=60)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, "has no pipeline folder"),
        ({"_class_name": "Pipe"}, "names 'Pipe', which is no diffusers pipeline"),
        ({"text_encoder": [None, None]}, "has no text encoder"),
        ({"text_encoder": ["my_code", "Encoder"]}, "wants its text_encoder from 'my_code'"),
        ({"text_encoder": ["transformers", "NoSuchModel"]}, "could not be loaded: "),
    ],
)
def test_text_encoders_that_cannot_be_had(
    folders: dict[str, Path], tmp_path: Path, index: dict[str, Any] | None, message: str
) -> None:
    denoiser = loaded(folders, "sd15")
    denoiser.folder = tmp_path
    if index is not None:
        whole = json.loads((folders["sd15"] / "model_index.json").read_text())
        (tmp_path / "model_index.json").write_text(json.dumps(whole | index))
    with pytest.raises(ModelError) as caught:
        encode_prompts(denoiser, PROMPTS)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_conditioning_of_units_is_taken_by_rows(folders: dict[str, Path]) -> None:
    denoiser = loaded(folders, "sd15")
    given = encode_prompts(denoiser, PROMPTS)
    x = torch.randn((1, 4, 10, 10), generator=torch.Generator().manual_seed(1)).expand(3, -1, -1, -1)
    t = torch.full((3,), 500)
    found = denoiser(x, t, given.rows([0, 1, 0])).target
    assert torch.allclose(found[0], found[2], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found[0], found[1], rtol=1e-3, atol=1e-4)
    assert isinstance(given, Conditioning)


def test_prompted_images_are_the_models_own(folders: dict[str, Path]) -> None:
    """Whatever the number of images and of rows; and they can be denoised, each under its own prompt."""
    denoiser = loaded(folders, "sd3")
    prompts = prompt_set("p", PROMPTS)
    data = prompted_data_set(denoiser, prompts, 5, steps=STEPS, seed=3, rows=2)
    fewer = prompted_data_set(denoiser, prompts, 3, steps=STEPS, seed=3, rows=3)
    assert data.measured.images.shape == (5, *denoiser.sample_shape)
    torch.testing.assert_close(data.measured.images[:3], fewer.measured.images, rtol=1e-4, atol=1e-4)
    assert data.measured.ids[:2] == ("prompt_0", "prompt_1")
    assert not torch.allclose(data.measured.images[0], data.measured.images[2]), "the same prompt, another seed"
    embeddings = data.condition([0, 1, 2]).tensors["encoder_hidden_states"]
    assert torch.equal(embeddings[0], embeddings[2])
    assert not torch.equal(embeddings[0], embeddings[1])
    assert len(data.reference_condition(range(len(data.reference)))) == len(data.reference)
    x0, t = data.measured.images, torch.full((5,), 400)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    error = denoiser.noise_error(denoiser(denoiser.add_noise(x0, noise, t), t, data.conditioning), x0, noise, t)
    assert error.shape == x0.shape
    assert error.isfinite().all()


# the prompts themselves


def test_prompts_from_a_file_and_from_a_list(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# animals\na cat\n\n  two dogs at sea \n")
    found = prompt_set("animals", file)
    assert found.prompts == ("a cat", "two dogs at sea")
    assert found == prompt_set("animals", ["a cat ", "two dogs at sea"])
    assert found.take(5) == ("a cat", "two dogs at sea", "a cat", "two dogs at sea", "a cat")
    assert found.fingerprint() == prompt_set("other", str(file)).fingerprint()
    assert found.fingerprint() != prompt_set("animals", ["a cat"]).fingerprint()


def test_prompts_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file"):
        prompt_set("p", tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    with pytest.raises(ValueError, match="expected at least one prompt"):
        prompt_set("p", tmp_path / "empty.txt")
    with pytest.raises(ValueError, match="none of them empty"):
        prompt_set("p", ["a cat", " "])
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no UTF-8 text"):
        prompt_set("p", tmp_path / "bytes.txt")
