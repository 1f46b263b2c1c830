"""Images per second on one core: bytes to a 224 px square, ours against webdataset and Pillow.

    python -m tests.benchmarks.bench_images [--data DIR]

The peer is what a webdataset user writes: `.decode("pil")`, then Pillow's bicubic resize of the
shortest side and a centre crop. Both sides see the same bytes in the same process, in turns.
Fails (exit 1) where the ratio is below the bar.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from webdataset.autodecode import imagehandler

from pipeline.images import square_crop

BAR = 2.0
SIZE = 224
ROUNDS = 5
NUM_LARGE = 120  # images of the 512 px set, from each of the two sources

_decode_pil = imagehandler("pil")


def peer(data: bytes) -> np.ndarray:
    """webdataset's decoding, then Pillow."""
    image = _decode_pil("00000.jpg", data)
    scale = SIZE / min(image.size)
    width, height = (max(SIZE, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


def ours(data: bytes) -> np.ndarray:
    """What captioners use."""
    return square_crop(data, SIZE)


def enlarge(source: Path, target: Path) -> None:
    """Write a JPEG of quality 90 whose shortest side has 512 pixels."""
    image = Image.open(source).convert("RGB")
    scale = 512 / min(image.size)
    size = tuple(round(side * scale) for side in image.size)
    image.resize(size, Image.Resampling.BICUBIC).save(target, quality=90)


def rates(images: list[bytes], sides: list[Callable[[bytes], np.ndarray]]) -> list[float]:
    """Median images per second of each side, over rounds in which they take turns."""
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(ROUNDS + 1):
        for side, taken in zip(sides, seconds, strict=True):
            start = time.process_time()
            for data in images:
                side(data)
            taken.append(time.process_time() - start)
    return [len(images) / median(taken[1:]) for taken in seconds]  # the first round warms up


def main() -> int:
    """Run both sets, print a table, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("RECAPTION_TEST_DATA"))
    folder = parser.parse_args().data
    if not folder:
        print("no --data, and RECAPTION_TEST_DATA is not set: nothing to measure")
        return 2
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    flickr = sorted((Path(folder) / "flickr8k_875/images").glob("*.jpg"))
    web = sorted((Path(folder) / "alt_permissive/images").glob("*.jpg"))
    web = [path for path in web if min(Image.open(path).size) >= 200]
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as large:
        for path in draw.sample(flickr, NUM_LARGE) + draw.sample(web, NUM_LARGE):
            enlarge(path, Path(large) / path.name)
        sets = {
            "flickr8k as is": [path.read_bytes() for path in flickr],
            "512 px, quality 90": [path.read_bytes() for path in sorted(Path(large).iterdir())],
        }
    print(f"{'set':20} {'images':>6} {'KB':>5} {'webdataset':>11} {'ours':>6} {'ratio':>6}")
    passed = True
    for name, images in sets.items():
        theirs, own = rates(images, [peer, ours])
        size = sum(map(len, images)) / len(images) / 1000
        passed &= own >= BAR * theirs
        row = f"{name:20} {len(images):6} {size:5.0f} {theirs:9.0f}/s {own:4.0f}/s"
        print(f"{row} {own / theirs:6.2f}")
    print(f"bar {BAR}: {'passed' if passed else 'FAILED'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
