"""Tiny guides with weights that are none of them zero."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from generators.guidance import classifier as classifiers
from generators.guidance import noised_clip

SIZES = {
    "image_size": 16,
    "channels": (8, 16),
    "layers": 1,
    "attention": (),
    "head_dim": 8,
    "norm_groups": 4,
}
CLASSIFIER = classifiers.Config(**SIZES, classes=("red", "green", "blue"))
CLIP = noised_clip.Config(**SIZES, embed_dim=6)


def classifier() -> classifiers.Model:
    return shaken(classifiers.Model, CLASSIFIER)


def clip() -> noised_clip.Model:
    return shaken(noised_clip.Model, CLIP)


def shaken(kind, config, **changed):
    """A frozen model of a config, changed or not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(replace(config, **changed))
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return model.eval().requires_grad_(False)


def unit(number: int, width: int) -> Tensor:
    rows = torch.randn(number, width, generator=torch.Generator().manual_seed(9))
    return F.normalize(rows, dim=1)
