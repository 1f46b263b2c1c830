"""Judge a synthetic caption: said nothing, loops, was cut off, does not fit its image, or is fine.

A captioner that loops writes fluent words again and again, so the only witness is the repetition
itself. `repetition` measures it, `judge` decides.
"""

import re
from collections import Counter
from itertools import pairwise
from operator import eq

# Loops score above this, people below: none of 4,375 Flickr8k captions reaches it, and 2 of 712
# long ImageInWords descriptions (a deck of cards named one by one, a word spelt out).
REPETITION_LIMIT = 0.3
# Redundant tokens are counted against the length of the text, but against no more than this many:
# a dozen tokens of loop spoil a description of any length.
FULL_LOOP_TOKENS = 32
# What a token that breaks the period costs, in tokens that keep it: a loop in which one word of
# three changes is still a loop, two sentences of one pattern are not.
BREAK_COST = 1
# A loop says the same thing again at once: the repeat must fill this share of a period. A title
# that comes back later does not. Where tokens break it, it must go round twice more: people like
# to write a pair of sentences of one pattern.
MIN_REPEAT = 0.75
MIN_BROKEN_REPEAT = 2
# How many of the most frequent distances between equal tokens are tried as periods.
NUM_PERIODS = 8
# Few different tokens in a window of this many are a loop without a period; people use 14 or
# more, and the score is 0 where they do, 1 for a single token.
VARIETY_WINDOW = 40
MIN_VARIETY = 0.4
MIN_VARIETY_TOKENS = 12
# Texts above this are judged by as many characters at their start, middle and end: captions are
# shorter, and what is not a caption must not cost seconds.
MAX_CHARS = 6000
# A run of letters longer than any word is taken apart: loops need no spaces.
MAX_WORD = 24

FINISH_REASONS = ("stop", "length")

# Scripts that write no spaces: kana, Han, Thai, Lao, Khmer, Burmese; one token per character.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"\d+|[{_UNSPACED}]|[^\W\d{_UNSPACED}]+|\.\.\.|[^\w\s]|_")
_INNER_LOOP = re.compile(r"(.{1,6}?)\1{3,}")


def judge(text: str, finish: str, similarity: float | None, threshold: float | None) -> str:
    """Status of a caption: 'ok', 'empty', 'repetitive', 'truncated' or 'off_image', first that fits.

    finish: 'stop', or 'length' where the token limit cut the caption off. similarity: of caption
    and image, in the captioner's own scale; below `threshold`, or not a number, it is off_image;
    None for either skips that test. Raises ValueError for another finish.
    """
    if finish not in FINISH_REASONS:
        raise ValueError(f"finish must be one of {FINISH_REASONS}, got {finish!r}")
    looping = repetition(text) >= REPETITION_LIMIT
    # A lone full stop says as little as nothing; a hundred of them are a loop.
    if not looping and not any(char.isalnum() for char in text):
        return "empty"
    if looping:
        return "repetitive"
    if finish == "length":
        return "truncated"
    if similarity is not None and threshold is not None and not similarity >= threshold:
        return "off_image"
    return "ok"


def repetition(text: str) -> float:
    """How much of a text only repeats what it has just said, 0 (nothing) to 1.

    Tokens are words, numbers (all alike, so that counting is a loop), punctuation marks, and the
    characters of unspaced scripts and of words that loop inside. The measure is the largest, over
    all periods, of the tokens in one stretch that equal the token one period before, less
    BREAK_COST for each that does not; as a share of the tokens, or of FULL_LOOP_TOKENS in longer
    texts. It is no less than what _monotony finds. Texts above three times MAX_CHARS are sampled:
    time is linear in the length up to there, and hardly grows beyond.
    """
    if len(text) > 3 * MAX_CHARS:
        middle = (len(text) - MAX_CHARS) // 2
        parts = (text[:MAX_CHARS], text[middle : middle + MAX_CHARS], text[-MAX_CHARS:])
        return max(map(repetition, parts))
    tokens = _tokens(text)
    if len(tokens) < 3:
        return 0.0
    most = 0.0
    for period in _periods(tokens):
        same = list(map(eq, tokens[period:], tokens))
        if sum(same) > most:  # else no stretch of it can be better
            most = max(most, _redundant(same, period))
    return min(1.0, max(most / min(len(tokens), FULL_LOOP_TOKENS), _monotony(tokens)))


def _tokens(text: str) -> list[str]:
    tokens = []
    for token in _TOKEN.findall(text.lower()):
        if token[0].isdigit():
            tokens.append("0")
        elif len(token) > MAX_WORD or (len(token) >= 4 and _INNER_LOOP.search(token)):
            tokens.extend(token)
        else:
            tokens.append(token)
    return tokens


def _periods(tokens: list[str]) -> list[int]:
    """Likely periods: the most frequent distances to the same word, or pair of words, before."""
    seen: Counter[int] = Counter()
    for items in (tokens, list(pairwise(tokens))):
        last: dict[object, int] = {}
        for at, item in enumerate(items):
            if item in last:
                seen[at - last[item]] += 1
            last[item] = at
    return [period for period, _ in seen.most_common(NUM_PERIODS)]


def _redundant(same: list[bool], period: int) -> float:
    """Matches with the token one period before, less the cost of breaks, in the best stretch."""
    best = run = 0.0
    start, needed = 0, MIN_REPEAT * period
    for at, equal in enumerate(same):
        if equal:
            run += 1
            if run > best and at + 1 - start >= needed:
                best = run
        elif run > BREAK_COST:
            run -= BREAK_COST
            needed = MIN_BROKEN_REPEAT * period
        else:
            run, start, needed = 0.0, at + 1, MIN_REPEAT * period
    return best


def _monotony(tokens: list[str]) -> float:
    """0 where every window has MIN_VARIETY of different tokens, towards 1 where one has few."""
    if len(tokens) < MIN_VARIETY_TOKENS:
        return 0.0
    size = min(VARIETY_WINDOW, len(tokens))
    inside = Counter(tokens[:size])
    fewest = len(inside)
    for new, old in zip(tokens[size:], tokens, strict=False):
        inside[new] += 1
        inside[old] -= 1
        if not inside[old]:
            del inside[old]
        fewest = min(fewest, len(inside))
    return max(0.0, 1 - fewest / size / MIN_VARIETY)
