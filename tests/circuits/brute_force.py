"""The engine's numbers again, the slow and obvious way: float64, one row a forward, edits inside attention, no hooks.

Attention is spelled out as softmax(q k') v in a processor of its own, which edits a head's output before the heads are
joined.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from diffusers.models.attention_processor import Attention

from circuits.data.sources import DataSet
from circuits.denoisers import Denoiser
from circuits.engine import Window
from circuits.interventions import Intervention, Mode
from circuits.metrics import denoise_metrics
from circuits.references import donors
from circuits.seeds import torch_generator

HeadOutput = torch.Tensor  # [tokens, head_dim]
HeadEdit = Callable[[HeadOutput, torch.Tensor], HeadOutput]  # (output, value of this head) -> output


@dataclass
class SpelledOut:
    """Attention without kernels, for self-attention of one image; records every head's output."""

    edits: dict[int, HeadEdit] = field(default_factory=dict)
    outputs: list[HeadOutput] = field(default_factory=list)

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: object = None,  # diffusers passes it to every processor
    ) -> torch.Tensor:
        inputs = hidden_states
        if inputs.dim() == 4:
            hidden_states = inputs.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        assert len(hidden_states) == 1
        q, k, v = (project(hidden_states)[0] for project in (attn.to_q, attn.to_k, attn.to_v))
        width = q.shape[1] // attn.heads
        self.outputs = []
        for head in range(attn.heads):
            columns = slice(head * width, (head + 1) * width)
            weights = torch.softmax(q[:, columns] @ k[:, columns].T / width**0.5, dim=-1)
            output = weights @ v[:, columns]
            if head in self.edits:
                output = self.edits[head](output, v[:, columns])
            self.outputs.append(output)
        joined = attn.to_out[0](torch.cat(self.outputs, dim=1)[None])
        if inputs.dim() == 4:
            joined = joined.transpose(1, 2).reshape(inputs.shape)
        if attn.residual_connection:
            joined = joined + inputs
        return joined / attn.rescale_output_factor


def uniform_map(value: HeadOutput) -> torch.Tensor:
    """An attention map of self-attention in which every query looks at all keys alike."""
    return torch.full((len(value), len(value)), 1 / len(value), dtype=value.dtype)


