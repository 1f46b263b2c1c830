"""A decoder by its folder, ours or diffusers', for the latents of one first stage."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from generators import checkpoint
from generators.consistency import diffusers_folder
from generators.consistency.decoders import Decoder
from pipeline.errors import UserError


def load_decoder(
    folder: Path | str,
    first_stage: nn.Module,
    about: Mapping[str, Any],
    device: torch.device | str = "cpu",
) -> Decoder:
    """What `DECODER=` names, on a device. UserError where it decodes the latents of another first stage.

    about: what identifies the first stage, as `generators.encoders.describe_first_stage` says.
    """
    if diffusers_folder.is_one(folder):
        found: Any = diffusers_folder.load(folder, first_stage)
        return replace(found, model=found.model.to(device))
    found = checkpoint.load(folder, device)
    if not isinstance(found, Decoder):
        name = checkpoint.describe(folder)["model"]
        raise UserError(f"DECODER={folder} is a {name}", "give a consistency-decoder")
    found.require_first_stage(about, f"DECODER={folder}")
    return found
