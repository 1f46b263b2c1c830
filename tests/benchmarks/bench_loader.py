"""The loader alone: images per second on one core against webdataset and Pillow, and what a late start costs.

    python -m tests.benchmarks.bench_loader [--data DIR] [--quick]

The peer is what a webdataset user writes: shards, a shuffle buffer, `.decode("pil")`, Pillow's
bicubic resize of the shortest side and a centre crop, captions beside them, batches. Both sides
read the same shards of a mix to 256 px in the same process, in turns; times are CPU seconds of all
threads of this process, so that other work on the machine does not count. Then a set of 1,000,000
tiny samples, each with its own bytes, key and caption: a loader is made and asked for one batch at
the first and at the last step of an epoch, in turns. Fails (exit 1) where a bar is missed.
"""

import argparse
import gc
import io
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset as wds
from PIL import Image

from pipeline import manifest
from pipeline.loading.loader import Loader
from pipeline.schemas import MIX
from tests.support.mixing import mixed
from tests.support.shards import write_tar

BAR = 1.5
LATE_BAR = 1.1  # equal, but for what the clock is unsure of
SIZE, BATCH = 256, 64
TINY, SHARDS = 1_000_000, 100


# --- images per second ---------------------------------------------------------------------------


def resized(data: bytes, shortest: int) -> bytes:
    """A JPEG of quality 90 whose shortest side has so many pixels."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = shortest / min(image.size)
    size = tuple(max(shortest, round(side * scale)) for side in image.size)
    file = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def make_mix(folder: Path, photographs: list[bytes]) -> str:
    """A mix of original captions, in four shards."""
    samples = [
        (f"{i:09d}", {"jpg": data, "txt": f"photograph number {i}".encode(), "json": b"{}"})
        for i, data in enumerate(photographs)
    ]
    urls = [write_tar(folder / f"raw/{i:05d}.tar", samples[i::4]) for i in range(4)]
    out = str(folder / "out")
    return mixed(out, manifest.register(out, urls), "0", captions="").run.folder


def square(image: Image.Image) -> np.ndarray:
    scale = SIZE / min(image.size)
    width, height = (max(SIZE, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


def peer(mix: str) -> int:
    """webdataset and Pillow, one epoch."""
    tars = sorted(map(str, Path(mix).glob("*.tar")))
    data = (
        wds.WebDataset(tars, shardshuffle=100, seed=0)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "txt")
        .map_tuple(square, lambda text: text)
        .batched(BATCH)
    )
    return sum(len(np.stack(list(images))) for images, _ in data)


def ours(mix: str, crop: str = "centre") -> int:
    loader = Loader(mix, size=SIZE, crop=crop, threads=1)
    steps = len(loader) // BATCH
    return sum(len(examples.images) for examples in loader.batches(BATCH, steps=steps))


def cpu_seconds(work: Callable[[], int]) -> float:
    """Per image."""
    start = time.process_time()
    images = work()
    return (time.process_time() - start) / images


def compare(mix: str, rounds: int) -> tuple[float, float, float]:
    """Medians of images per second: the peer's, ours, and ours with random crops."""
    sides = [lambda: peer(mix), lambda: ours(mix), lambda: ours(mix, "random")]
    taken: list[list[float]] = [[] for _ in sides]
    for turn in range(rounds + 1):
        for side, seconds in zip(sides, taken, strict=True):
            one = cpu_seconds(side)
            if turn:  # the first round warms up
                seconds.append(one)
    return tuple(1 / median(seconds) for seconds in taken)


# --- a million samples ---------------------------------------------------------------------------


