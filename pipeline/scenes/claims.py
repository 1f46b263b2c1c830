"""What a caption claims: parsed from its text, turned into a scene, and compared with one."""

import re
from dataclasses import dataclass, field
from heapq import nlargest

from pipeline.scenes.captions import NUMBERS, PLACES, RELATIONS, holds, plural
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
_SEND_BACK = {"of", "in", "that", "is", "are"}


@dataclass
class Mention:
    """One noun of a caption with what is said of it; None and () where nothing is."""

    shape: str
    number: int = 1
    size: str | None = None
    colour: str | None = None
    texture: str | None = None
    positions: tuple[str, ...] = ()
    contradictions: tuple[tuple[str, str], ...] = ()  # ("colour", "blue") of a red, blue circle

    def add(self, word: str) -> None:
        """An adjective; one that contradicts another is a claim, too."""
        what = _ADJECTIVES[word]
        if getattr(self, what) in (None, word):
            setattr(self, what, word)
        elif (what, word) not in self.contradictions:
            self.contradictions += ((what, word),)

    def place(self, position: str) -> None:
        if position not in self.positions:
            self.positions += (position,)


@dataclass(frozen=True)
class Relation:
    first: Mention
    relation: str
    second: Mention


@dataclass
class Claims:
    """Everything that a caption says about what is visible."""

    mentions: list[Mention] = field(default_factory=list)
    backgrounds: list[str] = field(default_factory=list)
    relations: list[Relation] = field(default_factory=list)

    def scene(self) -> Scene:
        """The scene that the caption tells completely; ValueError where something is unsaid."""
        things = []
        for m in self.mentions:
            said = (m.shape, m.colour, m.texture, m.size)
            if None in said or len(m.positions) != m.number or m.contradictions:
                raise ValueError(f"too little or too much is said of {m}")
            things += [Thing(*said, position) for position in m.positions]
        if not things or len(self.backgrounds) != 1:
            raise ValueError("a scene needs a thing and one background")
        scene = Scene(self.backgrounds[0], tuple(things))
        for relation in self.relations:
            if not _truths(relation, scene):
                raise ValueError(f"{relation} contradicts the rest")
        return scene

    def scene_or_none(self) -> Scene | None:
        """The scene, or None where the caption tells none completely."""
        try:
            return self.scene()
        except ValueError:
            return None


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
    """Adjectives wait for their noun, and belong to the one before if none comes at once or a word
    such as `of` sends them there; places go to the noun before, or, where a sentence starts with a
    place, to the noun behind."""
    mentions: list[Mention] = []
    number = 1
    waiting: list[str] = []
    places: list[str] = []
    relation = ""
    places_first = _starts_with_place(tokens)
    sent_back = False
    for kind, token in [*tokens, ("end", "")]:
        if mentions and (kind in ("place", "relation", "end") or token in _NUMBERS):
            _complete(mentions[-1], waiting, places if kind == "end" else [])
            waiting, sent_back = [], False
        if kind == "relation":
            relation = next(r for r in RELATIONS if r in token)
        elif kind == "place":
            position = _PLACES.get(token) or _position(token)
            if places_first or not mentions:
                places.append(position)
            else:
                mentions[-1].place(position)
        elif token in _NOUNS:
            mentions.append(_complete(Mention(_NOUNS[token], number), waiting, places))
            number, waiting, places, sent_back = 1, [], [], False
        elif token in _SEND_BACK:
            sent_back = bool(mentions)
        elif token in _ADJECTIVES:
            if sent_back and getattr(mentions[-1], _ADJECTIVES[token]) is None:
                mentions[-1].add(token)
            else:
                waiting.append(token)
        elif token in _NUMBERS:
            number = _NUMBERS[token]
        elif token in _GROUND_WORDS and _GROUND_WORDS[token] not in claims.backgrounds:
            claims.backgrounds.append(_GROUND_WORDS[token])
    if relation and len(mentions) == 2:
        claims.relations.append(Relation(mentions[0], relation, mentions[1]))
    else:
        claims.mentions += mentions


