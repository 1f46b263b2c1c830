"""What the towers that rank in DALL-E's gate learn from, and what they say."""

from collections import Counter

import numpy as np
import pytest
import torch

from generators.first_stages import vqvae
from generators.noise import SampleNoise
from generators.pixels import to_model
from jobs import level_a_scorer
from jobs.level_a_scorer import DAMAGE, changed
from pipeline.draws import Draws
from pipeline.scenes import world
from pipeline.scenes.claims import parse
from pipeline.scenes.rendered import RenderedScenes

SCENES = RenderedScenes("A16", "train", 0)


@pytest.fixture(scope="module")
def first_stage() -> vqvae.Model:
    """Untrained, but with the vectors of some images as its codes."""
    torch.manual_seed(0)
    model = vqvae.Model(vqvae.PRESETS["toy-fine"]().config)
    model(to_model(SCENES.first(32).images), SampleNoise(range(32)), 0)
    return model.eval().requires_grad_(False)


def facts(scene: world.Scene) -> dict[str, str]:
    (thing,) = scene.things
    return {"background": scene.background} | vars(thing)


def test_a_changed_scene_differs_in_one_attribute_and_is_no_held_out_combination():
    found = Counter()
    for index in range(400):
        scene = SCENES.scene(index)
        before, after = facts(scene), facts(changed(scene, Draws(index)))
        (name,) = (name for name in before if before[name] != after[name])
        found[name] += 1
        assert not world.held_out(after["shape"], after["colour"], after["texture"])
    assert set(found) == {"shape", "colour", "size", "position", "background"}
    assert min(found.values()) > 40


def test_every_second_example_is_nearly_the_one_before(first_stage):
    places = SCENES.places(0, seed=0, batch_size=64)
    examples = level_a_scorer._Examples(SCENES, first_stage)(places)
    damaged = 0
    for i in range(0, 64, 2):
        (image, text), (other_image, other_text) = examples[i : i + 2]
        assert not text.startswith(DAMAGE)
        assert not np.array_equal(image, other_image)
        told, other = (facts(parse(caption).scene()) for caption in (text, other_text))
        differing = [name for name in told if told[name] != other[name]]
        is_damaged = other_text.startswith(DAMAGE)
        damaged += is_damaged
        assert len(differing) == (0 if is_damaged else 1), (text, other_text)
    assert 8 <= damaged <= 24


def test_towers_give_cosines_and_go_on_where_they_were(first_stage, tmp_path, monkeypatch):
    monkeypatch.setattr(level_a_scorer, "FIT", level_a_scorer.FIT | {"steps": 3, "warmup_steps": 1})
    towers = level_a_scorer.train(SCENES, first_stage, tmp_path / "towers", seed=3)
    examples = SCENES.first(6)
    features = towers.encode_image([towers.prepare(image) for image in examples.images])
    assert np.linalg.norm(features, axis=1) == pytest.approx(np.ones(6), abs=1e-5)
    found = towers.similarities(features, examples.texts)
    assert len(found) == 6 and all(-1 <= mean <= 1 for mean, _ in found)
    again = level_a_scorer.train(SCENES, first_stage, tmp_path / "towers", seed=3)
    assert again.similarities(features, examples.texts) == found
