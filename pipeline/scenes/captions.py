"""Captions of scenes in two styles: short names the main thing, descriptive tells everything."""

import re
from dataclasses import dataclass
from itertools import combinations

from pipeline.scenes.world import Scene, Thing

NUMBERS = ("a", "two", "three", "four", "five")
GROUND = {
    "grass": "grass",
    "sand": "sand",
    "water": "water",
    "bricks": "a brick wall",
    "wood": "a wooden floor",
    "snow": "snow",
}
PLACES = {
    "top left": "at the top left",
    "top": "at the top",
    "top right": "at the top right",
    "left": "on the left",
    "centre": "in the centre",
    "right": "on the right",
    "bottom left": "at the bottom left",
    "bottom": "at the bottom",
    "bottom right": "at the bottom right",
}
RELATIONS = ("left of", "right of", "above", "below")

# {number} agrees with the shape; {texture} of a plain thing is left out of short captions.
SHORT = (
    "{number} {colour} {texture} {shape}",
    "{number} {size} {colour} {shape}",
    "{number} {size} {colour} {texture} {shape}",
    "{number} {texture} {colour} {shape}",
    "{number} {size} {texture} {colour} {shape}",
    "{number} {colour} {shape}",
    "{number} {colour} {shape} on {ground}",
    "{number} {colour} {texture} {shape} on {ground}",
    "{number} {size} {colour} {shape} on {ground}",
    "{number} {texture} {colour} {shape} on {ground}",
    "{number} {colour} {shape} {places}",
    "{number} {colour} {texture} {shape} {places}",
    "{number} {size} {colour} {shape} {places}",
    "{number} {shape}, {colour} and {size}",
    "{number} {shape} that {is} {colour}",
    "{number} {shape} in {colour}",
    "{number} {size} {shape} in {colour}",
    "a picture of {number} {colour} {shape}",
    "a picture of {number} {colour} {texture} {shape}",
    "{number} {colour} {shape} with {ground} behind",
)


@dataclass(frozen=True)
class Template:
    """How a descriptive caption is built: `thing` for each kind, set into `frame`."""

    frame: str
    thing: str
    main_first: bool = False  # else in reading order


_AFTER = "{number} {size} {colour} {texture} {shape} {places}"
_TEXTURE_FIRST = "{number} {size} {texture} {colour} {shape} {places}"
_BEFORE = "{places} {number} {size} {colour} {texture} {shape}"
_OF_SIZE = "{number} {colour} {texture} {shape} of {size} size {places}"
_THAT_IS = "{number} {shape} that {is} {size}, {colour} and {texture} {places}"

LONG = (
    Template("{things} on {ground}. {relation}", _AFTER),
    Template("on {ground} {are} {things}. {relation}", _AFTER, main_first=True),
    Template("{things} on {ground}. {relation}", _TEXTURE_FIRST),
    Template("{things} with {ground} behind. {relation}", _AFTER, main_first=True),
    Template("{things} with {ground} behind. {relation}", _TEXTURE_FIRST, main_first=True),
    Template("{things}. {relation} the background is {ground}.", _AFTER, main_first=True),
    Template("{things}. the background is {ground}. {relation}", _BEFORE),
    Template("{things}. {relation} everything is on {ground}.", _OF_SIZE),
    Template("on {ground}, {things}. {relation}", _AFTER),
    Template("on {ground}, {things}. {relation}", _BEFORE, main_first=True),
    Template("on {ground} there {are} {things}. {relation}", _AFTER, main_first=True),
    Template("on {ground} there {are} {things}. {relation}", _THAT_IS),
    Template("there {are} {things} on {ground}. {relation}", _AFTER),
    Template("there {are} {things}. {relation} behind is {ground}.", _TEXTURE_FIRST),
    Template("the background is {ground}. {things}. {relation}", _BEFORE),
    Template("the background is {ground}. there {are} {things}. {relation}", _OF_SIZE),
    Template("a picture of {things} on {ground}. {relation}", _AFTER),
    Template("a picture of {things}. {relation} behind is {ground}.", _THAT_IS, main_first=True),
    Template("{ground} with {things}. {relation}", _AFTER, main_first=True),
    Template("{ground} with {things}. {relation}", _TEXTURE_FIRST),
)


def short_caption(scene: Scene, template: int) -> str:
    """The main thing, and of its surroundings at most the background. One of the SHORT templates."""
    return _fill(SHORT[template], scene.main, scene.background, plain="")


def long_caption(scene: Scene, template: int) -> str:
    """Everything in the scene, and how two of its things lie to each other. One of the LONG ones."""
    style = LONG[template]
    groups = _groups(scene, style.main_first)
    things = _join([_fill(style.thing, group, scene.background, plain="plain") for group in groups])
    text = style.frame.format(
        things=things,
        ground=GROUND[scene.background],
        relation=_relation(groups),
        are="is" if len(groups[0]) == 1 else "are",
    )
    return " ".join(text.split())


def holds(first: Thing, relation: str, second: Thing) -> bool:
    """Whether a relation is true of the cells of two things."""
    (row, column), (other_row, other_column) = first.cell, second.cell
    return {
        "left of": column < other_column,
        "right of": column > other_column,
        "above": row < other_row,
        "below": row > other_row,
    }[relation]


def _fill(pattern: str, group: tuple[Thing, ...], background: str, plain: str) -> str:
    thing, several = group[0], len(group) > 1
    text = pattern.format(
        number=NUMBERS[len(group) - 1],
        size=thing.size,
        colour=thing.colour,
        texture=plain if thing.texture == "plain" else thing.texture,
        shape=plural(thing.shape) if several else thing.shape,
        places=_join([PLACES[t.position] for t in group]),
        ground=GROUND[background],
        **{"is": "are" if several else "is"},
    )
    return re.sub(r"\ba orange\b", "an orange", " ".join(text.split()))


def plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def _groups(scene: Scene, main_first: bool) -> list[tuple[Thing, ...]]:
    """Things by kind, in reading order of the first of each kind, or with the main kind first."""
    kinds: dict[tuple, list[Thing]] = {}
    for thing in scene.things:
        kinds.setdefault(thing.kind, []).append(thing)
    groups = [tuple(group) for group in kinds.values()]
    if main_first:
        groups.sort(key=lambda group: group != scene.main)
    return groups


def _relation(groups: list[tuple[Thing, ...]]) -> str:
    """A sentence about the first two things that are alone of their kind; "" where there are none."""
    for (first,), (second,) in combinations([g for g in groups if len(g) == 1], 2):
        (row, column), (other_row, other_column) = first.cell, second.cell
        across = abs(column - other_column) >= abs(row - other_row)
        relation = next(
            r for r in (RELATIONS if across else RELATIONS[::-1]) if holds(first, r, second)
        )
        return f"the {first.colour} {first.shape} is {relation} the {second.colour} {second.shape}."
    return ""


def _join(parts: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
