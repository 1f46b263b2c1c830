"""diffusers' U-Net and transformer as a latent diffusion model has them, initialised to predict nothing."""

# D width of a caption's states

from diffusers import PixArtTransformer2DModel, UNet2DConditionModel
from torch import nn

from generators.latent.config import Config


def build(config: Config) -> UNet2DConditionModel | PixArtTransformer2DModel:
    """The network of a config. Its state dict is that of diffusers' class of the same name. ValueError
    where the config is not fitted to a text encoder yet.
    """
    if config.text_width < 1:
        raise ValueError(f"text_width {config.text_width}: `prepare` fits it to a text encoder")
    return (_unet if config.denoiser == "unet" else _dit)(config)


def _unet(config: Config) -> UNet2DConditionModel:
    """Stable diffusion's: see the configurations of `runwayml/stable-diffusion-v1-5` and of v2."""
    down = ("DownBlock2D", "CrossAttnDownBlock2D")
    up = ("UpBlock2D", "CrossAttnUpBlock2D")
    unet = UNet2DConditionModel(
        sample_size=config.latent_size,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        down_block_types=tuple(down[attends] for attends in config.attention),
        up_block_types=tuple(up[attends] for attends in reversed(config.attention)),
        cross_attention_dim=config.text_width,
        # diffusers' name for the number of heads (its issue 2011).
        attention_head_dim=config.heads,
        norm_num_groups=config.norm_groups,
        use_linear_projection=config.linear_projection,
        resnet_time_scale_shift="scale_shift" if config.modulated else "default",
    )
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return unet


def _dit(config: Config) -> PixArtTransformer2DModel:
    (heads,) = config.heads
    dit = PixArtTransformer2DModel(
        sample_size=config.latent_size,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        num_attention_heads=heads,
        attention_head_dim=config.width // heads,
        num_layers=config.depth,
        cross_attention_dim=config.width,
        caption_channels=config.text_width,
        patch_size=config.patch,
        norm_elementwise_affine=False,
        use_additional_conditions=False,
    )
    nn.init.zeros_(dit.proj_out.weight)
    nn.init.zeros_(dit.proj_out.bias)
    return dit
