"""A small first stage and its discriminator, trained by one process or by several."""

import os
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from generators.first_stages.critic import AdversarialTask, Critic, CriticConfig, apart
from generators.first_stages.family import FirstStage
from jobs.fit import Fit, fit
from pipeline.scenes.rendered import RenderedScenes

SIZE = CriticConfig(image_size=16, channels=(8, 8, 8), norm_groups=4, disc_width=8, disc_layers=1)
RULES = {"disc_start": 3, "disc_warmup": 1, "perceptual": "random"}
FIT = Fit(
    steps=6,
    batch_size=8,
    lr=1e-3,
    eps=1e-3,  # else the noise of a gradient that should be 0 would move a weight as far as any
    clip_norm=0.0,
    device="cpu",
    log_every=1,
    checkpoint_every=100,
)


class Plain(FirstStage):
    """No bottleneck but the narrow one of its convolutions."""

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.encoder = nn.Conv2d(3, 8, 4, 4)
        layers = [("up", nn.ConvTranspose2d(8, 8, 4, 4)), ("conv_out", nn.Conv2d(8, 3, 3, 1, 1))]
        self.decoder = nn.Sequential(OrderedDict(layers))
        self.critic = Critic(SIZE)

    def encode(self, pixels):
        return self.encoder(pixels)

    def decode(self, latents):
        return self.decoder(latents)

    def forward(self, pixels, noise, step, rules):
        made = self.reconstruct(pixels)
        nll = apart(pixels, made, rules).mean()
        last = self.decoder.conv_out.weight
        found = self.critic(pixels, made, nll, last, step, rules)
        return {"reconstruction": made, "nll": nll, **found}


class Task(AdversarialTask):
    def objective(self, pixels, found):
        return found["nll"], {"nll": found["nll"].detach()}


def plain() -> Plain:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Plain()


def trained(out: Path, **settings: object) -> None:
    """Writes the weights that this process then has."""
    task = Task(plain(), RenderedScenes("A16", "train", 0), **RULES)
    fit(task, replace(FIT, **settings), out)
    tensors = {name: tensor.contiguous() for name, tensor in task.model.state_dict().items()}
    save_file(tensors, str(out / f"rank{os.environ.get('RANK', 0)}.safetensors"))


def main(out: str) -> None:
    """With whole batches, and with two micro-batches each."""
    trained(Path(out) / "whole")
    trained(Path(out) / "parts", accumulate=2)
