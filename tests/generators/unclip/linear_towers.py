"""Towers that are two matrices: what a prior can learn of them is known, and they cost nothing."""

from collections.abc import Sequence
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

WORDS = 997


class LinearTowers:
    """An image's embedding is linear in its pixels, a caption's the sum of its words'.

    `shared` is added to every image's, as real embeddings lie in a cone. width: E and D.
    """

    def __init__(self, width: int = 16, context: int = 24, pixels: int = 16, shared: float = 1.0):
        draws = torch.Generator().manual_seed(0)
        self.embed_dim, self.text_width, self.context = width, width, context
        self.about = {"towers": "linear", "width": width}
        self.of_pixels = torch.randn(3 * pixels**2, width, generator=draws) * pixels**-1
        self.of_words = torch.randn(WORDS + 2, width, generator=draws)
        self.shared = shared * F.normalize(torch.randn(width, generator=draws), dim=0)

    def prepare(self, images: np.ndarray) -> Tensor:
        return torch.from_numpy(images).flatten(1).float() / 127.5 - 1

    def encode_image(self, prepared: Tensor) -> Tensor:
        found = F.normalize(prepared @ self.of_pixels, dim=-1) + self.shared
        return F.normalize(found, dim=-1)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """A start, a number for each word, and nothing behind."""
        ids = torch.zeros(len(texts), self.context, dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            words = [2 + crc32(word.encode()) % WORDS for word in text.split()]
            kept = [1, *words][: self.context]
            row[: len(kept)] = torch.tensor(kept)
        return ids

    def encode_text(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states, mask = self.of_words[ids], ids > 0
        return states, mask, F.normalize((states * mask[..., None]).sum(dim=1), dim=-1)

    def to(self, device: torch.device | str) -> "LinearTowers":
        self.of_pixels, self.of_words, self.shared = (
            tensor.to(device) for tensor in (self.of_pixels, self.of_words, self.shared)
        )
        return self
