"""Classifier-free guidance: the same images as plain forwards of one image and branch, and a fresh scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel

from circuits.batches import Batches
from circuits.checkpoints import ModelError
from circuits.conditioning import Conditioning, draw
from circuits.data.image_sets import ImageSet
from circuits.data.prompts import PromptedSet
from circuits.data.sources import DataSet
from circuits.denoisers import Denoiser
from circuits.engine import Engine, Generated, Window
from circuits.guidance import Guidance, guidance_of
from circuits.interventions import ALL_HEADS, Intervention, Mode, Site
from circuits.references import MeanReferences, donors
from circuits.sampling import Sampling, Seeds
from circuits.seeds import torch_generator
from circuits.sites import AttentionLayer, find_sites
from tests.circuits.architectures import ARCHITECTURES
from tests.circuits.conftest import EVERY_MODE, make_engine

SEED, STEPS, COUNT, FIRST, IMAGES, REFERENCES = 3, 4, 2, 2, 6, 5
SCALE = 3.0


def conditioned(name: str) -> tuple[Denoiser, DataSet, Guidance]:
    """A denoiser, images under classes or texts of their own, and its unconditional branch."""
    denoiser = ARCHITECTURES[name].denoiser(name)
    if denoiser.prediction_type == "epsilon":  # a random network that predicts epsilon amplifies rounding at each step
        denoiser = replace(denoiser, prediction_type="v_prediction")
    generator = torch.Generator().manual_seed(8)
    drawn = torch.rand((IMAGES + REFERENCES, *denoiser.sample_shape), generator=generator) * 2 - 1
    measured, reference = (
        ImageSet("data", part, tuple(map(str, range(len(part)))), None, "")
        for part in drawn.split([IMAGES, REFERENCES])
    )
    if denoiser.classes:
        guidance = guidance_of(denoiser, SCALE)
        assert guidance is not None
        return denoiser, DataSet("data", 1, measured, reference), guidance
    given = draw(denoiser.network, IMAGES + REFERENCES + 1, generator)
    first, others = given.rows(range(IMAGES)), given.rows(range(IMAGES, IMAGES + REFERENCES))
    data = PromptedSet("data", None, measured, reference, first, others)
    return denoiser, data, Guidance(SCALE, given.rows([IMAGES + REFERENCES]))


class Plain:
    """Guided generation without anything shared: one row a forward, edited by a hook of its own."""

    def __init__(
        self,
        denoiser: Denoiser,
        data: DataSet,
        guidance: Guidance,
        layers: dict[str, AttentionLayer],
    ) -> None:
        self.denoiser, self.data, self.guidance = denoiser, data, guidance
        self.layers = layers
        self.means: dict[tuple[int, str], dict[str, torch.Tensor]] = {}

    def begin(self, scheduler: Callable[[], Any]) -> None:
        """Every image from here on is made by a scheduler of its own."""
        self.scheduler = scheduler
        self.seen: dict[tuple[int, int, str, str], torch.Tensor] = {}

    def forward(self, x: torch.Tensor, t: int, given: Any) -> torch.Tensor:
        return self.denoiser(x[None], torch.tensor([t]), given).target[0]

    def given(self, image: int, branch: str, *, reference: bool = False) -> Any:
        if branch == "unconditional":
            return self.guidance.unconditional
        return self.data.reference_condition([image]) if reference else self.data.condition([image])

    @contextmanager
    def hooked(self, hook: Callable[[str, torch.Tensor], torch.Tensor | None]) -> Iterator[None]:
        """``hook(layer, input)`` at every site."""
        handles = []
        for name, layer in self.layers.items():

            def before(_: Any, args: tuple[Any, ...], name: str = name) -> Any:
                new = hook(name, args[0])
                return None if new is None else (new, *args[1:])

            handles.append(self.denoiser.network.get_submodule(layer.projection).register_forward_pre_hook(before))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def mean(self, t: int, branch: str) -> dict[str, torch.Tensor]:
        if (t, branch) not in self.means:
            images = self.data.reference.images
            total: dict[str, torch.Tensor] = {}

            def add(name: str, activation: torch.Tensor) -> None:
                total[name] = total.get(name, torch.zeros(())) + activation.double() / len(images)

            for i, image in enumerate(images):
                noise = torch.randn(image.shape, generator=torch_generator(SEED, "reference noise/data", i))
                x = self.denoiser.add_noise(image[None], noise[None], torch.tensor([t]))[0]
                with self.hooked(add):
                    self.forward(x, t, self.given(i, branch, reference=True))
            self.means[t, branch] = {name: value.float() for name, value in total.items()}
        return self.means[t, branch]

    def new(self, intervention: Intervention, step: int, t: int, branch: str, unit: int) -> dict[str, Any]:
        if intervention.mode is Mode.zero:
            return dict.fromkeys(self.layers, 0.0)
        if intervention.mode is Mode.mean:
            return self.mean(t, branch)
        giver = int(donors(COUNT, 1, SEED)[unit])
        return {name: self.seen[giver, step, branch, name] for name in self.layers}

    def generate(self, unit: int, intervention: Intervention | None, inside: list[int]) -> torch.Tensor:
        seed, scheduler = FIRST + unit, self.scheduler()
        x = torch.randn(self.denoiser.sample_shape, generator=torch_generator(SEED, "latents/data", seed))
        for step, t in enumerate(scheduler.timesteps.tolist()):
            outputs = {}
            for branch in ("conditional", "unconditional"):
                acts = intervention is not None and t in inside
                new = self.new(intervention, step, t, branch, unit) if acts and intervention else {}

                def edit(
                    name: str, activation: torch.Tensor, step: int = step, branch: str = branch, new: dict = new
                ) -> torch.Tensor | None:
                    if intervention is None:
                        self.seen[unit, step, branch, name] = activation
                    if not new or intervention is None:
                        return None
                    edited, dim = activation.clone(), self.layers[name].head_dim
                    for site in intervention.sites:
                        columns = (
                            slice(None) if site.head == ALL_HEADS else slice(site.head * dim, (site.head + 1) * dim)
                        )
                        if site.layer == name:
                            there = new[name] if isinstance(new[name], float) else new[name][..., columns]
                            a = intervention.strength
                            edited[..., columns] = (1 - a) * edited[..., columns] + a * there
                    return edited

                with self.hooked(edit):
                    outputs[branch] = self.forward(x, t, self.given(seed % IMAGES, branch))
            guided = outputs["unconditional"] + SCALE * (outputs["conditional"] - outputs["unconditional"])
            x = scheduler.step(guided[None], scheduler.timesteps[step], x[None]).prev_sample[0]
        return x


def dpm() -> DPMSolverMultistepScheduler:
    """Second order, of two steps: it remembers what the guided prediction of the step before was."""
    scheduler = DPMSolverMultistepScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    scheduler.set_timesteps(STEPS)
    return scheduler


@pytest.mark.parametrize("name", ["dit", "sd15", "sd3"])
def test_guided_samples_equal_plain_forwards(name: str) -> None:
    """Windows from the first step and from a later one, two samplers; a forward holds 4 images or fewer."""
    denoiser, data, guidance = conditioned(name)
    layers = find_sites(denoiser)
    engine = Engine(denoiser, layers, {"data": data}, steps=STEPS, seed=SEED, rows=8, guidance=guidance)
    assert all(engine.replayable.values())
    means = MeanReferences(denoiser, layers, SEED, rows=4)
    plain = Plain(denoiser, data, guidance, engine.layers)
    places = ((Mode.zero, layers[0]), (Mode.mean, layers[0]), (Mode.resample, layers[-1]))
    heads = [Intervention(mode, (Site(layer.name, 1),)) for mode, layer in places]
    whole = Intervention(Mode.zero, tuple(Site(layer.name) for layer in layers[:2]), 0.6)
    samplers = [lambda: denoiser.sampler(STEPS), *([] if name == "sd3" else [dpm])]  # flow matching has its own only
    for sampler in samplers:
        plain.begin(sampler)
        timesteps = sampler().timesteps.tolist()
        sampling = Sampling(engine._forwards, means, sampler(), SEED, guidance)
        engine._forwards.clean._kept.clear()
        expected = torch.stack([plain.generate(unit, None, []) for unit in range(COUNT)])
        for inside, chosen in ((timesteps[:1], heads[1:2]), (timesteps[1:3], [*heads, whole])):
            found = sampling.generate(Seeds(data, FIRST, COUNT), inside, chosen, lambda _: data)
            assert_same(found.baseline, expected)
            for i, intervention in enumerate(chosen):
                ablated = torch.stack([plain.generate(unit, intervention, inside) for unit in range(COUNT)])
                assert_same(found.ablated[i], ablated)
                assert (ablated - expected).abs().max() > 1e-4, intervention


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def guided(plain: Engine, scale: float | None, rows: int = 13) -> Engine:
    denoiser, layers = plain.denoiser, list(plain.layers.values())
    return Engine(denoiser, layers, plain.data, steps=5, seed=3, rows=rows, guidance=guidance_of(denoiser, scale))


def sampled(engine: Engine) -> Generated:
    chosen = [Intervention(mode, (Site(name, 1),)) for mode in EVERY_MODE if mode is not Mode.resample_across
              for name in engine.layers]  # fmt: skip
    return engine.sample("natural", Window(900, 300), chosen, 3)


def test_a_scale_of_1_is_no_guidance_to_the_last_bit(dit: Denoiser) -> None:
    assert guidance_of(dit, None) is guidance_of(dit, 1.0) is None
    plain = make_engine(dit)
    a, b = sampled(plain), sampled(guided(plain, 1.0))
    assert torch.equal(a.baseline, b.baseline)
    assert torch.equal(a.ablated, b.ablated)


def test_guidance_pulls_images_away_from_the_unconditional_one(dit: Denoiser) -> None:
    """Near 1 it is what there is without; the stronger, the further away."""
    plain = make_engine(dit)
    chosen = [Intervention(Mode.noise, (Site(name, 1),)) for name in plain.layers]
    without = plain.sample("natural", Window(900, 300), chosen, 3)
    distances = []
    for scale in (1 + 1e-6, 2.0, 8.0):
        many, few = (guided(plain, scale, rows) for rows in (32, 5))
        a, b = (engine.sample("natural", Window(900, 300), chosen, 3) for engine in (many, few))
        torch.testing.assert_close(a.ablated, b.ablated, rtol=1e-4, atol=1e-4)
        assert few.rows == 5
        pairs = ((a.baseline, without.baseline), (a.ablated, without.ablated))
        distances.append([float((with_it - none).abs().max()) for with_it, none in pairs])
    for near, some, far in zip(*distances, strict=True):
        assert near < 1e-4 < 1e-2 < some < far


def test_errors_of_one_step_are_of_the_conditional_branch(dit: Denoiser) -> None:
    plain = make_engine(dit)
    strongly = guided(plain, 4.0)
    chosen = [Intervention(Mode.mean, (Site(name, 0),)) for name in plain.layers]
    strongly.sample("natural", Window(900, 300), chosen, 3)  # the means of both branches are there
    a, b = (engine.denoise("natural", Window(900, 300), chosen, 5)["noise_mse"] for engine in (plain, strongly))
    assert torch.equal(a.ablated, b.ablated)


def test_rows_are_counted_by_branch(dit: Denoiser) -> None:
    counts = []
    for scale in (None, 2.0):
        engine = guided(make_engine(dit), scale, rows=32)
        engine.sample("natural", Window(999, 500), [Intervention(Mode.zero, (Site(next(iter(engine.layers)), 0),))], 3)
        counts.append(engine.rows_run)
    assert counts == [3 * 5 + 3 * 5, 2 * (3 * 5 + 3 * 5)]


def test_both_branches_of_an_image_share_a_forward() -> None:
    """Out of memory, halves are of whole images; a forward that holds a single one is as small as can be."""
    batches, pieces = Batches(12), []

    def forward(images: list[int]) -> list[int]:
        if len(images) > 2:
            raise torch.OutOfMemoryError
        pieces.append(images)
        return images

    assert list(chain(*batches.run(range(7), forward, rows_each=2))) == list(range(7))
    assert [len(piece) for piece in pieces] == [2, 2, 2, 1]
    assert batches.rows_run == 14
    assert Batches(1).run(range(3), forward, rows_each=2) == [[0], [1], [2]]


# the unconditional branch


def test_the_null_class_is_the_one_behind_the_last(dit: Denoiser) -> None:
    guidance = guidance_of(dit, 4.0)
    assert guidance is not None
    assert guidance.unconditional.tensors["class_labels"].tolist() == [dit.classes] == [2]


def without_null_class() -> Denoiser:
    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("AttnDownBlock2D",), up_block_types=("AttnUpBlock2D",), attention_head_dim=4,
        num_class_embeds=2,
    )  # fmt: skip
    return Denoiser("faces", network, DDPMScheduler(), "epsilon", 1, 8, 2, "", torch.device("cpu"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ARCHITECTURES["unet"].denoiser("unet"), "it is conditioned on nothing; expected null, got 4"),
        (without_null_class, "faces (UNet2DModel) has no unconditional branch: 2 classes and no null class"),
        (lambda: ARCHITECTURES["flux"].denoiser("flux"), "is guidance-distilled, and told 3.5; expected null"),
        (lambda: ARCHITECTURES["qwen"].denoiser("qwen"), "(QwenImageTransformer2DModel)"),
        (lambda: ARCHITECTURES["sd15"].denoiser("sd15"), "has no pipeline folder"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_guided_say_so(build: Callable[[], Denoiser], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        guidance_of(build(), 4.0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [0.5, -1.0, float("inf"), float("nan")])
def test_a_scale_is_at_least_1(dit: Denoiser, scale: float) -> None:
    with pytest.raises(ModelError, match=r"model\.guidance: expected null or a finite number of at least 1"):
        guidance_of(dit, scale)


def test_texts_of_other_lengths_do_not_share_a_forward() -> None:
    short, long = (Conditioning({"encoder_hidden_states": torch.zeros(1, tokens, 3)}) for tokens in (4, 5))
    with pytest.raises(ValueError, match=r"different shapes cannot share a forward.*\(5, 3\).*\(4, 3\)"):
        Guidance(2.0, short).both(long, 1)
