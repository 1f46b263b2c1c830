"""Exact prompt following on the rendered world: which stated attributes an oracle finds in a drawn image."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nlargest

import numpy as np

from pipeline.scenes.claims import Claims, Mention, Relation, parse, score
from pipeline.scenes.oracle import read_scene
from pipeline.scenes.world import LEVELS, Level, Scene, Thing

Fact = tuple[str, str]
"""An attribute and its value, as ("colour", "red")."""


@dataclass(frozen=True)
class Following:
    """Sums over prompts with one image each; they add up.

    stated, right: by attribute, what prompts said and images show. scenes: images that show a scene;
    in the others nothing is right. whole: images that show all that was stated.
    """

    stated: Mapping[str, int] = field(default_factory=dict)
    right: Mapping[str, int] = field(default_factory=dict)
    images: int = 0
    scenes: int = 0
    whole: int = 0

    def __add__(self, other: "Following") -> "Following":
        return Following(
            dict(Counter(self.stated) + Counter(other.stated)),
            dict(Counter(self.right) + Counter(other.right)),
            self.images + other.images,
            self.scenes + other.scenes,
            self.whole + other.whole,
        )

    def figures(self) -> dict[str, float]:
        """Shares: of all stated attributes that are right, and of each; of images that are wholly
        right, and that are no scene.
        """
        found = {"attributes": _share(sum(self.right.values()), sum(self.stated.values()))}
        for name, stated in sorted(self.stated.items()):
            found[f"attributes_{name}"] = _share(self.right.get(name, 0), stated)
        found["all_right"] = _share(self.whole, self.images)
        found["no_scene"] = _share(self.images - self.scenes, self.images)
        return found

    def row(self) -> dict[str, int | bool | str]:
        """What is told of one image; `wrong` names attributes."""
        wrong = Counter(self.stated) - Counter(self.right)
        return {
            "stated": sum(self.stated.values()),
            "right": sum(self.right.values()),
            "wrong": " ".join(sorted(wrong.elements())),
            "is_scene": self.scenes == self.images,
        }


def follow(prompt: str, image: np.ndarray, level: Level | str) -> Following:
    """What of a prompt's attributes an image (H, W, 3) uint8 of the level shows.

    Shape, size, colour, texture and position of everything mentioned, the background, and relations;
    of all ways to find the things that are mentioned the one that makes most right. Textures count
    where the level has more than one. What else the image shows is not held against it, so a prompt
    that states nothing is followed by any scene.
    """
    level = LEVELS[level] if isinstance(level, str) else level
    return compare(parse(prompt), read_scene(image, level), level)


def compare(claims: Claims, scene: Scene | None, level: Level) -> Following:
    """The same of a parsed prompt and what was read in the image, None where that is no scene."""
    wanted = [facts for mention in claims.mentions for facts in _stated(mention, level)]
    stated = Counter(name for facts in wanted for name, _ in facts)
    stated["background"] += len(claims.backgrounds)
    stated["relation"] += len(claims.relations)
    right: Counter[str] = Counter()
    if scene:
        things = [_shown(thing) for thing in scene.things]
        right.update(name for name, _ in _found(wanted, things))
        right["background"] += scene.background in claims.backgrounds
        right["relation"] += sum(_holds(relation, scene) for relation in claims.relations)
    is_whole = scene is not None and right.total() == stated.total()
    return Following(dict(+stated), dict(+right), 1, int(scene is not None), int(is_whole))


def _stated(mention: Mention, level: Level) -> Iterator[list[Fact]]:
    """Of each of the things that a mention counts, what is said of it, contradictions included."""
    said = [(name, getattr(mention, name)) for name in ("shape", "size", "colour", "texture")]
    facts = [(name, value) for name, value in said if value is not None]
    facts += mention.contradictions
    if len(level.textures) == 1:
        facts = [fact for fact in facts if fact[0] != "texture"]
    positions = [("position", position) for position in mention.positions]
    for i in range(mention.number):
        is_last = i + 1 == mention.number
        yield facts + (positions[i:] if is_last else positions[i : i + 1])


def _shown(thing: Thing) -> set[Fact]:
    names = ("shape", "size", "colour", "texture", "position")
    return {(name, getattr(thing, name)) for name in names}


def _found(wanted: Sequence[list[Fact]], things: Sequence[set[Fact]]) -> list[Fact]:
    """What is right when each thing is taken for at most one that is wanted, so that most is right."""
    right = [[[fact for fact in facts if fact in thing] for thing in things] for facts in wanted]
    kept: set[int] = set()
    for thing in range(len(things)):  # the others are better taken for another thing, or no worse
        best = nlargest(len(things), range(len(wanted)), key=lambda i, t=thing: len(right[i][t]))
        kept |= set(best)
    best_of: dict[int, list[Fact]] = {0: []}  # by the set of things that are taken
    for i in sorted(kept):
        for taken, found in list(best_of.items()):
            for thing in range(len(things)):
                if not taken >> thing & 1:
                    more = found + right[i][thing]
                    both = taken | 1 << thing
                    if len(more) > len(best_of.get(both, ())) or both not in best_of:
                        best_of[both] = more
    return max(best_of.values(), key=len)


def _holds(relation: Relation, scene: Scene) -> bool:
    return score(Claims(relations=[relation]), scene).true > 0


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
