"""Towers and a decoder that know rendered scenes: what measures of edits say of them is known beforehand."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from generators.pixels import to_model
from generators.towers import TextCondition
from generators.unclip.pixel_decoder import PixelDecoder
from pipeline.scenes.changes import ATTRIBUTES, VALUES
from pipeline.scenes.claims import parse
from pipeline.scenes.oracle import read_scene
from pipeline.scenes.render import render
from pipeline.scenes.world import Scene, Thing
from tests.generators.unclip.small_decoders import OF_TOWERS

LEVEL = "A16"
COUNTS = [len(VALUES[name]) for name in ATTRIBUTES]
WIDTH = sum(COUNTS) + 1


class KnowingTowers:
    """E: a number for each value of each attribute, and last whether an image or a caption says it.

    deaf: all captions are one.
    """

    def __init__(self, deaf: bool = False) -> None:
        self.about = {"towers": "knowing"}
        self.embed_dim = self.text_width = WIDTH
        self.context, self.deaf = len(ATTRIBUTES), deaf

    def prepare(self, images: np.ndarray) -> Tensor:
        return torch.from_numpy(images)

    def encode_image(self, prepared: Tensor) -> Tensor:
        scenes = [read_scene(image, LEVEL) for image in prepared.numpy()]
        return _embedded([_values(scene) for scene in scenes], 1)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """The number of each attribute's value; -1 where it is not told."""
        return torch.tensor([self._ids(text) for text in texts])

    def _ids(self, text: str) -> list[int]:
        return _values(None if self.deaf or not text else parse(text).scene())

    def encode_text(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states = torch.zeros(*ids.shape, WIDTH)
        return states, torch.ones(ids.shape, dtype=torch.bool), _embedded(ids.tolist(), -1)

    def to(self, device: torch.device | str) -> "KnowingTowers":
        return self


def _values(scene: Scene | None) -> list[int]:
    if scene is None:
        return [-1] * len(ATTRIBUTES)
    (thing,) = scene.things
    said = {"background": scene.background}
    return [VALUES[n].index(said.get(n) or getattr(thing, n)) for n in ATTRIBUTES]


def _embedded(values: list[list[int]], last: int) -> Tensor:
    numbers = torch.tensor(values)
    groups = [
        F.one_hot(column + 1, count + 1)[:, 1:]
        for column, count in zip(numbers.unbind(dim=1), COUNTS, strict=True)
    ]
    marker = torch.full((len(values), 1), last)
    return F.normalize(torch.cat([*groups, marker], dim=1).float(), dim=-1)


class KnowingDecoder(PixelDecoder):
    """Draws the scene of an image's embedding by the real samplers; that of a caption's it takes for
    always the same one. Without guidance its samples differ a little.

    wrong: it takes all embeddings so.
    """

    def __init__(self, wrong: bool = False) -> None:
        super().__init__(replace(OF_TOWERS, embed_dim=WIDTH, text_width=WIDTH, prediction="sample"))
        self.wrong = wrong

    def guided(self, embedding, text, *, empty=None, guidance=1.0, known=None):
        drawn = to_model(np.stack([_drawn(row, self.wrong) for row in embedding]))

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            clean = drawn if guidance > 1 else drawn + 0.02 * (noisy - drawn).sign()
            return torch.cat([clean, torch.zeros_like(clean)], dim=1)

        return predict


def _drawn(embedding: Tensor, wrong: bool) -> np.ndarray:
    groups = embedding[:-1].split(COUNTS)
    known = not wrong and embedding[-1] > 0
    said = {
        name: VALUES[name][int(group.argmax()) if known else 0]
        for name, group in zip(ATTRIBUTES, groups, strict=True)
    }
    background = said.pop("background")
    return render(LEVEL, Scene(background, (Thing(texture="plain", **said),)), 0, 0)


class HalfPrior:
    """Knows what embedding an image of a caption has, but every second one is that of the first."""

    def sample(self, text: TextCondition, noise: object, **options: object) -> Tensor:
        found = text.pooled.clone()
        found[:, -1] *= -1
        found[::2] = found[:1].clone()
        return found
