"""Draws depend on their key alone, are spread as they should be, and never change."""

import hashlib
import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.draws import Draws, key64, permuted


def fits(counts: list[int], shares: list[float]) -> bool:
    """Whether a chi-square statistic lies within five standard deviations of its mean."""
    total, freedom = sum(counts), len(counts) - 1
    wanted = [total * share / sum(shares) for share in shares]
    statistic = sum((c - w) ** 2 / w for c, w in zip(counts, wanted, strict=True) if w)
    return abs(statistic - freedom) < 5 * math.sqrt(2 * freedom) + 5


def test_values_never_change():
    """Every dataset and every training so far was made with these: new values are new data."""
    draws = Draws(7, 3, "purpose")
    assert key64(7, 3, "purpose") == 4345674539612012525
    assert [draws.below(1000) for _ in range(6)] == [877, 985, 826, 544, 234, 262]
    assert draws.uniform() == 0.6714452268704011
    assert draws.bytes(5).tolist() == [139, 28, 200, 185, 27]
    assert draws.shuffled(range(8)) == [1, 0, 5, 7, 2, 4, 3, 6]
    order = [permuted(i, 10, 7, "order") for i in range(10)]
    assert order == [3, 2, 1, 0, 4, 9, 6, 7, 8, 5]


def test_a_stream_depends_on_its_key_alone():
    alone = Draws(1, 2, "a").bytes(64).tobytes()
    for index in range(5):
        Draws(1, index, "b").bytes(100)
    np.random.seed(0)
    assert Draws(1, 2, "a").bytes(64).tobytes() == alone
    keys = ((1, 2), (2, 1), (12,), (1, 2, ""), (1, 2, "a"))
    assert len({Draws(*key).bytes(8).tobytes() for key in keys}) == len(keys)


def test_streams_of_neighbouring_keys_are_unrelated():
    firsts = [Draws(0, index, "x").uniform() for index in range(4000)]
    quadrants = Counter((a < 0.5, b < 0.5) for a, b in pairwise(firsts))
    assert fits(list(quadrants.values()), [0.25] * 4)
    assert fits(np.histogram(firsts, 20, (0, 1))[0].tolist(), [0.05] * 20)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 19, 256])
def test_below_is_uniform(n: int):
    draws = Draws("below", n)
    counts = Counter(draws.below(n) for _ in range(200 * n))
    assert set(counts) == set(range(n))
    assert n == 1 or fits([counts[i] for i in range(n)], [1] * n)


def test_between_includes_both_ends():
    draws = Draws("between")
    assert {draws.between(-2, 1) for _ in range(200)} == {-2, -1, 0, 1}


def test_weighted_follows_its_weights():
    draws, weights = Draws("weighted"), [0.15, 3.0, 0.0, 0.6, 1.25]
    counts = Counter(draws.weighted(weights) for _ in range(8000))
    assert counts[2] == 0
    assert fits([counts[i] for i in range(5)], weights)


def test_shuffled_gives_every_order_equally_often():
    draws = Draws("shuffled")
    orders = Counter(tuple(draws.shuffled("abcd")) for _ in range(4800))
    assert len(orders) == 24
    assert fits(list(orders.values()), [1] * 24)


def test_bytes_are_uniform_and_as_many_as_asked():
    assert [len(Draws("bytes").bytes(n)) for n in (0, 1, 8, 9)] == [0, 1, 8, 9]
    counts = np.bincount(Draws("bytes").bytes(64_000), minlength=256)
    assert fits(counts.tolist(), [1] * 256)


@given(st.integers(1, 600), st.integers(0, 99))
def test_permuted_is_a_permutation(size: int, seed: int):
    assert sorted(permuted(i, size, seed) for i in range(size)) == list(range(size))


@given(st.integers(2, 1 << 62), st.data())
def test_permuted_stays_inside_any_size(size: int, data: st.DataObject):
    a, b = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1))
    there = permuted(a, size, "k"), permuted(b, size, "k")
    assert all(0 <= t < size for t in there)
    assert (there[0] == there[1]) == (a == b)


def test_permuted_differs_by_key_and_leaves_no_pattern():
    size, num = 1000, 60
    tables = [[permuted(i, size, 5, epoch) for i in range(size)] for epoch in range(num)]
    same = sum(a == b for t, u in pairwise(tables) for a, b in zip(t, u, strict=True))
    assert same < 2 * num  # one in a table by chance
    assert fits(np.histogram([t[0] for t in tables], 5, (0, size))[0].tolist(), [1] * 5)
    steps = np.diff(tables[0]) % size
    assert fits(np.histogram(steps, 20, (0, size))[0].tolist(), [1] * 20)


@pytest.mark.parametrize(("position", "size"), [(-1, 5), (5, 5), (0, 0)])
def test_permuted_refuses_what_is_outside(position: int, size: int):
    with pytest.raises(ValueError, match="outside"):
        permuted(position, size, 0)


def test_keys_are_hashes():
    assert key64("a", 1) == int.from_bytes(hashlib.blake2b(b"a/1", digest_size=8).digest()) >> 1
