"""CHAIR: how many of the objects that a caption mentions are not in its image."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from captioner.metrics.ngrams import Words
from captioner.metrics.tokens import tokenise
from pipeline import storage
from pipeline.errors import UserError

_IRREGULAR = {
    **{"man": "men", "woman": "women", "person": "people", "child": "children", "foot": "feet"},
    **{"tooth": "teeth", "goose": "geese", "mouse": "mice", "ox": "oxen", "sheep": "sheep"},
    **{"fish": "fish", "deer": "deer", "aircraft": "aircraft", "scissors": "scissors"},
    **{"skis": "skis", "knife": "knives", "life": "lives", "wife": "wives", "leaf": "leaves"},
    **{"loaf": "loaves", "shelf": "shelves", "half": "halves", "calf": "calves", "wolf": "wolves"},
    **{"scarf": "scarves", "thief": "thieves", "hoof": "hooves", "elf": "elves"},
    **{"potato": "potatoes", "tomato": "tomatoes", "hero": "heroes", "human": "humans"},
    **{"german": "germans", "ottoman": "ottomans"},
}


@dataclass(frozen=True)
class Chair:
    """Mentions of objects in captions, and what of them is true; sums of captions are corpora.

    The two shares are often swapped in papers; here, as in Rohrbach et al. 2018 (1809.02156,
    section 2.2), CHAIR_i is of instances and CHAIR_s of sentences.
    """

    mentions: int = 0  # of objects; a second mention counts again, as in the authors' program
    false_mentions: int = 0  # of objects that are not in the image
    captions: int = 0
    false_captions: int = 0  # with a false mention at least
    shown: int = 0  # different objects in the images
    told: int = 0  # of which a caption mentions

    def __add__(self, other: "Chair") -> "Chair":
        return Chair(
            self.mentions + other.mentions,
            self.false_mentions + other.false_mentions,
            self.captions + other.captions,
            self.false_captions + other.false_captions,
            self.shown + other.shown,
            self.told + other.told,
        )

    @property
    def chair_i(self) -> float:
        """False mentions as a share of all mentions, 0 where there are none."""
        return self.false_mentions / max(1, self.mentions)

    @property
    def chair_s(self) -> float:
        """Captions with a false mention as a share of all captions, silent ones included."""
        return self.false_captions / max(1, self.captions)

    @property
    def recall(self) -> float:
        """Objects mentioned as a share of those in the images: who says nothing errs nowhere."""
        return self.told / max(1, self.shown)


class Lexicon:
    """Which words name which object; where two phrases fit, the longer one counts.

    So "hot dog" is no dog. objects: name -> synonyms; plurals need not be listed. no_objects:
    phrases such as "toilet seat" that contain a name and mean none of the objects.
    """

    def __init__(
        self, objects: Mapping[str, Iterable[str]], no_objects: Iterable[str] = ()
    ) -> None:
        self._phrases: dict[tuple[str, ...], str | None] = {}
        for name, synonyms in objects.items():
            for phrase in (name, *synonyms):
                self._add(phrase, name)
        for phrase in no_objects:
            self._add(phrase, None)
        for words, name in list(self._phrases.items()):
            self._phrases.setdefault((*words[:-1], _plural(words[-1])), name)
        self._longest = max(map(len, self._phrases), default=0)

    def mentions(self, caption: Words) -> list[str]:
        """The objects that a caption mentions, each as often and in the order that it does."""
        found, at = [], 0
        words = tuple(caption)
        while at < len(words):
            for length in range(min(self._longest, len(words) - at), 0, -1):
                phrase = words[at : at + length]
                if phrase in self._phrases:
                    found.append(self._phrases[phrase])
                    break
            else:
                length = 1
            at += length
        return [name for name in found if name is not None]

    def _add(self, phrase: str, name: str | None) -> None:
        words = tuple(tokenise(phrase))
        if not words:
            raise ValueError(f"{phrase!r} has no words")
        other = self._phrases.setdefault(words, name)
        if other != name:
            raise ValueError(f"{phrase!r} stands for {other!r} and for {name!r}")


@dataclass(frozen=True)
class Objects:
    """What a file says of objects: their names, and which are in which image."""

    lexicon: Lexicon
    images: Mapping[str, frozenset[str]] = field(default_factory=dict)  # by uid or key


def chair(caption: Words, shown: frozenset[str], lexicon: Lexicon) -> Chair:
    """CHAIR of one caption of an image that shows these objects."""
    mentions = lexicon.mentions(caption)
    false = sum(name not in shown for name in mentions)
    return Chair(
        mentions=len(mentions),
        false_mentions=false,
        captions=1,
        false_captions=int(false > 0),
        shown=len(shown),
        told=len(shown & set(mentions)),
    )


def read_objects(url: str) -> Objects:
    """{"objects": {name: [synonyms]}, "images": {uid or key: [names]}, "no_objects": [phrases]}.

    The last may be left out. Raises UserError for a file that says anything else, or cannot be read.
    """
    name = f"OBJECTS={storage.public(url)}"
    try:
        data = json.loads(storage.read_bytes(url))
        objects = {name: _strings(synonyms) for name, synonyms in data["objects"].items()}
        lexicon = Lexicon(objects, _strings(data.get("no_objects", [])))
        images = {key: frozenset(_strings(names)) for key, names in data["images"].items()}
        strangers = sorted({n for names in images.values() for n in names} - objects.keys())
        if strangers:
            raise ValueError(f"an image shows {strangers[0]!r}, which is not among the objects")
    except FileNotFoundError as error:
        raise UserError(f"{name} does not exist", "check the path") from error
    except OSError as error:
        why = storage.scrub(" ".join((error.strerror or str(error)).split()), url)
        raise UserError(f"{name} cannot be read: {why}", "give a file you may read") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{name}: {storage.scrub(why, url)}",
            'give {"objects": {name: [synonyms]}, "images": {uid or key: [names]}}',
        ) from error
    return Objects(lexicon, images)


def _strings(values: Sequence[str]) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{str(values)[:60]!r} is no list of words")
    return values


def _plural(word: str) -> str:
    """How a noun looks where there are several."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith(("man", "child")):  # fireman, grandchild
        return word[:-2] + "en" if word.endswith("man") else word + "ren"
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and not word.endswith(("ay", "ey", "oy", "uy")):
        return word[:-1] + "ies"
    return word + "s"
