"""GLIDE as one uses it: the same images again, inpainting by hand, its folder, its gate's figures."""

import json

import numpy as np
import pytest
import torch

import generators
from generators import checkpoint, models
from generators.preset import Materials
from generators.unclip import following
from generators.unclip.glide_generator import Glide
from pipeline.errors import UserError
from pipeline.scenes.rendered import RenderedScenes
from tests.generators.unclip.small_decoders import OF_WORDS, SCENES, Few, decoder

PROMPT = "a large red heart on grass"


@pytest.fixture(scope="module")
def glide() -> Glide:
    return Glide(decoder(OF_WORDS).requires_grad_(False))


def test_an_image_follows_from_seed_prompt_and_number_alone(glide):
    images = glide.sample(PROMPT, 3, steps=4)
    assert images.shape == (3, 16, 16, 3) and images.dtype == np.uint8
    assert np.array_equal(images, glide.sample(PROMPT, 3, steps=4))
    in_parts = Glide(glide.model, batch_size=2).sample(PROMPT, 5, steps=4)
    assert np.abs(in_parts[:3].astype(int) - images).max() <= 1  # other batches, other last bits
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images, glide.sample(PROMPT, 3, steps=4, seed=1))
    assert not np.array_equal(images, glide.sample("a blue ring", 3, steps=4))
    assert not np.array_equal(images, glide.sample(PROMPT, 3, steps=4, guidance=1.0))
    assert glide.sample(PROMPT, 0).shape == (0, 16, 16, 3)


def test_samplers_are_chosen_by_name(glide):
    drawn = [glide.sample(PROMPT, steps=4, sampler=name) for name in ("ddpm", "ddim", "dpm++")]
    assert not np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(glide.sample(PROMPT), glide.sample(PROMPT, steps=5, sampler="ddim"))
    noisy = glide.sample(PROMPT, steps=4, sampler="ddim", eta=1.0)
    assert not np.array_equal(drawn[1], noisy)
    for wrong in ({"steps": 0}, {"steps": 1000}, {"sampler": "euler"}):
        with pytest.raises(UserError):
            glide.sample(PROMPT, **wrong)


def test_inpainting_keeps_what_is_masked(glide):
    image = SCENES.image(0)
    mask = np.zeros((16, 16), bool)
    mask[:, :9] = True
    found = glide.inpaint(PROMPT, image, mask, 2, steps=4)
    assert np.array_equal(found[:, :, :9], np.stack([image[:, :9]] * 2))
    assert not np.array_equal(found[0, :, 9:], found[1, :, 9:])
    for wrong in ((image[:8], mask), (image, mask[:8]), (image, mask.astype(np.uint8))):
        with pytest.raises(UserError):
            glide.inpaint(PROMPT, *wrong)


def test_it_comes_back_from_its_folder(glide, tmp_path):
    module = models.find("glide")
    prepared = module.prepare(OF_WORDS, Materials(Few(200)))
    assert prepared.config.text_vocabulary == prepared.task["tokenizer"].size <= 300
    json.dumps(prepared.about)
    torch.manual_seed(0)
    model = module.Model(prepared.config)
    module.Task(model, SCENES, **prepared.task)
    with torch.no_grad():
        model.decoder.conv_out.weight.normal_(std=0.1)
    prepared.save_parts(tmp_path)
    checkpoint.save(tmp_path, "glide", prepared.config, model.state_dict(), {})
    loaded = generators.load(str(tmp_path))
    wanted = Glide(model.eval()).sample(PROMPT, 2, steps=4)
    assert np.array_equal(loaded.sample(PROMPT, 2, steps=4), wanted)
    assert checkpoint.load_module(tmp_path).config == prepared.config
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError):
        generators.load(str(tmp_path))


def test_true_images_follow_their_captions_and_noise_does_not():
    scenes = RenderedScenes("A16", "test", -1).first(40)
    assert following.attributes(scenes.texts, scenes.images, "A16") == 1
    noise = np.random.default_rng(0).integers(0, 256, scenes.images.shape, dtype=np.uint8)
    assert following.attributes(scenes.texts, noise, "A16") == 0


def test_diversity_is_the_mean_distance_of_two_samples():
    images = np.zeros((1, 3, 2, 2, 3), np.uint8)
    images[0, 1] = 30
    images[0, 2] = 90
    assert following.diversity(images) == pytest.approx((30 + 90 + 60) / 3)


def test_a_sweep_tells_what_guidance_does():
    """A drawing that gets right and uniform at scale 4: both are seen."""
    scenes = RenderedScenes("A16", "test", -1).first(20)
    noise = np.random.default_rng(0).integers(0, 256, (20, 2, 16, 16, 3), dtype=np.uint8)
    true = np.stack([scenes.images] * 2, axis=1)
    figures = following.swept(lambda scale: true if scale == 4 else noise, scenes.texts, "A16")
    assert figures["guidance_rise"] == 1
    assert figures["diversity_fall"] == figures["diversity_1"] > 50
    assert figures["diversity_4"] == 0


def test_the_gates_figures_are_those_of_its_bars(glide, monkeypatch):
    """Also of a model that draws nothing."""
    module = models.find("glide")
    for name, fewer in (("PROMPTS", 6), ("SWEPT", 2), ("SAMPLES", 2)):
        monkeypatch.setattr(module, name, fewer)
    figures = module.measure(glide, RenderedScenes("A16", "test", -1))
    assert module.GATE.bars.keys() <= figures.keys()
    assert figures["attributes"] < 0.3
