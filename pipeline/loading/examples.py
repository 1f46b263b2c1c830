"""What a training sees of its samples, and what it asks of whatever holds them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from pipeline.places import Place


@dataclass(frozen=True)
class Examples:
    """A batch: what B samples show and say, in the order of their places."""

    places: Sequence[Place]
    images: np.ndarray | None
    """uint8 (B, H, W, 3); None where only what is cached of them was asked for."""
    texts: Sequence[str]
    """The caption of each, "" where it was dropped for guidance."""
    encodings: dict[str, np.ndarray] = field(default_factory=dict)
    """What a cache holds of them, each (B, ...)."""


class ExampleSource(Protocol):
    """Samples with numbers 0 .. len - 1; its methods are pure functions of their arguments."""

    def __len__(self) -> int:
        """Samples in one epoch."""
        ...

    def places(self, step: int, *, seed: int, batch_size: int) -> Sequence[Place]:
        """The samples of a step's global batch, over all processes."""
        ...

    def batch(self, places: Sequence[Place]) -> Examples:
        """Images and captions of some of a step's samples; called from many threads."""
        ...

    def texts(self, num: int) -> Sequence[str]:
        """Up to `num` captions from all over, the same at every call, without their images."""
        ...