def tiny_mix(folder: Path) -> str:
    """A mix of 1,000,000 samples whose shards are valid tars, made by numpy: some three gigabytes."""
    folder.mkdir(parents=True)
    count = TINY // SHARDS
    file = io.BytesIO()
    Image.new("L", (8, 8), 120).save(file, "JPEG", optimize=True)
    plain = file.getvalue()
    comment = b"\xff\xfe" + (2 + 9).to_bytes(2, "big") + b"000000000"
    jpg = plain[:2] + comment + plain[2:]
    members = {"jpg": jpg, "txt": b"sample 000000000", "json": b'{"uid": "000000000"}'}
    one = Path(write_tar(folder / "one", [("000000000", members)])).read_bytes()[: 6 * 512]
    (folder / "one").unlink()
    template = np.frombuffer(one, np.uint8)
    digits_at = [at for at in range(len(one) - 8) if one[at : at + 9] == b"0" * 9]
    digits_at = [at for at in digits_at if at % 512 == 0 or at // 512 % 2]  # keys, and contents
    places = {f"{name}_offset": 512 + 1024 * i for i, name in enumerate(members)}
    places |= {f"{name}_size": len(data) for name, data in members.items()}
    for shard in range(SHARDS):
        number = np.arange(shard * count, (shard + 1) * count)
        digits = (number[:, None] // 10 ** np.arange(8, -1, -1) % 10).astype(np.uint8)
        samples = np.tile(template, (count, 1))
        for at in digits_at:
            samples[:, at : at + 9] += digits
        for header in range(0, 3072, 1024):  # checksums, which grow with the digits of the key
            old = int(one[header + 148 : header + 154], 8)
            new = old + digits.sum(axis=1, dtype=np.int64)
            octal = (new[:, None] // 8 ** np.arange(5, -1, -1) % 8).astype(np.uint8) + ord("0")
            samples[:, header + 148 : header + 154] = octal
        name = f"{shard:05d}"
        data = samples.tobytes() + bytes(10240)
        (folder / f"{name}.tar").write_bytes(data)
        texts = [f"{n:09d}" for n in number.tolist()]
        fixed = {"status": "ok", "caption_source": "original", "source_shard": name}
        columns = {
            field.name: pa.array(texts, pa.string())
            if field.name in ("uid", "key", "source_key", "text")
            else pa.array(
                [fixed.get(field.name, 8 if field.name in ("width", "height") else None)] * count,
                field.type,
            )
            for field in MIX
        }
        for column, value in places.items():
            first = np.arange(count) * 3072 if column.endswith("offset") else np.zeros(count, int)
            columns[column] = pa.array(first + value, pa.int64())
        pq.write_table(
            pa.table(columns, schema=MIX), folder / f"{name}.parquet", compression="zstd"
        )
        stats = {"successes": count, "files": {f"{name}.tar": {"size": len(data)}}}
        (folder / f"{name}_stats.json").write_text(json.dumps(stats))
    sizes = {f"{shard:05d}.tar": count for shard in range(SHARDS)}
    (folder / "sizes.json").write_text(json.dumps(sizes))
    return str(folder)


def start_at(mix: str, step: int) -> tuple[float, float]:
    """CPU seconds and seconds until the first batch from a step on is there."""
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    with Loader(mix, size=8, threads=1) as loader:
        batches = loader.batches(BATCH, start=step)
        examples = next(islice(batches, 1))
        taken = time.process_time() - cpu, time.perf_counter() - wall
        batches.close()
    numbers = [text for text in examples.texts if text.startswith("sample ")]
    assert [int(text[7:]) for text in numbers] == [place.index for place in examples.places]
    return taken


def late_start(mix: str, rounds: int) -> tuple[list[float], list[float]]:
    """Medians of CPU seconds and seconds: of the first step, and of the last one of an epoch."""
    steps = (0, TINY // BATCH - 1)
    taken: list[list[tuple[float, float]]] = [[], []]
    for turn in range(rounds + 1):
        for step, own in list(zip(steps, taken, strict=True))[:: 1 if turn % 2 else -1]:
            one = start_at(mix, step)
            if turn:
                own.append(one)
    return tuple([median(one[kind] for one in own) for kind in (0, 1)] for own in taken)


def main() -> int:
    """Print both tables, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("RECAPTION_TEST_DATA"))
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds")
    options = parser.parse_args()
    if not options.data:
        print("no --data, and RECAPTION_TEST_DATA is not set: nothing to measure")
        return 2
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rounds, count = (3, 256) if options.quick else (5, 512)
    found = sorted((Path(options.data) / "flickr8k_875/images").glob("*.jpg"))
    photographs = [path.read_bytes() for path in random.Random(0).sample(found, count)]
    passed = True
    with tempfile.TemporaryDirectory() as scratch:
        print(
            f"{'set, to 256 px':22} {'KB':>4} {'webdataset':>11} {'ours':>7} {'ratio':>6} {'random':>8}"
        )
        sets = {
            "flickr8k as is": photographs,
            "512 px, quality 90": [resized(data, 512) for data in photographs],
            "256 px, quality 90": [resized(data, 256) for data in photographs],
        }
        for i, (name, images) in enumerate(sets.items()):
            mix = make_mix(Path(scratch) / str(i), images)
            theirs, own, randomly = compare(mix, rounds)
            passed &= own >= BAR * theirs
            kilobytes = sum(map(len, images)) / len(images) / 1000
            row = f"{name:22} {kilobytes:4.0f} {theirs:9.0f}/s {own:5.0f}/s {own / theirs:6.2f}"
            print(f"{row} {randomly:6.0f}/s", flush=True)
        mix = tiny_mix(Path(scratch) / "tiny")
        first, last = late_start(mix, rounds)
        ratio = last[0] / first[0]
        passed &= ratio <= LATE_BAR
        print(f"one batch of {BATCH} of {TINY:,}, from nothing: CPU seconds (seconds)")
        print(f"  from the first step {first[0]:.3f} ({first[1]:.3f})")
        print(f"  from the last step  {last[0]:.3f} ({last[1]:.3f}), ratio {ratio:.2f}")
    print(f"bars {BAR} and {LATE_BAR}: {'passed' if passed else 'FAILED'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
