"""The gate measures what it says: a generator that is right so often, and a judge that knows what is right."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from generators.dalle import gate
from generators.evaluation.prompt_following import follow
from pipeline.draws import Draws
from pipeline.scenes.claims import parse
from pipeline.scenes.render import render
from pipeline.scenes.rendered import RenderedScenes
from pipeline.scenes.world import COLOURS, Scene

SCENES = RenderedScenes("A16", "test", -1)


class Renderer:
    """Draws by the renderer what a prompt tells, but every `wrong`-th time in another colour."""

    def __init__(self, wrong: float) -> None:
        self.wrong, self.told = wrong, []

    def tokens(
        self, prompts: Sequence[str], numbers: Sequence[int], *others: object
    ) -> torch.Tensor:
        self.told = list(zip(prompts, numbers, strict=True))
        return torch.arange(len(self.told))

    def images(self, tokens: torch.Tensor) -> np.ndarray:
        return np.stack([self.image(*self.told[i]) for i in tokens.tolist()])

    def image(self, prompt: str, number: int) -> np.ndarray:
        claims, draws = parse(prompt), Draws(prompt, number)
        thing = claims.mentions[0]
        colour = thing.colour
        if draws.chance(self.wrong):
            colour = COLOURS[(COLOURS.index(colour) + 1) % len(COLOURS)]
        told = parse(prompt.replace(thing.colour, colour)).scene()
        return render("A16", Scene(told.background, told.things), 3, number)


class Judge:
    """Ranks by what the oracle reads."""

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        return pixels

    def encode_image(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        self.images = prepared
        return np.zeros((len(prepared), 1), np.float32)

    def similarities(self, features: np.ndarray, texts: Sequence[str]) -> list[tuple[float, float]]:
        rows = [follow(text, image, "A16") for text, image in zip(texts, self.images, strict=True)]
        return [(float(row.whole), 0.0) for row in rows]


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(gate, "PROMPTS", 40)
    monkeypatch.setattr(gate, "RANKED", 12)
    monkeypatch.setattr(gate, "BEST_OF", (1, 2, 8))


def test_a_generator_that_follows_reaches_the_bars(few):
    figures = gate.measure(Renderer(0), SCENES)
    assert figures["attributes"] == figures["all_right"] == 1
    assert figures["no_scene"] == 0


def test_what_is_drawn_wrong_is_missed(few):
    figures = gate.measure(Renderer(1), SCENES)
    assert figures["attributes_colour"] == figures["all_right"] == 0
    assert figures["attributes"] == pytest.approx(0.8)


def test_the_curve_rises_as_far_as_the_best_of_n_is_better(few):
    figures = gate.best_of(Renderer(0.7), SCENES, Judge())
    curve = [figures[f"best_of_{n}"] for n in (1, 2, 8)]
    assert curve == sorted(curve)
    assert curve[0] < 0.7 < curve[-1]
    assert figures["least_rise"] == min(np.diff(curve))

    blind = Judge()
    blind.similarities = lambda features, texts: [(0.0, 0.0)] * len(texts)
    figures = gate.best_of(Renderer(0.7), SCENES, blind)
    assert [figures[f"best_of_{n}"] for n in (1, 2, 8)] == pytest.approx([0.3] * 3, abs=0.12)
