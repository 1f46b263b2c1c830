"""Frozen contrastive towers (CLIP) as generators are handed them, and what they make of captions."""

# B samples, T tokens of a caption, D width of their states, E width of the contrastive space

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError

FAR_FROM_UNIT = 0.01
"""A norm further than this from 1 is no contrastive embedding's, or that of another scale."""


@dataclass(frozen=True)
class TextCondition:
    """What towers make of B captions.

    states: (B, T, D). mask: (B, T) bool, the tokens that are the caption's. pooled: (B, E), unit length.
    """

    states: Tensor
    mask: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        return len(self.pooled)

    def where(self, kept: Tensor, other: "TextCondition") -> "TextCondition":
        """These where `kept` (B,) is true, elsewhere the one caption of `other`."""
        return TextCondition(
            torch.where(kept[:, None, None], self.states, other.states),
            torch.where(kept[:, None], self.mask, other.mask),
            torch.where(kept[:, None], self.pooled, other.pooled),
        )

    def repeated(self, times: int) -> "TextCondition":
        """Each caption `times` times, one after the other."""
        parts = (self.states, self.mask, self.pooled)
        return TextCondition(*(part.repeat_interleave(times, dim=0) for part in parts))


class Towers(Protocol):
    """Nothing of it is trained; `prepare` and `tokenize` run in threads, the others on its device."""

    about: Mapping[str, Any]
    """JSON that identifies architecture and weights: models of one stack have seen the same towers."""
    embed_dim: int  # E
    text_width: int  # D
    context: int  # T
    image_size: int  # pixels of a side that the image tower looks at

    def prepare(self, images: np.ndarray) -> Tensor:
        """uint8 (B, H, W, 3) -> what `encode_image` takes."""
        ...

    def encode_image(self, prepared: Tensor) -> Tensor:
        """Embeddings (B, E), unit length, fp32."""
        ...

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Ids (B, T) int64; "" is a caption like others."""
        ...

    def encode_text(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The fields of a `TextCondition`, in fp32."""
        ...

    def to(self, device: torch.device | str) -> Self: ...


def require_unit(embeddings: Tensor, what: str) -> Tensor:
    """The embeddings (B, E) themselves; UserError where their norms are not 1."""
    norms = torch.linalg.vector_norm(embeddings.float(), dim=-1)
    if not bool(((norms - 1).abs() <= FAR_FROM_UNIT).all()):  # also catches what is not a number
        raise UserError(
            f"{what} have norms from {norms.min():.3g} to {norms.max():.3g}, not 1",
            "give normalised embeddings: encode with CLIP= of this version",
        )
    return embeddings
