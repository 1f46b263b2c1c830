"""Drawing by latent diffusion: an image is its seed's, prompt's and number's matter alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from generators.latent import text
from generators.latent.generator import Latent
from generators.noise import SampleNoise
from generators.pixels import to_images
from pipeline.draws import key64
from pipeline.errors import UserError
from tests.generators.latent.small_latents import DIT, ENCODER, KINDS, UNET, denoising, first_stage

PROMPTS = ["a red heart on grass", "a blue ring on sand", "", "a red heart on grass"]
NUMBERS = [0, 0, 3, 1]


def latent(config=DIT, **options) -> Latent:
    return Latent(denoising(config).eval(), first_stage(), ENCODER, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_the_same_in_any_batch(kind):
    """Alone, among others and at another place; other seeds, prompts and numbers give others."""
    drawing = latent(KINDS[kind])
    whole = drawing.images(PROMPTS, NUMBERS, guidance=2.0)
    assert whole.shape == (4, 16, 16, 3) and whole.dtype == np.uint8
    parts = replace(drawing, batch_size=3).images(PROMPTS[::-1], NUMBERS[::-1], guidance=2.0)
    # What a batch is adds its last bits to sums.
    assert np.abs(whole.astype(int) - parts[::-1]).max() <= 1
    np.testing.assert_array_equal(whole, drawing.images(PROMPTS, NUMBERS, guidance=2.0))
    alone = drawing.sample(PROMPTS[0], 2, guidance=2.0)
    assert np.abs(alone.astype(int) - whole[[0, 3]]).max() <= 1
    other = drawing.images(PROMPTS, NUMBERS, guidance=2.0, seed=1)
    assert (whole != other).reshape(4, -1).any(axis=1).all()
    assert (whole[0] != whole[3]).any()


def test_it_decodes_what_the_model_draws_of_the_captions():
    """By the parts it is made of, and without guidance no empty caption is asked for."""
    drawing, model, stage = latent(), latent().model, first_stage()
    seeds = [key64(7, PROMPTS[0], 0, "sample"), key64(7, PROMPTS[1], 0, "sample")]
    said = text.encoded(PROMPTS[:2], ENCODER, torch.device("cpu"))
    drawn = model.sample(said, SampleNoise(seeds))
    expected = to_images(stage.decode(drawn * stage.scale.deviation))
    found = drawing.images(PROMPTS[:2], [0, 0], seed=7, guidance=1.0)
    np.testing.assert_array_equal(found, expected)
    guided = drawing.images(PROMPTS[:2], [0, 0], seed=7, guidance=4.0)
    assert (guided != expected).any()
    empty = [""] * 2  # whose guidance leads nowhere else
    plain = drawing.images(empty, [0, 1], guidance=1.0)
    assert np.abs(drawing.images(empty, [0, 1], guidance=4.0).astype(int) - plain).max() <= 1


@pytest.mark.parametrize(("config", "size"), [(DIT, (12, 20)), (UNET, (24, 16)), (DIT, (32, 32))])
def test_images_of_another_size(config, size):
    found = latent(config).sample("a red heart", 2, size=size)
    assert found.shape == (2, *size, 3) and (found[0] != found[1]).any()


@pytest.mark.parametrize(("config", "size"), [(DIT, (18, 16)), (UNET, (20, 16)), (UNET, (0, 8))])
def test_impossible_sizes_are_refused(config, size):
    with pytest.raises(UserError, match=f"SIZE={size[1]}x{size[0]} is impossible"):
        latent(config).sample("a red heart", size=size)


def test_steps_and_samplers_are_chosen():
    drawing = latent()
    own = drawing.sample("a red heart")
    np.testing.assert_array_equal(own, drawing.sample("a red heart", steps="6", sampler="dpm++"))
    assert (own != drawing.sample("a red heart", steps=2)).any()
    assert (own != drawing.sample("a red heart", sampler="ddim", eta=1.0)).any()
    with pytest.raises(UserError, match="SAMPLER"):
        drawing.sample("a red heart", sampler="none")


def test_a_decoder_stands_in_for_the_first_stage_s_own():
    """It gets latents as the first stage has them, and noise that is each sample's own."""
    seen = []

    class Decoder:
        def decode(self, latents, noise):
            seen.append((latents, noise.normal(3, 16, 16)))
            return seen[-1][1].clamp(-1, 1)

    drawing = latent(decoder=Decoder())
    images = drawing.images(PROMPTS, NUMBERS, guidance=1.0)
    np.testing.assert_array_equal(images, to_images(seen[0][1]))
    np.testing.assert_array_equal(
        drawing.images(PROMPTS[2:], NUMBERS[2:], guidance=1.0), images[2:]
    )
    plain = latent().images(PROMPTS, NUMBERS, guidance=1.0)
    assert np.abs(to_images(first_stage().decode(seen[0][0])).astype(int) - plain).max() <= 1


def test_of_nothing_nothing_is_drawn():
    assert latent().images([], []).shape == (0, 16, 16, 3)


def test_every_prompt_has_a_number():
    with pytest.raises(ValueError, match="longer"):
        latent(batch_size=2).images(PROMPTS[:2], NUMBERS)
