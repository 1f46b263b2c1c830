"""What a cache of encodings asks of the models that fill it."""

# B pictures or texts, S pixels of a side, C h w of latents, n tokens of a picture, T tokens of a text,
# D width of their states, E width of the vector of a text or a picture

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class TextStates:
    """What a text tower makes of B texts."""

    states: np.ndarray
    """Of each token, float32 (B, T, D)."""
    lengths: np.ndarray
    """How many of a row's states, from the first on, are the text's, start and end among them: int (B,)."""
    pooled: np.ndarray | None
    """Of each text, float32 (B, E); None for encoders without such a vector, as T5."""
    num_cut: int
    """Texts that did not fit T tokens and lost their end."""


class ImageEncoder(Protocol):
    """A first stage."""

    name: str  # latents | tokens

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 (B, S, S, 3) -> latents float32 (B, C, h, w), or tokens uint16 or int32 (B, n)."""
        ...


class ImageTower(Protocol):
    """The image side of contrastive towers."""

    image_size: int  # S

    def embed(self, images: np.ndarray) -> np.ndarray:
        """uint8 (B, S, S, 3) -> unit vectors float32 (B, E)."""
        ...


class TextEncoder(Protocol):
    """A text tower."""

    def __call__(self, texts: Sequence[str]) -> TextStates: ...


@dataclass(frozen=True)
class Encoders:
    """What a worker encodes with."""

    image: ImageEncoder | None
    text: TextEncoder | None
    environment: dict
    tower: ImageTower | None = None
