"""What the towers that rank in DALL-E's gate learn from, and what they say."""

from collections import Counter

import numpy as np
import pytest
import torch

from generators.first_stages import vqvae
from generators.noise import SampleNoise
from generators.pixels import to_model
from jobs import level_a_scorer
from jobs.level_a_scorer import ALIKE, DAMAGE
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


def test_examples_come_nearly_alike(first_stage):
    """The first of every few is as it was drawn; the others differ from it as their captions say."""
    places = SCENES.places(0, seed=0, batch_size=64)
    examples = level_a_scorer._Examples(SCENES, first_stage)(places)
    damaged = alike = 0
    for i, (image, text) in enumerate(examples):
        told = facts(parse(text).scene())
        if i % ALIKE == 0:
            first, drawn = image, told
        differing = [name for name in told if told[name] != drawn[name] and name != "texture"]
        is_damaged = text.startswith(DAMAGE)
        damaged += is_damaged
        assert len(differing) == int(i % ALIKE > 0 and not is_damaged), text
        alike += np.array_equal(image, first)
    assert 10 <= damaged <= 30
    assert alike < 64 / ALIKE + 6  # one of each few; of others an untrained stage may see nothing


def test_towers_see_all_combinations():
    kinds = Counter()
    for place in SCENES.places(0, seed=0, batch_size=2000):
        (thing,) = level_a_scorer.any_scene(SCENES, place).things
        kinds[thing.shape, thing.colour] += 1
    assert len(kinds) == len(world.SHAPES) * len(world.COLOURS)
    assert min(kinds.values()) > 2000 / 64 / 3


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
