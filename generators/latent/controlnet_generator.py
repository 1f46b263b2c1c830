"""A trained ControlNet as one uses it: captions and condition images in, images out."""

# B samples, H W pixels of a side

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from generators import checkpoint
from generators.diffusion.samplers import Sampling
from generators.encoders import describe_first_stage
from generators.latent import assemble as base_assemble
from generators.latent.controlnet_model import condition
from generators.latent.generator import Latent
from generators.latent.text import TextEncoder
from pipeline.errors import UserError
from pipeline.loading.hints import HINTS
from pipeline.runs import canonical

NAME = "controlnet"


@dataclass(frozen=True)
class Controlled:
    """`controlled.images(["a red heart"], [0], controlled.hints(photographs))`: images, (1, H, W, 3).

    latent: draws by a ControlNet, and `base` without it.
    """

    latent: Latent
    base: Latent

    def images(
        self,
        prompts: Sequence[str],
        numbers: Sequence[int],
        hints: np.ndarray,
        *,
        scale: float = 1.0,
        seed: int = 0,
        guidance: float = 3.0,
        sampling: Sampling | None = None,
    ) -> np.ndarray:
        """Image number `numbers[b]` of `prompts[b]`, drawn to `hints[b]`: uint8 (B, H, W, 3).

        hints: uint8 (B, H, W) or (B, H, W, 3), whose size is that of the images: none is resized, for
        that leaves no edge as it was. scale: how much they tell; 0 is the base.
        """
        shown = self._shown(hints, len(prompts))

        def more(rows: slice) -> dict[str, Any]:
            return {"hint": shown[rows].to(self.latent.device), "scale": scale}

        size = (shown.shape[2], shown.shape[3])
        how = {"seed": seed, "guidance": guidance, "sampling": sampling}
        return self.latent.images(prompts, numbers, size=size, more=more, **how)

    def hints(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """What the model is shown of images uint8 (H, W, 3) of one size: uint8 (B, H, W) or with 3."""
        return np.stack([HINTS[self.latent.model.config.hint](image) for image in images])

    def _shown(self, hints: np.ndarray, num: int) -> Tensor:
        """(B, 3, H, W); UserError for what no image can be drawn to."""
        unit = self.latent.model.config.unit
        is_image = hints.ndim == 3 or (hints.ndim == 4 and hints.shape[3] == 3)
        if hints.dtype != np.uint8 or not is_image or len(hints) != num:
            raise UserError(
                f"hints of shape {hints.shape} and type {hints.dtype} are none of {num} images",
                f"give uint8 ({num}, H, W) or ({num}, H, W, 3)",
            )
        if not num or any(side % unit or not side for side in hints.shape[1:3]):
            raise UserError(
                f"no image is drawn to {num} hints of {hints.shape[2]} x {hints.shape[1]} pixels",
                f"cut or resize the image, before its hint is made, to multiples of {unit}",
            )
        return condition(hints)


def assemble(
    folder: Path | str,
    first_stage: Path | str,
    encoder: TextEncoder,
    *,
    base: Path | str,
    device: torch.device | str = "cpu",
) -> Controlled:
    """A trained ControlNet with the model that it was trained for, ready to draw.

    folder, base, first_stage: their folders, CONTROLNET=, CKPT= and FIRST_STAGE= in the verbs.
    UserError where one is not that of its training.
    """
    record = checkpoint.describe(folder)
    if record["model"] != NAME:
        raise UserError(f"CONTROLNET={folder} holds a {record['model']}", f"give a trained {NAME}")
    if canonical(record["about"].get("base")) != canonical(describe_first_stage(base)):
        raise UserError(
            f"CONTROLNET={folder} was trained for another model than CKPT={base}",
            "give as CKPT the INIT of its training",
        )
    latent = base_assemble.assemble(base, first_stage, encoder, device=device)
    model = checkpoint.load_module(folder, device).of(latent.model)
    return Controlled(replace(latent, model=model), latent)
