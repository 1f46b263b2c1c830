"""What a scene can hold, how scenes are drawn at random, and which combinations are held out."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pipeline.draws import Draws

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = ("small", "medium", "large")
POSITIONS = (
    *("top left", "top", "top right"),
    *("left", "centre", "right"),
    *("bottom left", "bottom", "bottom right"),
)
BACKGROUNDS = ("grass", "sand", "water", "bricks", "wood", "snow")

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Thing:
    """One object; `position` is a cell of a 3 x 3 grid."""

    shape: str
    colour: str
    texture: str
    size: str
    position: str

    @property
    def kind(self) -> tuple[str, str, str, str]:
        """All but where it is: things of one kind are counted together in a caption."""
        return (self.shape, self.colour, self.texture, self.size)

    @property
    def cell(self) -> tuple[int, int]:
        """(row, column) of its position."""
        return divmod(POSITIONS.index(self.position), 3)


@dataclass(frozen=True)
class Scene:
    """What an image shows. Equal scenes differ only in jitter, light and noise.

    `things` stand in reading order of their positions, at most one in each.
    """

    background: str
    things: tuple[Thing, ...]

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.things, key=lambda t: t.cell))
        if len({t.position for t in ordered}) != len(ordered):
            raise ValueError(f"two things in one position: {ordered}")
        object.__setattr__(self, "things", ordered)

    @cached_property
    def main(self) -> tuple[Thing, ...]:
        """The largest things: one, or several of one kind."""
        largest = max(self.things, key=lambda t: SIZES.index(t.size)).size
        return tuple(t for t in self.things if t.size == largest)


@dataclass(frozen=True)
class Level:
    """How large and how crowded images are. Lengths are in pixels."""

    name: str
    pixels: int
    extents: tuple[int, int, int]  # of small, medium and large things
    spacing: int  # between the centres of neighbouring cells
    jitter: int  # a thing's centre is off its cell's by up to this much, as long as it fits
    grain: int  # period of textures
    outline: int  # in eighths of a pixel
    count_weights: tuple[float, ...]  # of 1, 2, ... things
    textures: tuple[str, ...] = TEXTURES
    sizes: tuple[str, ...] = SIZES
    positions: tuple[str, ...] = POSITIONS
    repeats: int = 1  # most things of one kind

    def extent(self, size: str) -> int:
        return self.extents[SIZES.index(size)]


LEVELS = {
    level.name: level
    for level in (
        Level(
            *("A4", 16, (6, 7, 8), 4, 0, 4, 4, (1.0,)),
            textures=("plain",),
            sizes=("small", "large"),
            positions=("top left", "top right", "bottom left", "bottom right"),
        ),
        Level("A16", 16, (6, 8, 11), 3, 0, 4, 4, (1.0,), textures=("plain",)),
        Level("A", 32, (11, 15, 19), 6, 1, 4, 5, (1.0,)),
        Level("B", 64, (13, 17, 21), 21, 1, 5, 6, (0.25, 0.35, 0.4)),
        Level("C", 128, (26, 36, 48), 38, 2, 8, 10, (0.15, 0.2, 0.2, 0.2, 0.25), repeats=3),
    )
}
"""A trains generators, B the bundled captioner, C has counts and occlusion: what is lower or further
right stands in front. A16 is A at 16 pixels, where textures cannot be told apart; A4 has two of its sizes
in four places that do not overlap, which the experiment's small transformers learn in two minutes."""


def held_out(shape: str, colour: str, texture: str) -> bool:
    """Whether a combination is never trained: an eighth of them.

    Every pair of a shape and a colour, a shape and a texture, a colour and a texture is trained.
    """
    s, c, t = SHAPES.index(shape), COLOURS.index(colour), TEXTURES.index(texture)
    return (s + c) % len(COLOURS) == 2 * t + 1


def draw_scene(level: Level, seed: int, index: int, split: Split, most: int = 0) -> Scene:
    """The scene that (seed, index) stands for; one thing, or one kind, is larger than all others.

    In `train` no thing is a held-out combination, in `test` each is one. Kinds differ in shape or
    colour. `most` limits the number of things; 0 leaves it to the level.
    """
    draws = Draws(seed, index, level.name, split, "scene")
    weights = level.count_weights[:most] if most else level.count_weights
    counts = _counts(draws, 1 + draws.weighted(weights), level.repeats)
    sizes = level.sizes
    largest = draws.below(len(sizes)) if len(counts) == 1 else draws.between(1, len(sizes) - 1)
    positions = draws.shuffled(level.positions)
    things: list[Thing] = []
    taken: set[tuple[str, str]] = set()
    for kind, count in enumerate(counts):
        size = sizes[largest if kind == 0 else draws.below(largest)]
        shape, colour, texture = _combination(draws, level, split, taken)
        taken.add((shape, colour))
        things += [Thing(shape, colour, texture, size, positions.pop()) for _ in range(count)]
    return Scene(draws.choice(BACKGROUNDS), tuple(things))


def _counts(draws: Draws, total: int, repeats: int) -> list[int]:
    """How many things there are of each kind, the main one first."""
    counts: list[int] = []
    while total:
        count = 1 + draws.weighted((0.6, 0.25, 0.15)[: min(repeats, total)])
        counts.append(count)
        total -= count
    return counts


def _combination(
    draws: Draws, level: Level, split: Split, taken: set[tuple[str, str]]
) -> tuple[str, str, str]:
    while True:
        found = draws.choice(SHAPES), draws.choice(COLOURS), draws.choice(level.textures)
        if held_out(*found) == (split == "test") and found[:2] not in taken:
            return found
