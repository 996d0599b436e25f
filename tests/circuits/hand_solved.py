"""A denoiser whose every head is known by hand: real diffusers attention over pixels, with weights chosen one by one.

Tokens are the 121 pixels of an 11x11 image, with features (pixel, 1, one-hot row, one-hot column). A head attends
either to all pixels alike (queries are zero), or to exactly one, because the scores of all others lie so far below that
the softmax underflows to zero. It writes a multiple of what it saw to the prediction. There are two layers; each is
heard at its own half of the timesteps. For an input x the heads' outputs, and so the prediction, are these, to be
checked with pencil and paper:

    head      high 0   high 1    high 2       high 3    high 4 | low 0   low 1        low 2
    output    x        mean(x)   x shifted    mean(x)   1      | 0       x shifted    x
    weight    1/2      3/4       -1/4         0         1/8    | 1       1/2          -1/2
    V         x        x         x            x         1      | 0       x            x

high 3 is active but not read, low 0 is read but silent: their true effect is exactly zero, whatever replaces them.
"""

from types import SimpleNamespace

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import Attention
from torch import nn

from circuits.denoisers import Denoiser

SIZE = 11
FEATURES = 2 + 2 * SIZE
HEAD_DIM = 1 + 2 * SIZE  # what is copied, then a code of the position
CODE = (
    32.0  # scores of other positions are at least CODE**2 / sqrt(HEAD_DIM) = 213 lower, and exp(-213) is 0 in float32
)
SKIP = 0.25
HALF = 500

LOOKS = {"high": ("self", "all", "right", "all", "all"), "low": ("all", "right", "self")}
SEES = {"high": ("x", "x", "x", "x", "1"), "low": ("0", "x", "x")}
WEIGHTS = {"high": (0.5, 0.75, -0.25, 0.0, 0.125), "low": (1.0, 0.5, -0.5)}
NULL = {("high", 3), ("low", 0)}


class HandSolved(nn.Module):
    """Predicts noise as x / 4 plus the heads of the layer in charge at t."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"in_channels": 1, "sample_size": SIZE}
        self.high = solved_attention("high")
        self.low = solved_attention("low")

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> SimpleNamespace:
        n = len(sample)
        position = torch.eye(SIZE)
        rows = position.repeat_interleave(SIZE, 0).expand(n, -1, -1)
        columns = position.repeat(SIZE, 1).expand(n, -1, -1)
        pixels = sample.reshape(n, SIZE * SIZE, 1)
        tokens = torch.cat([pixels, torch.ones_like(pixels), rows, columns], dim=2)
        low = self.low(tokens)[..., 0]  # runs first, though it stands second here and in the alphabet
        high = self.high(tokens)[..., 0]
        heard = torch.where((timestep >= HALF)[:, None], high, low)
        return SimpleNamespace(sample=SKIP * sample + heard.reshape(sample.shape))


def solved_attention(layer: str) -> Attention:
    heads = len(WEIGHTS[layer])
    attention = Attention(query_dim=FEATURES, heads=heads, dim_head=HEAD_DIM, bias=False, out_bias=False)
    for parameter in attention.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        for head, (looks, sees, weight) in enumerate(zip(LOOKS[layer], SEES[layer], WEIGHTS[layer], strict=True)):
            content = head * HEAD_DIM
            code = slice(content + 1, content + HEAD_DIM)
            if sees != "0":
                attention.to_v.weight[content, ("x", "1").index(sees)] = 1
            if looks != "all":
                attention.to_k.weight[code, 2:] = CODE * torch.eye(2 * SIZE)
                attention.to_q.weight[code, 2:] = CODE * torch.eye(2 * SIZE)
            if looks == "right":  # the query of column c carries the code of column c + 1, around the edge
                attention.to_q.weight[code, 2 + SIZE :] = CODE * shifted_codes()
            attention.to_out[0].weight[0, content] = weight
    return attention


def shifted_codes() -> torch.Tensor:
    """``[code, column]``: column c -> the code of column c + 1."""
    codes = torch.zeros(2 * SIZE, SIZE)
    for column in range(SIZE):
        codes[SIZE + (column + 1) % SIZE, column] = 1
    return codes


def hand_solved_denoiser() -> Denoiser:
    return Denoiser(
        name="hand_solved",
        network=HandSolved().eval().requires_grad_(False),
        scheduler=DDPMScheduler(),
        prediction_type="epsilon",
        channels=1,
        size=SIZE,
        classes=0,
        revision="by hand",
        device=torch.device("cpu"),
    )


def head_output(layer: str, head: int, x: np.ndarray) -> np.ndarray:
    """What a head sees in an image ``[11, 11]``, in float64; linear in x except where it sees the constant."""
    sees, looks = SEES[layer][head], LOOKS[layer][head]
    if sees != "x":
        return np.full_like(x, float(sees))
    return {"self": x, "all": np.full_like(x, x.mean()), "right": np.roll(x, -1, axis=1)}[looks]


def head_value(layer: str, head: int, x: np.ndarray) -> np.ndarray:
    """V of a head: what it would see if every pixel attended to itself."""
    return x if SEES[layer][head] == "x" else np.full_like(x, float(SEES[layer][head]))


def prediction(t: int, x: np.ndarray, replaced: dict[tuple[str, int], np.ndarray]) -> np.ndarray:
    """The noise predicted at t, with some heads' outputs replaced."""
    layer = "high" if t >= HALF else "low"
    outputs = [replaced.get((layer, h), head_output(layer, h, x)) for h in range(len(WEIGHTS[layer]))]
    return SKIP * x + sum(weight * output for weight, output in zip(WEIGHTS[layer], outputs, strict=True))
