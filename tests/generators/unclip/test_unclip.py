"""The whole stack: what each way of drawing and changing images rests on, and what stays as it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from generators.diffusion.samplers import Sampling
from generators.noise import SampleNoise
from generators.pixels import to_model
from generators.towers import TextCondition
from generators.unclip import upsampler
from generators.unclip.manipulation import slerp
from generators.unclip.unclip import Choice, UnClip
from pipeline.errors import UserError
from tests.generators.unclip.linear_towers import LinearTowers
from tests.generators.unclip.small_decoders import OF_TOWERS, SCENES, decoder

TOWERS = LinearTowers()
IMAGES = SCENES.first(4).images
PROMPTS = ["a red circle", "a blue star on grass", "a red circle"]


class Noisy:
    """A prior that says the caption's own embedding, and some noise."""

    def sample(self, text: TextCondition, noise: SampleNoise, **options: object) -> torch.Tensor:
        return text.pooled + 0.1 * noise.normal(text.pooled.shape[1])


def stack(**options: object) -> UnClip:
    return UnClip(decoder(OF_TOWERS), TOWERS, Noisy(), **options)


def enlarging(factor: int = 2, size: int = 32) -> upsampler.Model:
    config = upsampler.Config(
        image_size=size,
        factor=factor,
        channels=8,
        multipliers=(1, 2),
        res_blocks=1,
        norm_groups=4,
        steps="3",
    )
    torch.manual_seed(1)
    return upsampler.Model(config).eval()


def test_an_image_follows_from_its_prompt_and_number_alone():
    together = stack().images(PROMPTS, [0, 0, 1], seed=3)
    assert together.shape == (3, 16, 16, 3) and together.dtype == np.uint8
    for row, (prompt, number) in enumerate(zip(PROMPTS, [0, 0, 1], strict=True)):
        alone = stack(batch_size=1).images([prompt], [number], seed=3)[0]
        assert np.abs(together[row].astype(int) - alone).max() <= 1  # sums of other shapes
    assert not np.array_equal(together[0], together[2])
    assert np.array_equal(stack().sample(PROMPTS[0], 2, seed=3)[0], together[0])
    assert not np.array_equal(stack().sample(PROMPTS[0], 1, seed=4)[0], together[0])


def test_the_embedding_comes_by_the_way_that_is_asked_for(monkeypatch):
    seen = []
    whole = stack()
    original = type(whole.decoder).sample

    def spy(model, embedding, *args, **options):
        seen.append(embedding)
        return original(model, embedding, *args, **options)

    monkeypatch.setattr(type(whole.decoder), "sample", spy)
    said = TOWERS.encode_text(TOWERS.tokenize([PROMPTS[0]]))[2]
    for via in ("prior", "text", "caption"):
        replace(whole, choice=Choice(via=via)).sample(PROMPTS[0])
    assert 0.1 < float((seen[0] - said).norm()) < 1
    assert torch.equal(seen[1], said)
    assert seen[2] is None


def test_of_two_candidates_the_nearer_one_is_kept():
    text = TextCondition(*TOWERS.encode_text(TOWERS.tokenize(PROMPTS)))
    dots = []
    for candidates in (1, 2, 8):
        told = stack(choice=Choice(candidates=candidates))._told(text, [1, 2, 3])
        dots.append((told * text.pooled).sum(dim=1))
    assert (dots[1] >= dots[0]).all() and (dots[2] >= dots[1]).all() and (dots[2] > dots[0]).any()


def test_captions_take_a_prior_and_images_do_not():
    whole = UnClip(decoder(OF_TOWERS), TOWERS)
    with pytest.raises(UserError, match="PRIOR"):
        whole.sample(PROMPTS[0])
    assert whole.variations(IMAGES[0], 2).shape == (2, 16, 16, 3)


def test_without_fresh_noise_a_variation_is_the_image():
    """A network that predicts no noise at all is linear: DDIM goes back exactly as it came."""
    whole = UnClip(decoder(OF_TOWERS, zeroed=True), TOWERS)
    same = whole.variations(IMAGES[1], 1, eta=0.0)[0]
    assert np.abs(same.astype(int) - IMAGES[1]).max() <= 1
    freer = whole.variations(IMAGES[1], 3, eta=1.0)
    assert not np.array_equal(freer[0], freer[1])
    assert np.array_equal(freer, whole.variations(IMAGES[1], 3, eta=1.0))


def test_an_interpolation_ends_at_its_images():
    whole = stack()
    row = whole.interpolate(IMAGES[0], IMAGES[1], 5)
    ends = [whole.variations(image, 1, eta=0.0)[0] for image in IMAGES[:2]]
    for found, end in ((row[0], ends[0]), (row[-1], ends[1])):
        assert np.abs(found.astype(int) - end).max() <= 1
    assert not np.array_equal(row[2], row[0]) and not np.array_equal(row[2], row[-1])


