"""The filter of taught captions: what a teacher wrote is cleaned, or dropped with its reason.

DALL-E 3's captioner learns from small sets of captions (section 2.1.1), so a few bad habits of the teacher
become habits of the student.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from captioner.gate import judge
from captioner.manners import FAULTS, fault, tidied
from pipeline.schemas import CAPTION_STATUSES, OK, STYLES

REASONS = (
    *(status for status in CAPTION_STATUSES if status != OK),
    *FAULTS,
    "too_short",
    "too_long",
    "not_shorter",  # a short caption with as many words as the descriptive one
    "shared",  # the same words for too many images
)
"""Why a caption is not taught; the first that fits."""

WORDS = {"short": (2, 30), "long": (8, 400)}
"""Fewest and most words per style. 99.6 % of 2,712 ImageInWords descriptions have 8 to 400."""

_LEAST_SHARED, _SHARED_SHARE = 5, 0.005
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Taught:
    """One caption of a teacher, cleaned; `reason` says why it is dropped, "" where it is kept."""

    uid: str
    style: str
    text: str
    reason: str = ""


@dataclass(frozen=True)
class Filtered:
    """The accounting: every caption asked for is kept, or dropped with one of REASONS."""

    kept: list[Taught] = field(default_factory=list)
    dropped: list[Taught] = field(default_factory=list)

    def texts(self, style: str) -> dict[str, str]:
        """uid -> caption, of those kept."""
        return {taught.uid: taught.text for taught in self.kept if taught.style == style}

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """style -> `ok` and each reason -> captions."""
        counts: dict[str, Counter[str]] = {}
        for taught in (*self.kept, *self.dropped):
            counts.setdefault(taught.style, Counter())[taught.reason or OK] += 1
        return {style: dict(found.most_common()) for style, found in counts.items()}


def filter_taught(
    rows: Iterable[Mapping],
    styles: Sequence[str] = STYLES,
    *,
    instructions: Mapping[str, str] | None = None,
    words: Mapping[str, tuple[int, int]] = WORDS,
    most_shared: int = 0,
) -> Filtered:
    """Cleans and filters the captions of a run, in the order of its rows.

    rows: of pipeline.schemas.CAPTIONS. instructions: style -> what the teacher was told, to find it
    quoted. words: style -> fewest and most. most_shared: images that may have one caption of a style
    in common; 0 allows 5, or one in 200. len(rows) * len(styles) = kept + dropped.
    """
    told = instructions or {}
    captions: dict[tuple[int, str], Taught] = {}
    number = -1
    for number, row in enumerate(rows):
        found = {s: _cleaned(row, s, told.get(s, ""), words[s]) for s in styles}
        if _is_not_shorter(found):
            found["short"] = _dropped(found["short"], "not_shorter")
        captions |= {(number, style): taught for style, taught in found.items()}
    allowed = most_shared or max(_LEAST_SHARED, round(_SHARED_SHARE * (number + 1)))
    said = Counter((t.style, _sayings(t.text)) for t in captions.values() if not t.reason)
    filtered = Filtered()
    for taught in captions.values():
        if not taught.reason and said[taught.style, _sayings(taught.text)] > allowed:
            taught = _dropped(taught, "shared")
        (filtered.dropped if taught.reason else filtered.kept).append(taught)
    return filtered


def _cleaned(row: Mapping, style: str, instruction: str, words: tuple[int, int]) -> Taught:
    text = row[f"caption_{style}"] or ""
    status = row[f"{style}_status"]
    if status != OK:
        return Taught(row["uid"], style, text, status)
    text = tidied(text)
    return Taught(row["uid"], style, text, _flaw(text, instruction, words))


def _flaw(text: str, instruction: str, words: tuple[int, int]) -> str:
    verdict = judge(text, "stop", None, None)
    if verdict != OK:
        return verdict
    if found := fault(text, instruction):
        return found
    count = len(text.split())
    if count < words[0]:
        return "too_short"
    return "too_long" if count > words[1] else ""


def _is_not_shorter(found: Mapping[str, Taught]) -> bool:
    short, long = found.get("short"), found.get("long")
    if not short or not long or short.reason or long.reason:
        return False
    return len(short.text.split()) >= len(long.text.split())


def _sayings(text: str) -> str:
    """What is said, whatever its case and punctuation."""
    return " ".join(_WORD.findall(text.casefold()))


def _dropped(taught: Taught, reason: str) -> Taught:
    return Taught(taught.uid, taught.style, taught.text, reason)
