"""Closed forms of the noise levels and parametrisations, and the sampler against diffusers' own pipeline."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler

from circuits.denoisers import Denoiser, load_denoiser
from circuits.engine import Window
from circuits.sampling import Seeds
from circuits.seeds import normal_per_index
from tests.circuits.conftest import SIZE, make_engine

TYPES = ("epsilon", "sample", "v_prediction")


class Oracle(torch.nn.Module):
    """Answers with a tensor it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = torch.nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self.answer.data)


def oracle(prediction_type: Any, scheduler: DDPMScheduler | None = None) -> Denoiser:
    scheduler = scheduler or DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    return Denoiser("oracle", Oracle(), scheduler, prediction_type, 1, SIZE, 0, "", torch.device("cpu"))


def drawn(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((n, 1, 5, 5), generator=generator) * 2 - 1, torch.randn((n, 1, 5, 5), generator=generator)


def test_noise_levels_are_the_schedulers() -> None:
    denoiser = oracle("epsilon", DDPMScheduler())
    t = torch.tensor([0, 17, 500, 999])
    betas = np.linspace(1e-4, 0.02, 1000, dtype=np.float64)
    bar = np.cumprod(1 - betas)[t]
    alpha, sigma = denoiser.signal_and_noise(t)
    assert alpha.shape == sigma.shape == (4, 1, 1, 1)
    np.testing.assert_allclose(alpha.flatten(), np.sqrt(bar), rtol=1e-5)
    np.testing.assert_allclose(sigma.flatten(), np.sqrt(1 - bar), rtol=1e-3)  # 1 - bar of float32 betas
    x0, noise = drawn(4)
    torch.testing.assert_close(denoiser.add_noise(x0, noise, t), DDPMScheduler().add_noise(x0, noise, t))
    assert denoiser.train_timesteps == 1000


@pytest.mark.parametrize("prediction_type", TYPES)
def test_a_perfect_answer_is_read_as_the_noise_and_image_it_came_from(prediction_type: str) -> None:
    denoiser = oracle(prediction_type)
    t = torch.tensor([3, 250, 500, 750, 930])
    x0, noise = drawn(5)
    alpha, sigma = denoiser.signal_and_noise(t)
    denoiser.network.answer.data = {"epsilon": noise, "sample": x0, "v_prediction": alpha * noise - sigma * x0}[
        prediction_type
    ]
    found = denoiser(denoiser.add_noise(x0, noise, t), t, None)
    # Dividing by a small sigma or alpha amplifies the rounding of x_t.
    torch.testing.assert_close(found.noise, noise, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.x0, x0, rtol=1e-4, atol=1e-4)
    assert denoiser.noise_error(found, x0, noise, t).abs().max() < 1e-6


def test_parametrisations_agree_on_the_same_wrong_answer() -> None:
    """One guess of the noise, told as epsilon, as image and as v: the same prediction and the same error."""
    t = torch.tensor([100, 400, 800])
    x0, noise = drawn(3)
    guess = noise + 0.3 * drawn(3, seed=1)[1]
    found = {}
    for prediction_type in TYPES:
        denoiser = oracle(prediction_type)
        alpha, sigma = denoiser.signal_and_noise(t)
        x_t = denoiser.add_noise(x0, noise, t)
        image = (x_t - sigma * guess) / alpha
        answers = {"epsilon": guess, "sample": image, "v_prediction": alpha * guess - sigma * image}
        prediction = denoiser.as_prediction(answers[prediction_type], x_t, t)
        found[prediction_type] = (prediction.noise, prediction.x0, denoiser.noise_error(prediction, x0, noise, t))
    for other in ("sample", "v_prediction"):
        for a, b in zip(found["epsilon"], found[other], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["epsilon"][2], guess - noise)


@pytest.mark.parametrize(("prediction_type", "share"), [("v_prediction", "alpha"), ("sample", "alpha / sigma")])
def test_the_noise_error_stays_exact_near_pure_noise(prediction_type: str, share: str) -> None:
    """At t = 999 alpha is 5e-5; the difference of the two noises would be nothing but rounding."""
    denoiser = oracle(prediction_type)
    t = torch.tensor([999])
    x0, noise = drawn(1)
    alpha, sigma = denoiser.signal_and_noise(t)
    assert alpha.item() < 1e-4
    wrong = torch.full_like(x0, 0.5)
    truth = x0 if prediction_type == "sample" else alpha * noise - sigma * x0
    found = denoiser.noise_error(denoiser.as_prediction(truth + wrong, x0, t), x0, noise, t)
    expected = {"alpha": 0.5 * alpha.double(), "alpha / sigma": -0.5 * alpha.double() / sigma.double()}[share]
    torch.testing.assert_close(found.double(), expected.expand_as(found), rtol=1e-5, atol=0)
    naive = denoiser.as_prediction(truth + wrong, denoiser.add_noise(x0, noise, t), t).noise - noise
    assert ((naive - found).abs() > 1e-5 * found.abs()).any()  # must fail


def test_a_learned_variance_is_left_out() -> None:
    denoiser = oracle("epsilon")
    denoiser.network.answer.data = torch.cat([torch.ones(2, 1, 5, 5), torch.zeros(2, 1, 5, 5)], dim=1)
    found = denoiser(torch.zeros(2, 1, 5, 5), torch.tensor([1, 2]), None)
    assert torch.equal(found.noise, torch.ones(2, 1, 5, 5))


def test_labels_and_timesteps_are_per_row(dit: Denoiser) -> None:
    x = normal_per_index(0, "test", [0], (1, SIZE, SIZE)).expand(3, -1, -1, -1)
    together = dit(x, torch.tensor([5, 5, 700]), torch.tensor([0, 1, 1])).target
    for i, (t, label) in enumerate([(5, 0), (5, 1), (700, 1)]):
        alone = dit(x[:1], torch.tensor([t]), torch.tensor([label])).target[0]
        torch.testing.assert_close(together[i], alone, rtol=1e-5, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3
    assert (together[1] - together[2]).abs().max() > 1e-3


def test_a_conditional_model_asks_for_labels_and_an_unconditional_one_ignores_them(
    dit: Denoiser, unet: Denoiser
) -> None:
    t = torch.tensor([5])
    with pytest.raises(ValueError, match="dit is conditioned on 2 classes; expected labels, got None"):
        dit(torch.zeros(1, 1, SIZE, SIZE), t, None)
    x = torch.zeros(1, 3, SIZE, SIZE)
    assert torch.equal(unet(x, t, None).target, unet(x, t, torch.tensor([1])).target)


@pytest.mark.parametrize("steps", [*range(1, 62), 103, 122, 250, 1000])
def test_sampler_steps_go_from_pure_noise_down(steps: int) -> None:
    timesteps = oracle("epsilon").sampler(steps).timesteps.tolist()
    assert len(timesteps) == len(set(timesteps)) == steps
    assert timesteps[0] == 999
    assert timesteps == sorted(timesteps, reverse=True)
    assert timesteps[-1] >= 0
    np.testing.assert_allclose(timesteps, 1000 - 1000 / steps * np.arange(steps) - 1, atol=0.51)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_sampler_refuses_impossible_steps(steps: int) -> None:
    with pytest.raises(ValueError, match=f"a sampler has 1 to 1000 steps, got {steps}"):
        oracle("epsilon").sampler(steps)


@pytest.mark.parametrize(
    "settings",
    [
        {"beta_schedule": "scaled_linear", "beta_start": 0.002, "num_train_timesteps": 500},
        {"trained_betas": np.linspace(0.001, 0.03, 77).tolist(), "num_train_timesteps": 77},
        {"beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": True},
        {"clip_sample": True, "clip_sample_range": 0.25},
        {"clip_sample": False, "thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
    ],
)
def test_sampler_steps_like_ddim_with_the_checkpoints_settings(settings: dict[str, Any]) -> None:
    denoiser = oracle("v_prediction", DDPMScheduler(**settings))
    theirs = DDIMScheduler(**settings, prediction_type="v_prediction", timestep_spacing="trailing")
    theirs.set_timesteps(7)
    ours = denoiser.sampler(7)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod)
    torch.testing.assert_close(ours.alphas_cumprod.double(), denoiser.alphas_cumprod)
    x, v = drawn(2)
    for t in ours.timesteps:
        torch.testing.assert_close(ours.step(v, int(t), x).prev_sample, theirs.step(v, t, x).prev_sample)


def test_samples_equal_the_ddim_pipeline_of_diffusers(unet: Denoiser) -> None:
    engine = make_engine(unet)
    found = engine.sample("natural", Window(999, 0), [], 3).baseline
    pipeline = DDIMPipeline(
        unet=unet.network, scheduler=DDIMScheduler.from_config(unet.scheduler.config, timestep_spacing="trailing")
    )
    pipeline.set_progress_bar_config(disable=True)
    latents = engine._sampling.latents(Seeds(engine.data["natural"], 0, 3))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("diffusers.pipelines.ddim.pipeline_ddim.randn_tensor", lambda *_, **__: latents)
        images = pipeline(batch_size=3, num_inference_steps=len(engine.timesteps), output_type="np").images
    expected = torch.from_numpy(images).permute(0, 3, 1, 2)
    torch.testing.assert_close((found / 2 + 0.5).clamp(0, 1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close_and_answers_in_float32(model_folders: dict, model_name: str, dtype: str) -> None:
    full, half = load_denoiser(model_folders[model_name]), load_denoiser(model_folders[model_name], dtype=dtype)
    assert next(half.network.parameters()).dtype == getattr(torch, dtype)
    x = normal_per_index(0, "test", [0, 1], (full.channels, SIZE, SIZE))
    t, labels = torch.tensor([300, 800]), torch.tensor([0, 1])
    a, b = full(x, t, labels).target, half(x, t, labels).target
    assert b.dtype == torch.float32
    assert (a - b).norm() < 0.03 * a.norm()


@pytest.mark.parametrize(("dtype", "rounded"), [("float32", False), ("bfloat16", True)])
def test_float32_is_whole_on_gpus_too(model_folders: dict, model_name: str, dtype: str, rounded: bool) -> None:
    """Rounded to TF32, products on a GPU would differ from a CPU's by a thousandth."""
    flags = (torch.backends.cudnn, torch.backends.cuda.matmul)
    try:
        for flag in flags:
            flag.allow_tf32 = True
        load_denoiser(model_folders[model_name], dtype=dtype)
        assert [flag.allow_tf32 for flag in flags] == [rounded, rounded]
    finally:
        for flag in flags:
            flag.allow_tf32 = False


def test_a_replaced_prediction_type_reaches_the_sampler(unet: Denoiser) -> None:
    assert replace(unet, prediction_type="sample").sampler(4).config.prediction_type == "sample"
