"""What a caption claims: parsed from its text, turned into a scene, and compared with one."""

import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import permutations

from pipeline.scenes.captions import NUMBERS, PLACES, holds, plural
from pipeline.scenes.world import COLOURS, SHAPES, SIZES, TEXTURES, Scene, Thing

_GROUND_WORDS = {
    "grass": "grass",
    "sand": "sand",
    "water": "water",
    "brick": "bricks",
    "wooden": "wood",
    "snow": "snow",
}
_NOUNS = {shape: shape for shape in SHAPES} | {plural(shape): shape for shape in SHAPES}
_ADJECTIVES = {
    word: kind
    for kind, words in (("size", SIZES), ("colour", COLOURS), ("texture", TEXTURES))
    for word in words
}
_NUMBERS = {word: i + 1 for i, word in enumerate(NUMBERS)} | {"an": 1, "one": 1}
_PLACES = {phrase: position for position, phrase in PLACES.items()}
_TOKEN = re.compile(
    "|".join(
        (
            r"(?P<place>(?:at|on|in) the (?:top left|top right|bottom left|bottom right|"
            r"top|bottom|left|right|centre)\b(?! of))",
            r"(?P<relation>(?:(?:to|on) the )?(?:left of|right of)|above|below)\b",
            r"(?P<word>[a-z]+)",
            r"(?P<stop>\.)",
        )
    )
)
_AFTER_NOUN = {"of", "in", "that", "is", "are"}  # adjectives that follow belong to the noun before


@dataclass
class Mention:
    """One noun of a caption with what is said of it; None and () where nothing is."""

    shape: str
    number: int = 1
    size: str | None = None
    colour: str | None = None
    texture: str | None = None
    positions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Relation:
    first: Mention
    relation: str
    second: Mention


@dataclass
class Claims:
    """Everything that a caption says about what is visible."""

    mentions: list[Mention] = field(default_factory=list)
    background: str | None = None
    relations: list[Relation] = field(default_factory=list)

    def scene(self) -> Scene:
        """The scene that the caption tells completely; ValueError where something is unsaid."""
        things = []
        for m in self.mentions:
            said = (m.shape, m.colour, m.texture, m.size)
            if None in said or len(m.positions) != m.number:
                raise ValueError(f"not all is said of {m}")
            things += [Thing(*said, position) for position in m.positions]
        if not things or self.background is None:
            raise ValueError("a scene needs a thing and a background")
        scene = Scene(self.background, tuple(things))
        for relation in self.relations:
            if not _is_true(relation, scene):
                raise ValueError(f"{relation} contradicts the rest")
        return scene


def parse(text: str) -> Claims:
    """Read a caption in the words of `captions`, in any order and however wrong; never raises."""
    claims = Claims()
    sentence: list[tuple[str, str]] = []
    for match in _TOKEN.finditer(text.lower() + "."):
        if match.lastgroup != "stop":
            sentence.append((match.lastgroup, match.group()))
            continue
        _read_sentence(sentence, claims)
        sentence = []
    return claims


def _read_sentence(tokens: list[tuple[str, str]], claims: Claims) -> None:
    """Adjectives wait for their noun; places go to the noun before, or, where a sentence starts
    with a place, to the noun behind."""
    mentions: list[Mention] = []
    waiting: dict[str, str | int] = {}
    places: list[str] = []
    relation = ""
    places_first = _starts_with_place(tokens)
    after_noun = False
    for kind, token in tokens:
        if kind == "relation":
            relation = next(r for r in ("left of", "right of", "above", "below") if r in token)
            after_noun = False
        elif kind == "place":
            position = _PLACES.get(token) or _position(token)
            after_noun = False
            if places_first or not mentions:
                places.append(position)
            else:
                mentions[-1].positions += (position,)
        elif token in _NOUNS:
            mentions.append(Mention(_NOUNS[token], **waiting, positions=tuple(places)))
            waiting, places, after_noun = {}, [], True
        elif token in _ADJECTIVES:
            what = _ADJECTIVES[token]
            if after_noun and getattr(mentions[-1], what) is None:
                setattr(mentions[-1], what, token)
            else:
                waiting[what] = token
        elif token in _NUMBERS:
            waiting, after_noun = {"number": _NUMBERS[token]}, False
        elif token in _GROUND_WORDS:
            claims.background = claims.background or _GROUND_WORDS[token]
            after_noun = False
    if relation and len(mentions) == 2:
        claims.relations.append(Relation(mentions[0], relation, mentions[1]))
    else:
        claims.mentions += mentions


