"""Profiles of heads: how every head attends at every timestep, streamed over batches of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from circuits.attention import (
    ENTRIES,
    AttentionStatistics,
    SpatialStatistics,
    affordable_queries,
    attention_statistics,
)
from circuits.batches import Batches
from circuits.conditioning import Conditioning
from circuits.data.image_sets import ImageSet
from circuits.data.sources import DataSet
from circuits.denoisers import Denoiser
from circuits.hooks import KernelCall, observing_kernels
from circuits.layer_kernels import LayerKernel, layer_kernels
from circuits.probes import (
    RESOLUTION,
    SCALARS,
    SELECTIVE,
    Likeness,
    PairedProbe,
    TokenFeatures,
    attended,
    coupling,
    part_columns,
    permutation_test,
    pooling,
    pooling_columns,
    synthetic_part_masks,
    token_features,
)
from circuits.sites import AttentionLayer, all_heads, find_sites
from circuits.token_grids import TokenGrid

IMAGE_PROBES = ("self_share", "local_share", "distance", "symmetry")
"""Probes of single images. Their nulls: the mean over permutations of the keys, which is what uniform attention has; of
``symmetry``, the same about the horizontal axis."""

POSITION = "position_share"
"""Probe on pairs of images: share of the variance of the map, about uniform attention, that its mean over images has.
Null: the keys of one image of the pair permuted, which leaves 0 on average."""

SWAPPED_PROBES = (
    "attends_edges",
    "attends_texture",
    "attends_luminance",
    "pools_parts",
    "pools_colour",
    "output_edges",
    "output_texture",
    "output_luminance",
    "output_parts",
)
"""Probes on pairs of images whose null is the other image's features (``circuits.probes``)."""

PROBES = (*IMAGE_PROBES, POSITION, *SWAPPED_PROBES)

MEASURES = ("entropy_nats", "entropy_normalised", "keys", "uniform_share", "text_share", "output_energy")
"""What is measured without a null; ``text_share`` is the attention that goes to text, ``output_energy`` the mean square
of a head's output over tokens and dimensions."""


@dataclass(frozen=True)
class HeadProfiles:
    """What every head does on every data set at every timestep.

    Attributes:
        layers: in execution order; heads are numbered through, layer by layer.
        timesteps: training timesteps, as measured.
        values: by data set and name, per unit. Units are images for ``MEASURES`` and ``IMAGE_PROBES``, and pairs of
            images (2j and 2j + 1) for the other probes. Of a probe there is also what its null expects, ``NAME_null``,
            and for probes on pairs ``NAME_score``, what it shows beyond the null as a share of what is attainable. NaN
            where there is nothing to measure: parts without masks, places in the image for text.
        token_mass: of cross-attention layers, by data set and layer: the attention that each text token gets.
    """

    layers: tuple[AttentionLayer, ...]
    timesteps: tuple[int, ...]
    values: Mapping[str, Mapping[str, Float[np.ndarray, "heads timesteps units"]]]
    token_mass: Mapping[str, Mapping[str, Float[np.ndarray, "heads timesteps images tokens"]]]

    @property
    def heads(self) -> tuple[tuple[AttentionLayer, int], ...]:
        """Layer and head of each row of ``values``."""
        return all_heads(self.layers)

    def per_image(self, dataset: str, measure: str) -> Float[np.ndarray, "images timesteps"]:
        """Mean over heads, per image: what data sets are compared by (``statistics.divergence_band``)."""
        return self.values[dataset][measure].mean(axis=0).T

    def frame(self) -> pd.DataFrame:
        """One row per data set, timestep and head: the measures, and for each probe its mean, ``_null``, ``_z``, ``_p``
        and, of probes on pairs, ``_score``."""
        return pd.concat([self._frame(dataset) for dataset in self.values], ignore_index=True)

    def _frame(self, dataset: str) -> pd.DataFrame:
        values, heads, steps = self.values[dataset], self.heads, len(self.timesteps)
        columns: dict[str, object] = {
            "layer": [layer.name for layer, _ in heads] * steps,
            "layer_index": [layer.index for layer, _ in heads] * steps,
            "head": [head for _, head in heads] * steps,
            "dataset": dataset,
            "t": np.repeat(self.timesteps, len(heads)),
        }
        columns |= {name: values[name].mean(axis=2).T.ravel() for name in MEASURES}
        for name in PROBES:
            # [heads, timesteps, units] to one trial a row, in the order of the columns above.
            own, null = (values[key].swapaxes(0, 1).reshape(steps * len(heads), -1) for key in (name, f"{name}_null"))
            test = permutation_test(own, null)
            columns |= {name: test.statistic, f"{name}_null": test.null_mean, f"{name}_z": test.z, f"{name}_p": test.p}
            if name not in IMAGE_PROBES:
                columns[f"{name}_score"] = values[f"{name}_score"].mean(axis=2).T.ravel()
        return pd.DataFrame(columns)


