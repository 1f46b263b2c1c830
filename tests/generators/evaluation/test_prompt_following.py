"""Prompt following: renders follow their captions, each wrong attribute is found, nothing is right in noise."""

from dataclasses import replace

import numpy as np
import pytest

from generators.evaluation.prompt_following import Following, compare, follow
from pipeline.scenes.claims import parse
from pipeline.scenes.render import render
from pipeline.scenes.rendered import RenderedScenes
from pipeline.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    LEVELS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
)

A16 = LEVELS["A16"]
HEART = Thing("heart", "red", "plain", "large", "top left")
PROMPT = "a large red plain heart at the top left on snow."
FIVE = {"shape": 1, "size": 1, "colour": 1, "position": 1, "background": 1}


def read(prompt: str, *things: Thing, background: str = "snow", level: str = "B") -> Following:
    return compare(parse(prompt), Scene(background, things), LEVELS[level])


@pytest.mark.parametrize(("level", "num"), [("A16", 40), ("A", 2)])
def test_renders_follow_their_captions(level, num):
    scenes = RenderedScenes(level, "test", -1)
    examples = scenes.first(num)
    found = sum(map(follow, examples.texts, examples.images, [level] * num), Following())

    assert found.figures()["attributes"] > 0.99
    assert found.images == num
    assert found.stated == found.stated | dict.fromkeys(FIVE, num)
    assert ("texture" in found.stated) == (level == "A"), "at 16 px everything is plain"


@pytest.mark.parametrize(
    ("name", "values"),
    [("shape", SHAPES), ("colour", COLOURS), ("size", SIZES), ("position", POSITIONS)],
)
def test_an_attribute_that_is_drawn_wrong_is_the_one_that_counts(name, values):
    others = [value for value in values if value != getattr(HEART, name)]
    for value in others:
        image = render("A16", Scene("snow", (replace(HEART, **{name: value}),)), 5, 0)
        found = follow(PROMPT, image, "A16")
        assert found.row() == {"stated": 5, "right": 4, "wrong": name, "is_scene": True}
        assert found.figures()[f"attributes_{name}"] == 0
        assert found.figures()["all_right"] == 0


def test_a_wrong_background_is_found():
    for background in BACKGROUNDS[:-1]:
        found = follow(PROMPT, render("A16", Scene(background, (HEART,)), 5, 0), "A16")
        assert found.row()["wrong"] == "background"


def test_only_what_is_stated_counts():
    image = render("A16", Scene("grass", (HEART,)), 5, 0)
    assert follow("a heart", image, A16).row() == {
        "stated": 1,
        "right": 1,
        "wrong": "",
        "is_scene": True,
    }
    found = follow("something nice", image, A16)
    assert (found.stated, found.figures()["attributes"], found.whole) == ({}, 0, 1)


@pytest.mark.parametrize(
    "image",
    [
        np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8),
        np.full((16, 16, 3), 128, np.uint8),
        np.zeros((32, 32, 3), np.uint8),
    ],
)
def test_nothing_is_right_in_what_is_no_scene(image):
    found = follow(PROMPT, image, "A16")
    assert found.stated == FIVE
    assert found.figures() == dict.fromkeys(found.figures(), 0) | {"no_scene": 1}
    assert not follow("something nice", image, "A16").whole


def test_following_adds_up():
    right = read("a red heart on snow", HEART)
    wrong = read("a blue heart on snow", HEART)
    nothing = compare(parse("a red heart"), None, A16)
    figures = sum((right, wrong, nothing), Following()).figures()
    assert figures == {
        "attributes": 5 / 8,
        "attributes_background": 1,
        "attributes_colour": 1 / 3,
        "attributes_shape": 2 / 3,
        "all_right": 1 / 3,
        "no_scene": 1 / 3,
    }


def test_things_are_found_in_whatever_way_makes_most_right():
    star = Thing("star", "blue", "plain", "small", "right")
    prompt = "a small blue star on the left and a large red heart at the top left"
    assert read(prompt, HEART, star).row()["wrong"] == "position"
    assert read(prompt, HEART).row()["wrong"] == "colour position shape size"
    # Taking the first star for the first one mentioned would make less right.
    other = replace(star, colour="green", position="left")
    both = "a star and a green star on the left"
    assert read(both, star, other).whole and read(both, other, star).whole


def test_numbers_contradictions_and_relations_are_claims():
    twins = HEART, replace(HEART, position="right")
    prompt = "two large red hearts at the top left and on the right"
    assert read(prompt, *twins).whole
    assert read(prompt, HEART).row()["right"] == 4
    assert read("a red, blue heart", HEART).row()["wrong"] == "colour"
    assert read("a heart at the top left at the bottom", HEART).row()["wrong"] == "position"
    above = "a red heart on snow. the heart is above the star."
    star = Thing("star", "blue", "plain", "small", "bottom")
    assert read(above, HEART, star).whole
    assert (
        read(above, replace(HEART, position="bottom right"), replace(star, position="top")).row()[
            "wrong"
        ]
        == "relation"
    )


def test_endless_prompts_are_read_in_bounded_time():
    things = tuple(replace(HEART, position=p) for p in POSITIONS[:5])
    found = read("five red hearts. " * 1000, *things, level="C")
    assert found.right == {"shape": 5, "colour": 5}
    assert found.stated["shape"] == 5000
