"""A stack out of the folders of its trained parts, or out of one that diffusers knows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from generators import checkpoint
from generators.towers import Towers
from generators.unclip import diffusers_folder
from generators.unclip.unclip import Choice, UnClip
from pipeline.errors import UserError

PRIORS = ("prior", "prior-ar")


def assemble(
    decoder: Path | str,
    towers: Towers,
    *,
    prior: Path | str = "",
    upsamplers: Sequence[Path | str] = (),
    device: torch.device | str = "cpu",
) -> UnClip:
    """A trained decoder with what it takes to draw; UserError where the parts do not fit each other.

    decoder: its folder, or one of diffusers' UnCLIPPipeline, which has its own prior and upsampler.
    towers: on `device`, the same that prior and decoder were trained with.
    """
    if (Path(decoder) / diffusers_folder.INDEX).is_file():
        if prior or upsamplers:
            raise UserError(
                f"CKPT={decoder} has a prior and an upsampler of its own",
                "leave PRIOR and UPSAMPLERS out",
            )
        stack = diffusers_folder.load(decoder)
        for model in (stack.decoder, stack.prior):
            _require_widths("CKPT", decoder, model.config, towers)
        last = stack.last and stack.last.to(device)
        return UnClip(
            stack.decoder.to(device),
            towers,
            stack.prior.to(device),
            [stack.upsampler.to(device)],
            last,
            Choice(prior_sampling=stack.prior_sampling),
        )
    parts = {"CKPT": _part("CKPT", decoder, ("decoder",), towers, device)}
    if prior:
        parts["PRIOR"] = _part("PRIOR", prior, PRIORS, towers, device)
    enlarging = [_part("UPSAMPLERS", f, ("upsampler",), None, device) for f in upsamplers]
    return UnClip(parts["CKPT"], towers, parts.get("PRIOR"), enlarging)


def _part(
    flag: str,
    folder: Path | str,
    names: Sequence[str],
    towers: Towers | None,
    device: torch.device | str,
) -> Any:
    record = checkpoint.describe(folder)
    if record["model"] not in names:
        raise UserError(
            f"{flag}={folder} holds a {record['model']}", f"give a trained {' or '.join(names)}"
        )
    trained_with = record["about"].get("towers")
    if towers is not None and trained_with is not None and trained_with != dict(towers.about):
        raise UserError(
            f"{flag}={folder} was trained with other towers than CLIP=",
            "give the CLIP= of its training",
        )
    model = checkpoint.load(folder, device)
    if towers is not None:
        _require_widths(flag, folder, model.config, towers)
    return model


def _require_widths(flag: str, folder: Path | str, config: Any, towers: Towers) -> None:
    """UserError where a model learned of embeddings or texts of another shape; 0 makes no use of one."""
    for name in ("embed_dim", "text_width", "context"):
        learned, found = getattr(config, name, 0), getattr(towers, name)
        if learned and learned != found:
            raise UserError(
                f"{flag}={folder} takes towers of {name} {learned}, those of CLIP= have {found}",
                "give the CLIP= of its training",
            )
