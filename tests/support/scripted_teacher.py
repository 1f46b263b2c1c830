"""A teacher on loopback that reads rendered scenes from their pixels, and errs at a set rate.

It speaks OpenAI's chat completions. `python -m tests.support.scripted_teacher --error 0.1` serves in
a process of its own, prints its address, and at its end what it was asked.
"""

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from PIL import Image

from pipeline import images
from pipeline.draws import Draws
from pipeline.scenes.captions import LONG, SHORT, long_caption, short_caption
from pipeline.scenes.oracle import read_scene
from pipeline.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    LEVELS,
    POSITIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
)
from tests.support.chat_server import Asked, ChatServer

BLIND = "I cannot see any scene in this image."
_VALUES = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES, "size": SIZES}


class Teacher:
    """Answers questions about images of one level in which no two things are of one kind.

    error: how often each of a thing's shape, colour, texture, size and position, and a scene's
    background, is told wrong: once per image, so that both styles err alike. What it says depends
    on the image's bytes, the style and the seed alone.
    """

    def __init__(self, error: float = 0.0, level: str = "B", seed: int = 0) -> None:
        self.error, self.level, self.seed = error, level, seed
        self.requests: Counter[str] = Counter()  # style -> requests
        self._seen: dict[str, Scene | None] = {}

    def answer(self, asked: Asked) -> str:
        """A caption in the style that the prompt asks for."""
        style = style_of(asked.prompt)
        self.requests[style] += 1
        if asked.image is None:
            return BLIND
        name = hashlib.sha256(asked.image).hexdigest()
        if name not in self._seen:
            self._seen[name] = self.see(asked.image)
        scene = self._seen[name]
        return self.tell(scene, style, name) if scene else BLIND

    def see(self, data: bytes) -> Scene | None:
        """The scene that an encoded image shows; None where there is none."""
        pixels, side = images.decode(data), LEVELS[self.level].pixels
        if pixels.shape[:2] != (side, side):  # whoever asked may have resized it
            size = (side, side)
            pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
        return read_scene(np.ascontiguousarray(pixels), self.level)

    def tell(self, scene: Scene, style: str, name: str) -> str:
        """A caption of a scene as it is misseen in the image of that name."""
        background, things = misseen(scene, self.error, self.seed, name)
        template = Draws(self.seed, name, style, "template")
        if style == "long":
            return long_caption(Scene(background, things), template.below(len(LONG)))
        main = things[scene.things.index(scene.main[0])]
        return short_caption(Scene(background, (main,)), template.below(len(SHORT)))


def misseen(scene: Scene, error: float, seed: int, name: str) -> tuple[str, tuple[Thing, ...]]:
    """The background and the things of a scene, each attribute wrong at the rate of `error`.

    Things stand in the order of the true ones, and no two become alike.
    """
    draws = Draws(seed, name, "misseen")

    def seen(value: str, values: tuple[str, ...]) -> str:
        return draws.choice([v for v in values if v != value]) if draws.chance(error) else value

    taken = {thing.position for thing in scene.things}
    things: list[Thing] = []
    for thing in scene.things:
        free = tuple(p for p in POSITIONS if p not in taken)
        position = seen(thing.position, (thing.position, *free))
        taken.add(position)
        while True:
            looks = {what: seen(getattr(thing, what), v) for what, v in _VALUES.items()}
            found = replace(thing, position=position, **looks)
            if found.kind not in {other.kind for other in things}:
                break
        things.append(found)
    return seen(scene.background, BACKGROUNDS), tuple(things)


def style_of(prompt: str) -> str:
    """The style that a prompt asks for."""
    return "short" if re.search(r"\b(?:short|brief|concise)\b", prompt, re.IGNORECASE) else "long"


@contextmanager
def scripted_teacher(
    error: float = 0.0, *, delay: float = 0.0, port: int = 0, level: str = "B", seed: int = 0
) -> Iterator[tuple[ChatServer, Teacher]]:
    """Serves from a thread of this process; the server has its `name` for CAPTIONER."""
    teacher = Teacher(error, level, seed)
    server = ChatServer(teacher.answer, delay=delay)
    server.port = port
    with server:
        yield server, teacher


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--error", type=float, default=0.0)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--level", choices=["A16", "A", "B"], default="B")
    parser.add_argument("--seed", type=int, default=0)
    with scripted_teacher(**vars(parser.parse_args())) as (server, teacher):
        print(server.url, flush=True)
        sys.stdin.read()  # until who started it goes away
        print(json.dumps(teacher.requests), flush=True)


if __name__ == "__main__":
    main()
