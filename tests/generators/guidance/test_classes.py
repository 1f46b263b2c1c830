"""Which class a caption names, and which captions name none."""

import pytest

from generators.guidance.classes import NONE, SEVERAL, ClassNames
from pipeline.errors import UserError
from pipeline.scenes.rendered import RenderedScenes
from pipeline.scenes.world import COLOURS

NAMES = ClassNames(["red", "blue", "dark red", "Café", "c++"])


@pytest.mark.parametrize(
    ("caption", "label"),
    [
        ("a red heart", 0),
        ("A RED HEART.", 0),
        ("red, red and once more red", 0),
        ("a blue-ish thing", 1),  # a hyphen ends a word
        ("hundred bluebells, reddish", NONE),
        ("", NONE),
        ("reds", NONE),
        ("red_1", NONE),
        ("a red heart on a blue wall", SEVERAL),
        ("a dark red heart", 2),
        ("a dark  \n red heart", 2),
        ("a dark red heart on red", SEVERAL),
        ("un cafe\u0301 noir", 3),
        ("CAFÉ", 3),
        ("written in C++", 4),
        ("written in c+++", 4),
    ],
)
def test_whole_words_whatever_their_case(caption, label):
    assert NAMES.label(caption) == label


def test_a_class_is_asked_for_by_name():
    assert [NAMES.number(name) for name in ("Red", "cafe\u0301", "dark  red")] == [0, 3, 2]
    with pytest.raises(UserError, match=r"no class 'green'.*it knows red, blue"):
        NAMES.number("green")


@pytest.mark.parametrize("names", [[], ["red"], ["red", "RED"], ["red", " "], ["a b", "a  b"]])
def test_fewer_than_two_words_or_equal_ones_are_refused(names):
    with pytest.raises(UserError, match="are not two or more different words"):
        ClassNames(names)


def test_every_caption_of_the_rendered_world_names_one_colour():
    scenes, names = RenderedScenes("A16", "train", 0), ClassNames(COLOURS)
    for index, text in enumerate(scenes.texts(200)):
        (thing,) = scenes.scene(index).things
        assert COLOURS[names.label(text)] == thing.colour
