"""ADM's U-Net as unCLIP and GLIDE condition it, from diffusers' blocks, initialised as ADM is."""

import torch
from diffusers import UNet2DConditionModel

from generators.diffusion.initialise import zero_last_layers
from generators.unclip.decoder_config import Config

INPAINT_CHANNELS = 4
"""The known pixels' colours, and which are known (2112.10741, section 4.4)."""


def build(config: Config) -> UNet2DConditionModel:
    """The U-Net of a config, in the layout of Karlo's decoder: residual blocks resample, the timestep
    scales and shifts (2105.05233, section 3), a sum with it tells what is known of the whole image,
    and the context's tokens join the keys and values of self-attention (2112.10741, section 4.1).
    """
    attends = [side in config.attention for side in config.resolutions]
    down = ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D")
    up = ("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D")
    unet = UNet2DConditionModel(
        sample_size=config.image_size,
        in_channels=3 + INPAINT_CHANNELS * config.inpaint,
        out_channels=6,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        down_block_types=tuple(down[attending] for attending in attends),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=tuple(up[attending] for attending in reversed(attends)),
        cross_attention_dim=config.context_dim,
        attention_head_dim=config.head_dim,
        norm_num_groups=config.norm_groups,
        dropout=config.dropout,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
    )
    zero_last_layers(unet, unet.conv_out)
    if config.inpaint:
        # What only the mask tells is learned from where a model without a mask stands.
        with torch.no_grad():
            unet.conv_in.weight[:, 3:].zero_()
    return unet
