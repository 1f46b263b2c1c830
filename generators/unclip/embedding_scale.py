"""How image embeddings are scaled for a prior: by a constant, or to mean 0 and deviation 1 per dimension."""

# B samples, N embeddings that are measured, E width of the contrastive space

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from generators.task import Batch
from generators.towers import Towers, require_unit
from generators.unclip.conditions import add_image, image_embedding
from pipeline.errors import UserError
from pipeline.loading.examples import Examples, ExampleSource

FACTOR = 17.2
"""2204.06125's: unit vectors then vary about as much as pixels do."""
COUNT = 4096  # embeddings that statistics are taken from
CONSTANT = 1e-3
"""A dimension that varies less than this share of the others is taken for one that never does."""
_BATCH = 256


@dataclass(frozen=True)
class EmbeddingScale:
    """What embeddings (B, E) are shifted by, mean (E,), and then divided by, std (E,)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def constant(cls, width: int) -> Self:
        """Unit vectors times 17.2 (2204.06125)."""
        return cls(torch.zeros(width), torch.full((width,), 1 / FACTOR))

    @classmethod
    def whitening(cls, embeddings: Tensor) -> Self:
        """Of embeddings (N, E): each dimension gets mean 0 and deviation 1, as Karlo's do.

        What never varies is divided by the others' deviation, so that it stays near 0.
        """
        if len(embeddings) < 2:
            raise UserError(
                f"{len(embeddings)} embeddings have no deviation", "give at least two samples"
            )
        found = embeddings.double().cpu()
        std = found.std(dim=0)
        usual = std.square().mean().sqrt()
        if not usual > 0:
            raise UserError(
                f"{len(found)} embeddings are all the same",
                "give images that differ, or scale 17.2",
            )
        std = torch.where(std < CONSTANT * usual, usual, std)
        return cls(found.mean(dim=0).float(), std.float())

    def scaled(self, embeddings: Tensor) -> Tensor:
        """(B, E) as a prior has them."""
        return (embeddings - self.mean.to(embeddings.device)) / self.std.to(embeddings.device)

    def unscaled(self, scaled: Tensor) -> Tensor:
        """The inverse."""
        return scaled * self.std.to(scaled.device) + self.mean.to(scaled.device)


def first_examples(source: ExampleSource, count: int = COUNT) -> Iterator[Examples]:
    """Batches of up to `count` samples, rounded up to whole batches, the same ones at every call."""
    size = min(_BATCH, len(source))
    for step in range(-(-min(count, len(source)) // size)):
        yield source.batch(source.places(step, seed=0, batch_size=size))


def image_embeddings(source: ExampleSource, towers: Towers, count: int = COUNT) -> Tensor:
    """(N, E) on the CPU, of `first_examples`, cached or made now.

    UserError where their lengths are not 1, as of a cache of something else.
    """
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    found = []
    for examples in first_examples(source, count):
        batch: Batch = {}
        add_image(batch, examples, towers)
        if "prepared" in batch:
            towers = towers.to(device)
            batch["prepared"] = batch["prepared"].to(device)
        found.append(require_unit(image_embedding(batch, towers), "image embeddings").cpu())
    return torch.cat(found)