def _complete(mention: Mention, adjectives: list[str], places: list[str]) -> Mention:
    for word in adjectives:
        mention.add(word)
    for position in places:
        mention.place(position)
    return mention


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
    """Claims made and how many are true; truths that can be said and how many were."""

    claimed: int = 0
    true: int = 0
    sayable: int = 0
    told: int = 0

    def __add__(self, other: "Score") -> "Score":
        return Score(
            self.claimed + other.claimed,
            self.true + other.true,
            self.sayable + other.sayable,
            self.told + other.told,
        )

    @property
    def f1(self) -> float:
        """Harmonic mean of the shares of claims that are true and of truths that are told."""
        precision, recall = self.true / max(1, self.claimed), self.told / max(1, self.sayable)
        return 2 * precision * recall / (precision + recall) if self.told else 0.0

    @property
    def false_share(self) -> float:
        return (self.claimed - self.true) / max(1, self.claimed)


def score(claims: Claims, scene: Scene) -> Score:
    """Compare a caption with the truth, attribute by attribute.

    Mentions are matched to kinds of things so that most is true. Of each kind shape, colour,
    texture, size, number and every position can be said, once for the scene the background. What is
    said of things that are not there, or a second time, is false. A relation counts as a claim, not
    as something to be told.
    """
    kinds: dict[tuple, list[Thing]] = {}
    for thing in scene.things:
        kinds.setdefault(thing.kind, []).append(thing)
    said = [_facts_said(m) for m in claims.mentions]
    shown = [_facts_shown(g) for g in kinds.values()]
    told = _best_match(said, shown) + (scene.background in claims.backgrounds)
    return Score(
        claimed=sum(map(len, said)) + len(claims.backgrounds) + len(claims.relations),
        true=told + _num_true(claims.relations, scene),
        sayable=sum(map(len, shown)) + 1,
        told=told,
    )


def main_is_right(claims: Claims, scene: Scene) -> bool:
    """Whether the first thing mentioned is the main one in shape, colour, and whatever else is said
    of it, and no other background is claimed."""
    if not claims.mentions or not set(claims.backgrounds) <= {scene.background}:
        return False
    said = _facts_said(claims.mentions[0])
    kinds_said = {kind for kind, _ in said}
    return {"shape", "colour"} <= kinds_said and said <= _facts_shown(list(scene.main))


def _facts_said(mention: Mention) -> set[tuple[str, str | int]]:
    facts = {("shape", mention.shape), ("number", mention.number), *mention.contradictions}
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
    gains = [[len(a & b) for b in shown] for a in said]
    kept: set[int] = set()
    for kind in range(len(shown)):  # the others are taken by other kinds, or fit this one no better
        kept |= set(nlargest(len(shown), range(len(said)), key=lambda i, k=kind: gains[i][k]))
    best = [0] * (1 << len(shown))  # of the mentions so far, by the set of kinds they may take
    for i in sorted(kept):
        for kinds in reversed(range(len(best))):
            for kind, gain in enumerate(gains[i]):
                if kinds >> kind & 1:
                    best[kinds] = max(best[kinds], best[kinds ^ 1 << kind] + gain)
    return best[-1]


def _num_true(relations: list[Relation], scene: Scene) -> int:
    """How many of them say something true that those before do not."""
    told: set[tuple[str, str, str]] = set()
    for relation in relations:
        told |= set(sorted(_truths(relation, scene) - told)[:1])
    return len(told)


def _truths(relation: Relation, scene: Scene) -> set[tuple[str, str, str]]:
    """The pairs of things it is true of: ("left of" or "above", position, other position)."""
    pairs = {
        (a, b)
        for a in scene.things
        for b in scene.things
        if _fits(relation.first, a) and _fits(relation.second, b)
        if holds(a, relation.relation, b)
    }
    if relation.relation in ("left of", "above"):
        return {(relation.relation, a.position, b.position) for a, b in pairs}
    opposite = "left of" if relation.relation == "right of" else "above"
    return {(opposite, b.position, a.position) for a, b in pairs}


def _fits(mention: Mention, thing: Thing) -> bool:
    said = {what: getattr(mention, what) for what in ("shape", "size", "colour", "texture")}
    return (
        all(value in (None, getattr(thing, what)) for what, value in said.items())
        and not mention.contradictions
        and (not mention.positions or thing.position in mention.positions)
    )
