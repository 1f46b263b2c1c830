"""The top by a score: the same samples whatever the order, ties by uid, nothing unknown in it."""

import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.select.top import NOBODY, Ranking, parse


@pytest.mark.parametrize(
    ("text", "share", "count", "name"),
    [
        ("30 % by similarity", Fraction(3, 10), 0, "30 % by similarity"),
        ("top 30% by similarity", Fraction(3, 10), 0, "30 % by similarity"),
        ("0.1 % by aesthetic + 1", Fraction(1, 1000), 0, "0.1 % by aesthetic + 1"),
        ("100 by -width", None, 100, "100 by -width"),
    ],
)
def test_parse(text, share, count, name):
    top = parse(text)
    assert (top.share, top.count, top.text) == (share, count, name)


@pytest.mark.parametrize(
    "text",
    ["30 %", "by similarity", "0 % by x", "101 % by x", "1.5 by x", "0 by x", "-1 % by x", "nan % by x",
     "30 % by random()", "30 % by x, y", "30 % by (select 1)", "1e9 by x", ""],
)  # fmt: skip
def test_parse_refuses(text):
    with pytest.raises(UserError, match="TOP"):
        parse(text)


def test_a_share_is_exact_and_rounded_down():
    assert [parse("30 % by x").places(n) for n in (0, 1, 3, 4, 10, 1_000_000_007)] == [
        *(0, 0, 0, 1, 3),
        300_000_002,
    ]


scores = st.lists(
    st.sampled_from([0.0, -0.0, 0.1, 0.25, 0.5, 1.0, -1.0, math.inf, -math.inf, math.nan]),
    max_size=40,
)


@settings(deadline=None, max_examples=25)
@given(scores, st.sampled_from(["1 % by x", "30 % by x", "100 % by x", "5 by x"]), st.randoms())
def test_the_cut_is_that_of_a_sorted_list(values, text, random):
    top = parse(text)
    uids = [f"{(i * 7919) % 1009:032x}" for i in range(len(values))]
    ranked = sorted((-v, u) for v, u in zip(values, uids, strict=True) if not math.isnan(v))
    best = {uid for _, uid in ranked[: top.places(len(values))]}
    order = list(range(len(values)))
    random.shuffle(order)
    with Ranking() as ranking:
        for part in (order[::2], order[1::2]):
            ranking.add(
                np.array([values[i] for i in part]), pa.array([uids[i] for i in part], pa.string())
            )
        cut = ranking.cut(top)
    inside = cut.lets_in(np.array(values, float), np.array(uids, "U32"))
    assert {uid for uid, is_in in zip(uids, inside, strict=True) if is_in} == best


def test_nobody():
    with Ranking() as ranking:
        assert ranking.cut(parse("50 % by x")) == NOBODY
    assert NOBODY.threshold is None
    assert not NOBODY.lets_in(np.array([math.inf]), np.array(["0"])).any()
