"""The oracle reads renders exactly, notices every change, and refuses what shows no scene."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pipeline.scenes.oracle import read_scene, read_things
from pipeline.scenes.render import render
from pipeline.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    LEVELS,
    POSITIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    draw_scene,
)
from tests.support import real
from tests.support.pictures import DAMAGES, no_scenes, photographs

SEED = 90_001
VALUES = {
    "shape": SHAPES,
    "colour": COLOURS,
    "texture": TEXTURES,
    "size": SIZES,
    "position": POSITIONS,
}


def wrong(level: str, split: str, damage: str, num: int) -> list[tuple[Scene, Scene | None]]:
    """(what was drawn, what was read) wherever the two differ."""
    scenes = [draw_scene(LEVELS[level], SEED, index, split) for index in range(num)]
    images = [DAMAGES[damage](render(level, s, SEED, i)) for i, s in enumerate(scenes)]
    read = [read_scene(image, level) for image in images]
    return [pair for pair in zip(scenes, read, strict=True) if pair[0] != pair[1]]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("level, num", [("A16", 200), ("A", 40), ("B", 100), ("C", 25)])
def test_renders_are_read_exactly(level, num, split):
    assert len(wrong(level, split, "raw", num)) <= 0.005 * num


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("level, num", [("A", 25), ("B", 60), ("C", 15)])
def test_jpeg_does_no_harm(level, num, split):
    assert len(wrong(level, split, "jpeg", num)) <= 0.005 * num


@pytest.mark.parametrize("split, share", [("train", 0.95), ("test", 0.91)])
def test_jpeg_of_16_pixels_is_mostly_read(split, share):
    """Its chroma has 8 x 8 pixels, the smallest things three: blue and purple stars look alike."""
    assert len(wrong("A16", split, "jpeg", 100)) <= (1 - share) * 100


@pytest.mark.parametrize("damage", ["noise", "blur", "shift"])
@pytest.mark.parametrize("level", ["A", "B"])
def test_slight_damage_is_tolerated(level, damage):
    assert len(wrong(level, "test", damage, 20)) <= 0.05 * 20


@pytest.mark.parametrize("level", ["A", "B", "C"])
@pytest.mark.parametrize("attribute", VALUES)
def test_a_changed_attribute_is_read(level, attribute):
    for index in range(2):
        scene = draw_scene(LEVELS[level], SEED, index, "train")
        first, *others = scene.things
        taken = {getattr(first, attribute)} | {t.position for t in others}
        free = [value for value in VALUES[attribute] if value not in taken]
        changed = replace(first, **{attribute: free[index % len(free)]})
        altered = Scene(scene.background, (changed, *others))
        assert read_scene(render(level, scene, SEED, index), level) == scene
        assert read_scene(render(level, altered, SEED, index), level) == altered


def test_a_changed_background_is_read():
    for index, background in enumerate(BACKGROUNDS):
        scene = replace(draw_scene(LEVELS["B"], SEED, 7, "train"), background=background)
        assert read_scene(render("B", scene, SEED, index), "B") == scene


@pytest.mark.parametrize("level", LEVELS)
def test_what_shows_no_scene_is_refused(level):
    read = Counter(
        kind for kind, image in no_scenes(LEVELS[level], 10) if read_scene(image, level) is not None
    )
    assert read == {}


@pytest.mark.parametrize("level", LEVELS)
def test_web_images_are_refused(level):
    images = list(photographs(LEVELS[level], real.data(), step=30))
    read = [read_scene(image, level) for image in images]
    assert sum(scene is not None for scene in read) <= 0.01 * len(images)


def test_a_thing_too_many_is_refused():
    """At level A a second thing, wherever it stands, is seen and not explained."""
    for index in range(10):
        (first,) = draw_scene(LEVELS["A"], SEED, index, "train").things
        (second,) = draw_scene(LEVELS["A"], SEED + 1, index, "train").things
        corners = ("top left", "bottom right")
        pair = (
            replace(t, size="small", position=p)
            for t, p in zip((first, second), corners, strict=True)
        )
        scene = Scene(BACKGROUNDS[index % len(BACKGROUNDS)], tuple(pair))
        assert read_scene(render("A", scene, SEED, index), "A") is None


def test_another_size_is_refused():
    image = render("A", draw_scene(LEVELS["A"], SEED, 0, "train"), SEED, 0)
    assert read_scene(image, "B") is None
    assert read_scene(image[..., 0], "A") is None
    assert read_scene(image.astype(np.float32), "A") is None


def test_a_reading_says_how_far_an_image_is_from_a_render():
    image = render("B", draw_scene(LEVELS["B"], SEED, 1, "train"), SEED, 1)
    clean, worse = read_things(image, "B"), read_things(DAMAGES["jpeg"](image), "B")
    assert clean.scene == worse.scene
    assert clean.thing < worse.thing
    assert clean.is_scene
    assert not replace(clean, thing=25.0).is_scene
