"""A ControlNet as a folder that diffusers' ControlNetModel loads, and its pipelines run."""

from pathlib import Path

import torch
from diffusers import ControlNetModel

from generators.diffusers_parts import Parts
from generators.latent.controlnet_config import Config
from generators.latent.controlnet_model import ControlNet

_FREE = ("upcast_attention",)
"""Of the settings this is about half precision alone."""


def save(model: ControlNet, folder: Path | str) -> None:
    """Writes config.json and the weights in safetensors, the base's not among them.

    diffusers gives the same residuals where all tokens are a caption's: it masks none.
    """
    model.controlnet.save_pretrained(str(folder), safe_serialization=True)


def load(folder: Path | str, config: Config) -> ControlNet:
    """A ControlNet, in eval mode and without gradients, from a folder of diffusers; `of` is to follow.

    config: of the base, with what the folder does not say: what its hints are. UserError where the
    folder holds something else, or a network of another shape.
    """
    folder = Path(folder)
    model = ControlNet(config)
    parts = Parts(folder.parent)
    parts.whole = parts.networks = "ControlNet of this base"
    settings = parts.described(folder.name, ControlNetModel)
    heads = settings["attention_head_dim"]
    if isinstance(heads, int):  # as stable diffusion's have it: of all resolutions
        settings["attention_head_dim"] = [heads] * len(config.channels)
    found = parts.network(folder.name, ControlNetModel, settings, model.controlnet, _FREE)
    with torch.no_grad():
        model.controlnet.load_state_dict(found.state_dict())
    return model.eval().requires_grad_(False)
