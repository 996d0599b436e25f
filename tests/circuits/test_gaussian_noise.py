"""Mode noise: draws of the reference set's moments, fixed by image, layer and timestep, and by nothing else."""

from collections.abc import Callable

import pytest
import torch

from circuits import gaussian_noise
from circuits.denoisers import Denoiser
from circuits.engine import Window
from circuits.gaussian_noise import GaussianNoise
from circuits.interventions import Intervention, Mode, Site
from circuits.references import MeanReferences
from circuits.sites import AttentionLayer, find_sites
from tests.circuits.conftest import make_engine, two_data_sets

SEED = 3
Drawn = Callable[..., torch.Tensor]


@pytest.fixture
def layers(dit: Denoiser) -> tuple[AttentionLayer, ...]:
    return find_sites(dit)


@pytest.fixture
def means(dit: Denoiser, layers: tuple[AttentionLayer, ...]) -> MeanReferences:
    return MeanReferences(dit, layers, SEED, 32)


@pytest.fixture
def drawn(dit: Denoiser, layers: tuple[AttentionLayer, ...], means: MeanReferences) -> Drawn:
    data = two_data_sets(dit)

    def standardised(
        units: list[tuple[int, int]], layer: int = 0, dataset: str = "natural", seed: int = SEED
    ) -> torch.Tensor:
        """The draws alone, a row a unit, asked for in no order and some of them twice."""
        noise = GaussianNoise(means, seed).replacement(data[dataset], layers, units)
        rows = torch.tensor([*range(len(units)), 0]).flip(0)
        found = noise(layers[layer], rows)
        assert torch.equal(found[0], found[-1]), "one unit, one draw"
        of = [means.moments(data[dataset], t, layers[layer]) for _, t in units]
        z = [(row - m.mean) / m.deviation for row, m in zip(found.flip(0)[:-1], of, strict=True)]
        return torch.stack(z)

    return standardised


def test_draws_are_standard_normal_and_independent(drawn: Drawn) -> None:
    units = [(image, t) for image in range(40) for t in (799, 399)]
    z = drawn(units)
    assert z.shape == (80, 49, 20)
    # 78,400 draws: mean and variance within 4 standard errors; entries of a head, and two heads, uncorrelated.
    assert abs(z.mean()) < 4 / 78_400**0.5
    assert abs(z.var() - 1) < 4 * (2 / 78_400) ** 0.5
    across = torch.corrcoef(z.flatten(0, 1).T) - torch.eye(20)
    assert across.abs().max() < 5 / (80 * 49) ** 0.5
    assert abs((z[0::2] * z[1::2]).mean()) < 4 / 39_200**0.5, "the timesteps of an image"


def test_a_draw_depends_on_seed_data_set_layer_image_and_timestep_alone(drawn: Drawn) -> None:
    (z,) = drawn([(5, 399)])
    torch.testing.assert_close(drawn([(9, 799), (5, 399), (2, 399)])[1], z, rtol=1e-4, atol=1e-4)
    for other in (
        drawn([(6, 399)]), drawn([(5, 799)]), drawn([(5, 399)], layer=1), drawn([(5, 399)], dataset="synthetic"),
        drawn([(5, 399)], seed=4),
    ):  # fmt: skip
        assert abs(torch.corrcoef(torch.stack([other[0].flatten(), z.flatten()]))[0, 1]) < 5 / z.numel() ** 0.5


def test_little_memory_changes_no_draw(dit: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for kept in (gaussian_noise.KEPT_BYTES, 1):
        monkeypatch.setattr(gaussian_noise, "KEPT_BYTES", kept)
        engine = make_engine(dit)
        noise = [Intervention(Mode.noise, (Site(name),)) for name in engine.layers]
        found.append(engine.denoise("natural", Window(999, 500), noise, 6)["noise_mse"].ablated)
        assert (len(engine._denoising._gaussian._kept) == 1) == (kept == 1)
    assert torch.equal(*found)
