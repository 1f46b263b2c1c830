"""Which earlier tokens a token of DALL-E sees: rows, columns or a neighbourhood of the image, and all text."""

# S inputs, of which the first P are the prompt's (start token included), W image tokens in a row

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["row", "column", "conv", "causal"]
"""What of the image an image token sees (DALL-E, 2102.12092, appendix B.1 and figure 11), itself always
among it. row: the W tokens before it in raster order, so back to the same column of the row above.
column: its column. conv: the earlier half of a square around it, which wraps around at the edges as
raster order does. causal: everything before it.
"""


def layout(depth: int, *, sparse: bool = True) -> tuple[Kind, ...]:
    """The kinds of layers 1 to depth as the paper lays them: r c r r r c r r ... and conv at the end.

    Layer i is a column layer where (i - 2) mod 4 = 0, else a row layer; only the last is
    convolutional (appendix B.1). Not sparse: plain causal ones.
    """
    if not sparse:
        return ("causal",) * depth
    before = ("column" if (i - 2) % 4 == 0 else "row" for i in range(1, depth))
    return (*before, "conv")


@dataclass(frozen=True)
class Mask:
    """The mask of a layer. A text token sees the text before it; an image token all of the text.

    prompt: inputs before the image's. grid: W. kernel: side of the convolution's square, odd.
    """

    kind: Kind
    prompt: int
    grid: int
    kernel: int = 11

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.kernel % 2 == 0:
            raise ValueError(f"no mask: {self}")

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether an input sees another, by their places in the sequence; they broadcast."""
        return (query >= key) & ((key < self.prompt) | self._is_near(query - key))

    def _is_near(self, distance: Tensor) -> Tensor:
        """By how many tokens of raster order the one lies before the other: all that decides it."""
        if self.kind == "row":
            return distance <= self.grid
        if self.kind == "column":
            return distance % self.grid == 0
        if self.kind == "causal":
            return distance >= 0
        reach = self.kernel // 2
        near = distance.abs() <= reach
        for rows in range(1, reach + 1):
            near = near | ((distance - rows * self.grid).abs() <= reach)
        return near

    def dense(self, size: int) -> Tensor:
        """Of a sequence of S inputs: bool (S, S), True where the row's input sees the column's."""
        places = torch.arange(size)
        return self.sees(places[:, None], places[None, :])

    def neighbours(self) -> list[Tensor]:
        """For each image token, those of the image that it sees, as rising raster indices."""
        places = torch.arange(self.grid**2) + self.prompt
        seen = self.sees(places[:, None], places[None, :])
        return [row.nonzero()[:, 0] for row in seen]
