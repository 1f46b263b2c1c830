"""What unCLIP's towers learn from: groups of scenes nearly alike, some told only in part."""

from collections import Counter

import numpy as np
import pytest
import torch

from jobs import level_a_scorer, level_a_towers
from jobs.level_a_scorer import ALIKE
from jobs.level_a_towers import PARTIAL, TOLD, PartlyTold, partial_caption
from pipeline.draws import Draws
from pipeline.scenes.claims import parse
from pipeline.scenes.oracle import read_scene
from pipeline.scenes.rendered import RenderedScenes

SCENES = RenderedScenes("A16", "train", 0)


def test_captions_are_true_of_their_images_and_some_tell_only_a_part():
    places = SCENES.places(0, seed=0, batch_size=1200)
    told = Counter()
    for image, text in PartlyTold(SCENES)(places):
        scene = read_scene(image, "A16")
        (thing,) = scene.things
        claims = parse(text)
        (mention,) = claims.mentions
        assert mention.shape == thing.shape, text
        for name in ("size", "colour"):
            assert getattr(mention, name) in (None, getattr(thing, name)), text
        assert mention.positions in ([], (), [thing.position], (thing.position,)), text
        is_whole = bool(mention.size and mention.colour and mention.positions)
        told[is_whole] += 1
    assert told[False] == pytest.approx(1200 * PARTIAL, rel=0.2)


def test_a_group_told_in_part_differs_in_shape_alone():
    places = SCENES.places(1, seed=0, batch_size=200)
    found = PartlyTold(SCENES)(places)
    groups = 0
    for start in range(0, 200, ALIKE):
        if places[start].draws("partial").chance(PARTIAL):
            scenes = [read_scene(image, "A16") for image, _ in found[start : start + ALIKE]]
            assert len({scene.things[0].shape for scene in scenes}) == ALIKE
            rest = {(s.background, *vars(s.things[0]).values()) for s in scenes}
            kinds = {(s.background, s.things[0].colour, s.things[0].size) for s in scenes}
            assert len(rest) == ALIKE and len(kinds) == 1
            groups += 1
    assert groups > 10


def test_each_attribute_is_told_as_often():
    scene = SCENES.scene(3)
    texts = [partial_caption(scene, Draws(i)) for i in range(1000)]
    for word in (scene.things[0].size, scene.things[0].colour):
        assert np.mean([word in text for text in texts]) == pytest.approx(TOLD, abs=0.05)
    assert all(scene.things[0].shape in text for text in texts)
    assert not [text for text in texts if text.startswith("a orange")]


def test_towers_are_trained_once_into_a_folder(tmp_path, monkeypatch):
    short = level_a_scorer.FIT | {"warmup_steps": 1}
    monkeypatch.setattr(level_a_scorer, "FIT", short)
    monkeypatch.setattr(level_a_towers, "STEPS", 3)
    first = level_a_towers.towers("A16", 3, tmp_path)
    monkeypatch.setattr(level_a_towers, "fitted", None)  # a second training would call it
    again = level_a_towers.towers("A16", 3, tmp_path)
    assert dict(first.about) == dict(again.about)
    images = SCENES.first(3).images
    found = [towers.encode_image(towers.prepare(images)) for towers in (first, again)]
    assert torch.equal(*found)
    assert torch.linalg.vector_norm(found[0], dim=1).numpy() == pytest.approx(np.ones(3), abs=1e-5)