def _starts_with_place(tokens: list[tuple[str, str]]) -> bool:
    """Whether the first place stands before the first noun."""
    for kind, token in tokens:
        if kind == "place":
            return True
        if token in _NOUNS:
            return False
    return False


def _position(token: str) -> str:
    return token.split(" the ")[1]


@dataclass(frozen=True)
class Score:
    """Claims made, claims that are true, and true things that could have been said."""

    claimed: int
    true: int
    sayable: int

    def __add__(self, other: "Score") -> "Score":
        return Score(
            self.claimed + other.claimed, self.true + other.true, self.sayable + other.sayable
        )

    @property
    def f1(self) -> float:
        """Harmonic mean of the shares of claims that are true and of truths that are claimed."""
        return 2 * self.true / max(1, self.claimed + self.sayable)

    @property
    def false_share(self) -> float:
        return 1 - self.true / max(1, self.claimed)


def score(claims: Claims, scene: Scene) -> Score:
    """Compare a caption with the truth, attribute by attribute.

    Mentions are matched to kinds of things so that most is true. Of each kind shape, colour,
    texture, size, number and every position can be said, once for the scene the background. What is
    said of things that are not there is false. A relation counts as a claim, not as sayable.
    """
    kinds: dict[tuple, list[Thing]] = {}
    for thing in scene.things:
        kinds.setdefault(thing.kind, []).append(thing)
    groups = list(kinds.values())
    said = [_facts_said(m) for m in claims.mentions]
    shown = [_facts_shown(g) for g in groups]
    best = _best_match(said, shown)
    relations_true = sum(_is_true(r, scene) for r in claims.relations)
    background_true = claims.background == scene.background
    return Score(
        claimed=sum(map(len, said)) + (claims.background is not None) + len(claims.relations),
        true=best + background_true + relations_true,
        sayable=sum(map(len, shown)) + 1,
    )


def main_is_right(claims: Claims, scene: Scene) -> bool:
    """Whether the first thing mentioned is the main one in shape, colour, and whatever else is said."""
    if not claims.mentions:
        return False
    said = _facts_said(claims.mentions[0])
    kinds_said = {kind for kind, _ in said}
    return {"shape", "colour"} <= kinds_said and said <= _facts_shown(list(scene.main))


def _facts_said(mention: Mention) -> set[tuple[str, str | int]]:
    facts = {("shape", mention.shape), ("number", mention.number)}
    for what in ("size", "colour", "texture"):
        if (value := getattr(mention, what)) is not None:
            facts.add((what, value))
    return facts | {("position", position) for position in mention.positions}


def _facts_shown(group: list[Thing]) -> set[tuple[str, str | int]]:
    thing = group[0]
    facts = {("shape", thing.shape), ("number", len(group)), ("size", thing.size)}
    facts |= {("colour", thing.colour), ("texture", thing.texture)}
    return facts | {("position", t.position) for t in group}


def _best_match(said: list[set], shown: list[set]) -> int:
    """The most true claims that any matching of mentions to kinds gives."""
    said = said[:6]  # a caption in a loop; what it repeats is false anyhow
    few, many = sorted((said, shown), key=len)
    return max(
        sum(len(a & b) for a, b in zip(few, chosen, strict=True))
        for chosen in permutations(many, len(few))
    )


def _is_true(relation: Relation, scene: Scene) -> bool:
    """Whether some pair of things that fit the two mentions lies so."""
    firsts, seconds = (
        [t for t in scene.things if _fits(m, t)] for m in (relation.first, relation.second)
    )
    return any(holds(a, relation.relation, b) for a in firsts for b in seconds if a != b)


def _fits(mention: Mention, thing: Thing) -> bool:
    said = Counter(
        {what: getattr(mention, what) for what in ("shape", "size", "colour", "texture")}
    )
    return all(value in (None, getattr(thing, what)) for what, value in said.items())
