"""How complex what heads do is, per image: effective rank, activation energy, and how many heads an image needs.

The paper (arXiv 2506.17237) reports a complexity ratio between real and synthetic faces without saying of what; these
are three readings of it, each one number per image, so that the ratio of two data sets has an interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from circuits.batches import Batches
from circuits.data.sources import DataSet
from circuits.denoisers import Denoiser
from circuits.hooks import capture_inputs
from circuits.sites import AttentionLayer, find_sites
from circuits.statistics import independent_contrast, independent_ratio, two_way_contrast

SHARE = 0.8
"""Share of the effect, or of the faithfulness, that a circuit is to reach."""


@dataclass(frozen=True)
class HeadComplexity:
    """Complexity of head outputs, by data set.

    Attributes:
        layers: in execution order; heads are numbered through, layer by layer.
        effective_rank: of the head's output for an image (:func:`effective_rank`).
        activation_energy: mean square of it over tokens and dimensions.
    """

    layers: tuple[AttentionLayer, ...]
    timesteps: tuple[int, ...]
    effective_rank: Mapping[str, Float[np.ndarray, "heads timesteps images"]]
    activation_energy: Mapping[str, Float[np.ndarray, "heads timesteps images"]]


@dataclass(frozen=True)
class ComplexityRatio:
    """Mean complexity of one data set over that of another, images being the unit.

    Attributes:
        estimate: ratio of means, with its interval (log-delta, Welch).
        p: of equal means, by studentised permutation of the data sets' labels; two-sided.
        kind: ``bounded``, or ``undefined`` where a mean is not positive.
    """

    estimate: float
    ci_low: float
    ci_high: float
    p: float
    kind: str
    n_a: int
    n_b: int


def effective_rank(matrices: Float[torch.Tensor, "*any rows columns"]) -> Float[torch.Tensor, "*any"]:
    """exp of the entropy of the normalised squared singular values; 1 to min(rows, columns), 0 for a matrix of zeros.

    After Roy & Vetterli (EUSIPCO 2007), who normalise the singular values themselves; squared, each direction counts by
    the energy in it. Matrices are taken as they are, not centred. float64 inside: the squares of singular values are
    the eigenvalues of the smaller Gram matrix, and a relative 1e-16 of the largest is nothing.
    """
    wide = matrices.double()
    wide = wide if wide.shape[-2] <= wide.shape[-1] else wide.mT
    # Of a scale of about 1, whatever the matrix's: squares of tiny activations would underflow.
    peak = wide.abs().amax(dim=(-2, -1), keepdim=True)
    wide = wide / torch.where(peak > 0, peak, 1.0)
    energy = torch.linalg.eigvalsh(wide @ wide.mT).clamp(min=0)
    total = energy.sum(dim=-1, keepdim=True)
    entropy = torch.special.entr(energy / torch.where(total > 0, total, 1.0)).sum(dim=-1)
    return torch.where(total[..., 0] > 0, entropy.exp(), 0.0).to(matrices.dtype)


def activation_energy(outputs: Float[torch.Tensor, "*any tokens head_dim"]) -> Float[torch.Tensor, "*any"]:
    """Mean square over tokens and dimensions."""
    return outputs.float().square().mean(dim=(-2, -1))


@torch.no_grad()
def head_complexity(
    denoiser: Denoiser,
    data: Mapping[str, DataSet],
    layers: Sequence[AttentionLayer] | None = None,
    *,
    timesteps: int | Sequence[int] = 10,
    images: int | None = None,
    seed: int = 0,
    rows: int = 32,
) -> HeadComplexity:
    """Effective rank and energy of every head's output per image and timestep, with the noise that sweeps give it.

    Args:
        timesteps: training timesteps, or how many steps of a sampler.
        images: of each data set, from the first; all by default.
        rows: of a forward, at most.
    """
    layers = tuple(layers if layers is not None else find_sites(denoiser))
    steps = denoiser.timesteps(timesteps)
    ranks: dict[str, np.ndarray] = {}
    energies: dict[str, np.ndarray] = {}
    for name, source in data.items():
        x0 = source.measured.images[:images]
        noise = source.noise(range(len(x0)), seed)

        def forward(
            units: list[int], t: int, x0: torch.Tensor = x0, noise: torch.Tensor = noise, source: DataSet = source
        ) -> torch.Tensor:
            times = torch.full((len(units),), t)
            with capture_inputs(denoiser.network, [layer.projection for layer in layers]) as seen:
                denoiser(denoiser.add_noise(x0[units], noise[units], times), times, source.condition(units))
            return torch.cat([_of_heads(layer, seen[layer.projection]) for layer in layers], dim=1)

        batches = Batches(rows)
        found = torch.stack(
            [torch.cat(batches.run(range(len(x0)), lambda units, t=t: forward(units, t))) for t in steps]  # type: ignore[misc]
        )
        ranks[name], energies[name] = found.permute(3, 2, 0, 1).numpy()
    return HeadComplexity(layers, steps, ranks, energies)


def _of_heads(layer: AttentionLayer, activation: torch.Tensor) -> Float[torch.Tensor, "images heads 2"]:
    outputs = activation[..., : layer.width].unflatten(2, (layer.heads, layer.head_dim)).transpose(1, 2).float()
    return torch.stack([effective_rank(outputs), activation_energy(outputs)], dim=2).cpu()


def circuit_sizes(effects: Float[np.ndarray, "heads images"], share: float = SHARE) -> Int[np.ndarray, " images"]:
    """Heads that an image needs for ``share`` of its effects, taken in the order of its own effects.

    Effects are damages (an increase of the error when the head is ablated); heads whose ablation does none do not
    count. They are added up as if heads did not interact, which :func:`faithful_sizes` does not assume. 0 for an image
    that no head matters for.
    """
    effects = _checked(effects, "effects")
    _check_share(share)
    positive = np.sort(np.maximum(effects, 0), axis=0)[::-1]
    total = positive.sum(axis=0)
    reached = np.cumsum(positive, axis=0) >= share * total * (1 - 1e-12)
    return np.where(total > 0, reached.argmax(axis=0) + 1, 0)


def ranked_circuits(effects: Float[np.ndarray, "heads images"]) -> Int[np.ndarray, " heads"]:
    """Heads from the largest mean effect to the smallest; the first k of them are the circuit of size k.

    Rank on other images than those that the circuits are then measured on, or the sizes will be too small.
    """
    return np.argsort(-_checked(effects, "effects").mean(axis=1), kind="stable")


def faithful_sizes(
    baseline: Float[np.ndarray, " images"], errors: Float[np.ndarray, "sizes images"], share: float = SHARE
) -> Int[np.ndarray, " images"]:
    """Smallest circuit from which on an image's faithfulness is at least ``share``.

    Faithfulness of the circuit of k heads is (error without any head - error of the circuit) / (error without any head
    - error of the whole model), measured with all other heads ablated. "From which on": with heads that work against
    each other it may be reached and lost again, and a size that was reached by such a chance is not taken.

    Args:
        baseline: error of the whole model.
        errors: of nested circuits of 0, 1, 2, ... heads; the last is that of all heads.

    Returns:
        0 for an image that is not worse off without any head.
    """
    errors, baseline = _checked(errors, "errors"), np.asarray(baseline, dtype=np.float64)
    _check_share(share)
    if baseline.shape != errors.shape[1:]:
        raise ValueError(f"baseline: expected {errors.shape[1]} images, got shape {baseline.shape}")
    damage = errors[0] - baseline
    faithful = errors[0] - errors >= share * damage * (1 - 1e-12)
    from_here_on = np.logical_and.accumulate(faithful[::-1], axis=0)[::-1]
    size = np.where(from_here_on.any(axis=0), from_here_on.argmax(axis=0), len(errors) - 1)
    return np.where(damage > 0, size, 0)


def complexity_ratio(
    a: Float[np.ndarray, " images_a"], b: Float[np.ndarray, " images_b"], rng: np.random.Generator, level: float = 0.95
) -> ComplexityRatio:
    """Mean of ``a`` over mean of ``b``, one number per image each; the two data sets share no image."""
    first, second = np.atleast_2d(a), np.atleast_2d(b)
    ratio = independent_ratio(first, second, level)
    return ComplexityRatio(
        estimate=float(ratio.estimate[0]),
        ci_low=float(ratio.low[0]),
        ci_high=float(ratio.high[0]),
        p=float(independent_contrast(first, second, rng, level=level).p[0]),
        kind=str(ratio.kind[0]),
        n_a=first.shape[1],
        n_b=second.shape[1],
    )


def complexity_ratios(
    layers: Sequence[AttentionLayer],
    a: Float[np.ndarray, "heads timesteps images_a"],
    b: Float[np.ndarray, "heads timesteps images_b"],
    rng: np.random.Generator,
    level: float = 0.95,
) -> pd.DataFrame:
    """Ratios of a complexity of head outputs, mean over heads and timesteps: of all heads, and of each layer.

    Columns: ``layer`` (``all`` in the first row), ``estimate``, ``ci_low``, ``ci_high``, ``p``, ``kind``, ``n_a``,
    ``n_b``, and in the first row ``heads_ci_low``, ``heads_ci_high``, ``heads_p``: the same claim over heads of this
    kind, heads being a sample too (``two_way_contrast``); there are no such columns with a single head.
    """
    first, second = a.mean(axis=1), b.mean(axis=1)
    rows: list[dict[str, object]] = [
        {"layer": "all", **vars(complexity_ratio(first.mean(0), second.mean(0), rng, level))}
    ]
    if len(first) > 1:
        heads = two_way_contrast(first, second, rng, level=level)
        rows[0] |= {"heads_ci_low": heads.ratio_low, "heads_ci_high": heads.ratio_high, "heads_p": heads.p}
    start = 0
    for layer in layers:
        own = slice(start, start + layer.heads)
        start = own.stop
        rows.append(
            {"layer": layer.name, **vars(complexity_ratio(first[own].mean(0), second[own].mean(0), rng, level))}
        )
    return pd.DataFrame(rows)


def _checked(values: np.ndarray, name: str) -> Float[np.ndarray, "rows images"]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers of shape [n, images], got shape {array.shape}")
    return array


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"share: expected a number above 0 and up to 1, got {share}")
