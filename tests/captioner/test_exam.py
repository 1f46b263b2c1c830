"""The examination: truth gets full marks, errors cost what they should."""

from dataclasses import replace

import numpy as np
import pytest

from captioner import exam
from captioner.load import BUNDLED_FOLDER
from pipeline.scenes.captions import long_caption, short_caption
from pipeline.scenes.world import COLOURS, held_out


class Said:
    status = "ok"

    def __init__(self, text):
        self.text = text


class Knowing:
    """Writes what `say` makes of the scene behind an image."""

    def __init__(self, scenes, say=lambda scene: scene):
        self.by_bytes = {data: scene for scene, data in scenes}
        self.say = say

    def prepare(self, data):
        return data

    def caption(self, crops, keys):
        scenes = [self.say(self.by_bytes[crop]) for crop in crops]
        return [
            {"short": Said(short_caption(s, 2)), "long": Said(long_caption(s, 0))} for s in scenes
        ]


@pytest.fixture(scope="module")
def scenes():
    return exam.scenes("test", 200)


def test_the_truth_gets_full_marks(scenes):
    figures = exam.examine(Knowing(scenes), scenes)
    assert figures["long_f1"] == figures["short_main"] == figures["long_ok"] == 1
    assert figures["long_false"] == figures["short_false"] == 0


def test_one_wrong_colour_per_scene_costs_what_it_should(scenes):
    def recoloured(scene):
        main = scene.main[0]
        taken = {t.colour for t in scene.things}
        other = next(c for c in COLOURS if c not in taken)
        things = tuple(replace(t, colour=other) if t == main else t for t in scene.things)
        return replace(scene, things=things)

    figures = exam.examine(Knowing(scenes, recoloured), scenes)
    assert figures["short_main"] == 0
    assert 0.80 < figures["long_f1"] < 0.95  # one of six facts of one of one to three things
    assert 0.05 < figures["long_false"] < 0.25


def test_scenes_of_the_examination_are_combinations_that_are_never_trained(scenes):
    things = [t for scene, _ in scenes for t in scene.things]
    assert all(held_out(t.shape, t.colour, t.texture) for t in things)
    trained = [t for scene, _ in exam.scenes("train", 50) for t in scene.things]
    assert not any(held_out(t.shape, t.colour, t.texture) for t in trained)


def test_recall_counts_descriptions_whose_own_image_is_nearest(scenes):
    class Towers(Knowing):
        """Features that tell images apart, and texts that all find the first image but their own."""

        def encode_image(self, crops):
            return np.eye(len(self.by_bytes), dtype=np.float32)[
                [list(self.by_bytes).index(c) for c in crops]
            ]

        def encode_text(self, texts):
            features = np.zeros((len(texts), len(self.by_bytes)), dtype=np.float32)
            features[np.arange(len(texts)), np.arange(len(texts)) // 2 * 2] = 1
            return features

    assert exam.recall_at_1(Towers(scenes[:64]), scenes[:64], among=64) == 0.5


@pytest.mark.skipif(
    not (BUNDLED_FOLDER / "config.json").is_file(), reason="no captioner is bundled yet"
)
def test_the_bundled_captioner_is_as_good_as_its_card_says():
    from captioner import load_captioner

    figures = exam.examine(load_captioner("bundled"), exam.scenes("test", 500))
    assert figures["long_f1"] >= 0.97
    assert figures["long_false"] <= 0.02
    assert figures["short_main"] >= 0.97
    assert figures["long_ok"] >= 0.99
    assert figures["short_ok"] >= 0.99
