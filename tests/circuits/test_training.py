"""Training: resuming changes nothing, a kill loses nothing that was saved, and the formulas are what they say."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiTTransformer2DModel
from safetensors.torch import load_file

from circuits import training
from circuits.denoisers import load_denoiser
from circuits.shipped import export, new_tiny_faces, train_new
from circuits.sites import find_sites
from circuits.training import (
    Averaged,
    TrainingProgress,
    TrainingSettings,
    attention_in_float32,
    augment_faces,
    diffusion_loss,
    learning_rate_at,
    train,
)

SIZE = 6
SETTINGS = TrainingSettings(steps=7, batch_size=5, warmup_steps=2, focus_from=4, save_every=2, seed=11)


def small_network() -> DiTTransformer2DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DiTTransformer2DModel(
            num_attention_heads=3, attention_head_dim=4, in_channels=1, out_channels=1, num_layers=1,
            sample_size=SIZE, patch_size=2, num_embeds_ada_norm=2, norm_elementwise_affine=False,
        )  # fmt: skip


def faces(n: int, seed: int) -> torch.Tensor:
    return torch.rand((n, 1, SIZE, SIZE), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def trained(directory: Path, settings: TrainingSettings = SETTINGS, **watch: Any) -> DiTTransformer2DModel:
    network = small_network()
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    train(network, scheduler, faces(13, 1), faces(7, 2), settings, directory, **watch)
    return network


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@contextmanager
def interrupted(at: int) -> Iterator[None]:
    """Training inside is stopped in the middle of a step."""
    real = Averaged.update

    def update(self: Averaged, network: torch.nn.Module, step: int) -> None:
        if step == at:
            raise KeyboardInterrupt
        real(self, network, step)

    Averaged.update = update  # type: ignore[method-assign]
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        Averaged.update = real  # type: ignore[method-assign]


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("at", [1, 2, 5])
def test_an_interrupted_run_equals_an_uninterrupted_one_to_the_bit(tmp_path: Path, at: int, autocast: bool) -> None:
    settings = replace(SETTINGS, autocast=autocast)
    whole = trained(tmp_path / "whole", settings)
    with interrupted(at):
        trained(tmp_path / "parts", settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)  # label dropout draws from the global state, which another process has otherwise
        resumed = trained(tmp_path / "parts", settings)
    assert same(whole.state_dict(), resumed.state_dict())
    states = [load_file(tmp_path / part / "state.safetensors") for part in ("whole", "parts")]
    assert same(*states)
    assert not same(whole.state_dict(), small_network().state_dict()), "it learned something"


def test_a_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    first = trained(tmp_path)
    state = (tmp_path / "state.safetensors").read_bytes()
    assert same(first.state_dict(), trained(tmp_path).state_dict())
    assert (tmp_path / "state.safetensors").read_bytes() == state


def test_the_state_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with interrupted(3):
        trained(tmp_path)
    saved = (tmp_path / "state.safetensors").read_bytes()

    def killed_while_writing(tensors: dict, path: Path, **_: object) -> None:
        path.write_bytes(saved[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_file", killed_while_writing)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "state.safetensors").read_bytes() == saved
    trained(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"], "nothing half written is left"


def test_training_ends_with_the_averaged_weights_and_leaves_the_global_random_state(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    network = trained(tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
    state = load_file(tmp_path / "state.safetensors")
    averaged = {key.removeprefix("averaged."): value for key, value in state.items() if key.startswith("averaged.")}
    assert same(network.state_dict(), averaged)
    assert not network.training


def test_progress_is_reported(tmp_path: Path) -> None:
    reports: list[TrainingProgress] = []
    trained(tmp_path, replace(SETTINGS, steps=52, save_every=52), report=reports.append)
    assert [(r.step, r.steps) for r in reports] == [(50, 52), (52, 52)]
    assert all(math.isfinite(r.loss) and r.loss > 0 and r.seconds_per_step > 0 for r in reports)
    settings = replace(SETTINGS, steps=52)
    assert [r.learning_rate for r in reports] == [learning_rate_at(49, settings), learning_rate_at(51, settings)]


def test_learning_rate_warms_up_and_decays_by_a_cosine_to_a_hundredth() -> None:
    settings = TrainingSettings(steps=1_100, warmup_steps=100, learning_rate=2.0)
    expected = {0: 0.02, 49: 1.0, 99: 2.0, 100: 2.0, 600: 2.0 * (0.01 + 0.99 / 2), 1_100: 0.02, 5_000: 0.02}
    assert {step: learning_rate_at(step, settings) for step in expected} == pytest.approx(expected)
    rates = [learning_rate_at(step, settings) for step in range(100, 1_100)]
    assert rates == sorted(rates, reverse=True)
    assert learning_rate_at(0, TrainingSettings(steps=10, warmup_steps=0)) == TrainingSettings().learning_rate


def test_the_average_of_weights_in_closed_form() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    averaged = Averaged(layer, decay=0.15)
    expected = 1.0
    for step, value in enumerate([2.0, -3.0, 5.0]):
        layer.weight.data.fill_(value)
        averaged.update(layer, step)
        decay = min(0.15, (1 + step) / (10 + step))  # 1/10, then 0.15 (2/11 is more)
        expected = decay * expected + (1 - decay) * value
        assert averaged.weights["weight"].item() == pytest.approx(expected)


class Silent(torch.nn.Module):
    """Predicts zero and remembers what it was asked."""

    def forward(self, x_t: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> SimpleNamespace:
        self.x_t, self.t, self.labels = x_t, timestep, class_labels
        return SimpleNamespace(sample=torch.zeros_like(x_t))


def test_the_loss_is_the_weighted_error_of_v() -> None:
    images, labels = faces(8, 3), torch.arange(8) % 2
    scheduler, network = DDPMScheduler(), Silent()
    loss = diffusion_loss(network, scheduler, images, labels, torch.Generator().manual_seed(0), gamma=5.0)
    assert torch.equal(network.labels, labels)
    assert sorted((network.t // 125).tolist()) == list(range(8)), "one timestep in each eighth"
    bar = scheduler.alphas_cumprod.double()[network.t].view(-1, 1, 1, 1)
    noise = (network.x_t - bar.sqrt() * images) / (1 - bar).sqrt()
    v = bar.sqrt() * noise - (1 - bar).sqrt() * images
    snr = (bar / (1 - bar)).flatten()
    weight = torch.minimum(snr, torch.tensor(5.0)) / (snr + 1)
    assert loss.item() == pytest.approx((weight * v.square().mean(dim=(1, 2, 3))).mean().item(), rel=1e-4)


def test_a_draw_just_below_one_stays_a_timestep(monkeypatch: pytest.MonkeyPatch) -> None:
    """47 + (1 - 2^-24) is 48 in float32: without care the timestep would be 1000."""
    network, images = Silent(), faces(48, 0)
    monkeypatch.setattr(torch, "rand", lambda n, **_: torch.full((n,), 1 - 2.0**-24))
    loss = diffusion_loss(network, DDPMScheduler(), images, torch.zeros(48).long(), torch.Generator(), 5.0)
    assert network.t.max() == 999
    assert loss.isfinite()


@pytest.mark.parametrize(("step", "natural"), [(0, 8), (4_999, 8), (5_000, 13)])
def test_a_batch_is_synthetic_faces_labelled_0_then_natural_ones_labelled_1(step: int, natural: int) -> None:
    dark, bright = torch.full((3, 1, SIZE, SIZE), -0.9), torch.full((3, 1, SIZE, SIZE), 0.9)
    settings = TrainingSettings(batch_size=20, natural_fraction=0.4, focus_from=5_000, focus_natural_fraction=0.65)
    images, labels = training._batch(dark, bright, settings, step, torch.Generator().manual_seed(0))
    assert labels.tolist() == [0] * (20 - natural) + [1] * natural
    assert (images[labels == 0] == -0.9).all()
    assert (images[labels == 1] > 0.5).all()


def test_augmented_faces_keep_shape_and_range() -> None:
    generator = torch.Generator().manual_seed(0)
    images, pool = faces(31, 1), faces(7, 2)
    found = augment_faces(images, pool, generator)
    assert found.shape == images.shape
    assert found.dtype == torch.float32
    assert found.min() >= -1
    assert found.max() <= 1
    assert torch.equal(found, augment_faces(images, pool, torch.Generator().manual_seed(0)))
    assert not torch.equal(found, augment_faces(images, pool, generator))


def test_augmenting_a_flat_face_only_relights_and_blends_it() -> None:
    flat, dark = torch.full((31, 1, SIZE, SIZE), 0.2), torch.full((7, 1, SIZE, SIZE), -0.9)
    plain = augment_faces(flat, dark, torch.Generator().manual_seed(0), blended=0.0)
    assert (plain.amax(dim=(1, 2, 3)) - plain.amin(dim=(1, 2, 3))).max() < 1e-6
    assert plain.min() >= 0.85 * 0.2 - 0.1
    assert plain.max() <= 1.15 * 0.2 + 0.1
    blended = augment_faces(flat, dark, torch.Generator().manual_seed(0), blended=1.0)
    assert (blended < plain).all(), "every face is blended with a dark one"
    assert blended.min() >= 1.15 * (0.5 * 0.2 - 0.5 * 0.9) - 0.1, "at most half"


def test_attention_stays_in_float32_under_autocast() -> None:
    real = F.scaled_dot_product_attention
    x = torch.randn((1, 1, 3, 4), dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16), attention_in_float32():
        output = F.scaled_dot_product_attention(x, x, x)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, real(x.float(), x.float(), x.float()))
    with pytest.raises(KeyboardInterrupt), attention_in_float32():
        raise KeyboardInterrupt
    assert F.scaled_dot_product_attention is real


def test_export_and_load_give_the_same_predictions_to_sixteen_bits(tmp_path: Path) -> None:
    network, scheduler = new_tiny_faces(seed=2)
    for parameter in network.parameters():  # adaLN-Zero starts silent
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    folder = export(network, scheduler, tmp_path / "model")
    assert same(before, network.state_dict())
    loaded = load_denoiser(folder)
    assert loaded.prediction_type == "v_prediction"
    assert (folder / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_mode & 0o777 == 0o644
    x = torch.randn((3, 1, 32, 32), generator=torch.Generator().manual_seed(3))
    t, labels = torch.tensor([10, 500, 990]), torch.tensor([0, 1, 0])
    with torch.no_grad():
        expected = network.eval()(x, timestep=t, class_labels=labels).sample
    found = loaded(x, t, labels).target
    assert (found - expected).norm() < 2e-3 * expected.norm()
    assert export(network, scheduler, tmp_path / "model") == folder, "an older folder is replaced"
    assert load_denoiser(folder).revision == loaded.revision


def test_a_new_model_is_silent_and_the_same_for_a_seed() -> None:
    before = torch.random.get_rng_state()
    one, again, other = (new_tiny_faces(seed)[0] for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert same(one.state_dict(), again.state_dict())
    assert not same(one.state_dict(), other.state_dict())
    with torch.no_grad():
        x = torch.randn((2, 1, 32, 32), generator=torch.Generator().manual_seed(0))
        output = one(x, timestep=torch.tensor([5, 900]), class_labels=torch.tensor([0, 1])).sample
    assert (output == 0).all(), "adaLN-Zero"


def test_the_recipe_from_end_to_end(tmp_path: Path) -> None:
    settings = TrainingSettings(steps=2, batch_size=4, synthetic_images=6, warmup_steps=1, save_every=1)
    reports: list[TrainingProgress] = []
    folder = train_new("tiny_faces", settings, tmp_path, reports.append)
    assert folder == tmp_path / "tiny_faces"
    assert [r.step for r in reports] == [2]
    assert len(find_sites(load_denoiser(folder))) == 4
