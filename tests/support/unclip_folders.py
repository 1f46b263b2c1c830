"""Folders of an unCLIP stack, and of GLIDE, as trainings leave them: tiny, and drawn at random."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from captioner.towers import load_towers
from generators import checkpoint
from generators.unclip import decoder_parts, upsampler
from generators.unclip.prior_network import Config as PriorConfig
from generators.unclip.prior_network import Prior
from tests.generators.unclip import small_decoders

CLIP = "bundled"


def write(root: Path) -> dict[str, str]:
    """By name their folders: decoder, inpainting, worded (reads by itself), ancestral (of that sampler),
    stranger (of other towers), unknown (of towers of another width that it says nothing of); prior,
    up32 (from 16 pixels to 32), up64 (from 32 to 64); glide.
    """
    towers = load_towers(CLIP)
    embed = {"embed_dim": towers.embed_dim}
    widths = embed | {"text_width": towers.text_width}
    # Random predictions of v leave bounded images; those of epsilon are all black and white.
    how = {"prediction": "v_prediction"}
    of_towers = replace(small_decoders.OF_TOWERS, **widths, **how)
    of_both = replace(small_decoders.OF_BOTH, **embed, **how)
    about = {"towers": dict(towers.about)}
    folders: dict[str, str] = {}

    def save(folder: str, name: str, model: nn.Module, record: dict[str, Any]) -> None:
        folders[folder] = str(root / folder)
        checkpoint.save(root / folder, name, model.config, model.state_dict(), record)
        if words := getattr(model, "tokenizer", None):
            words.save(root / folder / decoder_parts.TOKENIZER)

    for folder, config in {
        "decoder": of_towers,
        "inpainting": replace(of_towers, inpaint=True),
        "worded": of_both,
        "ancestral": replace(of_towers, sampler="ddpm"),
    }.items():
        save(folder, "decoder", small_decoders.decoder(config), about)
    other = {"towers": about["towers"] | {"weights": "sha256:0"}}
    save("stranger", "decoder", small_decoders.decoder(of_towers), other)
    save("unknown", "decoder", small_decoders.decoder(small_decoders.OF_TOWERS), {})
    save("glide", "glide", small_decoders.decoder(small_decoders.OF_WORDS), {})
    torch.manual_seed(0)
    prior = Prior(
        PriorConfig(image_size=16, **widths, context=towers.context, width=32, depth=1, heads=2)
    )
    save("prior", "prior", prior, about)
    for size in (32, 64):
        save(f"up{size}", "upsampler", upsampler.Model(_enlarging(size)), {})
    return folders


def _enlarging(size: int) -> upsampler.Config:
    return upsampler.Config(
        image_size=size,
        factor=2,
        channels=8,
        multipliers=(1, 2),
        res_blocks=1,
        norm_groups=4,
        steps="2",
    )
