"""Which caption a sample gets: the weights asked for, by draws that never change."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import blend
from pipeline.blend import ORIGINAL, PRESETS, Choice, choose, draw, parse
from pipeline.errors import UserError
from pipeline.samples import uid_of

UIDS = [uid_of("00000", f"{i:09d}") for i in range(20_000)]

weights = st.dictionaries(
    st.sampled_from([ORIGINAL, "short", "long", "other.long", "my.run-2.short"]),
    st.floats(0.001, 1000),
    min_size=1,
)


@pytest.mark.parametrize(
    ("text", "wanted", "label"),
    [
        ("95", {"long": 0.95, ORIGINAL: 0.05}, "95"),
        (" 65 ", {"long": 0.65, ORIGINAL: 0.35}, "65"),
        ("99.5", {"long": 0.995, ORIGINAL: 0.005}, "99.5"),
        ("0", {"long": 0.0, ORIGINAL: 1.0}, "0"),
        ("100", {"long": 1.0, ORIGINAL: 0.0}, "100"),
        ("original=5,long=95", {"long": 0.95, ORIGINAL: 0.05}, "95"),
        ("long=3, short = 1", {"long": 0.75, "short": 0.25}, "long75-short25"),
        ("a.b.long=1,original=1", {"a.b.long": 0.5, ORIGINAL: 0.5}, "a.b.long50-original50"),
    ],
)
def test_what_can_be_asked_for(text: str, wanted: dict[str, float], label: str):
    assert dict(parse(text).weights) == wanted
    assert parse(text).label == label


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ".", "101", "-5", "95%", "1e2", "\u0669\u0665", "long", "long=", "=1", "long=x"),
        *("long=nan", "long=inf", "long=-1", "long=0", "long=1,long=1", "wide=1", ".long=1"),
        *("long=1,,short=1", "run.wide=1", "run.original=1", "Long=1", "long=1;short=1"),
    ],
)
def test_what_cannot_is_told_with_an_example(text: str):
    with pytest.raises(UserError, match="BLEND") as e:
        parse(text)
    assert e.value.hint


@given(weights)
def test_shares_sum_to_one_in_any_order_and_scale(asked: dict[str, float]):
    def spell(pairs: list, scale: float) -> str:
        return ",".join(f"{name}={weight * scale!r}" for name, weight in pairs)

    pairs = list(asked.items())
    found = parse(spell(pairs, 1))
    assert math.isclose(sum(w for _, w in found.weights), 1, abs_tol=1e-10)
    assert found == parse(spell(pairs[::-1], 1))
    for (name, share), (same, other) in zip(
        found.weights, parse(spell(pairs, 4)).weights, strict=True
    ):
        assert (name, share) == (same, other)


# These draws are what every mix so far was made with: a new value is a new dataset.
PINNED = [
    ("fd8b88463ef1bcf8457e9d62938a9db9", 0, 0, 0.16587285581784583, 0.3731307994320231),
    ("fd8b88463ef1bcf8457e9d62938a9db9", 0, 1, 0.8628076901134941, 0.37087249999563143),
    ("fd8b88463ef1bcf8457e9d62938a9db9", 7, 0, 0.3110250669817093, 0.6521683029635716),
    ("7aa1e35768052d933677b963a8607226", 0, 0, 0.7559835529726506, 0.8055175027483369),
    ("7aa1e35768052d933677b963a8607226", 0, 1, 0.46358180060253373, 0.20449315993682615),
    ("7aa1e35768052d933677b963a8607226", 7, 0, 0.6050963143697679, 0.11266059343609514),
]


def test_draws_never_change():
    assert uid_of("00000", "000000000") == PINNED[0][0]
    assert uid_of("00001", "cat") == PINNED[3][0]
    for uid, seed, epoch, synthetic, which in PINNED:
        for share, source in ((synthetic - 1e-6, ORIGINAL), (synthetic + 1e-6, "long")):
            asked = parse(f"long={share},original={1 - share}")
            assert draw(asked, uid, seed, epoch) == source
        for share, source in ((which - 1e-6, "short"), (which + 1e-6, "long")):
            assert draw(parse(f"long={share},short={1 - share}"), uid, seed, epoch) == source


def within(count: int, total: int, share: float) -> bool:
    """Five standard deviations of a binomial."""
    return abs(count - total * share) <= 5 * math.sqrt(total * share * (1 - share)) + 1e-9


@pytest.mark.parametrize("epoch", [0, 1, 50])
def test_larger_synthetic_shares_contain_the_smaller_ones(epoch: int):
    before: set[str] = set()
    for percent in (0, *PRESETS, 100):
        asked = parse(str(percent))
        synthetic = {uid for uid in UIDS if draw(asked, uid, epoch=epoch) != ORIGINAL}
        assert within(len(synthetic), len(UIDS), percent / 100)
        assert before <= synthetic
        before = synthetic
    assert before == set(UIDS)


@pytest.mark.parametrize("percent", PRESETS)
def test_the_second_draw_does_not_depend_on_the_first(percent: int):
    """In every preset a third of the synthetic captions is short, of these samples and of those."""
    synthetic = percent / 100
    asked = parse(f"long={synthetic * 2},short={synthetic},original={3 * (1 - synthetic)}")
    drawn = {uid: draw(asked, uid) for uid in UIDS}
    split = [source for source in drawn.values() if source != ORIGINAL]
    assert within(len(split), len(UIDS), synthetic)
    assert within(split.count("short"), len(split), 1 / 3)
    always = [uid for uid in UIDS if draw(parse("65"), uid) != ORIGINAL]
    assert within(sum(drawn[uid] == "short" for uid in always), len(always), 1 / 3)


def test_seeds_and_epochs_are_independent():
    asked = parse("50")
    first = [draw(asked, uid) for uid in UIDS]
    for other in ({"seed": 1}, {"epoch": 1}, {"seed": 1, "epoch": 1}):
        same = sum(a == draw(asked, u, **other) for a, u in zip(first, UIDS, strict=True))
        assert within(same, len(UIDS), 0.5)


@given(weights, st.integers(0, 999))
def test_no_source_without_weight_is_drawn(asked: dict[str, float], index: int):
    text = ",".join(f"{name}={weight!r}" for name, weight in asked.items())
    spare = next((s for s in ("short", "long") if s not in asked), None)
    drawn = draw(parse(text + (f",{spare}=0" if spare else "")), UIDS[index])
    assert drawn in asked


def test_what_stands_in_for_a_caption_that_is_not_usable():
    asked = parse("x.long=0.5,long=0.3,original=0.2")
    uid_for = {draw(asked, uid): uid for uid in UIDS[:200]}
    assert set(uid_for) == {"x.long", "long", ORIGINAL}

    def used(drawn: str, *usable: str) -> str | None:
        choice = choose(asked, uid_for[drawn], usable.__contains__, others=("short", "long"))
        assert choice == Choice(drawn, choice.source)
        return choice.source

    everything = ("x.long", "long", "short", ORIGINAL)
    for drawn in uid_for:
        assert used(drawn, *everything) == drawn
        assert used(drawn) is None
    assert used("long", "x.long", "short", ORIGINAL) == "x.long"
    assert used(ORIGINAL, "x.long", "long", "short") == "x.long"  # of the blend, by weight
    assert used(ORIGINAL, "long", "short") == "long"
    assert used("x.long", "short", ORIGINAL) == "short"  # synthetic before original
    assert used("x.long", ORIGINAL) == ORIGINAL
    assert used("x.long", "short", "long", ORIGINAL) == "long"


def test_what_stands_in_is_of_the_same_style_where_it_can_be():
    fused = parse("colour-fused.long=0.9,original=0.1")
    uid = next(uid for uid in UIDS if draw(fused, uid) != ORIGINAL)
    for usable, wanted in (
        ({"short", "long", ORIGINAL}, "long"),
        ({"short", ORIGINAL}, "short"),
        ({ORIGINAL}, ORIGINAL),
    ):
        assert choose(fused, uid, usable.__contains__, ("short", "long")).source == wanted
    two = parse("a.short=0.1,b.long=0.3,c.long=0.6")
    uid = next(uid for uid in UIDS if draw(two, uid) == "a.short")
    assert choose(two, uid, {"b.long", "short"}.__contains__, ("short", "long")).source == "short"
    assert choose(two, uid, {"b.long", "c.long"}.__contains__, ("short",)).source == "c.long"


def test_nothing_stands_in_where_no_sample_is_synthetic():
    asked = parse("x.long=0.5,long=0.3,original=0.2")
    uid_for = {draw(asked, uid): uid for uid in UIDS[:200]}
    assert blend.choose(parse("0"), uid_for["long"], {"short"}.__contains__).source is None
