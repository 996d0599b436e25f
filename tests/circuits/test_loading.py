"""What can be loaded, and the one line that says why something cannot."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    UNetSpatioTemporalConditionModel,
)
from safetensors.torch import load_file, save_file

from circuits.denoisers import ModelError, load_denoiser
from circuits.shipped import export, new_tiny_faces, shipped_path
from circuits.sites import find_sites
from tests.circuits.conftest import SIZE

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def dit_folder(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return shutil.copytree(model_folders["dit"], tmp_path / "dit")


def refused(path: Path | str, **settings: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_denoiser(path, **settings)
    message = str(caught.value)
    assert "\n" not in message, "more than a line"
    return message


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# what works


def test_pipeline_folders_with_a_transformer_or_a_unet(model_folders: dict[str, Path]) -> None:
    dit, unet = load_denoiser(model_folders["dit"]), load_denoiser(model_folders["unet"], name="mine")
    assert isinstance(dit.network, DiTTransformer2DModel)
    assert isinstance(unet.network, UNet2DModel)
    assert (dit.name, dit.channels, dit.size, dit.classes, dit.prediction_type) == ("dit", 1, SIZE, 2, "v_prediction")
    assert (unet.name, unet.channels, unet.size, unet.classes, unet.prediction_type) == ("mine", 3, SIZE, 0, "epsilon")
    for denoiser in (dit, unet):
        assert not denoiser.network.training
        assert not any(p.requires_grad for p in denoiser.network.parameters())
        assert denoiser.parameters == sum(p.numel() for p in denoiser.network.parameters())
        assert len(denoiser.revision) == 16


def test_a_bare_model_folder_gets_ddpms_noise_levels(model_folders: dict[str, Path]) -> None:
    bare = load_denoiser(model_folders["unet"] / "unet")
    assert torch.equal(bare.scheduler.alphas_cumprod, DDPMScheduler().alphas_cumprod)
    with_folder = load_denoiser(model_folders["unet"])
    for (name, a), b in zip(bare.network.state_dict().items(), with_folder.network.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_old_layouts_keep_everything_in_one_folder(model_folders: dict[str, Path], tmp_path: Path) -> None:
    """As google/ddpm-celebahq-256 does: config.json, weights and scheduler_config.json side by side."""
    shutil.copytree(model_folders["dit"] / "transformer", tmp_path / "old")
    shutil.copy(model_folders["dit"] / "scheduler" / "scheduler_config.json", tmp_path / "old")
    old, new = load_denoiser(tmp_path / "old"), load_denoiser(model_folders["dit"])
    assert old.prediction_type == "v_prediction"
    assert torch.equal(old.alphas_cumprod, new.alphas_cumprod)
    assert old.revision == new.revision


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler]
)
def test_the_noise_levels_of_other_samplers_are_read(dit_folder: Path, scheduler: type) -> None:
    scheduler(beta_schedule="scaled_linear", beta_end=0.03).save_pretrained(dit_folder / "scheduler")
    expected = DDPMScheduler(beta_schedule="scaled_linear", beta_end=0.03).alphas_cumprod
    assert torch.equal(load_denoiser(dit_folder).scheduler.alphas_cumprod, expected)


def test_the_shipped_model_loads_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("circuits.shipped.ASSETS", tmp_path)
    network, scheduler = new_tiny_faces(seed=1)
    export(network, scheduler, tmp_path / "tiny_faces")
    assert shipped_path("tiny_faces") == tmp_path / "tiny_faces"
    loaded = load_denoiser("tiny_faces")
    assert (loaded.name, loaded.size, loaded.channels, loaded.classes) == ("tiny_faces", 32, 1, 2)
    assert loaded.parameters < 8_000_000
    assert [(layer.heads, layer.tokens) for layer in find_sites(loaded)] == [(8, 64)] * 4
    for (name, a), b in zip(network.state_dict().items(), loaded.network.state_dict().values(), strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert torch.equal(a.half().float(), b), name
    assert network.proj_out_2.weight.dtype == torch.float32  # exporting does not touch the trained network


def test_the_committed_checkpoint_is_whole() -> None:
    shipped = load_denoiser("tiny_faces")
    assert [(layer.heads, layer.head_dim, layer.tokens) for layer in find_sites(shipped)] == [(8, 24, 64)] * 4
    files = [p.name for p in shipped_path("tiny_faces").rglob("*") if p.is_file()]
    assert sorted(files) == ["config.json", WEIGHTS, "model_index.json", "scheduler_config.json"]


def test_weights_and_noise_levels_make_the_revision(dit_folder: Path) -> None:
    revisions = [load_denoiser(dit_folder).revision, load_denoiser(dit_folder, dtype="bfloat16").revision]
    assert len(set(revisions)) == 1, "the same files"
    edit_json(dit_folder / "scheduler" / "scheduler_config.json", beta_schedule="linear")
    revisions.append(load_denoiser(dit_folder).revision)
    weights = load_file(dit_folder / "transformer" / WEIGHTS)
    weights["proj_out_2.bias"][0] += 1
    save_file(weights, dit_folder / "transformer" / WEIGHTS)
    revisions.append(load_denoiser(dit_folder).revision)
    assert len(set(revisions)) == 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["pipeline", "bare", "16-bit weights", "odd config"])
def test_loading_says_nothing(
    dit_folder: Path, layout: str, dtype: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    if layout == "16-bit weights":
        weights = load_file(dit_folder / "transformer" / WEIGHTS)
        save_file({name: w.half() for name, w in weights.items()}, dit_folder / "transformer" / WEIGHTS)
    if layout == "odd config":
        edit_json(dit_folder / "transformer" / "config.json", some_new_key=1)
        edit_json(dit_folder / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler", some_new_key=1)
    diffusers_log = logging.getLogger("diffusers")
    level = diffusers_log.level
    diffusers_log.addHandler(caplog.handler)
    try:
        find_sites(load_denoiser(dit_folder / "transformer" if layout == "bare" else dit_folder, dtype=dtype))
    finally:
        diffusers_log.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert capfd.readouterr() == ("", "")
    assert diffusers_log.level == level, "the user's own setting is restored"


def test_flow_matching_is_read_off_the_scheduler(dit_folder: Path) -> None:
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(dit_folder / "scheduler")
    loaded = load_denoiser(dit_folder)
    assert loaded.prediction_type == "flow"
    assert loaded.scheduler.config.shift == 3.0
    assert loaded.train_timesteps == 1000
    assert [layer.heads for layer in find_sites(loaded)] == [5, 5]


def test_a_shifted_signal_to_noise_ratio_is_kept(dit_folder: Path) -> None:
    theirs = CogVideoXDDIMScheduler(snr_shift_scale=3.0, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    theirs.save_pretrained(dit_folder / "scheduler")
    loaded = load_denoiser(dit_folder)
    torch.testing.assert_close(loaded.alphas_cumprod.float(), theirs.alphas_cumprod.float(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scheduler", [None, PNDMScheduler])
def test_latents_are_not_clipped(tmp_path: Path, scheduler: type | None) -> None:
    """PNDM's config names no clipping, and DDIM's default is one to [-1, 1], for pixels."""
    latent = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, num_layers=1, sample_size=8, num_embeds_ada_norm=3
    )
    latent.save_pretrained(tmp_path / "transformer")
    if scheduler is not None:
        scheduler().save_pretrained(tmp_path / "scheduler")
    loaded = load_denoiser(tmp_path)
    assert (loaded.channels, loaded.pixels, loaded.image_shape) == (4, 8, (3, 64, 64))
    assert loaded.codec is None
    assert loaded.sampler(3).config.clip_sample is False


# what does not


def test_a_wrong_dtype_names_the_nearest(model_folders: dict[str, Path]) -> None:
    assert "model.dtype: unknown 'bfloat'; did you mean 'bfloat16'?" in refused(model_folders["dit"], dtype="bfloat")


def test_a_path_that_is_not_there_names_the_nearest(model_folders: dict[str, Path]) -> None:
    message = refused(model_folders["dit"].parent / "ditt")
    assert f"no folder '{model_folders['dit'].parent / 'ditt'}'" in message
    assert f"did you mean '{model_folders['dit']}'?" in message
    assert "did you mean 'tiny_faces'?" in refused("tiny_face")
    assert refused("/nowhere/at/all").endswith("or shipped model")


def test_a_hub_id_that_cannot_be_had_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route to the hub\nand a long explanation")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    assert refused("google/ddpm-x").endswith("could not be fetched from the hub: no route to the hub")


def test_hub_downloads_never_ask_for_pickles(monkeypatch: pytest.MonkeyPatch, model_folders: dict[str, Path]) -> None:
    asked: dict[str, object] = {}

    def download(name: str, **settings: object) -> str:
        asked.update(settings, name=name)
        return str(model_folders["dit"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_denoiser("owner/model").name == "model"
    assert asked["allow_patterns"] == ["*.json", "*.safetensors", "*.txt", "*.model"]


def pickle_only(folder: Path) -> None:
    torch.save(load_file(folder / "transformer" / WEIGHTS), folder / "transformer" / "diffusion_pytorch_model.bin")
    (folder / "transformer" / WEIGHTS).unlink()


def truncated(folder: Path) -> None:
    content = (folder / "transformer" / WEIGHTS).read_bytes()
    (folder / "transformer" / WEIGHTS).write_bytes(content[: len(content) // 2])


def garbage(folder: Path) -> None:
    (folder / "transformer" / WEIGHTS).write_bytes(b"not a tensor")


def one_weight(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        weights = load_file(folder / "transformer" / WEIGHTS)
        change(weights)
        save_file(weights, folder / "transformer" / WEIGHTS)

    return spoil


def model_config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "transformer" / "config.json", **changes)


def scheduler_config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "scheduler" / "scheduler_config.json", **changes)


def written(file: str, content: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / file).write_text(content)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (pickle_only, "has no .safetensors weights (pickled checkpoints are refused: they run code)"),
        (truncated, "transformer could not be loaded: "),
        (garbage, "transformer could not be loaded: "),
        (one_weight(lambda w: w.pop("proj_out_2.weight")), "1 missing keys, such as proj_out_2.weight"),
        (one_weight(lambda w: w.update(extra=torch.ones(2))), "1 unexpected keys, such as extra"),
        (one_weight(lambda w: w.update({"proj_out_2.bias": torch.ones(3)})), "proj_out_2.bias expected shape"),
        (model_config(num_layers=3), "missing keys, such as transformer_blocks.2."),
        (model_config(num_layers=1), "unexpected keys, such as transformer_blocks.1."),
        (model_config(norm_type="none"), "could not be loaded: Forward pass is not implemented"),
        (model_config(_class_name="DiT"), "names 'DiT', which is no diffusers model"),
        (model_config(_class_name="DDPMScheduler"), "names 'DDPMScheduler', which is no diffusers model"),
        (model_config(_class_name=None), "names None, which is no diffusers model"),
        (written("transformer/config.json", "{"), "config.json is not readable JSON: "),
        (written("transformer/config.json", "[1]"), "expected an object, got list"),
        (written("scheduler/scheduler_config.json", "beta"), "scheduler_config.json is not readable JSON: "),
        (scheduler_config(prediction_type="flow"), "prediction_type 'flow'; valid: epsilon, sample, v_prediction"),
        (scheduler_config(prediction_type="v-prediction"), "did you mean 'v_prediction'?"),
        (scheduler_config(beta_schedule="cosine"), "scheduler_config.json could not be used: "),
        (lambda folder: EDMEulerScheduler().save_pretrained(folder / "scheduler"), "is a EDMEulerScheduler without a"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_line(
    dit_folder: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(dit_folder)
    found = refused(dit_folder)
    assert message in found
    assert str(dit_folder) in found


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert "has no transformer/config.json, unet/config.json or config.json" in refused(tmp_path)


def test_models_of_another_kind_are_refused(tmp_path: Path) -> None:
    video = UNetSpatioTemporalConditionModel(
        sample_size=8, block_out_channels=(32,), layers_per_block=1, num_attention_heads=2,
        down_block_types=("DownBlockSpatioTemporal",), up_block_types=("UpBlockSpatioTemporal",),
        projection_class_embeddings_input_dim=96, addition_time_embed_dim=32,
    )  # fmt: skip
    video.save_pretrained(tmp_path / "video")
    assert "UNetSpatioTemporalConditionModel needs encoder_hidden_states, added_time_ids" in refused(tmp_path / "video")
    AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, sample_size=8).save_pretrained(tmp_path / "vae")
    assert "AutoencoderKL takes no timestep, so it is no denoiser" in refused(tmp_path / "vae")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 9}, "takes 9 channels and returns 4"),
        ({"encoder_hid_dim": 5, "encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim_type 'image_proj' is not supp"),
    ],
)
def test_networks_that_want_more_than_text_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    settings = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (4,), "layers_per_block": 1,
        "norm_num_groups": 2, "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",),
        "cross_attention_dim": 4, "attention_head_dim": 2,
    }  # fmt: skip
    UNet2DConditionModel(**(settings | changes)).save_pretrained(tmp_path)
    assert message in refused(tmp_path)


def test_images_are_square(model_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(model_folders["unet"], tmp_path / "unet")
    for size, square in (([SIZE, SIZE], True), ([SIZE, SIZE + 2], False), (None, False)):
        edit_json(folder / "unet" / "config.json", sample_size=size)
        if square:
            assert load_denoiser(folder).size == SIZE
        else:
            assert f"has sample_size {size}; expected one number of pixels" in refused(folder)
