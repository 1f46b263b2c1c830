"""What a search for captions is: tensors with a row per image, a step over them, and what it finds."""

# A images, T places for tokens (start token included)

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from captioner.writer import Caches, Writer


@dataclass(frozen=True)
class Decoded:
    """One caption: its ids without start and end, the log-probability of each token written."""

    ids: list[int]
    logprobs: list[float]  # untempered; the end token's is the last where finish is 'stop'
    finish: str  # 'stop', 'length', or 'failed' where the logits were not finite
    score: float = -math.inf  # sum of logprobs / length ** length_penalty, the end token included


class Search(Protocol):
    """How captions are chosen. Equal searches take equal steps, so a captured one serves them all."""

    steps: int
    """Tokens of a caption at most."""
    samples: int
    """Captions of an image that are written side by side."""
    beams: int
    """Places of one caption that is searched for."""

    def rows(self, keys: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        """What a new batch knows, one row per key in each tensor; `done` is bool (A, ...)."""

    def step(
        self, writer: Writer, caches: Caches, rows: dict[str, Tensor], position: Tensor
    ) -> None:
        """Write the token behind `position`, a tensor (1,), of every row, in place.

        No shape depends on the position and nothing waits for the device.
        """

    def collect(
        self, rows: dict[str, Tensor], chosen: Sequence[int], *, is_last: bool
    ) -> list[list[Decoded]]:
        """The captions of chosen rows, each row's best first. is_last: no token will follow."""


def cut(ids: list[int], logprobs: list[float], end: int, length_penalty: float) -> Decoded:
    """One caption: what is written up to its first end token."""
    is_stopped = end in ids
    num_kept = ids.index(end) + 1 if is_stopped else len(ids)
    values = logprobs[:num_kept]
    if not all(map(math.isfinite, values)):
        return Decoded([], [], "failed")
    finish = "stop" if is_stopped else "length"
    score = sum(values) / num_kept**length_penalty
    return Decoded(ids[: num_kept - is_stopped], values, finish, score)
