"""Trains the text detector's weights: drawn text on photographs and textures; numpy alone, no device.

    python -m pipeline.annotate.text_training --photos FOLDER --fonts FOLDER --to FILE

FOLDER of photos holds `metadata.jsonl` ({file_name, license}); taken are those that are CC0, that
look like photographs (few flat or alike pixels), and whose name falls in the development half.
Same folders, same Pillow, same weights. About two minutes on one core.
"""

import argparse
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps
from safetensors.numpy import save_file

from pipeline.annotate.text_detector import CELL, LEAST_SIDE, OCTAVES, SIZES, features, plane

PICTURES = 2500
UNITS = 24
STEPS = 6000
BATCH = 4096
RATE = 3e-3
_TEXT = (
    "the and sale free photo best of new home 2019 price your online black summer 50% NEWS"
    " Copyright image hotel travel www.example.com click here world cup music Live recipe easy how"
    " to make in minutes Chapter One figure table total $9.99 breaking City Park STOP open menu"
    " coffee Great vintage design quote love life be happy every day Page 12 section report annual"
    " data source project guide"
)
WORDS = _TEXT.split()

Colour = tuple[int, int, int]
Drawn = tuple[tuple[float, float, float, float], float]
"""A text that was drawn: its box (left, top, right, bottom) and the size of its font, in pixels."""


def is_development(name: str) -> bool:
    """One half of a set, by the hash of a file's name; the other half is for measuring."""
    return hashlib.sha256(name.encode()).digest()[-1] % 2 == 0


def photographs(folder: Path) -> list[Image.Image]:
    """The CC0 photographs of the development half."""
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    names = [row["file_name"] for row in rows if row["license"].startswith("CC0")]
    pictures = [Image.open(folder / n).convert("RGB") for n in names if is_development(n)]
    return [picture for picture in pictures if _is_photograph(picture)]


