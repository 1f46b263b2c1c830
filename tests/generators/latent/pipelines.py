"""Small pipelines of Stable Diffusion's and PixArt's layout with random weights, as diffusers writes them, and their images."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PixArtAlphaPipeline,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging
from torch import nn

from captioner.transformers_text import clip_tokenizer

WIDTH = 16
SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LDM = {"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "sample_size": 16,
    "scaling_factor": 0.5,
}
UNET = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": WIDTH,
}
LIKE = {
    "1": {"attention_head_dim": 4},
    "2": {"attention_head_dim": [2, 4], "use_linear_projection": True, "upcast_attention": True},
}


def stirred(module: nn.Module, seed: int = 0) -> nn.Module:
    """With weights far enough from the initial ones that everything has a say."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=draws))
    return module.eval().requires_grad_(False)


def text_encoder(seed: int = 0) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=WIDTH,
        intermediate_size=32,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
    )
    torch.manual_seed(seed)
    return stirred(CLIPTextModel(config))


def stable_diffusion(version: str, **unet: Any) -> StableDiffusionPipeline:
    """1 or 2, very small."""
    torch.manual_seed(0)
    scheduler = (
        PNDMScheduler(**SCALED, steps_offset=1, set_alpha_to_one=False, skip_prk_steps=True)
        if version == "1"
        else DDIMScheduler(**SCALED, **LDM, prediction_type="v_prediction")
    )
    tokenizer = clip_tokenizer(12)
    return StableDiffusionPipeline(
        vae=stirred(AutoencoderKL(**VAE)),
        text_encoder=text_encoder(),
        tokenizer=tokenizer,
        unet=stirred(UNet2DConditionModel(**UNET | LIKE[version] | unet)),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def read(folder: Path, **parts: Any) -> StableDiffusionPipeline | PixArtAlphaPipeline:
    """As diffusers loads it, whichever pipeline the index names."""
    from diffusers import DiffusionPipeline

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **parts)
    finally:
        logging.set_verbosity(verbosity)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: Any, **how: Any) -> np.ndarray:
    """Float images (B, H, W, 3) in [0, 1]."""
    if not hasattr(pipe, "unet"):
        how["use_resolution_binning"] = False
    return pipe(output_type="np", **how).images
