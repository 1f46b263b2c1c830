"""How a text is worded, in any script: words, casing, repetition, kinds of characters."""

import functools
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

CASINGS = ("lower", "upper", "title", "sentence", "mixed", "none")
"""Values of `casing`; none: the script has no case, or there is no letter."""

# Thai, Lao; Burmese; Khmer; kana, Han; Han compatibility; half-width kana; Han extensions.
_UNSPACED_RANGES = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x30FF)),
    *((0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F)),
    *((0x20000, 0x323AF),),
)
# They stand inside a word without ending it: zero-width joiners of Persian and Indic, soft hyphens.
_JOINERS = "\u00ad\u200c\u200d"
_APOSTROPHES = "'\u2019\u02bc"
# A word this short may be lower case in a title: of, and, der, las.
_MINOR_WORD = 3
# Hostile texts could name every code point; what is remembered of them has an end.
_MOST_KINDS = 1 << 16


@dataclass(frozen=True, slots=True)
class Characters:
    """How many code points of a text are of which kind; those of no kind here are special."""

    total: int
    upper: int
    lower: int
    digits: int
    special: int  # neither letter, nor mark on a letter, nor digit, nor space


def words_of(text: str) -> list[str]:
    """The words of a text, as written.

    A word is a run of letters, their marks and digits, with apostrophes and joiners inside: "it's"
    is one, "t-shirt" are two. Scripts that write no spaces (Han, kana, Thai, Lao, Khmer, Burmese)
    would need a dictionary: there each letter with its marks is a word.
    """
    return _word().findall(text)


def letters_of(text: str) -> str:
    """The text with single spaces for everything that is no letter and no mark on one."""
    return _no_letters().sub(" ", text).strip()


def characters_of(text: str) -> Characters:
    """Counts the kinds of code points of a text."""
    found = {"u": 0, "l": 0, "d": 0, "x": 0}
    for char, count in Counter(text).items():
        kind = _KINDS[char]
        if kind in found:
            found[kind] += count
    return Characters(len(text), found["u"], found["l"], found["d"], found["x"])


def casing_of(words: Sequence[str], characters: Characters) -> str:
    """One of CASINGS, from how the words begin.

    title: all words of more than three letters begin with a capital, and at least half of all do.
    sentence: the first one does, and at most half of the others (names). Words without case do
    not count; mixed is what fits nowhere.
    """
    if not characters.upper:
        return "lower" if characters.lower else "none"
    if not characters.lower:
        return "upper"
    capitals = [w[0].isupper() for w in words if w[0].isupper() or w[0].islower()]
    if not capitals or not capitals[0]:
        return "mixed"
    count, total = sum(capitals), len(capitals)
    minor = all(len(w) <= _MINOR_WORD for w in words if w[0].islower())
    if minor and 2 * count >= total and (count > 1 or total == 1):
        return "title"
    return "sentence" if 2 * (count - 1) <= total - 1 else "mixed"


def repetition_of(words: Sequence[str]) -> float:
    """The share of pairs of neighbours, without case, that stood in the text before; 0 to 1."""
    pairs = len(words) - 1
    if pairs < 1:
        return 0.0
    lower = [word.lower() for word in words]
    return 1 - len(set(pairwise(lower))) / pairs


class _Kinds(dict[str, str]):
    """Character -> u(pper), l(ower), o(ther letter, mark, number), d(igit), s(pace) or x."""

    def __missing__(self, char: str) -> str:
        category = unicodedata.category(char)
        if category in ("Lu", "Lt"):
            kind = "u"
        elif category == "Ll":
            kind = "l"
        elif category == "Nd":
            kind = "d"
        elif char.isspace():
            kind = "s"
        else:
            kind = "o" if category[0] in "LMN" or char in _JOINERS else "x"
        if len(self) < _MOST_KINDS:
            self[char] = kind
        return kind


_KINDS = _Kinds()


@functools.cache
def _word() -> re.Pattern[str]:
    """Linear: what follows a part never begins like that part ends."""
    unspaced, marks = _unspaced(), _marks()
    letter = rf"[^\W_{unspaced}]"
    return re.compile(
        rf"[{unspaced}][{marks}]*"
        rf"|{letter}+(?:[{marks}{_JOINERS}]+{letter}*|[{_APOSTROPHES}]{letter}+)*"
    )


@functools.cache
def _no_letters() -> re.Pattern[str]:
    """Runs of what is no letter and no mark; an apostrophe or joiner between letters stays."""
    inside = rf"(?<=[^\W\d_])[{_JOINERS}{_APOSTROPHES}](?=[^\W\d_])"
    return re.compile(rf"(?:(?!{inside})[^\w{_marks()}]|[\d_])+")


@functools.cache
def _unspaced() -> str:
    codes = (c for first, last in _UNSPACED_RANGES for c in range(first, last + 1))
    return _class(c for c in codes if unicodedata.category(chr(c)) in ("Lo", "Lm", "Nl", "Cn"))


@functools.cache
def _marks() -> str:
    """Marks on letters: vowel signs, accents, points. None lie between the planes looked at."""
    codes = (*range(0x300, 0x1F000), *range(0xE0100, min(0xE01F0, sys.maxunicode)))
    return _class(c for c in codes if unicodedata.category(chr(c))[0] == "M")


def _class(codes: Iterator[int]) -> str:
    """Ascending code points as the inside of a character class."""
    runs: list[list[int]] = []
    for code in codes:
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "".join(f"{chr(a)}-{chr(b)}" if b > a else chr(a) for a, b in runs)