def _is_photograph(picture: Image.Image) -> bool:
    grey = np.asarray(picture.convert("L")).astype(int)
    flat = (np.abs(np.diff(grey, axis=1)) <= 1).mean()
    alike = np.bincount(grey.ravel() // 4, minlength=64).max() / grey.size
    return flat < 0.5 and alike < 0.15


class Maker:
    """Makes pictures of which it is known where text stands."""

    def __init__(self, photos: Sequence[Image.Image], fonts: Sequence[Path], seed: int) -> None:
        self.photos, self.fonts = photos, fonts
        self.rng = np.random.default_rng(seed)

    def make(self) -> tuple[Image.Image, list[Drawn]]:
        kind = self.rng.random()
        if kind < 0.2:
            picture, drawn = self._page()
        else:
            picture, drawn = self._ground(is_photo=kind < 0.75), []
            if self.rng.random() < 0.65:
                drawn = [t for _ in range(self._int(1, 4)) for t in self._text(picture)]
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=self._int(70, 97))
        return Image.open(file).convert("RGB"), drawn

    def _int(self, low: float, high: float) -> int:
        return int(self.rng.integers(int(low), max(int(low) + 1, int(high))))

    def _colour(self, plain: float = 0.5) -> Colour:
        if self.rng.random() < plain:
            return (0, 0, 0) if self.rng.random() < 0.4 else (255, 255, 255)
        return tuple(int(v) for v in self.rng.integers(0, 256, 3))

    def _unlike(self, brightness: float, by: float) -> Colour:
        """A colour that can be told from a ground of this brightness."""
        for _ in range(10):
            colour = self._colour()
            if abs(_brightness(colour) - brightness) >= by:
                return colour
        return (255, 255, 255) if brightness < 128 else (0, 0, 0)

    def _font(self, size: int) -> ImageFont.FreeTypeFont:
        chosen = self._int(0, len(self.fonts) + 1)
        if chosen == len(self.fonts):
            return ImageFont.load_default(size)
        return ImageFont.truetype(str(self.fonts[chosen]), size)

    def _words(self, most: int) -> str:
        return " ".join(WORDS[i] for i in self.rng.integers(0, len(WORDS), self._int(1, most + 1)))

    def _ground(self, is_photo: bool) -> Image.Image:
        picture = self.photos[self._int(0, len(self.photos))] if is_photo else self._texture()
        if self.rng.random() < 0.5:
            picture = ImageOps.mirror(picture)
        if self.rng.random() < 0.25:
            picture = picture.transpose(Image.Transpose.ROTATE_90)
        scale = self.rng.uniform(0.3, 1) if self.rng.random() < 0.7 else 1.0
        scale = min(1.0, max(scale, 100 / min(picture.size)))
        size = (int(picture.width * scale), int(picture.height * scale))
        return picture.resize(size, Image.Resampling.BICUBIC)

    def _text(self, picture: Image.Image) -> list[Drawn]:
        """Draws a few words: on a panel, with an outline, or bare in a colour that can be read."""
        draw = ImageDraw.Draw(picture)
        for _ in range(20):
            size, words = self._int(8, 61), self._words(6)
            font = self._font(size)
            left, top, right, bottom = draw.textbbox((0, 0), words, font=font)
            width, height = int(right - left), int(bottom - top)
            if width < picture.width - 4 and height < picture.height - 4:
                break
        else:
            return []
        x, y = self._int(0, picture.width - width), self._int(0, picture.height - height)
        box, style, options = (x, y, x + width, y + height), self.rng.random(), {}
        if style < 0.35:
            panel, pad = self._colour(), self._int(2, 8)
            colour = self._unlike(_brightness(panel), 70)
            draw.rectangle((x - pad, y - pad, x + width + pad, y + height + pad), fill=panel)
        elif style < 0.7:
            colour = self._colour()
            outline = (0, 0, 0) if _brightness(colour) > 128 else (255, 255, 255)
            options = {"stroke_width": max(1, size // 16), "stroke_fill": outline}
        else:
            colour = self._unlike(float(np.asarray(picture.convert("L").crop(box)).mean()), 90)
        draw.text((x - left, y - top), words, font=font, fill=colour, **options)
        return [(box, float(size))]

    def _page(self) -> tuple[Image.Image, list[Drawn]]:
        """A made-up page on a screen: lines of small text, headings, panels; drawn, then reduced."""
        width, height, times = self._int(200, 513), self._int(150, 450), self._int(1, 4)
        ground, drawn = self._colour(0.6), []
        page = Image.new("RGB", (width * times, height * times), ground)
        draw = ImageDraw.Draw(page)
        y = self._int(4, 20) * times
        while y < page.height:
            size = (self._int(7, 16) if self.rng.random() < 0.8 else self._int(16, 40)) * times
            font, x = self._font(size), self._int(4, 60) * times
            colour = self._unlike(_brightness(ground), 90)
            for _ in range(self._int(1, 6)):
                words = self._words(9)
                draw.text((x, y), words, font=font, fill=colour)
                box = [side / times for side in draw.textbbox((x, y), words, font=font)]
                drawn.append((tuple(box), size / times))
                y += int(size * 1.35)
            y += self._int(2, 40) * times
            if self.rng.random() < 0.3:
                x, tall = self._int(0, page.width // 2), self._int(20, 100) * times
                wide = self._int(20 * times, page.width)
                draw.rectangle((x, y, x + wide, y + tall), fill=self._colour())
                y += tall + 5 * times
        how = Image.Resampling.BICUBIC if self.rng.random() < 0.5 else Image.Resampling.BOX
        return page.resize((width, height), how), drawn

    def _texture(self) -> Image.Image:
        """What is busy and no text: noise of all scales, stripes, grids, grass, pebbles, polygons."""
        width, height = self._int(200, 400), self._int(150, 300)
        rng, kind = self.rng, self._int(0, 6)
        y, x = np.mgrid[0:height, 0:width].astype(float)
        if kind == 0:
            values, power = np.zeros((height, width)), rng.uniform(0.2, 1.2)
            for scale in (1, 2, 4, 8, 16, 32):
                noise = rng.normal(size=(height // scale + 2, width // scale + 2))
                layer = Image.fromarray(noise.astype(np.float32)).resize((width, height))
                values += np.asarray(layer) * scale**power
        elif kind == 1:
            angle, period = rng.uniform(0, np.pi), rng.uniform(3, 20)
            phase = (x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period
            values = np.sign(np.sin(phase) + rng.uniform(-0.5, 0.5))
            values += rng.normal(size=(height, width)) * rng.uniform(0, 0.4)
        elif kind == 2:
            p, q = self._int(6, 40), self._int(6, 30)
            values = (x % p < p * rng.uniform(0.5, 0.9)) & (y % q < q * rng.uniform(0.5, 0.9))
            values = values + rng.normal(size=(height, width)) * 0.1
        else:
            values = self._strewn(("grass", "pebbles", "polygons")[kind - 3], width, height)
        values = values - values.min()
        contrast = rng.uniform(0.3, 1) * 255
        values = values / max(values.max(), 1e-6) * contrast + rng.uniform(0, 255 - contrast)
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")

    def _strewn(self, what: str, width: int, height: int) -> np.ndarray:
        rng = self.rng
        picture = Image.new("L", (width, height), self._int(0, 256))
        draw = ImageDraw.Draw(picture)
        count = {"grass": (300, 4000), "pebbles": (100, 1500), "polygons": (5, 40)}[what]
        size = rng.uniform(2, 40)
        for _ in range(self._int(*count)):
            x, y, grey = rng.uniform(0, width), rng.uniform(0, height), self._int(0, 256)
            if what == "grass":
                angle = rng.normal(np.pi / 2, 0.4) if rng.random() < 0.7 else rng.uniform(0, np.pi)
                end = (x + size * np.cos(angle), y + size * np.sin(angle))
                draw.line((x, y, *end), fill=grey, width=self._int(1, 4))
            elif what == "pebbles":
                a, b = rng.uniform(0.25, 0.8, 2) * size
                draw.ellipse((x - a, y - b, x + a, y + b), fill=grey)
            else:
                reach = rng.uniform(5, 100)
                corners = rng.normal((x, y), reach, (self._int(3, 6), 2))
                draw.polygon([tuple(corner) for corner in corners], fill=grey)
        if what != "polygons":
            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2)))
        return np.asarray(picture).astype(float)


def _brightness(colour: Colour) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def cells_of(
    picture: Image.Image, drawn: Sequence[Drawn], octave: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """Features and truth of some cells of one octave: at most 250 of text, 350 of none.

    Left out are cells at the rim of a text, and those of texts that other octaves answer for.
    """
    values = plane(picture.convert("L"), octave)
    if min(values.shape) < LEAST_SIDE:
        return None
    found = features(values)
    truth = np.zeros(found.shape[1:], np.int8)
    for box, size in drawn:
        left, right = (side / (octave * CELL[1]) for side in box[0::2])
        top, bottom = (side / (octave * CELL[0]) for side in box[1::2])
        rim = (slice(max(0, int(top - 0.75)), int(bottom + 1.75)),)
        truth[(*rim, slice(max(0, int(left - 1)), int(right + 2)))] = -1
        if SIZES[0] <= size / octave <= SIZES[1]:
            rows = slice(round(top + 0.15), max(round(top + 0.15) + 1, round(bottom - 0.15)))
            truth[rows, round(left) : max(round(left) + 1, round(right))] = 1
    text, none = np.flatnonzero(truth == 1), np.flatnonzero(truth == 0)
    text = rng.permutation(text)[:250]
    none = rng.permutation(none)[:350]
    chosen = np.concatenate([text, none])
    features_of = found.reshape(len(found), -1)[:, chosen].T
    return features_of, (np.arange(len(chosen)) < len(text)).astype(np.float32)


def fit(x: np.ndarray, truth: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """A network of one hidden layer by Adam on the logistic loss; weights as TextDetector wants."""
    rng = np.random.default_rng(seed)
    mean, deviation = x.mean(0), x.std(0) + 1e-3
    n = x.shape[1]
    weights = [
        rng.normal(size=(n, UNITS)) / np.sqrt(n),
        np.zeros(UNITS),
        rng.normal(size=UNITS) / np.sqrt(UNITS),
        np.zeros(1),
    ]
    weights = [w.astype(np.float32) for w in weights]
    first = [np.zeros_like(w) for w in weights]
    second = [np.zeros_like(w) for w in weights]
    for step in range(1, STEPS + 1):
        chosen = rng.integers(0, len(x), BATCH)
        batch = (x[chosen] - mean) / deviation
        hidden = np.maximum(batch @ weights[0] + weights[1], 0)
        odds = 1 / (1 + np.exp(-(hidden @ weights[2] + weights[3])))
        error = ((odds - truth[chosen]) / BATCH).astype(np.float32)
        back = np.outer(error, weights[2]) * (hidden > 0)
        slopes = [batch.T @ back, back.sum(0), hidden.T @ error, error.sum(keepdims=True)]
        rate = RATE * 0.5 * (1 + np.cos(np.pi * step / STEPS))
        for i, slope in enumerate(slopes):
            first[i] = 0.9 * first[i] + 0.1 * slope
            second[i] = 0.999 * second[i] + 0.001 * slope**2
            size = np.sqrt(second[i] / (1 - 0.999**step)) + 1e-8
            weights[i] = (weights[i] - rate * first[i] / (1 - 0.9**step) / size).astype(np.float32)
    scaled = weights[0] / deviation[:, None]
    return {
        "hidden": scaled.astype(np.float32),
        "hidden_bias": (weights[1] - mean @ scaled).astype(np.float32),
        "out": weights[2],
        "out_bias": weights[3],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--fonts", type=Path, required=True, help="a folder of *.ttf")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    photos = photographs(given.photos)
    # Serif faces are kept for measuring.
    fonts = [font for font in sorted(given.fonts.glob("*.ttf")) if "Serif" not in font.name]
    maker = Maker(photos, fonts, given.seed)
    found = []
    for _ in range(PICTURES):
        picture, drawn = maker.make()
        found += [cells_of(picture, drawn, octave, maker.rng) for octave in OCTAVES]
    x, truth = (np.concatenate(part) for part in zip(*filter(None, found), strict=True))
    print(f"{len(photos)} photographs, {len(fonts)} fonts, {len(x)} cells, {truth.mean():.3f} text")
    weights = fit(x, truth, given.seed)
    save_file(weights, given.to)


if __name__ == "__main__":
    main()
