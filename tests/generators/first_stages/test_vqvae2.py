"""Two levels of codes: the top conditions the bottom, and either alone can be decoded."""

from dataclasses import replace

import pytest
import torch

from generators.first_stages import recipes, vqvae2
from generators.first_stages.backbone import FirstStageConfig
from generators.noise import SampleNoise
from pipeline.errors import UserError
from pipeline.scenes.rendered import RenderedScenes

CONFIG = vqvae2.Config(
    **recipes.TOY | {"channels": (4, 8, 8), "norm_groups": 4},
    top_channels=(8, 8),
    latent_channels=8,
    codes=16,
    code_channels=4,
    revive_after=0,
)


def model(**changes) -> vqvae2.Model:
    torch.manual_seed(0)
    made = vqvae2.Model(replace(CONFIG, **changes)).eval()
    for quantizer in (made.quantize, made.top_quantize):
        quantizer.embedding.weight.data.normal_()
    return made


PIXELS = torch.rand(2, 3, 16, 16) * 2 - 1


def test_tokens_of_both_levels_make_the_reconstruction():
    made = model()
    top, bottom = made.level_tokens(PIXELS)
    assert top.shape == (2, 2, 2) and bottom.shape == (2, 4, 4)
    expected = made.decode_tokens(top, bottom)
    torch.testing.assert_close(made.reconstruct(PIXELS), expected)
    found = made(PIXELS, SampleNoise([0, 1]), 0)["reconstruction"]
    torch.testing.assert_close(found, expected)
    changed = made.decode_tokens((top + 1) % 16, bottom)
    assert (changed - expected).abs().max() > 1e-3  # the decoder sees the top as well


def test_the_top_conditions_the_bottom():
    """Another top, and the same image, make other vectors to quantise."""
    made = model()
    coarse = made.encoder(PIXELS)
    tops = [torch.full((2, 2, 2), code) for code in (0, 1)]
    one, other = (made._bottom(coarse, made.top_quantize.vectors(top)) for top in tops)
    assert (one - other).abs().max() > 1e-3


def test_one_level_alone_does_not_see_the_other():
    made = model()
    top, bottom = made.level_tokens(PIXELS)
    for level in vqvae2.LEVELS:
        found = made.of_one_level(PIXELS, level)
        mixed = made.decode(
            made._latents(
                made.top_quantize.vectors(top) if level == "top" else _blank(made.top_quantize, 2),
                made.quantize.vectors(bottom) if level == "bottom" else _blank(made.quantize, 4),
            )
        )
        torch.testing.assert_close(found, mixed)
        assert (found - made.reconstruct(PIXELS)).abs().max() > 1e-3


def _blank(quantizer, side: int) -> torch.Tensor:
    return quantizer.mean().view(1, -1, 1, 1).expand(2, -1, side, side)


def test_both_levels_have_figures():
    images = RenderedScenes("A16", "test", -1).first(20).images
    found = vqvae2.level_figures(model(), images)
    best = max(found["top_psnr"], found["bottom_psnr"])
    assert found["over_one_level"] == pytest.approx(found["psnr"] - best)
    assert 0 < found["top_codes_used"] <= 1 <= found["top_perplexity"] <= 16


def test_the_losses_of_both_levels_are_trained():
    made = model(codebook="loss").train()
    found = made(PIXELS, SampleNoise([0, 1]), 1)
    found["codebook_loss"].backward(retain_graph=True)
    for quantizer in (made.quantize, made.top_quantize):
        assert quantizer.embedding.weight.grad.abs().sum() > 0
    made.zero_grad()
    found["commitment"].backward()
    assert made.top_quant_conv.weight.grad.abs().sum() > 0
    assert made.quant_conv.weight.grad.abs().sum() > 0


def test_top_networks():
    top = CONFIG.top
    assert type(top) is FirstStageConfig and (top.image_size, top.factor) == (4, 2)
    with pytest.raises(UserError, match="no coarser grid"):
        replace(CONFIG, top_channels=(8,))
    with pytest.raises(UserError, match="not divisible"):
        replace(CONFIG, top_channels=(8, 8, 8, 8))
