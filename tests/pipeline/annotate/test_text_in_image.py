"""Text in images: drawn text is found and photographs have none, measured on a half not tuned on."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from pipeline.annotate import text_detector, text_training
from pipeline.annotate.annotator import View
from pipeline.annotate.text_detector import TextDetector, blocks_of
from pipeline.annotate.text_in_image import TextInImageAnnotator
from pipeline.annotate.text_training import cells_of, fit, is_development
from pipeline.samples import Sample

PHRASES = (
    "SALE", "Lorem ipsum", "Open today until nine", "www.example.org", "stock 1138",
    "A quick brown fox jumps over", "\u00a9 2024 Somebody", "Best Price!", "Mind the gap",
    "season two is out now", "No.7", "Terms and conditions apply",
)  # fmt: skip
FACES = ("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSans.ttf", "DejaVuSansMono-Bold.ttf")


@pytest.fixture(scope="module")
def detector() -> TextDetector:
    return TextDetector.load()


def fonts(size: int) -> list[ImageFont.FreeTypeFont]:
    """Pillow's own, and what this machine has of FACES."""
    found = [ImageFont.load_default(size)]
    for face in FACES:
        try:
            found.append(ImageFont.truetype(face, size))
        except OSError:
            continue
    return found


def with_text(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A copy with one to six words of 12 to 48 pixels: on a panel, outlined, or white on black."""
    copy = picture.copy()
    draw = ImageDraw.Draw(copy)
    while True:
        size, phrase = int(rng.integers(12, 49)), PHRASES[rng.integers(len(PHRASES))]
        font = fonts(size)[rng.integers(len(fonts(size)))]
        left, top, right, bottom = draw.textbbox((0, 0), phrase, font=font)
        room = copy.width - (right - left), copy.height - (bottom - top)
        if min(room) > 2:
            break
    x, y = (rng.integers(0, int(side)) for side in room)
    colour = rng.integers(0, 256, 3)
    other = (colour + rng.integers(110, 146, 3)) % 256
    if rng.random() < 0.5:
        draw.rectangle((x - 3, y - 3, x + right - left + 3, y + bottom - top + 3), tuple(other))
        draw.text((x - left, y - top), phrase, tuple(colour), font)
    else:
        fill, edge = ((255,) * 3, (0,) * 3) if rng.random() < 0.5 else ((tuple(colour), (255,) * 3))
        draw.text(
            (x - left, y - top), phrase, fill, font, stroke_width=size // 16, stroke_fill=edge
        )
    return copy


def recompressed(picture: Image.Image) -> np.ndarray:
    """Both sides go through the same JPEG, so that its traces tell nothing."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return np.asarray(Image.open(file).convert("RGB"))


def auc(without: list[float], having: list[float]) -> float:
    """How often a picture that has text is above one that has none; a draw counts half."""
    a, b = np.array(without), np.array(having)[:, None]
    return float((b > a).mean() + 0.5 * (b == a).mean())


def test_photographs_are_told_from_their_copies_with_text(detector, real):
    """The bar is 0.9, on the half that nothing was tuned on; the weights saw none of this set."""
    without, having = [], []
    for number, path in enumerate(sorted((real / "flickr8k_875/images").glob("*.jpg"))):
        if is_development(path.name):
            continue
        photograph = Image.open(path).convert("RGB")
        marked = with_text(photograph, np.random.default_rng([5, number]))
        without.append(detector.find(recompressed(photograph)).share)
        having.append(detector.find(recompressed(marked)).share)
    assert len(without) > 400
    assert auc(without, having) >= 0.9
    assert np.mean(np.array(without) > 0.05) < 0.05


def test_screenshots_are_told_from_photographs(detector, real):
    """Screenshots say so in their text or path; photographs are called photo, or are DreamBooth's."""
    folder = real / "alt_permissive"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    shares = {"screenshot": [], "photograph": []}
    for row in rows:
        texts = " ".join(row["texts"])
        if is_development(row["file_name"]):
            continue
        if re.search(r"screen[ -]?shot", texts + row["path"], re.I):
            kind = "screenshot"
        elif row["repo"] == "google/dreambooth" or re.search(r"\bphoto(s|graphs?)?\b", texts, re.I):
            kind = "photograph"
        else:
            continue
        pixels = np.asarray(Image.open(folder / row["file_name"]).convert("RGB"))
        shares[kind].append(detector.find(pixels).share)
    assert min(map(len, shares.values())) > 40
    assert auc(shares["photograph"], shares["screenshot"]) >= 0.95


def test_a_share_grows_with_the_text(detector):
    def lines(count: int) -> float:
        page = Image.new("RGB", (480, 360), "white")
        draw = ImageDraw.Draw(page)
        for i in range(count):
            words = "some words that fill a whole line of this page"
            draw.text((10, 8 + 35 * i), words, "black", ImageFont.load_default(20))
        return detector.find(np.asarray(page)).share

    shares = [lines(count) for count in (0, 1, 3, 6, 10)]
    assert shares[0] == 0
    assert shares == sorted(set(shares))
    assert 0.01 < shares[1] < 0.15 < 0.3 < shares[-1] <= 1


@pytest.mark.parametrize("size", [12, 20, 32, 48])
@pytest.mark.parametrize("colours", [("black", "white"), ("yellow", "navy")])
def test_the_box_is_where_the_text_is(detector, size, colours):
    page = Image.new("RGB", (512, 384), colours[1])
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size)
    draw.text((40, 200), "Hello there", colours[0], font)
    left, top, right, bottom = draw.textbbox((40, 200), "Hello there", font)
    odds = detector.odds(text_detector.reduced(np.asarray(page)))
    likely, slack = odds > text_detector.LIKELY, 12 + size // 2
    row, column = ((s // c, -(-e // c)) for s, e, c in ((top, bottom, 4), (left, right, 8)))
    inside = likely[int(row[0]) : int(row[1]), int(column[0]) : int(column[1])]
    assert inside.mean() > 0.7
    rows, columns = np.nonzero(likely)
    near = (rows * 4 > top - slack) & (rows * 4 < bottom + slack)
    near &= (columns * 8 > left - slack) & (columns * 8 < right + slack)
    assert near.mean() > 0.9


def test_larger_pictures_are_reduced_and_tiny_ones_have_no_text(detector):
    page = Image.new("RGB", (1600, 1200), "white")
    draw = ImageDraw.Draw(page)
    draw.text((100, 400), "In large letters", "black", ImageFont.load_default(120))
    assert detector.find(np.asarray(page)).share > 0.05
    for shape in [(1, 1, 3), (15, 400, 3), (16, 16, 3), (3, 4000, 3), (5000, 17, 3)]:
        assert detector.find(np.full(shape, 200, np.uint8)).share == 0


def test_noise_and_flat_pictures_have_no_text(detector):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (300, 400, 3)).astype(np.uint8)
    ramp = np.repeat(np.linspace(0, 255, 400).astype(np.uint8)[None, :, None], 300, 0).repeat(3, 2)
    for pixels in (noise, ramp, np.zeros_like(noise)):
        assert detector.find(pixels).share < 0.01


def test_answers_depend_on_the_pixels_alone(detector):
    """Whatever was asked before, and whatever memory it left."""
    rng = np.random.default_rng(1)
    pictures = []
    for side in (200, 333, 64, 512):
        ground = Image.fromarray(rng.integers(0, 256, (side, side, 3)).astype(np.uint8))
        pictures.append(np.asarray(with_text(ground.resize((side * 2, side)), rng)))
    alone = [TextDetector.load().find(p) for p in pictures]
    assert [detector.find(p) for p in reversed(pictures)][::-1] == alone


def flood(mask: np.ndarray) -> list[set]:
    """Blocks by the plainest way there is."""
    left = {tuple(cell) for cell in np.argwhere(mask)}
    found = []
    while left:
        block, edge = set(), {left.pop()}
        while edge:
            block |= edge
            near = {(r + i, c + j) for r, c in edge for i in (-1, 0, 1) for j in (-1, 0, 1)}
            edge = near & left
            left -= edge
        found.append(block)
    return found


@pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.9])
def test_blocks_are_those_of_a_flood_fill(density):
    rng = np.random.default_rng(3)
    for _ in range(20):
        odds = rng.random((rng.integers(1, 30), rng.integers(1, 30)))
        odds = np.where(rng.random(odds.shape) < density, 0.65 + 0.35 * odds, 0.1)
        kept = [b for b in flood(odds > 0.6) if sum(odds[c] > 0.85 for c in b) >= 3]
        found = blocks_of(odds)
        assert found.blocks == len(kept)
        assert found.share == pytest.approx(sum(map(len, kept)) / odds.size)