class BruteForce:
    """Measures interventions on a copy of a denoiser's network in float64."""

    def __init__(self, denoiser: Denoiser, data: dict[str, DataSet], steps: int, seed: int) -> None:
        self.network = copy.deepcopy(denoiser.network).double()
        self.processors = {name: SpelledOut() for name, m in self.network.named_modules() if isinstance(m, Attention)}
        for name, processor in self.processors.items():
            self.network.get_submodule(name).set_processor(processor)  # type: ignore[operator]
        self.denoiser, self.data, self.seed = denoiser, data, seed
        self.bar = denoiser.scheduler.alphas_cumprod.double()
        self.steps = steps
        self.means: dict[tuple[str, int], dict[tuple[str, int], HeadOutput]] = {}
        self.moments: dict[tuple[str, int], dict[tuple[str, int], tuple[HeadOutput, HeadOutput]]] = {}
        self.paths: dict[tuple[str, int], list[torch.Tensor]] = {}
        self.timesteps = [1000 - 1000 // steps * i - 1 for i in range(steps)]

    # one row

    def forward(self, x: torch.Tensor, t: int, label: int | None) -> torch.Tensor:
        kwargs = {"class_labels": torch.tensor([label])} if self.denoiser.classes else {}
        with torch.no_grad():
            return self.network(x[None], timestep=torch.tensor([t]), **kwargs).sample[0]

    def outputs(self, x: torch.Tensor, t: int, label: int | None) -> dict[tuple[str, int], HeadOutput]:
        """Every head's output in a clean forward."""
        self.forward(x, t, label)
        return {(name, h): output for name, p in self.processors.items() for h, output in enumerate(p.outputs)}

    @contextmanager
    def edited(self, intervention: Intervention, new: dict[tuple[str, int], HeadOutput]) -> Iterator[None]:
        """Heads of the intervention edited; ``new`` holds the replacements that come from elsewhere."""
        a = intervention.strength

        def edit(key: tuple[str, int]) -> HeadEdit:
            if intervention.mode is Mode.zero:
                return lambda output, value: (1 - a) * output
            if intervention.mode is Mode.scale:
                return lambda output, value: (1 - a) * output + a * intervention.factor * output
            if intervention.mode is Mode.uniform:
                return lambda output, value: (1 - a) * output + a * uniform_map(value) @ value
            if intervention.mode is Mode.identity:
                return lambda output, value: (1 - a) * output + a * value
            return lambda output, value: (1 - a) * output + a * new[key]

        try:
            for site in intervention.sites:
                heads = self.network.get_submodule(site.layer).heads
                for head in range(heads) if site.head == -1 else [site.head]:  # type: ignore[arg-type]
                    self.processors[site.layer].edits[head] = edit((site.layer, head))
            yield
        finally:
            for processor in self.processors.values():
                processor.edits.clear()

    # replacements

    def new(
        self, intervention: Intervention, data: DataSet, t: int, unit: int, donor_x: Callable[[DataSet], torch.Tensor]
    ) -> dict[tuple[str, int], HeadOutput]:
        """``unit``: the image or the seed; ``donor_x``: the donor's noisy image in a data set."""
        if intervention.mode is Mode.noise:
            return self.noise(data, t, unit)
        if intervention.mode is Mode.mean:
            if (data.name, t) not in self.means:
                self.means[data.name, t] = self.mean_outputs(data, t)
            return self.means[data.name, t]
        if intervention.mode is Mode.resample:
            return self.outputs(donor_x(data), t, data.label)
        if intervention.mode is Mode.resample_across:
            other = next(d for d in self.data.values() if d is not data)
            return self.outputs(donor_x(other), t, other.label)
        return {}

    def mean_outputs(self, data: DataSet, t: int) -> dict[tuple[str, int], HeadOutput]:
        return {key: torch.stack(outputs).mean(0) for key, outputs in self.reference_outputs(data, t).items()}

    def reference_outputs(self, data: DataSet, t: int) -> dict[tuple[str, int], list[HeadOutput]]:
        """Of every reference image."""
        found: dict[tuple[str, int], list[HeadOutput]] = {}
        for i, image in enumerate(data.reference.images.double()):
            noise = self.normal(f"reference noise/{data.name}", i, shape=image.shape)
            for key, output in self.outputs(self.noised(image, noise, t), t, data.label).items():
                found.setdefault(key, []).append(output)
        return found

    def noise(self, data: DataSet, t: int, unit: int) -> dict[tuple[str, int], HeadOutput]:
        """Mean and spread of every entry over the reference images; the draw is that of the layer, head after head."""
        if (data.name, t) not in self.moments:
            self.moments[data.name, t] = {
                key: (torch.stack(outputs).mean(0), torch.stack(outputs).std(0, correction=0))
                for key, outputs in self.reference_outputs(data, t).items()
            }
        moments, found = self.moments[data.name, t], {}
        for layer in {layer for layer, _ in moments}:
            heads = [moments[key] for key in sorted(key for key in moments if key[0] == layer)]
            tokens, width = heads[0][0].shape
            z = self.normal(f"noise ablation/{data.name}/{layer}", unit, t, shape=(tokens, len(heads) * width))
            for head, (mean, deviation) in enumerate(heads):
                found[layer, head] = mean + deviation * z[:, head * width : (head + 1) * width]
        return found

    def normal(self, purpose: str, *index: int, shape: Sequence[int]) -> torch.Tensor:
        return torch.randn(shape, generator=torch_generator(self.seed, purpose, *index)).double()

    def noised(self, image: torch.Tensor, noise: torch.Tensor, t: int) -> torch.Tensor:
        return self.bar[t].sqrt() * image.double() + (1 - self.bar[t]).sqrt() * noise

    def noise_and_x0(self, output: torch.Tensor, x: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor]:
        alpha, sigma = self.bar[t].sqrt(), (1 - self.bar[t]).sqrt()
        if self.denoiser.prediction_type == "epsilon":
            return output, (x - sigma * output) / alpha
        assert self.denoiser.prediction_type == "v_prediction"
        return alpha * output + sigma * x, alpha * x - sigma * output

    # protocols

    def denoise(
        self, dataset: str, window: Window, chosen: Intervention | None, n: int, first: int = 0
    ) -> dict[str, torch.Tensor]:
        data = self.data[dataset]
        steps = [t for t in self.timesteps if window.t_end <= t <= window.t_start]
        donor = first + donors(n, len(steps), self.seed)

        def x_of(source: DataSet, unit: int) -> torch.Tensor:
            image = source.measured.images[unit]
            noise = self.normal(f"noise/{source.name}", unit, shape=image.shape)
            return self.noised(image, noise, steps[unit % len(steps)])

        rows = []
        for unit in range(first, first + n):
            t, x0 = steps[unit % len(steps)], data.measured.images[unit].double()
            x = x_of(data, unit)
            if chosen is None:
                output = self.forward(x, t, data.label)
            else:
                giver = int(donor[unit - first])
                with self.edited(chosen, self.new(chosen, data, t, unit, partial(x_of, unit=giver))):
                    output = self.forward(x, t, data.label)
            noise, predicted = self.noise_and_x0(output, x, t)
            error = noise - self.normal(f"noise/{data.name}", unit, shape=x.shape)
            rows.append(denoise_metrics(error[None].float(), predicted[None].float(), x0[None].float()))
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def sample(self, dataset: str, window: Window, chosen: Intervention | None, seeds: int, first: int) -> torch.Tensor:
        data = self.data[dataset]
        donor = donors(seeds, 1, self.seed)
        paths = {d.name: [self.trajectory(d, first + i) for i in range(seeds)] for d in self.data.values()}

        def at(source: DataSet, unit: int, step: int) -> torch.Tensor:
            return paths[source.name][unit][step]

        images = []
        for unit in range(seeds):
            x = paths[data.name][unit][0]
            for step, t in enumerate(self.timesteps):
                if chosen is not None and window.t_end <= t <= window.t_start:
                    giver = int(donor[unit])
                    new = self.new(chosen, data, t, first + unit, partial(at, unit=giver, step=step))
                    with self.edited(chosen, new):
                        output = self.forward(x, t, data.label)
                else:
                    output = self.forward(x, t, data.label)
                x = self.ddim(output, x, t)
            images.append(x)
        return torch.stack(images)

    def trajectory(self, data: DataSet, seed: int) -> list[torch.Tensor]:
        """Clean latents before each step."""
        if (data.name, seed) not in self.paths:
            path = [self.normal(f"latents/{data.name}", seed, shape=data.measured.images.shape[1:])]
            for t in self.timesteps:
                path.append(self.ddim(self.forward(path[-1], t, data.label), path[-1], t))
            self.paths[data.name, seed] = path
        return self.paths[data.name, seed]

    def ddim(self, output: torch.Tensor, x: torch.Tensor, t: int) -> torch.Tensor:
        """Eq. 12 of Song et al. (arXiv 2010.02502) with eta = 0 and the clean image clipped, as DDPM's config asks."""
        noise, x0 = self.noise_and_x0(output, x, t)
        before = t - 1000 // self.steps
        bar = self.bar[before] if before >= 0 else torch.ones((), dtype=torch.float64)
        return bar.sqrt() * x0.clamp(-1, 1) + (1 - bar).sqrt() * noise
