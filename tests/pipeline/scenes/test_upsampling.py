"""Upsampled prompts tell whole scenes, keep all that was asked for, and refuse what they cannot read."""

from collections import Counter

import pytest

from pipeline.scenes.alt_text import alt_text
from pipeline.scenes.captions import LONG, SHORT, long_caption, short_caption
from pipeline.scenes.claims import parse, score
from pipeline.scenes.upsampling import REASONS, upsample
from pipeline.scenes.world import COLOURS, LEVELS, POSITIONS, draw_scene

NUM = 60


def prompts(level: str) -> list[str]:
    """What people and pages say of scenes: short captions, relevant alt texts, and all there is."""
    found = []
    for index in range(NUM):
        scene = draw_scene(LEVELS[level], 7, index, "train")
        found += [
            short_caption(scene, index % len(SHORT)),
            alt_text(scene, 7, index, noise=0).text,
            long_caption(scene, index % len(LONG)),
        ]
    return found


@pytest.mark.parametrize("level", LEVELS)
def test_a_description_is_a_scene_of_which_the_prompt_is_true(level):
    for prompt in prompts(level):
        told = upsample(prompt, LEVELS[level], seed=3)
        assert told.reason == "", told
        scene = parse(told.text).scene()  # everything is said, without contradiction
        claims = score(parse(prompt), scene)
        assert claims.true == claims.claimed, told
        assert {thing.texture for thing in scene.things} <= {*LEVELS[level].textures}


def test_what_is_told_already_stays_the_same_scene():
    for index in range(NUM):
        scene = draw_scene(LEVELS["B"], 1, index, "test")
        told = upsample(long_caption(scene, index % len(LONG)), LEVELS["B"])
        assert parse(told.text).scene() == scene


def test_it_follows_from_seed_and_prompt_alone():
    level = LEVELS["A16"]
    texts = {upsample("a red circle", level, seed).text for seed in range(20)}
    assert len(texts) > 10
    assert upsample("a red circle", level, 5) == upsample("a red circle", level, 5)
    assert upsample("A  red circle", level, 5).text == upsample("a red circle", level, 5).text


def test_what_is_open_is_drawn_evenly():
    level, counts = LEVELS["A16"], Counter()
    for seed in range(900):
        (thing,) = parse(upsample("heart", level, seed).text).scene().things
        assert thing.shape == "heart"
        counts.update((thing.colour, thing.position))
    assert all(60 < counts[colour] < 170 for colour in COLOURS)
    assert all(60 < counts[position] < 150 for position in POSITIONS)


def test_only_the_named_templates_are_written():
    level = LEVELS["A16"]
    for seed in range(30):
        text = upsample("a red circle", level, seed, templates=(4, 10)).text
        scene = parse(text).scene()
        assert text in (long_caption(scene, 4), long_caption(scene, 10))


def test_relations_hold_and_name_things_once():
    for seed in range(30):
        told = upsample("a red circle above a blue square", LEVELS["B"], seed)
        scene = parse(told.text).scene()
        circle, square = sorted(scene.things, key=lambda thing: thing.shape)
        assert (circle.shape, circle.colour, square.colour) == ("circle", "red", "blue")
        assert circle.cell[0] < square.cell[0]
    told = upsample("a circle and a star. the circle is left of the star.", LEVELS["B"])
    assert len(parse(told.text).scene().things) == 2


def test_one_kind_is_the_largest_where_sizes_are_open():
    for seed in range(40):
        scene = parse(upsample("a circle, a star and a heart", LEVELS["B"], seed).text).scene()
        assert len(scene.main) == 1
    scene = parse(upsample("a small circle and a small star", LEVELS["B"]).text).scene()
    assert {thing.size for thing in scene.things} == {"small"}  # as it was asked for


@pytest.mark.parametrize(
    ("prompt", "level", "reason"),
    [
        ("", "A16", "no_thing"),
        ("an elephant on grass", "A16", "no_thing"),
        ("a red circle and an elephant", "B", "unknown_word"),
        ("a red circle, caf\u00e9 style", "A16", "unknown_word"),
        ("5 circles", "C", "unknown_word"),
        ("a circle left of a square left of a star", "B", "unread_relation"),
        ("a red blue circle", "A16", "contradiction"),
        ("a red circle on grass with snow behind", "A16", "contradiction"),
        ("a circle and a star", "A16", "too_many"),
        ("two circles", "B", "too_many"),
        ("a circle at the top and a star at the top", "B", "impossible"),
        ("a circle at the top is below a star", "B", "impossible"),
    ],
)
def test_what_cannot_be_told_stays_as_it_is(prompt, level, reason):
    told = upsample(prompt, LEVELS[level])
    assert (told.text, told.reason) == (prompt, reason)
    assert reason in REASONS


def test_hostile_prompts_are_only_texts():
    for prompt in ("\x00", "a" * 100_000, "red " * 10_000 + "circle", "a\u202ecircle", "9" * 5000):
        told = upsample(prompt, LEVELS["C"])
        assert told.text == prompt or parse(told.text).scene()
