"""Scenes hold what their level allows, and none of what is held out."""

import subprocess
import sys
from collections import Counter
from itertools import pairwise, product

import pytest

from pipeline.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    LEVELS,
    POSITIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Level,
    Scene,
    Thing,
    draw_scene,
    held_out,
)

NUM = 600
LEVEL = pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)


def scenes(level: Level, split: str = "train", seed: int = 0) -> list[Scene]:
    return [draw_scene(level, seed, index, split) for index in range(NUM)]


def combinations(*drawn: Scene) -> set[tuple[str, str, str]]:
    return {(t.shape, t.colour, t.texture) for scene in drawn for t in scene.things}


def test_the_world_is_as_large_as_designed():
    sizes = [len(set(v)) for v in (SHAPES, COLOURS, TEXTURES, SIZES, POSITIONS, BACKGROUNDS)]
    assert sizes == [8, 8, 4, 3, 9, 6]


@LEVEL
@pytest.mark.parametrize("split", ["train", "test"])
def test_scenes_stay_within_their_level(level: Level, split: str):
    drawn = scenes(level, split)
    assert {len(s.things) for s in drawn} == set(range(1, len(level.count_weights) + 1))
    assert {t for *_, t in combinations(*drawn)} == set(level.textures)
    assert {s.background for s in drawn} == set(BACKGROUNDS)
    assert {t.position for s in drawn for t in s.things} == set(level.positions)
    repeats = [max(Counter(t.kind for t in s.things).values()) for s in drawn]
    assert max(repeats) == level.repeats


@LEVEL
def test_one_kind_is_larger_than_all_others(level: Level):
    for scene in scenes(level):
        rest = [t for t in scene.things if t not in scene.main]
        assert len({t.kind for t in scene.main}) == 1
        assert all(SIZES.index(t.size) < SIZES.index(scene.main[0].size) for t in rest)
    assert {s.main[0].size for s in scenes(level) if len(s.main) == len(s.things)} == set(
        level.sizes
    )


@LEVEL
def test_kinds_differ_in_shape_or_colour(level: Level):
    for scene in scenes(level):
        kinds = {t.kind for t in scene.things}
        assert len({kind[:2] for kind in kinds}) == len(kinds)


@LEVEL
def test_held_out_combinations_are_in_test_and_only_there(level: Level):
    assert not any(held_out(*c) for c in combinations(*scenes(level)))
    assert all(held_out(*c) for c in combinations(*scenes(level, "test")))


def test_an_eighth_is_held_out_but_no_pair_of_attributes():
    everything = set(product(SHAPES, COLOURS, TEXTURES))
    trained = {c for c in everything if not held_out(*c)}
    assert len(trained) == len(everything) * 7 // 8
    for axes, num in (((0, 1), 64), ((0, 2), 32), ((1, 2), 32)):
        assert len({tuple(c[a] for a in axes) for c in trained}) == num
    drawn = combinations(*(draw_scene(LEVELS["A"], 0, i, "train") for i in range(3000)))
    assert drawn == trained
    plain = {c[:2] for c in trained if c[2] == "plain"}  # all that A16 has
    assert {s for s, _ in plain} == set(SHAPES) and {c for _, c in plain} == set(COLOURS)


def test_counts_follow_the_weights():
    for level in LEVELS.values():
        counts = Counter(len(s.things) for s in scenes(level))
        for num, weight in enumerate(level.count_weights, start=1):
            assert abs(counts[num] - NUM * weight) <= 5 * (NUM * weight * (1 - weight)) ** 0.5


@LEVEL
@pytest.mark.parametrize("most", [1, 2])
def test_most_limits_the_number_of_things(level: Level, most: int):
    counts = {len(draw_scene(level, 0, i, "train", most).things) for i in range(60)}
    assert counts == set(range(1, min(most, len(level.count_weights)) + 1))


def test_a_scene_is_a_function_of_seed_and_index_in_any_process():
    code = (
        "from pipeline.scenes.world import LEVELS, draw_scene\n"
        "for i in reversed(range(20)): print(draw_scene(LEVELS['C'], 5, i, 'train'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [str(draw_scene(LEVELS["C"], 5, i, "train")) for i in range(20)]
    assert done.stdout.splitlines()[::-1] == here


def test_scenes_of_other_seeds_indices_and_splits_are_others():
    for level in (LEVELS["B"], LEVELS["C"]):
        drawn = [*scenes(level), *scenes(level, seed=1), *scenes(level, "test")]
        many = [s for s in drawn if len(s.things) > 1]
        assert len(set(many)) > 0.99 * len(many)
        assert all(a != b for a, b in pairwise(many))


def test_the_order_in_which_things_are_given_does_not_matter():
    a, b = (Thing("star", "red", "plain", "small", p) for p in ("bottom", "top right"))
    assert Scene("sand", (a, b)) == Scene("sand", (b, a))
    assert Scene("sand", (a, b)).things == (b, a)


def test_two_things_in_one_position_are_refused():
    a, b = (Thing("star", colour, "plain", "small", "top") for colour in ("red", "blue"))
    with pytest.raises(ValueError, match="one position"):
        Scene("sand", (a, b))


def test_scenes_never_change():
    """Models were trained on these."""
    assert draw_scene(LEVELS["B"], 1, 0, "train") == Scene(
        "wood",
        (
            Thing("star", "green", "dotted", "large", "centre"),
            Thing("triangle", "cyan", "dotted", "small", "bottom"),
            Thing("heart", "yellow", "checkered", "medium", "bottom right"),
        ),
    )
