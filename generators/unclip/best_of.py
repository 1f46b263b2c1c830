"""The best of several embeddings that a prior draws for a caption, by their similarity to the caption's own."""

# B captions, N candidates of each, E width of the contrastive space

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from generators.noise import SampleNoise
from generators.towers import TextCondition
from pipeline.draws import key64


class Prior(Protocol):
    """What draws image embeddings (B, E) for captions."""

    def sample(self, text: TextCondition, noise: SampleNoise, **options: Any) -> Tensor: ...


def best_of(
    prior: Prior, text: TextCondition, seeds: Sequence[int], number: int = 2, **options: Any
) -> Tensor:
    """(B, E): of `number` drawn ones the one with the largest dot product with the caption's embedding
    (2204.06125, section 2.2, which draws two).

    seeds: one for each caption; its candidate i is the same however many there are. options: those of
    the prior's `sample`.
    """
    return most_similar(candidates(prior, text, seeds, number, **options), text.pooled)


def candidates(
    prior: Prior, text: TextCondition, seeds: Sequence[int], number: int, **options: Any
) -> Tensor:
    """(B, N, E), drawn at once."""
    if number < 1 or len(seeds) != len(text):
        raise ValueError(f"{number} candidates of {len(text)} captions with {len(seeds)} seeds")
    keys = [key64(seed, i, "candidate") for seed in seeds for i in range(number)]
    noise = SampleNoise(keys, text.pooled.device)
    return prior.sample(text.repeated(number), noise, **options).unflatten(0, (-1, number))


def most_similar(drawn: Tensor, pooled: Tensor) -> Tensor:
    """Of candidates (B, N, E) those with the largest dot product with `pooled` (B, E): (B, E)."""
    best = torch.einsum("bne,be->bn", drawn, pooled).argmax(dim=1)
    return drawn[torch.arange(len(drawn), device=drawn.device), best]
