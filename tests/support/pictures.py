"""Images that an oracle of rendered scenes meets: damaged renders, and what is no scene at all."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from pipeline.draws import Draws
from pipeline.scenes import backgrounds
from pipeline.scenes.render import PALETTE, render
from pipeline.scenes.world import BACKGROUNDS, LEVELS, Level, draw_scene


def as_jpeg(image: np.ndarray, quality: int = 75) -> np.ndarray:
    """What is left of an image after Pillow's JPEG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


def noisy(image: np.ndarray, sigma: float = 6.0) -> np.ndarray:
    """With Gaussian noise that depends on nothing but the image."""
    random = np.random.default_rng(int(image.sum()))
    return _bytes(image + random.normal(0, sigma, image.shape))


def blurred(image: np.ndarray, radius: float = 0.5) -> np.ndarray:
    return np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def shifted(image: np.ndarray) -> np.ndarray:
    """One pixel further down and right, its first row and column repeated."""
    return np.pad(image, ((1, 0), (1, 0), (0, 0)), mode="edge")[:-1, :-1]


DAMAGES = {
    "raw": lambda image: image,
    "jpeg": as_jpeg,
    "noise": noisy,
    "blur": blurred,
    "shift": shifted,
}


def no_scenes(level: Level, num: int) -> Iterator[tuple[str, np.ndarray]]:
    """(kind, image) of `num` images of each kind that shows no scene."""
    random = np.random.default_rng(0)
    size = level.pixels
    shape = (size, size, 3)
    blanks = [*PALETTE.values(), *backgrounds.BASE.values(), (0, 0, 0), (255, 255, 255)]
    for i in range(num):
        yield "uniform noise", random.integers(0, 256, shape, dtype=np.uint8)
        middle, spread = random.uniform(60, 200, 3), random.uniform(5, 60)
        yield "gaussian noise", _bytes(random.normal(middle, spread, shape))
        yield "blank", np.full(shape, random.integers(0, 256, 3), dtype=np.uint8)
        yield "blank of the world", np.full(shape, blanks[i % len(blanks)], dtype=np.uint8)
        start, end = random.integers(0, 256, (2, 3))
        ramp = np.linspace(start, end, size)[:, None] + np.zeros(shape)
        yield "gradient", _bytes(ramp if i % 2 else ramp.swapaxes(0, 1))
        scene = render(level, draw_scene(LEVELS[level.name], 3, i, "train"), 3, i)
        yield "shuffled render", random.permutation(scene.reshape(-1, 3)).reshape(shape)
        empty = backgrounds.cut(level, BACKGROUNDS[i % len(BACKGROUNDS)], Draws("empty", i))
        light, grain = random.integers(226, 269), random.integers(-4, 5, shape)
        yield "empty background", _bytes(empty * (light / 256) + grain)


def photographs(level: Level, data: Path, step: int = 1) -> Iterator[np.ndarray]:
    """The central squares of every step-th web image, at the level's size."""
    folder = data / "alt_permissive"
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    for line in lines[::step]:
        image = Image.open(folder / json.loads(line)["file_name"]).convert("RGB")
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        square = (left, top, left + side, top + side)
        yield np.array(image.resize((level.pixels,) * 2, Image.Resampling.BICUBIC, square))


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
