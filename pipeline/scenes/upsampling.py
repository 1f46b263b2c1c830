"""Upsampling without a model: a terse prompt of the rendered world becomes a descriptive caption."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.draws import Draws
from pipeline.scenes.alt_text import MEDIA
from pipeline.scenes.captions import (
    GROUND,
    LONG,
    NUMBERS,
    PLACES,
    RELATIONS,
    SHORT,
    long_caption,
    plural,
)
from pipeline.scenes.claims import Claims, Mention, parse, score
from pipeline.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    Level,
    Scene,
    Thing,
)

REASONS = (
    "no_thing",  # no shape is named
    "unknown_word",  # a word or number that no caption of this world has, whose wish would be lost
    "unread_relation",  # said in a way that is not understood: the same
    "contradiction",  # two colours of one thing, two backgrounds
    "too_many",  # more things than the level shows
    "impossible",  # no scene was found of which all is true
)
"""Why a prompt stays as it is."""

_TRIES = 200  # scenes that are drawn before a prompt counts as impossible


def _words(texts: Sequence[str]) -> set[str]:
    return {word for text in texts for word in re.findall(r"[a-z0-9]+", text)}


def _literal(pattern: str) -> str:
    return re.sub(r"\{\w+\}", " ", pattern)


_KNOWN = (
    {*SHAPES, *map(plural, SHAPES), *COLOURS, *TEXTURES, *SIZES, *MEDIA, "one", "an", "to"}
    | _words((*NUMBERS, *PLACES.values(), *GROUND.values(), *RELATIONS, "are"))
    | _words([_literal(text) for text in (*SHORT, *(t.frame for t in LONG))])
    | _words([_literal(t.thing) for t in LONG])
)

_RELATION = re.compile("|".join(RELATIONS))


@dataclass(frozen=True)
class Told:
    """A prompt and its description: the prompt itself, and one of REASONS, where there is none."""

    prompt: str
    text: str
    reason: str = ""


def upsample(
    prompt: str, level: Level, seed: int = 0, templates: Sequence[int] = range(len(LONG))
) -> Told:
    """A caption that tells a whole scene of a level, and says all that the prompt says.

    What the prompt leaves open is drawn by a hash of (seed, prompt), among what the level shows; so
    is the template, among those of LONG that are named. Nothing is ever changed that was asked for: what
    the prompt is understood to claim is compared with the scene that is told, and a prompt that cannot
    be told stays as it is.
    """
    claims = parse(prompt)
    things = _things(claims)
    if reason := _fault(prompt, claims, things, level):
        return Told(prompt, prompt, reason)
    draws = Draws(seed, " ".join(prompt.lower().split()), "upsampling")
    scene = _scene(claims, things, level, draws)
    if scene is None:
        return Told(prompt, prompt, "impossible")
    text = long_caption(scene, templates[draws.below(len(templates))])
    return Told(prompt, text)


def _things(claims: Claims) -> list[Mention]:
    """What is mentioned; a relation may speak of things that nothing else does."""
    things = list(claims.mentions)
    for relation in claims.relations:
        for mention in (relation.first, relation.second):
            if not any(_speaks_of(mention, thing) for thing in things):
                things.append(mention)
    return things


def _speaks_of(mention: Mention, thing: Mention) -> bool:
    said = {name: getattr(mention, name) for name in ("size", "colour", "texture")}
    return mention.shape == thing.shape and all(
        value is None or getattr(thing, name) in (None, value) for name, value in said.items()
    )


def _fault(prompt: str, claims: Claims, things: Sequence[Mention], level: Level) -> str:
    if not things:
        return "no_thing"
    if not _words([prompt.lower()]) <= _KNOWN or not prompt.isascii():
        return "unknown_word"
    if len(_RELATION.findall(prompt.lower())) != len(claims.relations):
        return "unread_relation"
    if len(claims.backgrounds) > 1 or any(
        thing.contradictions or len(thing.positions) > thing.number for thing in things
    ):
        return "contradiction"
    total = sum(thing.number for thing in things)
    repeated = max(thing.number for thing in things) > level.repeats
    return "too_many" if repeated or total > len(level.count_weights) else ""


def _scene(claims: Claims, mentions: Sequence[Mention], level: Level, draws: Draws) -> Scene | None:
    """The first drawn one of which all is true, and that looks like a scene of the level; if none
    looks so, the first of which all is true.
    """
    found = None
    for _ in range(_TRIES):
        scene = _drawn(claims, mentions, level, draws)
        if scene is None or score(claims, scene).true < score(claims, scene).claimed:
            continue
        if _is_usual(scene):
            return scene
        found = found or scene
    return found


def _drawn(claims: Claims, mentions: Sequence[Mention], level: Level, draws: Draws) -> Scene | None:
    """What is said as it is said, and the rest at random; None where two stand in one place."""
    taken = [position for mention in mentions for position in mention.positions]
    free = draws.shuffled([position for position in level.positions if position not in taken])
    sizes = _sizes(mentions, level, draws)
    things: list[Thing] = []
    for mention, size in zip(mentions, sizes, strict=True):
        thing = Thing(
            mention.shape,
            mention.colour or draws.choice(COLOURS),
            mention.texture or draws.choice(level.textures),
            mention.size or size,
            "",
        )
        places = list(mention.positions)
        while len(places) < mention.number:
            if not free:
                return None
            places.append(free.pop())
        things += [replace(thing, position=position) for position in places]
    if len({thing.position for thing in things}) < len(things):
        return None
    return Scene((claims.backgrounds or [draws.choice(BACKGROUNDS)])[0], tuple(things))


def _sizes(mentions: Sequence[Mention], level: Level, draws: Draws) -> list[str]:
    """A size for each: the first is larger than the others, as in every scene of this world."""
    most = len(level.sizes) - 1
    largest = draws.below(most + 1) if len(mentions) == 1 else draws.between(1, most)
    return [level.sizes[largest], *(level.sizes[draws.below(largest)] for _ in mentions[1:])]


def _is_usual(scene: Scene) -> bool:
    """Whether the kinds of things differ in shape or colour, and one kind is larger than all others."""
    kinds = {thing.kind for thing in scene.things}
    looks = {(thing.shape, thing.colour) for thing in scene.things}
    return len(looks) == len(kinds) and len({thing.kind for thing in scene.main}) == 1
