"""Half precision: only the network computes in it, and the shipped models' effects are those of float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.model_card import WINDOWS
from benchmarks.precision import agreement, zeroed
from circuits.checkpoints import load_codec
from circuits.denoisers import load_denoiser
from circuits.engine import Engine, Window
from circuits.interventions import Intervention, Site
from circuits.shipped import SHIPPED
from circuits.vocabulary import ABLATIONS
from tests.circuits.conftest import MODELS, make_engine, model_folders
from tests.circuits.test_pipelines import autoencoder

__all__ = ["model_folders"]


@pytest.mark.run
@pytest.mark.parametrize("name", SHIPPED)
def test_effects_in_bfloat16_are_those_of_float32(name: str) -> None:
    """Layers and one head of each at high noise; `python -m benchmarks.precision` measures all on 64 images."""
    full, half = (zeroed(name, dtype, 12, WINDOWS[:1], heads=[3]) for dtype in ("float32", "bfloat16"))
    found = agreement(full, half)
    assert found.trials == 2 * 4 * 2
    assert found.non_negligible >= 3
    assert found.same_sign == found.within == found.non_negligible, found
    assert not np.array_equal(full, half)


def test_agreement_counts_what_disagrees() -> None:
    """Four trials of known mean and spread: within, outside, of the other sign, and a negligible one."""
    spread = np.array([-0.03, 0.03, -0.01, 0.01])
    full = np.array([[0.5], [0.5], [0.05], [0.0]]) + spread
    lower = np.array([[0.51], [0.6], [-0.06], [9.0]]) + spread
    full[3] /= 1000
    found = agreement(full, lower)
    assert (found.trials, found.non_negligible, found.same_sign, found.within) == (4, 3, 2, 1)
    half_width = 3.182446 * spread.std(ddof=1) / 2  # Student's t of 3 degrees of freedom
    assert found.widest == pytest.approx(0.11 / half_width, rel=1e-4)
    assert found.largest == pytest.approx(100 * np.expm1(0.11))


def half_engine(folder: Path, dtype: str) -> Engine:
    return make_engine(load_denoiser(folder, dtype=dtype))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", MODELS)
def test_only_the_network_is_in_half_precision(model_folders: dict[str, Path], name: str, dtype: str) -> None:
    """Also on a CPU: metrics, sampler, latents and references are float32, and every mode works."""
    engine = half_engine(model_folders[name], dtype)
    assert engine.denoiser.dtype == getattr(torch, dtype)
    first = next(iter(engine.layers))
    chosen = [Intervention(mode, (Site(first, 1),)) for mode in ABLATIONS]
    full = make_engine(load_denoiser(model_folders[name])).denoise("natural", Window(999, 800), chosen, 3)
    for metric, paired in engine.denoise("natural", Window(999, 800), chosen, 3).items():
        assert paired.ablated.dtype == paired.baseline.dtype == torch.float32
        torch.testing.assert_close(paired.baseline, full[metric].baseline, rtol=0.1, atol=0.02)
    made = engine.sample("natural", Window(500, 0), chosen[:2], 2)
    assert made.ablated.dtype == made.baseline.dtype == torch.float32
    (trajectory,) = engine._sampling._trajectories.values()
    assert {state.x.dtype for state in trajectory.states} == {torch.float32}
    assert len(set(made.baseline.flatten().tolist())) > 100, "latents are not rounded to the network's dtype"
    rounded = made.baseline.to(engine.denoiser.dtype).float()
    assert not torch.equal(rounded, made.baseline)
    means = engine._sampling._means
    assert {table.dtype for tables in means._means.values() for table in tables.values()} == {torch.float32}


def test_an_autoencoder_that_overflows_in_float16_stays_in_float32(tmp_path: Path) -> None:
    for upcast, expected in ((True, torch.float32), (False, torch.float16)):
        autoencoder(force_upcast=upcast).save_pretrained(tmp_path / str(upcast) / "vae")
        codec = load_codec(tmp_path / str(upcast), torch.float16)
        assert codec is not None
        assert codec.autoencoder.dtype == expected
        half = load_codec(tmp_path / str(upcast), torch.bfloat16)
        assert half is not None
        assert half.autoencoder.dtype == torch.bfloat16
