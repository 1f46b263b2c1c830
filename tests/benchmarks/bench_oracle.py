"""How often the oracle reads a render exactly, how often it refuses what is none, and how fast.

    python -m tests.benchmarks.bench_oracle [--data DIR] [--num 2000] [--levels A16,A,B,C]

Renders of both splits, as they are and damaged; then images without a scene, and web images where
--data is given. Fails (exit 1) where a bar is missed.
"""

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path

from pipeline.scenes.oracle import read_scene
from pipeline.scenes.render import render
from pipeline.scenes.world import LEVELS, Level, draw_scene
from tests.support.pictures import DAMAGES, no_scenes, photographs

SEED = 1_000_003
BARS = {"raw": 0.995, "jpeg": 0.995, "noise": 0.95, "blur": 0.95, "shift": 0.95}
SMALL_BARS = {"jpeg": 0.93, "shift": 0.8}
"""At 16 px, where chroma has 8 px, and where a large thing shifted may be half way between cells."""
REFUSED_BAR = 0.99


def exact(level: Level, split: str, damage: str, num: int) -> tuple[float, float, float]:
    """Of num renders: the shares read exactly and refused, and milliseconds of CPU per image."""
    right = none = 0
    seconds = 0.0
    for index in range(num):
        scene = draw_scene(level, SEED, index, split)
        image = DAMAGES[damage](render(level, scene, SEED, index))
        start = time.process_time()
        read = read_scene(image, level)
        seconds += time.process_time() - start
        right += read == scene
        none += read is None
    return right / num, none / num, 1000 * seconds / num


def refused(level: Level, num: int, data: str) -> dict[str, float]:
    """The share of images of each kind without a scene that are refused."""
    images = list(no_scenes(level, num))
    if data:
        images += [("web image", image) for image in photographs(level, Path(data))]
    seen = Counter(kind for kind, _ in images)
    good = Counter(kind for kind, image in images if read_scene(image, level) is None)
    return {kind: good[kind] / seen[kind] for kind in seen}


def main() -> int:
    """Print a table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("RECAPTION_TEST_DATA", ""))
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--levels", default=",".join(LEVELS))
    options = parser.parse_args()
    missed = 0
    for level in (LEVELS[name] for name in options.levels.split(",")):
        for damage, bar in BARS.items():
            num = options.num if damage in ("raw", "jpeg") else options.num // 4
            bar = SMALL_BARS.get(damage, bar) if level.pixels == 16 else bar
            for split in ("train", "test"):
                right, none, cost = exact(level, split, damage, num)
                missed += right < bar
                print(
                    f"{level.name:4}{damage:6}{split:6} exact {right:.2%} (bar {bar:.1%}), "
                    f"refused {none:.2%}, {cost:.1f} ms",
                    flush=True,
                )
        for kind, share in refused(level, min(options.num // 4, 200), options.data).items():
            missed += share < REFUSED_BAR
            print(f"{level.name:4}{kind}: refused {share:.2%} (bar {REFUSED_BAR:.0%})", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
