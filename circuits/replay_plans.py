"""The replay plans of a denoiser's layers: made when first asked for, and used only where they proved right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float

from circuits.conditioning import draw
from circuits.denoisers import Denoiser
from circuits.hooks import capture_inputs, capture_leaves, edit_inputs
from circuits.replay import ReplayPlan, replaying
from circuits.sites import AttentionLayer
from circuits.traced_forward import NotReplayable, TracedForward

_PROBE_ROWS = 3


class ReplayPlans:
    """Plans by layer. A layer that cannot be replayed has none: it is computed plainly, and is never wrong for it.

    Attributes:
        why_not: by layer, what stood against replaying it.
    """

    def __init__(self, denoiser: Denoiser, layers: Sequence[AttentionLayer]) -> None:
        self.why_not: dict[str, str] = {}
        self._denoiser = denoiser
        self._layers = {layer.name: layer for layer in layers}
        self._traced: TracedForward | NotReplayable | None = None
        self._plans: dict[str, ReplayPlan | None] = {}
        generator = torch.Generator("cpu").manual_seed(0)
        self._x = torch.randn((_PROBE_ROWS, *denoiser.sample_shape), generator=generator)
        self._t = torch.arange(1, _PROBE_ROWS + 1) * denoiser.train_timesteps // (_PROBE_ROWS + 2)
        self._conditioning = draw(denoiser.network, _PROBE_ROWS, generator)

    def __getitem__(self, layer: str) -> ReplayPlan | None:
        """The plan of a layer, None where it has to be computed plainly."""
        if layer not in self._plans:
            self._plans[layer] = self._proved(self._layers[layer])
        return self._plans[layer]

    def of_all(self) -> Mapping[str, ReplayPlan]:
        """The plans of all layers that can be replayed."""
        return {name: plan for name in self._layers if (plan := self[name]) is not None}

    def _proved(self, layer: AttentionLayer) -> ReplayPlan | None:
        for dense in (False, True):
            try:
                plan = replace(self._trace().plan(layer), dense=dense)
                self._check(plan)
            except Exception as error:  # whatever a network does not bear: it is computed plainly then
                self.why_not[layer.name] = f"{type(error).__name__}: {error}"
            else:
                self.why_not.pop(layer.name, None)
                return plan
        return None

    def _trace(self) -> TracedForward:
        if self._traced is None:
            try:
                layers = list(self._layers.values())
                self._traced = TracedForward.of(self._denoiser.network, layers, lambda rows: self._probe(range(rows)))
            except NotReplayable as error:
                self._traced = error
        if isinstance(self._traced, NotReplayable):
            raise self._traced
        return self._traced

    def _probe(self, rows: Sequence[int]) -> Float[torch.Tensor, "rows c h w"]:
        chosen = list(rows)
        return self._denoiser(self._x[chosen], self._t[chosen], self._conditioning.rows(chosen)).target

    def _check(self, plan: ReplayPlan) -> None:
        """A replayed forward under an edit equals the plain one.

        Raises:
            NotReplayable: it does not.
        """
        network, path = self._denoiser.network, plan.layer.projection
        with capture_inputs(network, [path]) as seen, capture_leaves(network, plan.live) as recorded:
            self._probe(range(_PROBE_ROWS))
        clean = seen[path]
        factors = torch.linspace(0, 2, clean.shape[-1], device=clean.device).to(clean.dtype)
        rows = torch.arange(_PROBE_ROWS).roll(1)
        with edit_inputs(network, {path: lambda activation: activation * factors}):
            plain = self._probe(rows.tolist())
        index = rows.to(clean.device)
        edited = clean[index] * factors
        with replaying(network, plan, recorded, index), edit_inputs(network, {path: lambda _: edited}):
            found = self._probe(rows.tolist())
        difference = ((found - plain).abs().max() / plain.abs().max().clamp_min(torch.finfo(plain.dtype).tiny)).item()
        tolerance = 1e-5 if clean.dtype == torch.float32 else 1e-2
        if not difference <= tolerance:
            raise NotReplayable(f"differs from a plain forward by {difference:.1e} of it, expected {tolerance:.0e}")
