"""Stratified draws: equal shares, nested, independent of order, disjoint, and of readable images only."""

import itertools
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import manifest, reading, stratify
from pipeline.errors import UserError
from pipeline.images import ImageInfo
from pipeline.manifest import Shard
from pipeline.samples import Sample
from pipeline.stratify import HELD_OUT, STRATA, TRAIN, Draw, draw
from tests.support.shards import Packed, jpeg, pair, png, write_tar

SIZES = [(20, 60), (40, 60), (48, 48), (60, 40), (80, 20)]  # tall to wide
LENGTHS = [0, 3, 7, 12, 25]  # words
COMMON, RARE = ("10-19 words, landscape", 120), ("no words, tall", 3)


def sample(number: int, words: int, size: tuple[int, int]) -> Packed:
    members = {"jpg": jpeg(number, size), "txt": " ".join(["word"] * words).encode()}
    return f"{number:05d}", members


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> list[Shard]:
    """Four shards: 120 of one kind, 3 of another, 8 of each of the others, mixed."""
    kinds = [(w, s) for w in LENGTHS for s in SIZES]
    names = dict(zip(kinds, STRATA, strict=True))
    counts = {kind: dict([COMMON, RARE]).get(names[kind], 8) for kind in kinds}
    every = [kind for kind, count in counts.items() for _ in range(count)]
    random.Random(0).shuffle(every)
    packed = [sample(i, *kind) for i, kind in enumerate(every)]
    out = tmp_path_factory.mktemp("uneven")
    size = -(-len(packed) // 4)
    parts = [packed[i : i + size] for i in range(0, len(packed), size)]
    urls = [write_tar(out / f"raw/{i:05d}.tar", part) for i, part in enumerate(parts)]
    return manifest.register(str(out), urls)


def of(drawn: Draw, split: str) -> set[tuple[str, int]]:
    return {(d.shard, d.index) for d in drawn.drawn if d.split == split}


def strata(drawn: Draw, split: str) -> Counter[str]:
    return Counter(d.stratum for d in drawn.drawn if d.split == split)


def test_strata_cover_every_length_and_aspect():
    infos = [ImageInfo("JPEG", *size, 1, "RGB") for size in SIZES]
    texts = [" ".join(["word"] * words) for words in LENGTHS]
    found = [
        stratify.stratum_of(Sample(0, "", "", text=text, text_status="ok"), info)
        for text in texts
        for info in infos
    ]
    assert found == list(STRATA)
    torn = Sample(0, "", "", text="two words", text_status="invalid_utf8")
    assert stratify.stratum_of(torn, infos[2]) == "no words, square"
    edges = {1: "1-4", 4: "1-4", 5: "5-9", 9: "5-9", 10: "10-19", 19: "10-19", 20: "20+"}
    for words, name in edges.items():
        text = Sample(0, "", "", text=" ".join(["w"] * words), text_status="ok")
        assert stratify.stratum_of(text, infos[2]) == f"{name} words, square"


def test_strata_give_equal_numbers_and_small_ones_all_they_have(uneven):
    made = draw(uneven, 150)
    assert made.samples == 120 + 3 + 23 * 8 and not made.unreadable
    assert made.strata == {s: dict([COMMON, RARE]).get(s, 8) for s in STRATA}
    counts = strata(made, TRAIN)
    assert sum(counts.values()) == 150
    assert counts[RARE[0]] == 3
    others = {s: n for s, n in counts.items() if s != RARE[0]}
    assert len(others) == 24 and set(others.values()) == {6, 7}
    everything = strata(draw(uneven, 307), TRAIN)
    assert everything == Counter(made.strata)
    assert strata(draw(uneven, 200), TRAIN)[COMMON[0]] == 200 - 3 - 23 * 8


def test_smaller_draws_are_within_larger_ones_and_no_sample_is_in_both_splits(uneven):
    before: set = set()
    kept = of(draw(uneven, 0, held_out=40), HELD_OUT)
    assert len(kept) == 40
    for n in (1, 10, 24, 25, 100, 267):
        made = draw(uneven, n, held_out=40)
        train = of(made, TRAIN)
        assert len(train) == n
        assert before <= train
        assert of(made, HELD_OUT) == kept
        assert not train & kept
        before = train
    assert max(strata(made, HELD_OUT).values()) == 2  # equal shares here, too
    fewer = of(draw(uneven, 0, held_out=20), HELD_OUT)
    assert fewer < kept


def test_small_strata_are_not_held_out_whole(uneven):
    made = draw(uneven, 100, held_out=120)
    assert len(strata(made, TRAIN)) == 25
    most = draw(uneven, 10, held_out=297)  # more than half, so that all of them may be
    assert len(of(most, HELD_OUT)) == 297 and len(of(most, TRAIN)) == 10


def test_the_order_of_shards_and_threads_do_not_matter(uneven):
    first = draw(uneven, 60, 20)
    assert draw(uneven[::-1], 60, 20, threads=1) == first
    assert first.drawn == sorted(first.drawn)


def test_another_seed_draws_others(uneven):
    one, other = (of(draw(uneven, 60, seed=seed), TRAIN) for seed in (0, 1))
    assert one != other
    assert len(one & other) < 50


def test_one_shard_more_changes_no_order(uneven):
    """A sample's rank depends on nothing but its uid: who was first of three shards stays first."""
    three = {(d.shard, d.index) for d in draw(uneven[1:], 150).drawn}  # six or more of a stratum
    four = [d for d in draw(uneven, 100).drawn if d.shard != "00000"]  # at most five
    assert len(four) > 50
    assert {(d.shard, d.index) for d in four} <= three


def test_a_sample_that_stands_in_two_shards_is_drawn_once(tmp_path):
    """As in two mixes of the same samples, which keep their uids."""

    def ours(i: int) -> Packed:
        meta = {"uid": f"{i:032x}", "caption_source": "original", "caption": "some words"}
        return f"{i:05d}", {"jpg": jpeg(i), "json": json.dumps(meta).encode()}

    raw = tmp_path / "raw"
    urls = [write_tar(raw / f"0000{n}.tar", map(ours, range(4 * n, 10))) for n in range(2)]
    shards = manifest.register(str(tmp_path), urls)
    made = draw(shards, 6, 4)
    assert made == draw(shards[::-1], 6, 4)
    assert {d.shard for d in made.drawn} == {"00000"}
    assert len({d.index for d in made.drawn}) == 10
    assert (made.samples, made.unreadable) == (16, Counter({stratify.REPEATED: 6}))
    assert made.samples == sum(made.strata.values()) + made.unreadable.total()


def torn(number: int) -> Packed:
    """Its header is fine; what follows ends in the middle."""
    data = jpeg(number, (200, 100))
    return f"{number:05d}", {"jpg": data[: len(data) // 2], "txt": b"a torn one"}


@pytest.fixture
def flawed(tmp_path: Path) -> list[Shard]:
    samples = [pair(f"{i:05d}", i) for i in range(20)]
    samples += [torn(i) for i in range(20, 40)]
    samples += [
        ("00040", {"txt": b"nothing to see"}),
        ("00041", {"jpg": b"", "txt": b"empty"}),
        ("00042", {"jpg": b"<html>", "txt": b"a page"}),
        ("00043", {"png": png(3), "txt": b"a fine one"}),
    ]
    random.Random(1).shuffle(samples)
    url = write_tar(tmp_path / "raw/00000.tar", samples)
    return manifest.register(str(tmp_path), [url])


def test_what_cannot_be_read_is_not_drawn_but_counted(flawed):
    made = draw(flawed, 21)
    keys = {s.index: s.key for s in reading.read_samples(flawed[0])}
    assert {keys[d.index] for d in made.drawn} == {f"{i:05d}" for i in (*range(20), 43)}
    assert made.samples == 44
    headers = {"no_image": 1, "empty": 1, "not_an_image": 1}
    assert made.unreadable == Counter(headers | {"truncated": 20})
    few = draw(flawed, 3, 3)
    assert {keys[d.index] for d in few.drawn} <= {keys[d.index] for d in made.drawn}
    assert few.unreadable.items() >= headers.items()


def test_nesting_survives_what_cannot_be_read(flawed):
    draws = [draw(flawed, n, held_out=4) for n in range(0, 18, 4)]
    for smaller, larger in itertools.pairwise(draws):
        assert of(smaller, TRAIN) < of(larger, TRAIN)
        assert of(smaller, HELD_OUT) == of(larger, HELD_OUT)


def test_too_few_samples_are_refused(flawed, tmp_path):
    with pytest.raises(UserError, match="hold 21 readable samples, fewer than 20 to learn from"):
        draw(flawed, 20, held_out=2)
    with pytest.raises(UserError, match="hold 0 readable samples"):
        draw([], 1)
    with pytest.raises(reading.BadShard, match=r"nowhere\.tar: does not exist"):
        draw([replace(flawed[0], url=str(tmp_path / "nowhere.tar"))], 1)


def test_a_limited_shard_is_drawn_from_its_first_samples(uneven):
    made = draw([replace(shard, limit=10) for shard in uneven], 40)
    assert made.samples == 40
    assert max(d.index for d in made.drawn) == 9
