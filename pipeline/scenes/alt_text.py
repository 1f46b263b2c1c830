"""The alt text that a web page would put beside a scene: mostly thin, sometimes beside the point."""

from dataclasses import dataclass, replace

from pipeline.draws import Draws
from pipeline.scenes.captions import GROUND, NUMBERS, PLACES, plural
from pipeline.scenes.world import COLOURS, SHAPES, Scene, Thing

# Counted on 1,111 web images with permissive licences and the alt texts of their pages: missing and
# file names by rules on all of them, the others by looking at 300 (95 % intervals: boilerplate
# 7.4-14.7 %, irrelevant 0.9-4.7 %, wrong 0.4-3.4 %). Many came from sites that care for
# accessibility, so the open web is noisier: experiments are run at half and at double, too.
NOISE_RATES = {
    "missing": 0.142,
    "file_name": 0.009,
    "boilerplate": 0.107,
    "irrelevant": 0.023,
    "wrong": 0.013,
}
DESCRIPTIVE_SHARE = 123 / 214  # of what is relevant; the rest says one thing only
# How often a relevant text names an attribute, counted on the same texts: descriptive, partial.
MENTIONS = {
    "colour": (0.089, 0.033),
    "position": (0.179, 0.033),
    "size": (0.057, 0.022),
    "texture": (0.073, 0.0),
    "background": (0.17, 0.0),  # "... on a table"
}
ENDS_WITH_STOP = 0.17
ARTICLE = 0.45
LOWER_CASE = 0.04

_BRANDS = ("Acme", "Northwind", "Bluebell", "Fabrikam", "Contoso", "Larkspur", "Tailwater")
_NAMES = ("Ada Moreno", "Jonas Weber", "Mei Tanaka", "Ruth Okafor", "Tom Larsen")
MEDIA = ("image", "picture", "photo", "banner", "icon", "logo", "screenshot")
_TOPICS = ("Getting started", "Our values", "Spring sale", "How it works", "Annual report")


@dataclass(frozen=True)
class AltText:
    """text: None where the page gave none; kind: one of NOISE_RATES, `partial` or `descriptive`."""

    text: str | None
    kind: str


def alt_text(scene: Scene, seed: int, index: int, noise: float = 1.0) -> AltText:
    """The alt text of one image. `noise` multiplies every rate of NOISE_RATES; at most 3.4."""
    draws = Draws(seed, index, "alt text")
    rates = [rate * noise for rate in NOISE_RATES.values()]
    relevant = 1 - sum(rates)
    if not noise >= 0 or relevant < 0:
        raise ValueError(f"noise {noise} is not in 0 .. {1 / sum(NOISE_RATES.values()):.2f}")
    weights = (*rates, relevant * DESCRIPTIVE_SHARE, relevant * (1 - DESCRIPTIVE_SHARE))
    kind = (*NOISE_RATES, "descriptive", "partial")[draws.weighted(weights)]
    if kind == "missing":
        return AltText(None, kind)
    if kind in ("file_name", "boilerplate", "irrelevant"):
        return AltText(_OFF_TOPIC[kind](scene, draws), kind)
    text = (
        _partial(scene, draws) if kind == "partial" else _descriptive(scene, draws, kind == "wrong")
    )
    return AltText(_as_typed(text, draws), kind)


def _file_name(scene: Scene, draws: Draws) -> str:
    number = draws.between(100, 9999)
    return draws.choice(
        (
            f"IMG_{number:04d}.jpg",
            f"DSC{number:05d}",
            f"image{number}",
            f"{draws.choice(SHAPES)}-{draws.between(1, 20):02d}.png",
            f"untitled ({draws.between(1, 9)}).png",
        )
    )


def _boilerplate(scene: Scene, draws: Draws) -> str:
    brand, medium = draws.choice(_BRANDS), draws.choice(MEDIA)
    return draws.choice(
        (
            f"The {brand} logo",
            f"{brand} {medium}",
            f"A screenshot of the {brand} website",
            f"The {brand} homepage",
            f"Overview of {brand}",
            medium,
            f"Screenshot of the {brand} Guide",
        )
    )


def _irrelevant(scene: Scene, draws: Draws) -> str:
    name, topic = draws.choice(_NAMES), draws.choice(_TOPICS)
    return draws.choice(
        (name, topic, f"{name} was chair of {draws.choice(_BRANDS)}", f"{topic} 2021")
    )


_OFF_TOPIC = {"file_name": _file_name, "boilerplate": _boilerplate, "irrelevant": _irrelevant}


def _partial(scene: Scene, draws: Draws) -> str:
    thing = draws.choice(scene.main if draws.chance(0.7) else scene.things)
    group = [t for t in scene.things if t.kind == thing.kind]
    words = _noun_phrase(group, draws, column=1)
    medium = draws.choice(MEDIA)
    return draws.choice((words, words, words, f"{medium} of {words}", f"{words} {medium}"))


def _descriptive(scene: Scene, draws: Draws, wrong: bool) -> str:
    """Two things or more of what is seen: two kinds where there are several, else an attribute.

    If `wrong`, the shape or colour of one of them is false: plausible, and nowhere to be seen.
    """
    kinds: dict[tuple, list[Thing]] = {}
    for thing in scene.things:
        kinds.setdefault(thing.kind, []).append(thing)
    groups = list(kinds.values())
    false, attribute = -1, ""
    if wrong:
        false, attribute = draws.below(min(2, len(groups))), draws.choice(("shape", "colour"))
        unseen = set(SHAPES if attribute == "shape" else COLOURS)
        unseen -= {getattr(t, attribute) for t in scene.things}
        value = draws.choice(sorted(unseen))
        groups[false] = [replace(t, **{attribute: value}) for t in groups[false]]
    phrases = [
        _noun_phrase(group, draws, column=0, always=attribute if i == false else "")
        for i, group in enumerate(groups)
    ]
    text = " and ".join(phrases[:2])
    if len(groups) == 1 and not any(c in text.split() for c in COLOURS):
        if draws.chance(0.5):
            words = text.split()
            words.insert(len(groups[0]) > 1, groups[0][0].colour)  # behind the number
            text = " ".join(words)
        else:
            text = f"{text} on {GROUND[scene.background]}"
    elif draws.chance(MENTIONS["background"][0]):
        text = f"{text} on {GROUND[scene.background]}"
    return text


def _noun_phrase(group: list[Thing], draws: Draws, column: int, always: str = "") -> str:
    thing = group[0]
    words = [NUMBERS[len(group) - 1]] if len(group) > 1 else []
    for what in ("size", "colour", "texture"):
        if draws.chance(MENTIONS[what][column]) or what == always:
            words.append(getattr(thing, what))
    words.append(plural(thing.shape) if len(group) > 1 else thing.shape)
    if len(group) == 1 and draws.chance(MENTIONS["position"][column]):
        words.append(PLACES[thing.position])
    return " ".join(words)


def _as_typed(text: str, draws: Draws) -> str:
    """With or without article, capital and full stop."""
    if draws.chance(ARTICLE) and text.split()[0] not in (*NUMBERS, *MEDIA):
        text = ("an " if text[0] in "aeiou" else "a ") + text
    if not draws.chance(LOWER_CASE):
        text = text[0].upper() + text[1:]
    return text + "." if draws.chance(ENDS_WITH_STOP) else text
