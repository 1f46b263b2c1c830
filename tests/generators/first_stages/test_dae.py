"""How the denoising autoencoder corrupts an image, and what it is trained towards."""

import pytest
import torch

from generators.first_stages import dae, recipes
from generators.noise import SampleNoise
from pipeline.errors import UserError
from pipeline.scenes.rendered import RenderedScenes

SMALL = recipes.TOY | {"channels": (4, 8), "norm_groups": 4}


def model(**options) -> dae.Model:
    torch.manual_seed(0)
    return dae.Model(dae.Config(**SMALL, **options)).eval()


def test_noise_has_its_spread_and_belongs_to_the_sample():
    pixels = torch.rand(6, 3, 16, 16)
    made = model(sigma=0.3)
    whole = made.corrupted(pixels, SampleNoise(range(6)))
    assert (whole - pixels).std().item() == pytest.approx(0.3, rel=0.05)
    torch.manual_seed(5)
    alone = made.corrupted(pixels[[4, 2]], SampleNoise([4, 2]))
    assert torch.equal(alone, whole[[4, 2]])


def test_a_share_of_the_pixels_is_grey_in_all_channels():
    pixels = torch.rand(5, 3, 16, 16) + 0.1
    found = model(sigma=0, masked=0.25).corrupted(pixels, SampleNoise(range(5)))
    grey = (found == 0).all(dim=1)
    assert torch.equal((found == 0).any(dim=1), grey)
    assert grey.flatten(1).sum(dim=1).tolist() == [64] * 5
    assert torch.equal(torch.where(grey[:, None], pixels, found), pixels)
    assert not torch.equal(grey[0], grey[1])


def test_the_clean_image_is_asked_for():
    made = model(sigma=2.0)
    task = dae.Task(made, RenderedScenes("A16"))
    batch = task.batch(RenderedScenes("A16").places(0, seed=0, batch_size=3))
    pixels = task.pixels(batch)
    noisy = made.corrupted(pixels, task.noise(batch, pixels.device))
    expected = (made.reconstruct(noisy) - pixels).square().mean()
    torch.testing.assert_close(task.loss(batch, torch.Generator())[0], expected)


def test_figures_compare_noisy_with_denoised():
    images = RenderedScenes("A16", "test", -1).first(40).images

    class Perfect(dae.Model):
        def reconstruct(self, pixels):
            return pixels

    same = dae.denoising_figures(Perfect(dae.Config(**SMALL, sigma=0.4)), images)
    assert same["denoised_gain"] == pytest.approx(0, abs=1e-4)
    assert 12 < same["psnr_noisy"] < 16 and same["psnr"] > 90


@pytest.mark.parametrize("options", [{"sigma": 0}, {"sigma": -1}, {"masked": 1.0}])
def test_impossible_corruptions(options):
    with pytest.raises(UserError, match="corruption"):
        dae.Config(**SMALL, **options)


def test_pictures_show_what_was_corrupted():
    task = dae.Task(
        model(), RenderedScenes("A16"), held_out=RenderedScenes("A16", "test", -1).first(3)
    )
    assert task.pictures()["denoised"].shape == (3, 48, 16, 3)
