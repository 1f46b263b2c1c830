"""ControlNets of the small U-Net, new ones and ones that say something, and what they are shown."""

from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from generators.latent.controlnet_config import Config
from generators.latent.controlnet_model import ControlNet, adapt, condition
from generators.latent.controlnet_training import Task
from generators.latent.model import LatentDiffusion, Text
from pipeline.loading.hints import HINTS
from tests.generators.latent.small_latents import ENCODER, SCENES, UNET, denoising, first_stage

EDGES = Config(**asdict(UNET), hint="edges", hint_widths=(4, 8, 8))
SEGMENTS = Config(**asdict(UNET), hint="segments", hint_widths=(4, 8, 8))


def new(config: Config = EDGES, base: LatentDiffusion | None = None, seed: int = 1) -> ControlNet:
    """As training starts with it."""
    base = base or denoising(UNET)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ControlNet(config)
    model.load_state_dict(adapt(model, base.state_dict()))
    return model.of(base)


def speaking(config: Config = EDGES, base: LatentDiffusion | None = None) -> ControlNet:
    """One whose last layers are no longer 0."""
    model = new(config, base)
    net = model.controlnet
    draws = torch.Generator().manual_seed(2)
    last = [*net.controlnet_down_blocks, net.controlnet_mid_block]
    with torch.no_grad():
        for layer in (*last, net.controlnet_cond_embedding.conv_out):
            layer.weight.normal_(std=0.3, generator=draws)
            layer.bias.normal_(std=0.3, generator=draws)
    return model.eval()


def task(model: ControlNet | None = None, **options) -> Task:
    model = model or new()
    base = model.base if model._base else denoising(UNET)
    parts = {"first_stage": first_stage(), "encoder": ENCODER, "base": base} | options
    return Task(model, SCENES, **parts)


def asked(num: int = 5) -> tuple[Tensor, Tensor, Text, Tensor]:
    """Noisy latents, timesteps, captions of several lengths, and edges."""
    draws = torch.Generator().manual_seed(3)
    examples = SCENES.first(num)
    states, mask, _ = ENCODER.encode_text(ENCODER.tokenize(examples.texts))
    hints = condition(np.stack([HINTS["edges"](image) for image in examples.images]))
    noisy = torch.randn(num, 4, 4, 4, generator=draws)
    return noisy, torch.arange(num) * 190, Text(states, mask), hints
