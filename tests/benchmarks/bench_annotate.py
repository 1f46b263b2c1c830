"""Images per second of `image` and `text` together on one core, against plain Pillow and numpy.

    python -m tests.benchmarks.bench_annotate [--data DIR] [--quick]

Both sides make the same columns from the same bytes, in one process, in turns. What a sentence is
like needs neither Pillow nor numpy: the text's columns cost both sides the same, by the same code.
Fails (exit 1) where the ratio is below the bar on any set, or where the columns do not agree.
"""

import argparse
import csv
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from PIL import Image

from pipeline import images
from pipeline.annotate.annotator import DECODED_SIDE, View
from pipeline.annotate.image import ImageAnnotator
from pipeline.samples import Sample
from tests.benchmarks.bench_images import enlarge
from tests.support import plain_image

try:
    from pipeline.annotate.text import TextAnnotator
except ImportError:
    TextAnnotator = None

BAR = 1.5
ROUNDS = 5
NUM_LARGE = 120


class Sides:
    """Both sides, and the parts of ours."""

    def __init__(self) -> None:
        self.image = ImageAnnotator()
        self.text = TextAnnotator() if TextAnnotator else None
        for annotator in filter(None, (self.image, self.text)):
            annotator.setup()

    def decode(self, sample: Sample) -> View:
        info = images.probe(sample.image)
        return View(sample, info, images.decode(sample.image, min_side=DECODED_SIDE))

    def image_columns(self, view: View) -> dict:
        return self.image.annotate([self.image.prepare(view)])[0]

    def text_columns(self, view: View) -> dict:
        return self.text.annotate([self.text.prepare(view)])[0] if self.text else {}

    def ours(self, sample: Sample) -> dict:
        view = self.decode(sample)
        return self.image_columns(view) | self.text_columns(view)

    def plain(self, sample: Sample) -> dict:
        return plain_image.columns(sample.image) | self.text_columns(View(sample))


def rates(sides: list[tuple[Callable, list]], rounds: int) -> list[float]:
    """Median calls per second of each side over its items; they take turns, round by round."""
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds + 1):
        for (call, items), taken in zip(sides, seconds, strict=True):
            start = time.process_time()
            for item in items:
                call(item)
            taken.append(time.process_time() - start)
    return [len(sides[i][1]) / max(median(s[1:]), 1e-9) for i, s in enumerate(seconds)]


def flickr(folder: Path) -> Iterator[tuple[Path, str]]:
    """Photographs with one of their captions."""
    with (folder / "captions.tsv").open() as file:
        captions = {row[0]: row[1] for row in csv.reader(file, delimiter="\t") if len(row) > 1}
    for path in sorted((folder / "images").glob("*.jpg")):
        yield path, captions.get(path.name, "")


def web(folder: Path) -> Iterator[tuple[Path, str]]:
    """Pictures of web pages with their alt texts."""
    for line in (folder / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        yield folder / row["file_name"], (row["texts"] or [""])[0]


def sample(path: Path, text: str) -> Sample:
    """As a shard would give it."""
    status = "ok" if text.strip() else "empty"
    return Sample(0, "", path.stem, image=path.read_bytes(), text=text, text_status=status)


def agrees(ours: dict, plain: dict) -> bool:
    """Equal but for rounding and for what different resampling leaves of a hash."""
    for name, value in plain.items():
        if name in ("phash", "pdq"):
            differing = (int(ours[name], 16) ^ int(value, 16)).bit_count()
            same = differing <= len(value)  # of four bits each: half of what strangers differ in
        elif isinstance(value, float):
            same = abs(ours[name] - value) <= 1e-6 + 0.05 * abs(value)
        else:
            same = ours[name] == value or name == "pdq_quality"
        if not same:
            return False
    return True


def main() -> int:
    """Measure all sets, print a table, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("RECAPTION_TEST_DATA"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if not options.data:
        print("no --data, and RECAPTION_TEST_DATA is not set: nothing to measure")
        return 2
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    photos = list(flickr(Path(options.data) / "flickr8k_875"))
    pages = list(web(Path(options.data) / "alt_permissive"))
    draw = random.Random(0)
    step, rounds = (8, 2) if options.quick else (2, ROUNDS)
    chosen = draw.sample(
        [page for page in pages if min(Image.open(page[0]).size) >= 200], NUM_LARGE
    )
    with tempfile.TemporaryDirectory() as folder:
        large = []
        for path, text in draw.sample(photos, NUM_LARGE) + chosen:
            enlarge(path, Path(folder) / path.name)
            large.append(sample(Path(folder) / path.name, text))
    sets = {
        "flickr8k as is": [sample(*pair) for pair in photos[::step]],
        "web as is": [sample(*pair) for pair in pages[::step]],
        "512 px, quality 90": large[:: step // 2],
    }
    sides = Sides()
    print(f"text: {'the same code on both sides' if sides.text else 'no such annotator yet'}")
    head = ("set", "images", "KB", "decode", "image", "text", "plain", "ours", "ratio")
    print(("{:19}" + "{:>9}" * 8).format(*head))
    passed = True
    for name, samples in sets.items():
        differing = [s.key for s in samples if not agrees(sides.ours(s), sides.plain(s))]
        views = [sides.decode(s) for s in samples]
        decode, image, text, plain, ours = rates(
            [
                (sides.decode, samples),
                (sides.image_columns, views),
                (sides.text_columns, views),
                (sides.plain, samples),
                (sides.ours, samples),
            ],
            rounds,
        )
        size = sum(len(s.image) for s in samples) / len(samples) / 1000
        figures = "".join(f"{rate:7.0f}/s" for rate in (decode, image, text, plain, ours))
        print(f"{name:19}{len(samples):9}{size:9.0f}{figures}{ours / plain:9.2f}")
        if differing:
            print(f"  columns differ: {len(differing)}, e.g. {differing[:3]}")
        passed &= ours >= BAR * plain and len(differing) <= len(samples) // 100
    print(f"bar {BAR}: {'passed' if passed else 'FAILED'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
