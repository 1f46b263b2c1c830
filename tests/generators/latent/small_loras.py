"""Bases with something to say, and adapters of them that have learned something."""

from dataclasses import asdict

import torch
from torch import Tensor

from generators.latent.config import Config as Base
from generators.latent.lora_adapter import Adapter
from generators.latent.lora_training import Config, LoraLatent
from generators.latent.model import LatentDiffusion, Text
from tests.generators.latent.small_latents import DIT, UNET, denoising

KINDS = {"dit": DIT, "unet": UNET}
WIDTH = DIT.text_width


def config_of(base: Base, **own) -> Config:
    return Config(**asdict(base), **{"rank": 3, "alpha": 6.0} | own)


def lora(base: LatentDiffusion, **own) -> LoraLatent:
    """A new one on a base."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = LoraLatent(config_of(base.config, **own))
    model.load_state_dict(model.adapted(base.state_dict()))
    return model.eval()


def learned(base: LatentDiffusion, seed: int = 2, **own) -> LoraLatent:
    """One whose updates are no longer 0."""
    model = lora(base, **own)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return model


def adapter(base: LatentDiffusion, seed: int = 2, **own) -> Adapter:
    return learned(base, seed, **own).adapter("sha256:0", "here")


def said(model) -> Tensor:
    """What a model says of always the same noisy latents and captions."""
    draws = torch.Generator().manual_seed(0)
    noisy = torch.randn(3, 4, 4, 4, generator=draws)
    states = torch.randn(3, 7, WIDTH, generator=draws)
    mask = torch.arange(7) < torch.tensor([[7], [4], [2]])
    with torch.no_grad():
        return model(noisy, torch.tensor([10, 400, 900]), Text(states, mask))


def base_of(kind: str, seed: int = 0) -> LatentDiffusion:
    return denoising(KINDS[kind], seed).eval()
