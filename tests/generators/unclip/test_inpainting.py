"""Inpainting: known pixels stay bit by bit, gaps are drawn from a seed, and a base model goes on as it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from generators import checkpoint, models
from generators.diffusion.samplers import Sampling
from generators.noise import SampleNoise
from generators.pixels import to_images, to_model
from generators.preset import Materials
from generators.unclip import conditions
from generators.unclip.inpainting import Known, draw_mask
from generators.unclip.pixel_decoder import adapt
from pipeline.draws import Draws
from pipeline.errors import UserError
from tests.generators.unclip.linear_towers import LinearTowers
from tests.generators.unclip.small_decoders import OF_BOTH, OF_TOWERS, OF_WORDS, SCENES, decoder

TOWERS = LinearTowers()
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
TEXTS = ["a red heart", "a blue ring", "grass"]


def known() -> Known:
    masks = np.stack([draw_mask(Draws(i, "mask"), 16) for i in (1, 2, 3)])
    return Known.of(to_model(IMAGES), torch.from_numpy(masks))


def test_all_colours_survive_the_way_through_the_model():
    ramp = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert np.array_equal(to_images(to_model(ramp)), ramp)


@pytest.mark.parametrize("config", [OF_TOWERS, OF_WORDS, OF_BOTH])
@pytest.mark.parametrize("inpaint", [False, True])
@pytest.mark.parametrize(
    "sampling", [Sampling("ddpm", 5), Sampling("ddim", 5, eta=1.0), Sampling("dpm++", 5)]
)
def test_known_pixels_stay_bit_by_bit(config, inpaint, sampling):
    model = decoder(replace(config, inpaint=inpaint))
    mask = known().mask
    embedding = torch.eye(3, 16) if config.embed_dim else None
    drawn = model.sample(
        embedding,
        model.read(TEXTS, TOWERS),
        SampleNoise([0, 1, 2]),
        empty=model.read([""], TOWERS),
        guidance=2.0,
        sampling=sampling,
        known=to_model(IMAGES),
        mask=mask,
    )
    found, stays = to_images(drawn), mask[:, 0].numpy()
    assert 0 < stays.mean() < 1
    assert np.array_equal(found[stays], IMAGES[stays])
    assert not np.array_equal(found[~stays], IMAGES[~stays])


@torch.no_grad()
def test_known_pixels_are_in_every_guess():
    """What the network sees while noise is taken away tells of them, with extra channels or without."""
    model = decoder(OF_WORDS)
    text = model.read(["a red heart"] * 3)
    seen = []

    def watch(module, given):
        seen.append(given[0].clone())

    model.decoder.register_forward_pre_hook(watch)
    kept = known()
    model.sample(
        None,
        text,
        SampleNoise([0, 1, 2]),
        sampling=Sampling("ddim", 20),
        known=kept.pixels,
        mask=kept.mask,
    )
    apart = [
        torch.where(kept.mask, x[:, :3] - kept.pixels, 0).square().sum()
        for x in (seen[0], seen[-1])
    ]
    assert apart[1] < 0.01 * apart[0]


@torch.no_grad()
@pytest.mark.parametrize("config", [OF_TOWERS, OF_WORDS])
def test_a_widened_base_model_predicts_what_it_did(config):
    base = decoder(config)
    wide = decoder(replace(config, inpaint=True))
    wide.load_state_dict(adapt(wide, base.state_dict()))
    noisy, t = torch.randn(3, 3, 16, 16), torch.tensor([1, 50, 99])
    text = base.read(TEXTS, TOWERS)
    embedding = torch.eye(3, 16) if config.embed_dim else None
    wanted = base.predict(noisy, t, embedding, text)
    for shown in (None, known()):
        found = wide.predict(noisy, t, embedding, text, known=shown)
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    wide.decoder.conv_in.weight[:, 3:].normal_()
    assert not torch.allclose(wide.predict(noisy, t, embedding, text, known=known()), wanted)


def test_weights_of_another_model_are_refused():
    with pytest.raises(UserError, match="first layer"):
        adapt(decoder(replace(OF_WORDS, inpaint=True)), {})


def test_a_fine_tuning_begins_where_the_base_model_is(tmp_path):
    base = decoder(OF_WORDS)
    checkpoint.save(tmp_path, "glide", OF_WORDS, base.state_dict(), {})
    base.tokenizer.save(tmp_path / "tokenizer.json")
    module = models.find("glide")
    asked = replace(OF_WORDS, inpaint=True, channels=(32, 64), text_vocabulary=512)
    prepared = module.prepare(asked, Materials(SCENES, init=str(tmp_path)))
    assert prepared.config == replace(OF_WORDS, inpaint=True)  # the base model's, but for that
    model = module.Model(prepared.config)
    model.load_state_dict(module.adapt(model, base.state_dict()))
    task = module.Task(model, SCENES, **prepared.task)
    noisy, t, text = torch.randn(2, 3, 16, 16), torch.tensor([5, 90]), base.read(TEXTS[:2])
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            model.predict(noisy, t, None, text), base.predict(noisy, t, None, text)
        )
    batch = task.batch(SCENES.places(0, seed=0, batch_size=8))
    task.loss(batch, torch.Generator())[0].backward()
    assert model.decoder.conv_in.weight.grad[:, 3:].any()
    with pytest.raises(UserError, match="holds a glide"):
        models.find("decoder").prepare(
            OF_TOWERS, Materials(SCENES, towers=TOWERS, init=str(tmp_path))
        )


def test_what_is_shown_of_an_image_is_its_known_part():
    kept = known()
    colours, mask = kept.channels().split([3, 1], dim=1)
    assert torch.equal(mask.bool(), kept.mask)
    assert torch.equal(colours, torch.where(kept.mask, kept.pixels, 0))
    with pytest.raises(ValueError, match="mask"):
        Known.of(kept.pixels, kept.mask[:, :, :8])


def test_gaps_follow_from_a_seed_and_are_of_all_kinds():
    masks = np.stack([draw_mask(Draws(i, "mask"), 16) for i in range(400)])
    again = np.stack([draw_mask(Draws(i, "mask"), 16) for i in range(400)])
    assert np.array_equal(masks, again)
    shares = masks.mean(axis=(1, 2))
    assert 0.14 < (shares == 0).mean() < 0.35  # nothing known: about a fifth, and full rectangles
    assert (shares > 0.7).any() and ((shares > 0.2) & (shares < 0.5)).any()
    assert (shares < 1).all()  # there is always something to draw
    boxed = [is_box(~mask) for mask in masks if mask.any()]
    assert 0.1 < np.mean(boxed) < 0.9
    large = draw_mask(Draws(7, "mask"), 64)
    assert large.shape == (64, 64)


def is_box(gap: np.ndarray) -> bool:
    rows, columns = np.nonzero(gap.any(axis=1))[0], np.nonzero(gap.any(axis=0))[0]
    return bool(gap[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all())


def test_captions_are_not_needed_to_read_by_towers():
    """A decoder of towers reads by them alone."""
    with pytest.raises(ValueError, match="towers"):
        decoder(OF_TOWERS).read(TEXTS)
    text = decoder(OF_TOWERS).read(TEXTS, TOWERS)
    assert torch.equal(text.pooled, conditions.encoded(TEXTS, TOWERS, "cpu").pooled)
