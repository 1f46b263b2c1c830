"""Drift in style: how captions are written, and how far that is from how people write.

DALL-E 3 (Betker et al. 2023, section 3.1) warns that a generator trained on synthetic captions
learns their habits, too: capitals, full stops, how they begin, how long they are.
"""

import math
import re
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field

from captioner.metrics.ngrams import Words

LENGTHS = (5, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150, 200)
"""Bounds between the classes of the histogram of lengths, in words; the last class is open."""

OPENER = re.compile(
    r"\W*(?:in |this is )?(?:(?:this|these|the|an?|two|three) )?"
    r"(?:(?:close-?up|black[ -]and[ -]white|digital|stock|aerial|blurry|vintage|studio|overhead|wide"
    r"|indoor|outdoor|detailed|cropped|eye-level|[a-z]+-angle|colou?r(?:ed|ful)?|beautiful) ){0,3}"
    r"(?:image|picture|photo(?:graph)?|illustration|drawing|painting|scene|shot|close-?up|view)s?"
    r"(?: (?:shows?|showing|depict(?:s|ing)?|features?|featuring|displays?|captures?|presents?|of)\b"
    r"|,)",
    re.IGNORECASE,
)
"""`This image shows`, `In the picture,`, `A close-up photo of`: words about the picture itself."""

_CASED = re.compile(r"[^\W\d_]")
_END = re.compile(r"[.!?\u2026\u3002]['\"\u2019\u201d)\]]*\s*\Z")


@dataclass
class Profile:
    """How some captions are written; profiles add up."""

    captions: int = 0
    capitals: int = 0  # begin with a capital letter
    lower_case: int = 0  # have no capital letter at all
    upper_case: int = 0  # have no small letter, but a capital one
    full_stops: int = 0  # end with . ! ? or an ellipsis
    spaces: int = 0  # begin with white space
    openers: int = 0  # begin with words about the picture itself, see OPENER
    lengths: Counter[int] = field(default_factory=Counter)  # in words between spaces
    first_words: Counter[str] = field(default_factory=Counter)
    first_pairs: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)

    def add(self, text: str, words: Words) -> None:
        """Counts one caption, as it was written and as `tokens.tokenise` gives it."""
        first = _CASED.search(text)
        self.captions += 1
        self.capitals += bool(first) and first.group().isupper()
        self.lower_case += bool(first) and text == text.lower()
        self.upper_case += text.isupper()
        self.full_stops += bool(_END.search(text[-16:]))
        self.spaces += text[:1].isspace()
        self.openers += bool(OPENER.match(text))
        self.lengths[len(text.split())] += 1
        if words:
            self.first_words[words[0]] += 1
            self.first_pairs[" ".join(words[:2])] += 1
            self.words.update(words)

    def __add__(self, other: "Profile") -> "Profile":
        return Profile(**{name: getattr(self, name) + getattr(other, name) for name in vars(self)})

    def length_classes(self) -> Counter[int]:
        """Captions by class of length: by the least number of words in it."""
        classes: Counter[int] = Counter()
        for words, captions in self.lengths.items():
            classes[(0, *LENGTHS)[bisect_right(LENGTHS, words)]] += captions
        return classes

    def length_at(self, share: float) -> int:
        """The length that this share of the captions do not exceed; 0 where there are none."""
        seen = 0
        for words in sorted(self.lengths):
            seen += self.lengths[words]
            if seen >= share * self.captions:
                return words
        return 0


@dataclass(frozen=True)
class Drift:
    """Divergences of one profile from another, in bits: 0 for the same, 1 for nothing in common.

    Small corpora diverge by chance: compare with the drift of one half of the originals from the
    other half.
    """

    first_words: float
    lengths: float  # over the classes of LENGTHS
    words: float

    @classmethod
    def between(cls, first: Profile, second: Profile) -> "Drift":
        """nan where one of the two says nothing."""
        return cls(
            divergence(first.first_words, second.first_words),
            divergence(first.length_classes(), second.length_classes()),
            divergence(first.words, second.words),
        )


def divergence(first: Counter, second: Counter) -> float:
    """Jensen-Shannon divergence of two histograms in bits, 0 to 1 (Lin 1991); nan if one is empty."""
    total, other_total = first.total(), second.total()
    if not total or not other_total:
        return math.nan
    # What only one has adds half its share; the rest is summed over what both have.
    bits = shared = 0.0
    for value in first.keys() & second.keys():
        p, q = first[value] / total, second[value] / other_total
        shared += p + q
        bits += p * math.log2(2 * p / (p + q)) + q * math.log2(2 * q / (p + q))
    return min(1.0, max(0.0, (bits + 2 - shared) / 2))
