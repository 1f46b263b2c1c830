"""What captions claim is counted fairly: nothing false goes unseen, and padding does not pay."""

import random
import re
import time
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.scenes.captions import (
    GROUND,
    LONG,
    NUMBERS,
    PLACES,
    RELATIONS,
    SHORT,
    long_caption,
    plural,
    short_caption,
)
from pipeline.scenes.claims import Mention, Score, _best_match, main_is_right, parse, score
from pipeline.scenes.world import COLOURS, LEVELS, SHAPES, SIZES, TEXTURES, Scene, Thing, draw_scene

CIRCLE = Thing("circle", "red", "plain", "large", "top")
SQUARE = Thing("square", "blue", "striped", "small", "left")
SCENE = Scene("sand", (CIRCLE, SQUARE))
STARS = Scene("snow", tuple(Thing("star", "pink", "plain", "small", p) for p in ("top", "left")))
FULL = "a large red plain circle at the top and a small blue striped square on the left on sand."

WORDS = (
    *(COLOURS, SIZES, TEXTURES, SHAPES, tuple(map(plural, SHAPES))),
    *(tuple(PLACES.values()), NUMBERS[1:], tuple(GROUND.values())),
)
EXCHANGED = re.compile(
    "|".join(sorted((rf"\b{w}\b" for words in WORDS for w in words), key=len, reverse=True))
)
VOCABULARY = (
    *(w for words in WORDS for w in words),
    *(*RELATIONS, "a", "an", "the", "is", "that", "of", "and", ",", ".", "size", "behind", "there"),
)


def exchanged(text: str, rng: random.Random) -> list[str]:
    """The text with one claim exchanged for one that it does not make, in every possible place."""
    found = []
    for match in EXCHANGED.finditer(text):
        words = next(words for words in WORDS if match.group() in words)
        values = [w for w in words if not re.search(rf"\b{w}\b", text)]
        if values:
            found.append(text[: match.start()] + rng.choice(values) + text[match.end() :])
    return found


@pytest.mark.parametrize("level", ["A", "B", "C"])
@pytest.mark.parametrize("template", range(len(LONG)))
def test_one_exchanged_word_is_one_false_claim(level: str, template: int):
    rng = random.Random(template)
    for index in range(8):
        scene = draw_scene(LEVELS[level], 4, index, "train")
        text = long_caption(scene, template)
        whole = score(parse(text), scene)
        wrong = exchanged(text, rng)
        assert len(wrong) >= 5 * len({t.kind for t in scene.things})
        for other in wrong:
            found = score(parse(other), scene)
            assert (found.claimed, found.true) == (whole.claimed, whole.true - 1), other
            assert parse(other).scene_or_none() != scene


@pytest.mark.parametrize("level", ["A", "B", "C"])
@pytest.mark.parametrize("template", range(len(SHORT)))
def test_one_exchanged_word_makes_a_short_caption_wrong(level: str, template: int):
    rng = random.Random(template)
    for index in range(8):
        scene = draw_scene(LEVELS[level], 4, index, "train")
        text = short_caption(scene, template)
        assert main_is_right(parse(text), scene)
        for other in exchanged(text, rng):
            assert not main_is_right(parse(other), scene), other


