"""Training a ControlNet: what the frozen model predicts gets better by what a condition image tells."""

# B samples, H W pixels of a side

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from generators.latent import training
from generators.latent.controlnet_model import ControlNet, condition
from generators.latent.model import LatentDiffusion
from generators.task import SHOWN, Batch
from pipeline.errors import UserError
from pipeline.loading.examples import Examples
from pipeline.loading.hints import HINTS


class Task(training.Task):
    """The base's own loss, with a hint of each sample's image (2302.05543, section 3.3).

    base: the trained model, which stays as it is. caption_drop: the paper's is 0.5, so that the hint
    is understood without a caption.
    """

    model: ControlNet

    def __init__(self, model: ControlNet, *args: Any, base: LatentDiffusion, **named: Any) -> None:
        super().__init__(model.of(base), *args, **named)
        self._base = base  # the loop puts a wrapper into `model`
        self._hint = HINTS[model.config.hint]

    def loss(self, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        if isinstance(next(self._base.denoiser.mid_block.parameters()), DTensor):
            raise UserError(
                "--parallel fsdp cuts the base as well, which evaluations ask on one process alone",
                "give --parallel ddp",
            )
        return super().loss(batch, draws)

    def _told(self, examples: Examples, drop: float) -> Batch:
        """Also `hint`, uint8 (B, H, W) or (B, H, W, 3), of the images as they are trained on."""
        if examples.images is None:
            raise UserError(
                "a ControlNet is shown images, and the cache stands for them",
                "leave CACHE out, or load with images=True",
            )
        batch = super()._told(examples, drop)
        batch["hint"] = torch.from_numpy(np.stack([self._hint(image) for image in examples.images]))
        return batch

    def more(self, batch: Batch) -> dict[str, Any]:
        return {"hint": condition(batch["hint"])}

    def picturing(self, batch: Batch) -> dict[str, Any]:
        return self.more(batch)

    def pictures(self) -> dict[str, np.ndarray]:
        """Also the hints of what is drawn."""
        found = super().pictures()
        if found:
            images = self.held_out.images[:SHOWN]
            hints = condition(np.stack([self._hint(image) for image in images]))
            found["hints"] = hints.mul(255).byte().permute(0, 2, 3, 1).numpy()
        return found

    def blocks(self) -> Iterable[nn.Module]:
        net, unet = self.model.controlnet, self.model.base.denoiser
        return [
            *(*net.down_blocks, net.mid_block),
            *(*unet.down_blocks, unet.mid_block, *unet.up_blocks),
        ]
