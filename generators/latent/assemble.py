"""A latent diffusion model with the first stage and the text encoder that it was trained with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from generators import checkpoint
from generators.encoders import describe_first_stage, load_first_stage
from generators.latent.generator import Latent
from generators.latent.text import TextEncoder
from pipeline.errors import UserError
from pipeline.runs import canonical

NAME = "latent"


def assemble(
    folder: Path | str,
    first_stage: Path | str,
    encoder: TextEncoder,
    *,
    device: torch.device | str = "cpu",
    flag: str = "CKPT",
) -> Latent:
    """A trained model, ready to draw; UserError where it was trained with other parts than these.

    folder: of the model; flag: what the user calls it. first_stage: the folder of its first stage, ours
    or diffusers'.
    """
    record = checkpoint.describe(folder)
    named, about = f"{flag}={folder}", record["about"]
    if record["model"] != NAME:
        raise UserError(f"{named} holds a {record['model']}", f"give a trained {NAME}")
    _require("FIRST_STAGE", named, about.get("first_stage"), describe_first_stage(first_stage))
    _require("TEXT", named, about.get("text"), encoder.about)
    model = checkpoint.load(folder, device)
    return Latent(model, load_first_stage(first_stage, device), encoder.to(device))


def text_length(folder: Path | str) -> int:
    """Tokens of a caption that a model was trained with; 0 where its record does not say."""
    said = checkpoint.describe(folder)["about"].get("text")
    length = said.get("length") if isinstance(said, dict) else None
    return length if isinstance(length, int) else 0


def _require(part: str, named: str, trained_with: Any, given: Mapping[str, Any]) -> None:
    if not isinstance(trained_with, dict):
        raise UserError(f"{named} does not say what {part} it goes with", "train it anew")
    if canonical(dict(trained_with)) != canonical(dict(given)):
        names = sorted(trained_with.keys() | given.keys())
        differ = [name for name in names if trained_with.get(name) != given.get(name)]
        raise UserError(
            f"{named} was trained with another {part}: its {', '.join(differ)} differ",
            f"give the {part} of its training",
        )