# Of SCENE can be said 2 x (shape, colour, texture, size, number, position) and sand: 13 truths.
@pytest.mark.parametrize(
    ("text", "claimed", "true"),
    [
        (FULL, 13, 13),
        ("", 0, 0),
        ("qwerty 123 \u00e4\u00f6 ?!", 0, 0),
        ("a large red plain circle at the top on sand.", 7, 7),  # a missing thing
        (FULL + " a small pink dotted heart on the right.", 19, 13),  # one that is not there
        ("a red circle and a blue square.", 6, 6),
        ("a blue circle and a red square.", 6, 4),  # colours swapped
        ("a blue square and a red circle.", 6, 6),  # order does not matter
        ("a red circle. " * 9, 27, 3 + 1),  # the second circle is matched to the square: number
        ("two red circles on sand.", 4, 3),
        ("a red circle at the top, on the left and in the centre.", 6, 4),
        ("a red, blue and green circle.", 5, 3),  # colours to choose from
        ("a circle, red and blue.", 4, 3),
        ("a red, a blue, a green circle.", 5, 3),
        ("a red circle on sand. the background is snow. behind is grass.", 6, 4),
        ("a large square and a small circle.", 6, 4),
        ("the red circle is right of the blue square.", 1, 1),
        ("the red circle is left of the blue square.", 1, 0),
        ("the red circle is above the pink heart.", 1, 0),
        ("the red circle at the bottom is above the blue square.", 1, 0),
        ("the red circle is above the blue square. " * 5, 5, 1),
        ("the circle is right of the square. the square is left of the circle.", 2, 1),
    ],
)
def test_counts_by_hand(text: str, claimed: int, true: int):
    found = score(parse(text), SCENE)
    relations = sum(r in text for r in ("right of", "above"))
    assert (found.claimed, found.true, found.sayable) == (claimed, true, 13)
    assert found.told == (0 if relations else true)
    assert found.false_share == pytest.approx((claimed - true) / max(1, claimed))


def test_a_relation_of_many_pairs_is_one_claim():
    scene = Scene("snow", (*STARS.things, replace(SQUARE, position="right")))
    found = score(parse("the star is left of the square."), scene)
    assert (found.claimed, found.true) == (1, 1)


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    assert score(parse(FULL), SCENE).f1 == 1
    assert score(parse(""), SCENE).f1 == 0
    told_half = score(parse("a large red plain circle at the top on sand."), SCENE)
    assert told_half.f1 == pytest.approx(2 * (7 / 7) * (7 / 13) / (7 / 7 + 7 / 13))
    with_relation = score(parse(FULL + " the circle is above the square."), SCENE)
    assert (with_relation.claimed, with_relation.told, with_relation.f1) == (14, 13, 1)
    assert Score(3, 2, 5, 1) + Score(1, 1, 1, 1) == Score(4, 3, 6, 2)


@pytest.mark.parametrize("level", ["A", "B", "C"])
def test_captions_exchanged_between_two_scenes_score_alike(level: str):
    for index in range(60):
        scenes = [draw_scene(LEVELS[level], seed, index, "train") for seed in (1, 2)]
        claims = [parse(long_caption(scene, 0)) for scene in scenes]
        for told in claims:
            told.relations.clear()  # they are claims that no scene asks for
        there, back = score(claims[0], scenes[1]), score(claims[1], scenes[0])
        assert there.f1 == pytest.approx(back.f1) and there.f1 < 1


@pytest.mark.parametrize("level", ["A", "B", "C"])
def test_padding_never_pays(level: str):
    """Added to a complete caption, mentions cost the more the more there are, before or behind."""
    for index in range(20):
        scene = draw_scene(LEVELS[level], 5, index, "train")
        text = long_caption(scene, index) + " "
        for more in ("a red circle. ", "two stars on the left. ", text):
            for before, behind in ((1, 0), (0, 1)):
                padded = [more * n * before + text + more * n * behind for n in (0, 1, 2, 7, 30)]
                scores = [score(parse(t), scene).f1 for t in padded]
                assert scores == sorted(set(scores), reverse=True), more
        for relation in re.findall(r"the \w+ \w+ is [^.]+ the \w+ \w+\. ", text):
            assert score(parse(text + relation * 20), scene).f1 < 1


