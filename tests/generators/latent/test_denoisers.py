"""Denoisers are diffusers' networks: same parameters, same numbers."""

from dataclasses import replace

import pytest
import torch
from diffusers import PixArtTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from generators import models
from generators.latent import denoisers
from generators.latent.config import Config

# B samples, T tokens of a caption, D width of their states
B, T, D = 3, 16, 24

UNET = Config(
    image_size=16,
    factor=4,
    text_width=D,
    channels=(32, 64),
    attention=(True, False),
    heads=(2, 4),
    layers=1,
    norm_groups=16,
)
"""4 x 4 latents: as many as a caption has tokens, which networks could take for one another."""
DIT = Config(
    image_size=16, factor=4, text_width=D, denoiser="dit", width=48, depth=2, heads=(4,), patch=1
)


def filled(network: nn.Module) -> nn.Module:
    """All weights drawn, those of the last layer too."""
    draws = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            parameter.data.normal_(0, fan_in**-0.5, generator=draws)
    return network.eval().requires_grad_(False)


def bare(config: Config) -> UNet2DConditionModel | PixArtTransformer2DModel:
    """What one would write with diffusers, of the two configs here."""
    if config.denoiser == "dit":
        return PixArtTransformer2DModel(
            num_attention_heads=4,
            attention_head_dim=12,
            num_layers=2,
            in_channels=4,
            out_channels=4,
            cross_attention_dim=48,
            caption_channels=D,
            sample_size=4,
            patch_size=1,
            use_additional_conditions=False,
        )
    unet = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=D,
        attention_head_dim=(2, 4),
        norm_num_groups=16,
        use_linear_projection=config.linear_projection,
        resnet_time_scale_shift="scale_shift" if config.modulated else "default",
    )
    first = unet.down_blocks[0].attentions[0].transformer_blocks[0]
    middle = unet.mid_block.attentions[0].transformer_blocks[0]
    assert (first.attn1.heads, first.attn2.heads, middle.attn1.heads) == (2, 2, 4)
    return unet


CONFIGS = [UNET, replace(UNET, linear_projection=True, modulated=True), DIT]


def drawn(height: int = 4, width: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_t, t, states, and a mask of captions of 5, 1 and all tokens."""
    draws = torch.Generator().manual_seed(1)
    noisy = torch.randn(B, 4, height, width, generator=draws)
    states = torch.randn(B, T, D, generator=draws)
    mask = torch.arange(T) < torch.tensor([5, 1, T])[:, None]
    return noisy, torch.tensor([3, 500, 999]), states, mask


@pytest.mark.parametrize("config", CONFIGS)
def test_state_dicts_and_configs_are_diffusers(config):
    ours, theirs = denoisers.build(config), bare(config)
    assert type(ours) is type(theirs)
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == shapes
    # Whoever rebuilds the class of its config has the same network.
    again = type(ours).from_config(ours.config)
    filled(again).load_state_dict(filled(ours).state_dict())
    noisy, t, states, mask = drawn()
    seen = {"encoder_hidden_states": states, "encoder_attention_mask": mask, "timestep": t}
    assert torch.equal(ours(noisy, **seen).sample, again(noisy, **seen).sample)


@pytest.mark.parametrize("config", CONFIGS)
def test_nothing_is_predicted_at_first(config):
    noisy, t, states, mask = drawn()
    network = denoisers.build(config).train()
    found = network(noisy, encoder_hidden_states=states, timestep=t, encoder_attention_mask=mask)
    assert found.sample.shape == noisy.shape and found.sample.abs().max() == 0
    (found.sample - noisy).square().mean().backward()
    last = network.proj_out if config.denoiser == "dit" else network.conv_out
    assert last.weight.grad.abs().max() > 0


@pytest.mark.parametrize("config", CONFIGS)
def test_padding_is_not_seen(config):
    """With as many tokens as latents, too: no mask is taken for one of pixels."""
    network = filled(denoisers.build(config))
    noisy, t, states, mask = drawn()

    def output(states: Tensor, mask: Tensor | None) -> Tensor:
        return network(
            noisy, encoder_hidden_states=states, timestep=t, encoder_attention_mask=mask
        ).sample

    found = output(states, mask)
    other = torch.where(mask[:, :, None], states, torch.full_like(states, 7.0))
    assert torch.equal(found, output(other, mask))
    # The row whose caption is whole has no padding; the others' would have changed them.
    unmasked = output(other, None)
    torch.testing.assert_close(found[2], unmasked[2], rtol=1e-5, atol=1e-5)
    assert (found - unmasked).abs().flatten(1).amax(1)[:2].min() > 1e-2
    # And what is the caption's is seen: a caption cut at its padding is the same caption.
    short = network(
        noisy[:1],
        encoder_hidden_states=states[:1, :5],
        timestep=t[:1],
        encoder_attention_mask=mask[:1, :5],
    ).sample
    torch.testing.assert_close(found[:1], short, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_caption_without_tokens_is_finite(config):
    network = filled(denoisers.build(config))
    noisy, t, states, mask = drawn()
    seen = {"encoder_hidden_states": states, "timestep": t}
    none = network(noisy, **seen, encoder_attention_mask=torch.zeros_like(mask)).sample
    # Equally little of all its positions: as if all were a caption's.
    torch.testing.assert_close(none, network(noisy, **seen).sample, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "width", "millions"),
    [("sd", 768, 859.521), ("sd2", 1024, 865.911), ("dit", 4096, 610.838)],
)
def test_published_sizes(name, width, millions):
    """Of stable diffusion 1 and 2, and of PixArt-alpha but for 18,448 weights that tell a variance."""
    config = replace(models.preset("latent", name).config, text_width=width)
    with torch.device("meta"):
        network = denoisers.build(config)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=1e-3)


def test_a_config_without_text():
    with pytest.raises(ValueError, match="text_width 0"):
        denoisers.build(replace(UNET, text_width=0))
