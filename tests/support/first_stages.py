"""Tiny first stages of 16 pixels with initial weights, saved as trained ones are."""

from pathlib import Path

import torch
from torch import nn

from generators import checkpoint, models

SMALL = {"image_size": 16, "channels": (8, 8, 16), "norm_groups": 4}
CONFIGS = {
    "vae": SMALL | {"latent_channels": 3},
    "dvae": {"image_size": 16, "vocabulary": 32, "n_hid": 8, "n_init": 8, "groups": 3, "blocks": 1},
    "gan": {"image_size": 16, "channels": (8, 8), "disc_width": 8, "disc_layers": 1},
}


def saved(folder: Path, name: str, seed: int = 0) -> nn.Module:
    """The model that was saved in the folder."""
    module = models.find(name)
    config = module.Config(**CONFIGS[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = module.Model(config)
    checkpoint.save(folder, name, config, model.state_dict(), {})
    return model.eval().requires_grad_(False)
