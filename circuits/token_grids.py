"""Where tokens lie in the image: distances, neighbourhoods and mirror images on the grid that they were cut from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int

NEIGHBOURHOOD = 1 / 16
"""Half the width of a token's neighbourhood, in image sides; at least one token."""


@dataclass(frozen=True)
class TokenGrid:
    """Tokens in rows, from the top left; token i lies in row i // columns and column i % columns."""

    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        return self.rows * self.columns

    @property
    def radius(self) -> int:
        """Of a neighbourhood, in tokens."""
        return max(1, round(max(self.rows, self.columns) * NEIGHBOURHOOD))

    def weighings(self, queries: Int[torch.Tensor, " queries"]) -> Float[torch.Tensor, "queries tokens 5"]:
        """What the attention of a query is weighed by, for every token.

        In this order: the square of the distance, in image sides; 1 at the query itself; in its neighbourhood, a square
        of 2 ``radius`` + 1 tokens about it; in that of its mirror image across the vertical axis, where a frontal face
        has its other half; and across the horizontal axis, about which no face is symmetric.
        """
        device = queries.device
        row, column = queries[:, None] // self.columns, queries[:, None] % self.columns
        tokens = torch.arange(self.tokens, device=device)
        rows, columns = tokens // self.columns, tokens % self.columns

        def near(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
            return ((rows - row).abs() <= self.radius) & ((columns - column).abs() <= self.radius)

        distance = ((rows - row).square() + (columns - column).square()) / max(self.rows, self.columns) ** 2
        places = (
            tokens == queries[:, None],
            near(row, column),
            near(row, self.columns - 1 - column),
            near(self.rows - 1 - row, column),
        )
        return torch.stack([distance, *places], dim=2).float()


def token_grid(tokens: int, height: int, width: int) -> TokenGrid | None:
    """The grid of ``tokens`` square patches that cover an image of this height and width; None where none does."""
    rows = math.isqrt(tokens * height // width)
    if rows == 0 or tokens % rows or rows * width != tokens // rows * height:
        return None
    return TokenGrid(rows, tokens // rows)
