"""Content words: what a text names, without its grammar, and which of them another text leaves out."""

import re
import unicodedata
from collections.abc import Iterable
from difflib import SequenceMatcher

# Words that name nothing by themselves. Of what something is a photograph goes without saying.
_GRAMMAR_WORDS = """
a about above after again against all also am an and another any are around as at be because
been before behind being below beside besides between both but by can colored coloured could did
do does doing down during each either else every few for from had has have having he her here
hers him his how i if image in inside into is it its itself just like made may me might more
most much must my near next no nor not of off on one onto or other our out outside over own per
photo photograph photography picture same say saying says several shall shaped she should sized
so some such than that the their them then there these they this those though through to
together too under underneath until up upon us used very via was we were what when where which
while who whom whose why will with within without would written yet you your
"""
_GRAMMAR = frozenset(_GRAMMAR_WORDS.split())
_IRREGULAR = {
    **{"men": "man", "women": "woman", "people": "person", "children": "child", "feet": "foot"},
    **{"teeth": "tooth", "geese": "goose", "mice": "mouse", "oxen": "ox", "leaves": "leaf"},
    **{"knives": "knife", "wolves": "wolf", "loaves": "loaf", "shelves": "shelf", "grey": "gray"},
    **{"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8"},
    **{"nine": "9", "ten": "10", "eleven": "11", "twelve": "12"},
}
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_ENDING = re.compile(r"(?<=[a-z]{2})(?:(?P<twin>[bdgmnprt])(?P=twin)|(?P<last>[a-z]))(?:ing|ed)$")
# wood and wooden, triangle and triangular; not green and greed, horse and horseshoe.
_PREFIX, _PREFIX_SHARE, _LONG, _ENDING_LETTERS = 4, 0.6, 7, 2
_TYPO, _ALIKE = 5, 0.85  # eifel and Eiffel, parking and pafrking; not horse and house


def content_words(text: str) -> list[str]:
    """The distinct words of a text that name or describe something, in a plain form, in order.

    Lower case without accents, singular, numbers in digits; compounds are taken apart.
    """
    words = (_plain(word) for word in _WORD.findall(_folded(text)))
    return list(dict.fromkeys(word for word in words if word and word not in _GRAMMAR))


def left_out(words: Iterable[str], text: str) -> list[str]:
    """Those of some content words that a text does not name, not even inflected or respelt."""
    there = content_words(text)
    known = set(there)
    return [word for word in words if word not in known and not any(_same(word, t) for t in there)]


def _folded(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.lower())
    return "".join(char for char in decomposed if not unicodedata.combining(char))


def _plain(word: str) -> str:
    word = re.split("['\u2019]", word)[0]
    word = _IRREGULAR.get(word, word)
    if word in _GRAMMAR or len(word) < 4 or not word.endswith("s"):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    return word if word.endswith(("ss", "us", "is")) else word[:-1]


def _same(word: str, other: str) -> bool:
    """Whether two words are forms or spellings of one."""
    if _stem(word) == _stem(other):
        return True
    shorter, longer = sorted((len(word), len(other)))
    if shorter >= _PREFIX and word[:_PREFIX] == other[:_PREFIX]:
        shared = next((i for i in range(shorter) if word[i] != other[i]), shorter)
        least = shorter - _ENDING_LETTERS if shorter >= _LONG else shorter
        if shared >= max(least, _PREFIX_SHARE * longer):
            return True
    return shorter >= _TYPO and SequenceMatcher(None, word, other).ratio() >= _ALIKE


def _stem(word: str) -> str:
    """Without -ing and -ed: sitting and sit, riding and ride."""
    cut = _ENDING.sub(lambda found: found["twin"] or found["last"], word)
    return cut.removesuffix("e")
