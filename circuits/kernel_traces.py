"""What the attention kernels of a model do in a forward on random input: who calls them, and on how many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int

from circuits.conditioning import Conditioning, draw, signature_of, without_last_text_token
from circuits.denoisers import Denoiser
from circuits.hooks import KernelEdit, capture_inputs, edit_attention_kernels


@dataclass(frozen=True)
class Probe:
    """An input that the model is tried on: two rows that differ in everything."""

    x: torch.Tensor
    t: Int[torch.Tensor, " rows"]
    conditioning: Conditioning


@dataclass(frozen=True)
class Kernel:
    """What an attention kernel did in the first row: its output, and the number of keys."""

    output: Float[torch.Tensor, "1 heads tokens head_dim"]
    keys: int

    @property
    def queries(self) -> int:
        return self.output.shape[2]


@dataclass(frozen=True)
class Trace:
    """A forward: kernels by the module that called them, and site inputs by projection in execution order."""

    kernels: dict[str, list[Kernel]]
    inputs: dict[str, torch.Tensor]


@dataclass(frozen=True)
class ProbeForwards:
    """The probe's forward, and the one with one text token less where there can be one.

    Attributes:
        text: number of text tokens in the first.
        one_sequence: of a text of fixed length, it is known to be one sequence with the image.
    """

    whole: Trace
    shorter: Trace | None
    text: int
    one_sequence: bool = False


def probe_of(denoiser: Denoiser) -> Probe:
    """Normal noise at two timesteps, under random conditioning; always the same."""
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn((2, *denoiser.sample_shape), generator=generator)
    t = torch.tensor([denoiser.train_timesteps // 2, denoiser.train_timesteps // 4])
    conditioning = draw(denoiser.network, 2, generator)
    return Probe(x, t, conditioning)


def forwards_of(denoiser: Denoiser, probe: Probe, projections: Sequence[str]) -> ProbeForwards:
    """Forwards on the probe; errors are those of the network."""
    shorter = without_last_text_token(denoiser.network, probe.conditioning)
    if shorter is None:
        return ProbeForwards(traced(denoiser, probe, projections), None, 0, signature_of(denoiser.network).one_sequence)
    text = probe.conditioning.tensors["encoder_hidden_states"].shape[1]
    fewer = traced(denoiser, replace(probe, conditioning=shorter), projections)
    return ProbeForwards(traced(denoiser, probe, projections), fewer, text)


def traced(denoiser: Denoiser, probe: Probe, projections: Sequence[str]) -> Trace:
    """One forward; ``projections`` are the module paths whose inputs are kept."""
    network = denoiser.network
    kernels: dict[str, list[Kernel]] = {}

    def recording(path: str) -> KernelEdit:
        def record(output: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            kernels.setdefault(path, []).append(Kernel(output[:1].detach(), value.shape[-2]))
            return output

        return record

    watched = {path: recording(path) for path, _ in network.named_modules()}
    with capture_inputs(network, projections) as inputs, edit_attention_kernels(network, watched):
        denoiser(probe.x, probe.t, probe.conditioning)
    return Trace(kernels, inputs)
