"""Tiny diffusion decoders with weights that do something, and the first stage whose latents they read."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from generators import checkpoint
from generators.consistency.config import Config
from generators.consistency.network import DecoderNetwork
from generators.consistency.student import Student
from generators.first_stages import kl
from pipeline.scenes.rendered import RenderedScenes

SCENES = RenderedScenes("A16")
CONFIG = Config(
    image_size=16,
    factor=4,
    channels=(8, 16),
    layers=1,
    norm_groups=4,
    time="positional",
    scales=8,
)


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fresh networks say 0; these do not."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model


def network(seed: int = 0, **changes) -> DecoderNetwork:
    return filled(DecoderNetwork(replace(CONFIG, **changes)), seed).eval()


def student(seed: int = 0, **changes) -> Student:
    """Network and target alike."""
    model = filled(Student(replace(CONFIG, **changes)), seed)
    model.target.load_state_dict(model.decoder_unet.state_dict())
    return model


def first_stage(seed: int = 0) -> kl.Model:
    """A kl of 16 pixels to 4 x 4 of 4 numbers that learned nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kl.Model(kl.Config(image_size=16, channels=(8, 8, 16), norm_groups=4))
    model.scale.set(1.0)
    return model.eval().requires_grad_(False)


def saved_first_stage(folder: Path, seed: int = 0) -> Path:
    model = first_stage(seed)
    checkpoint.save(folder, "kl", model.config, model.state_dict(), {})
    return folder
