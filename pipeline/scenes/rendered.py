"""Rendered scenes as a training's examples: drawn when they are asked for, never stored."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline import places as order
from pipeline.loading.examples import Examples
from pipeline.places import Place
from pipeline.scenes.captions import LONG, long_caption
from pipeline.scenes.render import render
from pipeline.scenes.world import LEVELS, Scene, Split, draw_scene


@dataclass(frozen=True)
class RenderedScenes:
    """An `ExampleSource` of scenes with exactly known content; `index` alone decides what is shown.

    Captions are the descriptive ones, each time by another template. seed: -1 is for measuring, a
    training has one from 0 on.
    """

    level: str
    split: Split = "train"
    seed: int = 0
    size: int = 1 << 22

    def __len__(self) -> int:
        return self.size

    def places(self, step: int, *, seed: int, batch_size: int) -> list[Place]:
        return order.places(step, seed=seed, size=self.size, batch_size=batch_size)

    def batch(self, places: Sequence[Place]) -> Examples:
        """Images uint8 (B, n, n, 3), n the level's pixels, and descriptive captions."""
        images = np.stack([self.image(place.index) for place in places])
        return Examples(places, images, [self.text(place) for place in places])

    def text(self, place: Place) -> str:
        """A caption of the place's scene that tells everything."""
        return long_caption(self.scene(place.index), place.draws("template").below(len(LONG)))

    def texts(self, num: int) -> list[str]:
        """Captions of samples 0 .. num - 1."""
        return [self.text(Place(self.seed, 0, 0, index)) for index in range(num)]

    def scene(self, index: int) -> Scene:
        return draw_scene(LEVELS[self.level], self.seed, index, self.split)

    def image(self, index: int) -> np.ndarray:
        """uint8 (n, n, 3)."""
        return render(self.level, self.scene(index), self.seed, index)

    def first(self, num: int) -> Examples:
        """Samples 0 .. num - 1, the same ones at every call."""
        return self.batch([Place(self.seed, 0, 0, index) for index in range(num)])
