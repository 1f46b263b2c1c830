"""A mix to load: three shards of small pictures of several shapes, with all their captions."""

from pathlib import Path

import pytest

from tests.support.mixing import Mixed, mixed
from tests.support.shards import Packed, jpeg, pair, write_tar
from tests.support.stages import caption

SHAPES = ((64, 48), (48, 64), (80, 40), (50, 50), (97, 61))
COUNTS = (53, 20, 7)


def pictures(count: int, start: int = 0) -> list[Packed]:
    """Good samples; shape and look of each follow from its number."""
    found = []
    for number in range(start, start + count):
        key, members = pair(f"{number:09d}", number)
        found.append((key, members | {"jpg": jpeg(number, SHAPES[number % len(SHAPES)])}))
    return found


def make(folder: Path, blend: str = "50", counts: tuple[int, ...] = COUNTS) -> Mixed:
    urls = [
        write_tar(folder / f"raw/{i:05d}.tar", pictures(n, 1000 * i)) for i, n in enumerate(counts)
    ]
    out = str(folder / "out")
    return mixed(out, caption(out, urls), blend)


@pytest.fixture(scope="package")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    """Nobody writes to it."""
    return make(tmp_path_factory.mktemp("mix"))


@pytest.fixture
def own_mix(tmp_path: Path) -> Mixed:
    """One to be damaged."""
    return make(tmp_path)
