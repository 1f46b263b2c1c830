"""Training an upsampler: crops, their spoiled small images, and the noise that it learns to tell."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from generators.pixels import to_images, to_model
from generators.task import SHOWN, Batch, GeneratorTask, Optimizer
from generators.unclip import upsampler_quality as quality
from generators.unclip.degradations import cropped, enlarged, small
from generators.unclip.upsampler_network import Config, Model
from pipeline.errors import UserError
from pipeline.loading.examples import Examples, ExampleSource


class Task(GeneratorTask):
    """Removing noise from random crops of a quarter of the side (2204.06125, section 2.1)."""

    model: Model

    def __init__(
        self,
        model: Model,
        source: ExampleSource,
        *,
        held_out: Examples | None = None,
        optimizer: Optimizer = "adamw",
    ) -> None:
        super().__init__(model, source, held_out=held_out, optimizer=optimizer)
        self.config: Config = model.config

    def tensors(self, examples: Examples) -> Batch:
        """`images`, uint8 crops (B, c, c, 3), and `low`, the same regions small (B, c / factor, ...)."""
        config, batch = self.config, super().tensors(examples)
        size = (config.image_size, config.image_size, 3)
        images = batch.pop("images", None)
        if images is None or tuple(images.shape[1:]) != size:
            found = "no images" if images is None else f"images {tuple(images.shape[1:])}"
            raise UserError(f"an upsampler to {size} was given {found}", "leave CACHE out")
        crops, lows = [], []
        for image, place in zip(images.numpy(), examples.places, strict=True):
            crop = cropped(image, config.crop_size, config.factor, place)
            is_spoiled = place.draws("degraded").chance(config.degraded)
            kind = config.degradation if is_spoiled else "none"
            crops.append(crop)
            lows.append(small(crop, config.factor, kind, place))
        return batch | {
            "images": torch.from_numpy(np.stack(crops)),
            "low": torch.from_numpy(np.stack(lows)),
        }

    def loss(self, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The process's loss, a mean over samples; timestep and noise are each sample's own."""
        config, process = self.config, self.config.process
        pixels, low = self.pixels(batch), to_model(batch["low"])
        noise = self.noise(batch, pixels.device)
        t, epsilon = process.timesteps(noise), noise.normal(*pixels.shape[1:])
        shown = enlarged(low, config.factor, config.interpolation)
        output = self.model(process.noised(pixels, epsilon, t), t, shown)
        loss = process.loss(output, pixels, epsilon, t).mean()
        predicted, _ = process.split(output.detach().float())
        wanted = process.target(pixels, epsilon, t)
        return loss, {"mse": (predicted - wanted).square().mean()}

    def evaluate(self) -> dict[str, float]:
        """PSNR of held-out images at full size, averaged to small ones and enlarged again."""
        images = self._shown()
        return {} if images is None else quality.figures(self.model, images)

    @torch.no_grad()
    def pictures(self) -> dict[str, np.ndarray]:
        """Originals above what is made of their small images: (N, 2 H, W, 3)."""
        images = self._shown()
        if images is None:
            return {}
        made = to_images(quality.upsampled(self.model, quality.lows(images, self.config.factor)))
        return {"upsampled": np.concatenate([images, made], axis=1)}

    def _shown(self) -> np.ndarray | None:
        held_out = self.held_out
        return None if held_out is None or held_out.images is None else held_out.images[:SHOWN]

    def blocks(self) -> Iterable[nn.Module]:
        unet = self.model.unet
        return [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
