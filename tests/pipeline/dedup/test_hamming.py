"""All pairs within a Hamming radius: those that comparing everything finds, each once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dedup import hamming
from pipeline.dedup.hamming import matches_within, pairs_within


def brute(hashes: np.ndarray, radius: int) -> list[tuple[int, int]]:
    """By Python's own whole numbers."""
    numbers = [int(number) for number in hashes]
    return [
        (i, j)
        for i in range(len(numbers))
        for j in range(i + 1, len(numbers))
        if (numbers[i] ^ numbers[j]).bit_count() <= radius
    ]


def found(hashes: np.ndarray, radius: int) -> list[tuple[int, int]]:
    parts = [zip(i.tolist(), j.tolist(), strict=True) for i, j in pairs_within(hashes, radius)]
    return sorted(pair for part in parts for pair in part)


def look_alikes(count: int, seed: int) -> np.ndarray:
    """A third at random, a third near others, a third of few bits, as nearly flat pictures have."""
    draw = np.random.default_rng(seed)
    hashes = draw.integers(0, 2**64, count, dtype=np.uint64)
    third = count // 3
    for _ in range(3):
        bits = np.uint64(1) << draw.integers(0, 64, third, dtype=np.uint64)
        hashes[:third] = hashes[third : 2 * third] ^ bits if _ == 0 else hashes[:third] ^ bits
    for _ in range(4):
        hashes[2 * third :] &= draw.integers(0, 2**64, count - 2 * third, dtype=np.uint64)
    return draw.permutation(hashes)


@pytest.mark.parametrize("radius", [0, 1, 4, 7])
@pytest.mark.parametrize("count", [0, 1, 30, 900])
def test_pairs_are_those_that_brute_force_finds(count, radius):
    hashes = look_alikes(count, seed=count + radius)
    assert found(hashes, radius) == brute(hashes, radius)


@pytest.mark.parametrize("radius", [0, 2, 4, 6])
def test_crowded_buckets_get_tables_of_their_own(monkeypatch, radius):
    monkeypatch.setattr(hamming, "_LARGE_BUCKET", 64)
    monkeypatch.setattr(hamming, "_DIRECTLY", 256)
    monkeypatch.setattr(hamming, "_AT_ONCE", 100)
    hashes = look_alikes(400, seed=radius)
    hashes[:50] = hashes[0]  # equal ones, too
    assert found(hashes, radius) == brute(hashes, radius)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 7), st.sets(st.integers(0, 63), max_size=6)), max_size=30),
    st.integers(0, 6),
)
def test_any_hashes_near_any_others(centres, turned, radius):
    near = [centres[i % len(centres)] ^ sum(1 << bit for bit in bits) for i, bits in turned]
    hashes = np.array(centres + near, np.uint64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hamming, "_DIRECTLY", 4)
        assert found(hashes, radius) == brute(hashes, radius)


@pytest.mark.parametrize("direct", [1 << 18, 16])
def test_matches_between_two_sets(monkeypatch, direct):
    monkeypatch.setattr(hamming, "_DIRECTLY", direct)
    monkeypatch.setattr(hamming, "_LARGE_BUCKET", 256)
    every = look_alikes(800, seed=5)
    a, b = every[:300], every[300:]
    expected = {(i, j - 300) for i, j in brute(every, 4) if i < 300 <= j}
    parts = [zip(i.tolist(), j.tolist(), strict=True) for i, j in matches_within(a, b, 4)]
    got = [pair for part in parts for pair in part]
    assert len(got) == len(set(got)) and set(got) == expected
    assert list(matches_within(a, b[:0], 4)) == []


def test_a_radius_at_which_everything_is_alike_is_refused():
    with pytest.raises(ValueError, match="from 0 to 16"):
        list(pairs_within(np.zeros(2, np.uint64), 17))