def profile_heads(
    denoiser: Denoiser,
    data: DataSet | Mapping[str, DataSet],
    layers: Sequence[AttentionLayer] | None = None,
    *,
    timesteps: int | Sequence[int] = 10,
    images: int | None = None,
    seed: int = 0,
    rows: int = 32,
    parts: Mapping[str, Bool[torch.Tensor, "images parts height width"]] | None = None,
    entries: int | None = ENTRIES,
) -> HeadProfiles:
    """Profile heads on data sets, one forward a batch and timestep, each image with the noise that sweeps give it.

    Args:
        data: a data set, or several by name, as ``load_data_set`` returns them.
        layers: from ``find_sites``; all by default.
        timesteps: training timesteps, or how many steps of a sampler.
        images: of each data set, from the first; all by default. Probes compare images two by two: an odd last one is
            left out.
        rows: of a forward, at most.
        parts: masks of semantic parts by data set, in pixels; those of generated faces are known.
        entries: of the map of a head and image looked at, at most: of more tokens than this has room for, a random
            sample of the queries, always the same. None for all.

    Raises:
        ValueError: fewer than 4 images, fewer than 2 rows, or a timestep that the model does not have.
    """
    layers = tuple(layers if layers is not None else find_sites(denoiser))
    steps = denoiser.timesteps(timesteps)
    if not steps or min(steps) < 0 or max(steps) >= denoiser.train_timesteps:
        raise ValueError(f"timesteps: expected some of 0 to {denoiser.train_timesteps - 1}, got {list(steps)}")
    if rows < 2:
        raise ValueError(f"rows: images are profiled two by two; expected at least 2, got {rows}")
    data = {data.name: data} if isinstance(data, DataSet) else data
    values, token_mass = {}, {}
    for name, source in data.items():
        count = min(images or len(source.measured), len(source.measured)) // 2 * 2
        if count < 4:
            raise ValueError(f"data set {name!r}: expected at least 4 images to profile, got {count}")
        masks = parts[name] if parts and name in parts else synthetic_part_masks(source.measured.take(range(count)))
        profiling = _Profiling(denoiser, source, count, seed, masks, entries)
        values[name], token_mass[name] = profiling.run(layers, steps, Batches(rows // 2))
    return HeadProfiles(layers, steps, values, token_mass)


@dataclass(frozen=True)
class _Profiling:
    """One data set's images and the noise on them."""

    denoiser: Denoiser
    data: DataSet
    images: int
    seed: int
    masks: torch.Tensor | None
    entries: int | None

    def run(
        self, layers: tuple[AttentionLayer, ...], steps: tuple[int, ...], batches: Batches
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        x0 = self.data.measured.images[: self.images]
        noise = self.data.noise(range(self.images), self.seed)

        def noised(units: list[int], t: int) -> tuple[torch.Tensor, torch.Tensor, Conditioning | torch.Tensor | None]:
            times = torch.full((len(units),), t)
            return self.denoiser.add_noise(x0[units], noise[units], times), times, self.data.condition(units)

        kernels = layer_kernels(self.denoiser, layers, *noised([0, 1], steps[len(steps) // 2]))
        features = self._features({kernel.grid for kernel in kernels if kernel.grid is not None})
        by_call: dict[int, list[LayerKernel]] = {}
        for kernel in kernels:
            by_call.setdefault(kernel.ordinal, []).append(kernel)

        def forward(pairs: list[int], t: int) -> dict[str, list[torch.Tensor]]:
            some = slice(2 * pairs[0], 2 * pairs[-1] + 2)
            shown = {grid: found.of(some, self.denoiser.device) for grid, found in features.items()}
            measured: dict[str, dict[str, torch.Tensor]] = {}

            def observe(call: KernelCall) -> torch.Tensor | None:
                output = None
                for kernel in by_call.get(call.ordinal, ()):
                    found, output = measure_kernel(call, kernel, shown.get(kernel.grid), self.entries)
                    for name, values in found.items():
                        measured.setdefault(name, {})[kernel.layer.name] = values
                return output

            with observing_kernels(observe):
                self.denoiser(*noised(list(range(self.images))[some], t))
            return {
                name: [by_layer[layer.name].cpu() for layer in layers if layer.name in by_layer]
                for name, by_layer in measured.items()
            }

        per_step: list[dict[str, list[np.ndarray]]] = []
        for t in steps:
            parts = batches.run(range(self.images // 2), lambda pairs, t=t: forward(pairs, t))  # type: ignore[misc]
            per_step.append(
                {
                    name: [torch.cat([p[name][i] for p in parts]).numpy() for i in range(len(parts[0][name]))]
                    for name in parts[0]
                }
            )
        crossing = [layer.name for layer in layers if layer.kind == "cross"]
        masses = [step.pop("token_mass", []) for step in per_step]
        values = {
            name: np.stack([np.concatenate(step[name], axis=1).T for step in per_step], axis=1) for name in per_step[0]
        }
        token_mass = {
            name: np.stack([mass[i].swapaxes(0, 1) for mass in masses], axis=1) for i, name in enumerate(crossing)
        }
        return values, token_mass

    def _features(self, grids: set[TokenGrid]) -> dict[TokenGrid | None, TokenFeatures]:
        """Of the clean images, on every grid; none for latents that cannot be decoded and for videos."""
        shown: ImageSet = self.data.measured.take(range(self.images))
        if self.denoiser.codec is not None:
            pixels = self.denoiser.codec.decode(shown.images)
        elif self.denoiser.channels in (1, 3) and shown.images.dim() == 4:
            pixels = shown.images
        else:
            return {}
        masks = None if self.masks is None else self.masks[: self.images]
        return {grid: token_features(pixels, grid, masks) for grid in grids}


def measure_kernel(
    call: KernelCall, kernel: LayerKernel, features: TokenFeatures | None, entries: int | None
) -> tuple[dict[str, Float[torch.Tensor, "units heads"]], Float[torch.Tensor, "images heads queries head_dim"] | None]:
    """Everything about a layer's heads in one forward, by the names in :class:`HeadProfiles`.

    ``token_mass``, of cross-attention only, is ``[images, heads, tokens]``.

    Returns:
        that, and the output of the kernel where it came out on the way, which spares the kernel.
    """
    queries = affordable_queries(call.key.shape[2], entries)
    query = call.query[:, :, kernel.queries]
    # In 16 bits, or under a mask that may close all keys, the kernel's own output would be another one.
    complete = query.shape == call.query.shape and (queries is None or queries >= query.shape[2])
    ours = complete and call.mask is None and query.dtype == call.value.dtype == torch.float32
    mask = call.mask if call.mask is None or call.mask.shape[-2] == 1 else call.mask[..., kernel.queries, :]
    columns = None
    if features is not None and kernel.image_keys is not None:
        columns = pooling_columns([found.columns for found in _pooled_features(features).values()])
    grid = kernel.grid if kernel.only_image else None
    whole = attention_statistics(
        query,
        call.key,
        scale=call.scale,
        mask=mask,
        grid=grid,
        columns=columns if grid else None,
        value=call.value if ours else None,
        queries=queries,
    )
    output = call.output[:, :, kernel.queries].float() if whole.output is None else whole.output
    on_image: AttentionStatistics | None = whole if grid else None
    if kernel.image_keys is not None and kernel.grid is not None and not kernel.only_image:
        # Of the attention that stays within the image: softmax over the image's keys alone.
        on_image = attention_statistics(
            query,
            call.key[:, :, kernel.image_keys],
            scale=call.scale,
            mask=None if mask is None else mask[..., kernel.image_keys],
            grid=kernel.grid,
            columns=columns,
            queries=queries,
        )
    found = (
        _measures(whole, output, kernel, call.key.shape[2])
        | _position(whole)
        | _places(on_image, kernel.grid, whole.entropy)
        | _paired(on_image, output, features, whole.overlap)
    )
    return found, whole.output


def _pooled_features(features: TokenFeatures) -> dict[str, Likeness]:
    """What attention may gather, by the name of its probe."""
    known = {"pools_colour": features.colour}
    return known if features.parts is None else known | {"pools_parts": features.parts}


def _measures(
    whole: AttentionStatistics, output: torch.Tensor, kernel: LayerKernel, keys: int
) -> dict[str, torch.Tensor]:
    most = whole.keys.log()[:, None]
    found = {
        "entropy_nats": whole.entropy,
        "entropy_normalised": torch.where(most > 0, whole.entropy / most.clamp_min(RESOLUTION), 0.0),
        "keys": whole.keys[:, None].expand_as(whole.entropy),
        "uniform_share": whole.uniform_share,
        "output_energy": output.square().mean(dim=(2, 3)),
    }
    if kernel.layer.kind == "cross":
        return found | {"text_share": torch.ones_like(whole.entropy), "token_mass": whole.received}
    if kernel.image_keys is None:
        return found | {"text_share": torch.full_like(whole.entropy, torch.nan)}
    stays = whole.received[:, :, kernel.image_keys] if keys > output.shape[2] else whole.received
    return found | {"text_share": (1 - stays.sum(dim=2)).clamp(min=0)}


def _position(whole: AttentionStatistics) -> dict[str, torch.Tensor]:
    pairs = len(whole.overlap)
    power = whole.power[: 2 * pairs].unflatten(0, (-1, 2)).mean(dim=1) - 1
    overlap = whole.overlap - 1
    varies = power > 10 * RESOLUTION
    share = torch.where(varies, overlap / power.clamp_min(RESOLUTION), 0.0)
    # The score is shrunk where the map is almost uniform, so that its position hardly matters.
    return _named(POSITION, PairedProbe(share, torch.zeros_like(share), overlap / (power + SELECTIVE)))


def _places(found: AttentionStatistics | None, grid: TokenGrid | None, like: torch.Tensor) -> dict[str, torch.Tensor]:
    if found is None or found.spatial is None or grid is None:
        nothing = torch.full_like(like, torch.nan)
        return {key: nothing for name in IMAGE_PROBES for key in (name, f"{name}_null")}
    spatial, expected = found.spatial, _under_uniform(grid, len(found.queries))
    nulls = {
        "self_share": expected.self_share,
        "local_share": expected.local_share,
        "distance": expected.squared_distance.sqrt(),
        "symmetry": spatial.symmetry_other,
    }
    own = {
        "self_share": spatial.self_share,
        "local_share": spatial.local_share,
        "distance": spatial.squared_distance.sqrt(),
        "symmetry": spatial.symmetry,
    }
    return own | {f"{name}_null": null.to(like).expand_as(like) for name, null in nulls.items()}


@cache
def _under_uniform(grid: TokenGrid, queries: int) -> SpatialStatistics:
    """Of uniform attention over the grid by the same queries; on the CPU."""
    blank = torch.zeros(1, 1, grid.tokens, 1)
    spatial = attention_statistics(blank, blank, grid=grid, queries=queries).spatial
    assert spatial is not None
    return spatial


def _paired(
    found: AttentionStatistics | None, output: torch.Tensor, features: TokenFeatures | None, like: torch.Tensor
) -> dict[str, torch.Tensor]:
    nothing = torch.full_like(like, torch.nan)
    probes = dict.fromkeys(SWAPPED_PROBES, PairedProbe(nothing, nothing, nothing))
    if features is not None:
        columns = dict(zip(SCALARS, features.scalars.split(1, dim=2), strict=True))
        if features.parts is not None:
            columns["parts"] = part_columns(features.parts.columns)
        coupled = coupling(output, list(columns.values()))
        probes |= {f"output_{name}": probe for name, probe in zip(columns, coupled, strict=True)}
    if features is not None and found is not None:
        attends = attended(found.received, features.scalars)
        probes |= {f"attends_{name}": probe for name, probe in zip(SCALARS, attends, strict=True)}
        gathered = _pooled_features(features.at(found.queries))
        probes |= dict(zip(gathered, pooling(found.pooled, list(gathered.values())), strict=True))
    return {key: value for name in SWAPPED_PROBES for key, value in _named(name, probes[name]).items()}


def _named(name: str, probe: PairedProbe) -> dict[str, torch.Tensor]:
    return {name: probe.own, f"{name}_null": probe.swapped, f"{name}_score": probe.score}
