"""Captions say what is so, completely or briefly, in twenty ways each."""

import re
from itertools import product

import pytest

from pipeline.scenes.captions import (
    GROUND,
    LONG,
    RELATIONS,
    SHORT,
    holds,
    long_caption,
    plural,
    short_caption,
)
from pipeline.scenes.claims import main_is_right, parse, score
from pipeline.scenes.world import LEVELS, POSITIONS, SHAPES, Scene, Thing, draw_scene

LEVEL = pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
SCENE = Scene(
    "bricks",
    (
        Thing("ring", "orange", "striped", "small", "top left"),
        Thing("cross", "orange", "dotted", "large", "right"),
        Thing("cross", "orange", "dotted", "large", "bottom"),
        Thing("heart", "red", "plain", "small", "bottom right"),
    ),
)


@LEVEL
def test_long_captions_tell_the_whole_scene(level):
    for index in range(150):
        for split in ("train", "test"):
            scene = draw_scene(level, 0, index, split)
            for template in range(len(LONG)):
                assert parse(long_caption(scene, template)).scene() == scene


@LEVEL
def test_long_captions_say_nothing_false_and_leave_nothing_out(level):
    for index in range(40):
        scene = draw_scene(level, 1, index, "train")
        for template in range(len(LONG)):
            found = score(parse(long_caption(scene, template)), scene)
            assert found.f1 == 1 and found.false_share == 0
            alone = [t for t in scene.things if [u.kind for u in scene.things].count(t.kind) == 1]
            assert found.claimed == found.sayable + (len(alone) > 1)  # a relation


@LEVEL
def test_short_captions_name_the_main_thing_and_nothing_false(level):
    for index in range(150):
        scene = draw_scene(level, 0, index, "train")
        for template in range(len(SHORT)):
            claims = parse(short_caption(scene, template))
            assert main_is_right(claims, scene)
            assert len(claims.mentions) == 1
            assert score(claims, scene).false_share == 0


def test_what_some_captions_look_like():
    assert short_caption(SCENE, 9) == "two dotted orange crosses on a brick wall"
    assert short_caption(SCENE, 11) == "two orange dotted crosses on the right and at the bottom"
    assert long_caption(SCENE, 0) == (
        "a small orange striped ring at the top left, two large orange dotted crosses on the right "
        "and at the bottom and a small red plain heart at the bottom right on a brick wall. the "
        "orange ring is left of the red heart."
    )
    assert long_caption(SCENE, 11).startswith("on a brick wall there is a ring that is small, ")
    assert long_caption(SCENE, 17).startswith("a picture of two crosses that are large, ")
    assert long_caption(SCENE, 7).startswith("an orange striped ring of small size at the top left")


def test_templates_are_twenty_and_differ():
    for templates, caption in ((SHORT, short_caption), (LONG, long_caption)):
        assert len(set(templates)) == 20
        assert len({caption(SCENE, i) for i in range(20)}) == 20


@LEVEL
def test_captions_are_clean_text(level):
    grounds = "|".join(GROUND.values())
    for index in range(60):
        scene = draw_scene(level, 0, index, "train")
        for caption in (short_caption, long_caption):
            for template in range(20):
                text = caption(scene, template)
                assert re.fullmatch(r"[a-z]+(?:[.,]? [a-z]+)*\.?", text), text
                assert not re.search(r"\ba orange|\ban [^o]|\b(\w+) \1\b", text), text
                assert len(re.findall(grounds, text)) <= 1


def test_relations_are_true_and_about_the_first_two_single_things():
    told = 0
    for level, index in product((LEVELS["B"], LEVELS["C"]), range(300)):
        scene = draw_scene(level, 3, index, "train")
        for relation in parse(long_caption(scene, index % 20)).relations:
            first, second = (
                [t for t in scene.things if (t.shape, t.colour) == (m.shape, m.colour)]
                for m in (relation.first, relation.second)
            )
            assert len(first) == len(second) == 1 and first != second
            assert holds(first[0], relation.relation, second[0])
            told += 1
    assert told > 300


def test_relations_are_those_of_the_grid():
    at = {p: Thing("star", "red", "plain", "small", p) for p in POSITIONS}
    for first, second in product(POSITIONS, POSITIONS):
        found = {r for r in RELATIONS if holds(at[first], r, at[second])}
        wanted = set()
        for words, relation in ((("left", "right"), "left of"), (("top", "bottom"), "above")):
            order = [
                next((i for i, w in ((0, words[0]), (2, words[1])) if w in p.split()), 1)
                for p in (first, second)
            ]
            if order[0] != order[1]:
                opposite = {"left of": "right of", "above": "below"}[relation]
                wanted.add(relation if order[0] < order[1] else opposite)
        assert found == wanted


def test_plurals():
    assert {plural(s) for s in SHAPES} >= {"crosses", "circles", "hearts"}