@given(
    st.lists(st.sets(st.integers(0, 9), max_size=5), max_size=5),
    st.lists(st.sets(st.integers(0, 9), max_size=5), min_size=1, max_size=4),
)
def test_the_matching_is_the_best_of_all(said: list[set], shown: list[set]):
    slots = [*shown, *[set()] * len(said)]
    best = max(
        sum(len(a & b) for a, b in zip(said, chosen, strict=True))
        for chosen in permutations(slots, len(said))
    )
    assert _best_match(said, shown) == best


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("a red circle", True),
        ("a large plain red circle at the top on sand and a blue square", True),
        (
            "a red circle and a pink heart",
            True,
        ),  # the main thing comes first; score() counts the heart
        ("a blue square and a red circle", False),
        ("a circle", False),
        ("red", False),
        ("", False),
        ("a red blue circle", False),
        ("a red or blue circle", False),
        ("two red circles", False),
        ("a red circle on snow", False),
        ("a red circle on sand on snow", False),
        ("a red circle at the top and on the left", False),
        ("a small red circle", False),
        ("a red circle, striped", False),
    ],
)
def test_the_main_thing_is_right_if_all_that_is_said_is(text: str, is_right: bool):
    assert main_is_right(parse(text), SCENE) == is_right


def test_the_main_thing_may_be_several():
    assert main_is_right(parse("two pink stars on the left and at the top"), STARS)
    for wrong in (
        "a pink star",
        "three pink stars",
        "two pink stars on the left and at the bottom",
    ):
        assert not main_is_right(parse(wrong), STARS)


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("a ring, yellow and small", [Mention("ring", 1, "small", "yellow")]),
        ("ring and yellow star", [Mention("ring"), Mention("star", colour="yellow")]),
        ("A RING that is yellow, star", [Mention("ring", colour="yellow"), Mention("star")]),
        ("a star on the left, red", [Mention("star", colour="red", positions=("left",))]),
        ("on the left three stars", [Mention("star", 3, positions=("left",))]),
        ("two red crosses of small size", [Mention("cross", 2, "small", "red")]),
        ("an image of two stars", [Mention("star", 2)]),
        ("red. blue. on the left.", []),
    ],
)
def test_attributes_go_to_the_right_noun(text: str, mentions: list[Mention]):
    assert parse(text).mentions == mentions


@pytest.mark.parametrize(
    "text",
    [
        "a red circle at the top on sand.",
        FULL.replace(" on sand", ""),
        FULL + " on snow.",
        FULL.replace("a large", "two large"),
        FULL.replace("red", "red blue"),
        FULL.replace("on the left", "at the top"),
        FULL + " the circle is below the square.",
        "on sand.",
        "",
    ],
)
def test_what_is_incomplete_or_contradicts_itself_is_no_scene(text: str):
    assert parse(FULL).scene() == SCENE
    assert parse(text).scene_or_none() is None
    with pytest.raises(ValueError):
        parse(text).scene()


@given(st.text() | st.lists(st.sampled_from(VOCABULARY)).map(" ".join))
@settings(max_examples=300)
def test_any_text_is_read_and_scored(text: str):
    claims = parse(text)
    for scene in (SCENE, STARS):
        found = score(claims, scene)
        assert 0 <= found.told <= min(found.true, found.sayable) and found.true <= found.claimed
        assert 0 <= found.f1 <= 1 and 0 <= found.false_share <= 1
        assert main_is_right(claims, scene) in (True, False)
    if (scene := claims.scene_or_none()) is not None:
        assert score(claims, scene).f1 == 1


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "a",
            "at the ",
            "red blue ",
            "circle ",
            "a red circle. ",
            "circle on the left ",
            " ",
            ".",
        ),
        *(
            "circle of red ",
            "the circle is left of the square. ",
            "on sand on grass ",
            "on the left ",
        ),
    ],
)
def test_a_hostile_caption_costs_no_more_than_its_length(piece: str):
    scene = draw_scene(LEVELS["C"], 0, 4, "train")
    assert len({t.kind for t in scene.things}) == 5

    def seconds(size: int) -> float:
        start = time.process_time()
        score(parse(piece * (size // len(piece))), scene)
        return time.process_time() - start

    assert seconds(100_000) < 2
