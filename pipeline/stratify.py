"""A stratified sample of shards: rare kinds of pairs as often as common ones, drawn by hashes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pipeline import images, storage
from pipeline.draws import key64
from pipeline.errors import UserError
from pipeline.images import BadImage, ImageInfo
from pipeline.manifest import Shard
from pipeline.reading import read_samples
from pipeline.samples import Sample
from pipeline.schemas import OK

_WORDS = ((1, "no words"), (5, "1-4 words"), (10, "5-9 words"), (20, "10-19 words"))
_ASPECTS = ((0.6, "tall"), (0.9, "portrait"), (1.12, "square"), (1.7, "landscape"))
STRATA = tuple(
    f"{words}, {aspect}"
    for _, words in (*_WORDS, (None, "20+ words"))
    for _, aspect in (*_ASPECTS, (None, "wide"))
)
"""Words of the original caption, and width to height."""

REPEATED = "repeated"
"""Beside what reading finds: a sample that another shard has under the same uid."""

TRAIN, HELD_OUT = "train", "held_out"
Split = Literal["train", "held_out"]

_FOUND = np.dtype(
    [
        ("rank", "u8"),
        ("stratum", "u2"),
        ("shard", "u4"),
        ("index", "u4"),
        ("at", "i8"),
        ("size", "i8"),
    ]
)


@dataclass(frozen=True, order=True)
class Drawn:
    """A sample that was drawn: the `index`th of a shard."""

    shard: str
    index: int
    split: Split
    stratum: str


@dataclass
class Draw:
    """What was drawn, and the accounting: samples = those of all strata + unreadable by reason."""

    drawn: list[Drawn]  # by shard and index
    samples: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    strata: dict[str, int] = field(default_factory=dict)  # readable samples of each


def draw(
    shards: Sequence[Shard], n: int, held_out: int = 0, seed: int = 0, threads: int = 4
) -> Draw:
    """Draws n samples to learn from and some more to be examined on, none of them in both.

    Every stratum gives the same number, or all that it has; within one, samples come in the order of
    a hash of (seed, uid). So the samples of a smaller n are among those of a larger one, those held
    out depend on n not at all, and neither on the order of shards. What cannot be read is not drawn:
    headers tell most of it, and what is drawn is decoded to be sure. Raises BadShard as reading
    does, and UserError where there are too few samples.
    """
    shards = sorted(shards, key=lambda shard: shard.name)
    with ThreadPoolExecutor(threads) as pool:
        scans = list(pool.map(lambda numbered: _scan(*numbered, seed), enumerate(shards)))
        found = np.concatenate([np.empty(0, _FOUND), *(rows for rows, _ in scans)])
        unreadable = sum((bad for _, bad in scans), Counter())
        samples = len(found) + unreadable.total()
        found.sort(order=["rank", "shard", "index"])
        found = found[np.unique(found["rank"], return_index=True)[1]]
        if samples > len(found) + unreadable.total():
            unreadable[REPEATED] = samples - len(found) - unreadable.total()
        proven: set[tuple[int, int]] = set()
        while True:
            if len(found) < n + held_out:
                raise UserError(
                    f"SHARDS hold {len(found)} readable samples, fewer than {n} to learn from and"
                    f" {held_out} to be examined on",
                    "ask for fewer, or give more shards",
                )
            rows = _choose(found, n, held_out, seed)
            doubtful = [
                i for i in (*rows[TRAIN], *rows[HELD_OUT]) if _place(found[i]) not in proven
            ]
            reasons = list(pool.map(lambda i: _flaw(shards, found[i]), doubtful))  # noqa: B023
            if not any(reasons):
                break
            proven |= {_place(found[i]) for i in doubtful}
            unreadable.update(filter(None, reasons))
            found = np.delete(found, [i for i, why in zip(doubtful, reasons, strict=True) if why])
    drawn = [_drawn(shards, found[i], split) for split in rows for i in rows[split]]
    sizes = np.bincount(found["stratum"], minlength=len(STRATA)).tolist()
    strata = {name: size for name, size in zip(STRATA, sizes, strict=True) if size}
    return Draw(sorted(drawn), samples, unreadable, strata)


def stratum_of(sample: Sample, info: ImageInfo) -> str:
    """Which of STRATA a readable sample belongs to."""
    words = len(sample.text.split()) if sample.text and sample.text_status == OK else 0
    aspect = info.width / info.height
    return f"{_bucket(words, _WORDS, '20+ words')}, {_bucket(aspect, _ASPECTS, 'wide')}"


def _bucket(value: float, buckets: Iterable[tuple[float, str]], last: str) -> str:
    return next((name for end, name in buckets if value < end), last)


def _scan(number: int, shard: Shard, seed: int) -> tuple[np.ndarray, Counter[str]]:
    """Where a shard's readable samples are, and why the others are none; by headers alone."""
    rows, unreadable = [], Counter()
    for sample in read_samples(shard):
        reason, stratum = sample.reason, ""
        if not reason:
            try:
                stratum = stratum_of(sample, images.probe(sample.image))
            except BadImage as e:
                reason = e.reason
        if reason:
            unreadable[reason] += 1
            continue
        place = (number, sample.index, sample.offset, len(sample.image))
        rows.append((key64(seed, sample.uid, "stratify"), STRATA.index(stratum), *place))
    return np.array(rows, dtype=_FOUND), unreadable


def _choose(found: np.ndarray, n: int, held_out: int, seed: int) -> dict[Split, list[int]]:
    """The rows of each split, of samples in the order of their ranks.

    Half of the samples may be held out, by the last bit of their rank: so no small stratum is held
    out whole, unless there are too few others.
    """
    every = np.arange(len(found))
    eligible = every[found["rank"] % 2 == 1]
    kept = _spread(found, eligible if len(eligible) >= held_out else every, held_out, seed)
    return {TRAIN: _spread(found, np.setdiff1d(every, kept), n, seed), HELD_OUT: kept}


def _spread(found: np.ndarray, rows: np.ndarray, count: int, seed: int) -> list[int]:
    """The first `count` of some rows when the strata take turns, each with its next one."""
    strata = found["stratum"][rows]
    turns = np.empty(len(rows), dtype=np.int64)  # which of its stratum a row is
    places = np.empty(len(rows), dtype=np.int64)  # of its stratum in a round
    for place, stratum in enumerate(sorted(range(len(STRATA)), key=lambda s: _order(seed, s))):
        members = np.flatnonzero(strata == stratum)
        turns[members], places[members] = np.arange(len(members)), place
    return rows[np.lexsort((places, turns))[:count]].tolist()


def _order(seed: int, stratum: int) -> int:
    return key64(seed, STRATA[stratum], "turn")


def _place(row: np.void) -> tuple[int, int]:
    return int(row["shard"]), int(row["index"])


def _flaw(shards: Sequence[Shard], row: np.void) -> str:
    """Why the image of a sample cannot be decoded, "" where it can."""
    data = storage.read_range(shards[row["shard"]].url, int(row["at"]), int(row["size"]))
    try:
        images.decode(data, min_side=1)
    except BadImage as e:
        return e.reason
    return ""


def _drawn(shards: Sequence[Shard], row: np.void, split: Split) -> Drawn:
    return Drawn(shards[row["shard"]].name, int(row["index"]), split, STRATA[row["stratum"]])
