"""Measures of reconstructions against closed forms and an independent SSIM."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from generators.first_stages import quality
from generators.pixels import to_model
from pipeline.scenes.rendered import RenderedScenes

RNG = np.random.default_rng(0)


def peer_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Of (H, W, C) uint8, by scipy's filter, in 8-bit levels."""
    a, b = a.astype(float), b.astype(float)

    def blur(x):
        return gaussian_filter(x, sigma=(1.5, 1.5, 0), truncate=3.5)[5:-5, 5:-5]

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    both = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return float((top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def test_psnr_of_a_known_error():
    pixels = torch.zeros(3, 3, 4, 4)
    made = torch.tensor([0.2, -0.02, 0.0]).view(3, 1, 1, 1).expand_as(pixels)
    expected = [20 * np.log10(2 / 0.2), 20 * np.log10(2 / 0.02)]
    found = quality.psnr(made, pixels)
    np.testing.assert_allclose(found[:2], expected, rtol=1e-5)
    assert found[2] > 100


def test_psnr_of_8_bit_images_is_the_usual_one():
    a, b = (RNG.integers(0, 256, (5, 12, 9, 3), dtype=np.uint8) for _ in range(2))
    error = ((a.astype(float) - b) ** 2).mean(axis=(1, 2, 3))
    found = quality.psnr(to_model(a), to_model(b))
    np.testing.assert_allclose(found, 10 * np.log10(255**2 / error), rtol=1e-5)


def test_what_is_outside_of_the_range_is_cut():
    pixels = torch.ones(1, 3, 12, 12)
    assert quality.psnr(3 * pixels, pixels) > 100
    assert quality.ssim(3 * pixels, pixels) == 1


def test_ssim_is_that_of_another_implementation():
    a = RNG.integers(0, 256, (4, 20, 16, 3), dtype=np.uint8)
    shifts = RNG.integers(-60, 60, a.shape)
    b = np.clip(a + shifts, 0, 255).astype(np.uint8)
    b[3] = 255 - a[3]
    found = quality.ssim(to_model(b), to_model(a))
    np.testing.assert_allclose(
        found, [peer_ssim(*pair) for pair in zip(a, b, strict=True)], atol=1e-5
    )
    assert found[3] < 0 < found[0] < 1


def test_ssim_of_small_images_is_refused():
    with pytest.raises(ValueError, match="11 pixels"):
        quality.ssim(torch.zeros(1, 3, 10, 20), torch.zeros(1, 3, 10, 20))


def test_use_of_codes():
    assert quality.code_figures(torch.arange(8).repeat(3), 8) == pytest.approx(
        {"codes_used": 1, "perplexity": 8}
    )
    assert quality.code_figures(torch.full((2, 4, 4), 5), 8) == pytest.approx(
        {"codes_used": 1 / 8, "perplexity": 1}
    )
    shares = np.array([0.5, 0.25, 0.25])
    found = quality.code_figures(torch.tensor([[0, 0], [1, 3]]), 4)
    assert found["codes_used"] == 0.75
    assert found["perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


class Mean(nn.Module):
    """Gives back the mean colour, and calls dark places 0 and light ones 3."""

    vocabulary = 4

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def reconstruct(self, pixels):
        return quality.mean_colours(pixels)

    def tokens(self, pixels):
        return (pixels.mean(dim=1)[:, ::4, ::4] > 0).long() * 3


def test_figures_of_the_baseline_itself():
    images = RenderedScenes("A16", "test", -1).first(100).images
    found = quality.reconstruction_figures(Mean(), images)
    assert found["gain"] == pytest.approx(0, abs=0.05)  # rounding to 8 bits
    assert 10 < found["psnr"] < 25
    assert found["codes_used"] == 0.5
    assert 1 < found["perplexity"] <= 2


def test_batches_do_not_change_the_figures(monkeypatch):
    images = RenderedScenes("A16", "test", -1).first(30).images
    whole = quality.reconstruction_figures(Mean(), images)
    monkeypatch.setattr(quality, "BATCH", 7)
    assert quality.reconstruction_figures(Mean(), images) == pytest.approx(whole)
