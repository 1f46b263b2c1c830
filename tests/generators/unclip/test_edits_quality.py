"""What edits are measured by: it tells a stack that does them from one that does not."""

import pytest

from generators.unclip import edits_quality
from generators.unclip.unclip import Choice, UnClip
from pipeline.scenes.changes import ATTRIBUTES
from pipeline.scenes.rendered import RenderedScenes
from tests.generators.unclip.knowing import HalfPrior, KnowingDecoder, KnowingTowers

SCENES = RenderedScenes("A16", "test", -1)


@pytest.fixture(autouse=True)
def fewer(monkeypatch):
    monkeypatch.setattr(edits_quality, "EDITED", 10)
    monkeypatch.setattr(edits_quality, "INPAINTED", 3)


def measured(towers: KnowingTowers, model: KnowingDecoder) -> dict[str, float]:
    stack = UnClip(model.eval(), towers, HalfPrior(), choice=Choice(inversion="5"))
    return edits_quality.measure(stack, SCENES)


def test_a_stack_that_knows_scenes_is_right():
    figures = measured(KnowingTowers(), KnowingDecoder())
    assert figures["variations_kept"] == 1
    assert figures["text_diff_right"] == 1
    assert [figures[f"text_diff_{name}"] for name in ATTRIBUTES] == [1] * len(ATTRIBUTES)
    assert figures["inpainting_equal"] == 1 and figures["inpainting_new"] > 0.5


def test_one_that_understands_no_caption_keeps_its_images_and_changes_nothing():
    figures = measured(KnowingTowers(deaf=True), KnowingDecoder())
    assert figures["variations_kept"] == 1 and figures["text_diff_right"] == 0


def test_one_that_draws_one_scene_alone_is_wrong():
    figures = measured(KnowingTowers(), KnowingDecoder(wrong=True))
    assert figures["variations_kept"] < 0.5 and figures["text_diff_right"] == 0
    assert figures["inpainting_equal"] == 1
