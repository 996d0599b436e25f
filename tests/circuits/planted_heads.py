"""A denoiser whose heads are built by hand, one for every type of attention, and some that attend to noise."""

from collections.abc import Sequence
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import nn

from circuits.attention_types import AttentionType
from circuits.data.image_sets import ImageSet
from circuits.data.sources import DataSet
from circuits.data.synthetic_faces import synthetic_faces
from circuits.denoisers import Denoiser

SIDE, SIZE = 8, 32
TOKENS = SIDE * SIDE
NOISE = "noise"
PLANTED: dict[str, str] = {
    "edges": AttentionType.edge,
    "fine texture": AttentionType.texture,
    "part pooling": AttentionType.semantic_part,
    "mirrored": AttentionType.symmetry,
    "fixed places": AttentionType.positional,
    "uniform": AttentionType.global_context,
    "diagonal": AttentionType.local_detail,
    "neighbours": AttentionType.local_detail,
    "bright": AttentionType.luminance,
    "dark": AttentionType.luminance,
    "own colour": AttentionType.luminance,
    NOISE: "unassigned",
}
"""What a head does, and the type that it is to be recovered as."""


def pooled(maps: torch.Tensor) -> torch.Tensor:
    """``[images, tokens, channels]``, means over patches, by reshaping; not standardised."""
    n, channels = maps.shape[:2]
    patch = SIZE // SIDE
    return maps.view(n, channels, SIDE, patch, SIDE, patch).mean(dim=(3, 5)).flatten(2).transpose(1, 2)


def standardised(values: torch.Tensor) -> torch.Tensor:
    return (values - values.mean(dim=1, keepdim=True)) / (values.std(dim=1, keepdim=True) + 1e-6)


class PlantedAttention(nn.Module):
    """Attention whose queries and keys are computed from the image, each head in its own way."""

    def __init__(self, kinds: Sequence[str], faces: torch.Tensor, parts: torch.Tensor, sharpness: float) -> None:
        super().__init__()
        self.kinds, self.heads, self.sharpness = kinds, len(kinds), sharpness
        self.faces, self.parts = faces, parts
        self.to_q = nn.Linear(1, 1)  # by which attention is known; its queries are built by hand
        self.to_out = nn.ModuleList([nn.Linear(self.heads * TOKENS, 1)])

    def queries_and_keys(self, kind: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``[images, tokens, any]`` each; their inner product is the logit."""
        n = len(x)
        one, eye = torch.ones(n, TOKENS, 1), torch.eye(TOKENS).expand(n, -1, -1)
        light = standardised(pooled(x))
        row, column = torch.arange(TOKENS) // SIDE, torch.arange(TOKENS) % SIDE
        square = (row[:, None] - row).square() + (column[:, None] - column).square()
        if kind == "edges":
            # Central differences; at the border those of a picture that goes on as it ends.
            wide = F.pad(x, (1, 1, 1, 1), mode="replicate")
            across, down = wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2], wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]
            return one, self.sharpness * standardised(pooled((across.square() + down.square()).sqrt()))
        if kind == "fine texture":
            # The Laplacian.
            kernel = torch.tensor([[[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]])
            fine = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel).square()
            return one, self.sharpness * standardised(pooled(fine).sqrt())
        if kind == "part pooling":
            # The image is looked up among the faces, so that the head knows the exact outlines of its parts.
            shares = pooled(self.parts[torch.cdist(x.flatten(1), self.faces.flatten(1)).argmin(dim=1)].float())
            return 6 * self.sharpness * shares, shares
        if kind == "mirrored":
            return 8 * self.sharpness * eye, eye.unflatten(2, (SIDE, SIDE)).flip(3).flatten(2)
        if kind == "fixed places":
            generator = torch.Generator().manual_seed(0)
            return eye, (2 * torch.randn(TOKENS, TOKENS, generator=generator)).expand(n, -1, -1)
        if kind == "uniform":
            return 0 * one, one
        if kind == "diagonal":
            return 8 * self.sharpness * eye, eye
        if kind == "neighbours":
            return eye, (-self.sharpness * square).float().expand(n, -1, -1)
        if kind in ("bright", "dark"):
            return one, self.sharpness * light * (1 if kind == "bright" else -1)
        if kind == "own colour":
            return 2 * self.sharpness * light, light
        assert kind == NOISE, kind
        # New for every image; a function of the image all the same, as everything in a network is.
        seeds = (x.double().sum(dim=(1, 2, 3)).abs() * 1e6).long().tolist()
        logits = torch.stack(
            [1.5 * torch.randn(TOKENS, TOKENS, generator=torch.Generator().manual_seed(s)) for s in seeds]
        )
        return eye, logits.transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pairs = [self.queries_and_keys(kind, x) for kind in self.kinds]
        query, key = (
            torch.stack([F.pad(pair[i], (0, TOKENS - pair[i].shape[2])) for pair in pairs], dim=1) for i in (0, 1)
        )
        value = torch.eye(TOKENS).expand(len(x), self.heads, -1, -1)
        return self.to_out[0](F.scaled_dot_product_attention(query, key, value, scale=1.0).transpose(1, 2).flatten(2))


class PlantedNetwork(nn.Module):
    """Layers of planted heads that all see the image, and an output that they change a little."""

    def __init__(self, layers: Sequence[PlantedAttention]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> SimpleNamespace:
        seen = sum(block(x) for block in self.blocks)
        return SimpleNamespace(sample=x + seen.mean(dim=(1, 2))[:, None, None, None])


def planted_denoiser(
    kinds: Sequence[Sequence[str]], images: int, sharpness: float = 1.0
) -> tuple[Denoiser, dict[str, DataSet]]:
    """A denoiser with one layer for every list of kinds, and generated faces to profile it on."""
    drawn = synthetic_faces(range(images), size=SIZE)
    faces, parts = torch.from_numpy(drawn.images), torch.from_numpy(drawn.parts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = PlantedNetwork([PlantedAttention(layer, faces, parts, sharpness) for layer in kinds])
    measured = ImageSet("synthetic", faces, tuple(f"synthetic_{i}" for i in range(images)), None, "")
    denoiser = Denoiser(
        name="planted",
        network=network.eval().requires_grad_(False),
        scheduler=DDPMScheduler(),
        prediction_type="epsilon",
        channels=1,
        size=SIZE,
        classes=0,
        revision="",
        device=torch.device("cpu"),
    )
    return denoiser, {"synthetic": DataSet("synthetic", None, measured, measured)}