def test_an_interpolation_goes_along_both_arcs(monkeypatch):
    whole, seen = stack(), {}

    def spy(embedding, start, n, seed, eta):
        seen.update(embedding=embedding, start=start)
        return np.zeros((n, 16, 16, 3), np.uint8)

    monkeypatch.setattr(UnClip, "_from_parts", staticmethod(spy))
    whole.interpolate(IMAGES[0], IMAGES[1], 3)
    (a, x), (b, y) = whole._parts(IMAGES[0]), whole._parts(IMAGES[1])
    assert torch.allclose(seen["embedding"][1:2], slerp(a, b, 0.5), atol=1e-5)
    assert torch.allclose(seen["start"][1:2], slerp(x, y, 0.5), atol=1e-5)


def test_a_text_diff_turns_the_embedding_and_keeps_the_noise(monkeypatch):
    whole, seen = stack(), {}

    def spy(embedding, start, n, seed, eta):
        seen.update(embedding=embedding, start=start, eta=eta)
        return np.zeros((n, 16, 16, 3), np.uint8)

    monkeypatch.setattr(UnClip, "_from_parts", staticmethod(spy))
    whole.text_diff(IMAGES[2], "a red circle", "a blue circle", [0.0, 0.25, 0.5])
    own, noise = whole._parts(IMAGES[2])
    said = TOWERS.encode_text(TOWERS.tokenize(["a red circle", "a blue circle"]))[2]
    nearness = seen["embedding"] @ (said[1] - said[0])
    assert torch.allclose(seen["embedding"][:1], own, atol=1e-6)
    assert nearness[0] < nearness[1] < nearness[2]
    assert torch.equal(seen["start"], noise) and seen["eta"] == 0


@pytest.mark.parametrize("upsamplers", [(), (enlarging(),)], ids=["decoder", "upsampled"])
def test_known_pixels_stay_bit_by_bit(upsamplers):
    whole = stack(upsamplers=upsamplers)
    size = whole.image_size
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    known = np.ones((size, size), bool)
    known[size // 4 : size // 2 + 1, 3 : size // 2] = False
    found = whole.inpaint(image, known, PROMPTS[1], 2)
    assert found.shape == (2, size, size, 3)
    assert (found[:, known] == image[known]).all()
    assert (found[0][~known] != image[~known]).any() and not np.array_equal(found[0], found[1])


def test_what_was_trained_to_inpaint_is_shown_the_image_where_there_is_one():
    model, seen = decoder(replace(OF_TOWERS, inpaint=True)), []
    with torch.no_grad():
        model.decoder.conv_in.weight[:, 3:].normal_()
    model.decoder.conv_in.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    whole = UnClip(model, TOWERS, Noisy(), choice=Choice(guidance=2.0))
    known = np.ones((16, 16), bool)
    known[3:9, 5:] = False
    found = whole.inpaint(IMAGES[0], known, PROMPTS[0], 2)
    assert (found[:, known] == IMAGES[0][known]).all()
    mask = torch.from_numpy(known)
    shown = torch.cat([to_model(IMAGES[:1])[0] * mask, mask[None]])
    assert all(torch.equal(given[:, 3:], shown.expand(4, -1, -1, -1)) for given in seen)
    seen.clear()
    assert whole.sample(PROMPTS[0], 2).shape == (2, 16, 16, 3)
    whole.variations(IMAGES[0])
    assert seen and not any(given[:, 3:].any() for given in seen)


def test_a_small_pixel_is_known_where_all_it_stands_for_is(monkeypatch):
    whole, seen = stack(upsamplers=(enlarging(),)), {}

    def spy(prompts, seeds, known, mask):
        seen["mask"] = mask
        return np.zeros((len(seeds), 32, 32, 3), np.uint8)

    monkeypatch.setattr(UnClip, "_of_captions", staticmethod(spy))
    known = np.ones((32, 32), bool)
    known[4, 6] = False
    whole.inpaint(np.zeros((32, 32, 3), np.uint8), known, "a star")
    assert (~seen["mask"][0, 0]).nonzero().tolist() == [[2, 3]]


def test_upsamplers_follow_in_their_order():
    assert stack(upsamplers=(enlarging(), enlarging(2, 64))).image_size == 64
    with pytest.raises(UserError, match="order"):
        stack(upsamplers=(enlarging(2, 64), enlarging()))
    assert stack(upsamplers=(enlarging(),)).sample("a star", 2).shape == (2, 32, 32, 3)


def test_images_of_another_size_are_refused():
    with pytest.raises(UserError, match="uint8 \\(16, 16, 3\\)"):
        stack().variations(np.zeros((8, 8, 3), np.uint8))
    image = np.zeros((16, 16, 3), np.uint8)
    for mask in (np.ones((8, 8), bool), np.ones((16, 16), np.uint8)):
        with pytest.raises(UserError, match="bool \\(16, 16\\)"):
            stack().inpaint(image, mask, "a star")
    with pytest.raises(UserError, match="VIA"):
        Choice(via="magic")


def test_the_samplers_settings_are_used():
    few, many = (
        stack(choice=Choice(sampling=Sampling("ddim", steps))).sample("a star") for steps in (2, 9)
    )
    assert not np.array_equal(few, many)