def test_running_extremes_are_those_of_plain_loops():
    rng = np.random.default_rng(4)
    values = rng.integers(0, 256, (20, 24)).astype(np.uint8)
    for window in (3, 7, 9):
        found = text_detector._extremes(values, window, 1, np.minimum)
        plain = [[row[i : i + window].min() for i in range(25 - window)] for row in values]
        assert found.tolist() == np.array(plain).tolist()
        assert text_detector._extremes(values.T, window, 0, np.minimum).T.tolist() == found.tolist()


def test_a_strip_makes_no_difference(monkeypatch):
    """Pictures are mapped in strips with what surrounds them: however high a strip is."""
    values = np.random.default_rng(6).integers(0, 256, (304, 120)).astype(np.uint8)
    whole = text_detector.features(values).copy()
    monkeypatch.setattr(text_detector, "_STRIP", 64)
    assert (text_detector.features(values) == whole).all()


def test_training_learns_what_it_is_shown(monkeypatch):
    """A few cells of one page are enough to tell its text from its ground; same seed, same weights."""
    page = Image.new("RGB", (256, 128), "white")
    font = ImageFont.load_default(16)
    ImageDraw.Draw(page).text((20, 60), "a line of text to learn", "black", font)
    box = ImageDraw.Draw(page).textbbox((20, 60), "a line of text to learn", font)
    rng = np.random.default_rng(0)
    x, truth = cells_of(page, [(box, 16.0)], 1, rng)
    assert 0.05 < truth.mean() < 0.5
    monkeypatch.setattr(text_training, "STEPS", 300)
    monkeypatch.setattr(text_training, "BATCH", 256)
    weights, again = fit(x, truth, 0), fit(x, truth, 0)
    assert all((weights[k] == again[k]).all() for k in weights)
    hidden = np.maximum(x @ weights["hidden"] + weights["hidden_bias"], 0)
    assert (((hidden @ weights["out"] + weights["out_bias"]) > 0) == truth).mean() > 0.97


def test_the_annotator_answers_for_every_view():
    annotator = TextInImageAnnotator()
    annotator.setup()
    page = Image.new("RGB", (300, 100), "white")
    ImageDraw.Draw(page).text((20, 40), "read this", "black", ImageFont.load_default(24))
    views = [
        View(Sample(0, "u", "k"), pixels=np.asarray(p)) for p in (page, page.crop((0, 0, 9, 9)))
    ]
    prepared = [annotator.prepare(view) for view in views]
    rows = annotator.annotate(prepared)
    assert [set(row) for row in rows] == [{field.name for field in annotator.columns}] * 2
    assert rows[0]["text_share"] > 0.02
    assert rows[0]["text_blocks"] in (1, 2)
    assert rows[1] == {"text_share": 0.0, "text_blocks": 0}
    assert len(annotator.config["weights"]) == 64
    assert Path(text_detector.WEIGHTS).stat().st_size < 10_000
