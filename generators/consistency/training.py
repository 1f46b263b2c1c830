"""Training a diffusion decoder: images with noise are cleaned, beside the latents that a first stage makes of them."""

# B samples, H W pixels, C h w of latents

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from generators.consistency import quality
from generators.consistency.decoders import Decoder, DiffusionDecoder
from generators.consistency.network import DecoderNetwork
from generators.consistency.preconditioning import preconditioning
from generators.task import SHOWN, WATCHED, Batch, GeneratorTask, Optimizer
from pipeline.errors import UserError
from pipeline.loading.examples import Examples, ExampleSource


class DecoderTask(GeneratorTask):
    """What teacher and student have in common. first_stage: frozen; latents are made of each crop."""

    model: DecoderNetwork

    def __init__(
        self,
        model: DecoderNetwork,
        source: ExampleSource,
        *,
        first_stage: nn.Module,
        held_out: Examples | None = None,
        optimizer: Optimizer = "adamw",
    ) -> None:
        super().__init__(model, source, held_out=held_out, optimizer=optimizer)
        self.config, self.process = model.config, model.process
        self.first_stage = first_stage.eval().requires_grad_(False)

    def tensors(self, examples: Examples) -> Batch:
        batch, size = super().tensors(examples), self.config.image_size
        images = batch.get("images")
        if images is None or tuple(images.shape[1:]) != (size, size, 3):
            found = "no images" if images is None else f"images {tuple(images.shape[1:])}"
            raise UserError(
                f"a decoder to {size} pixels was given {found}",
                "leave CACHE out: pixels are what it learns",
            )
        return batch

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        """(B, C, h, w), unscaled."""
        pixels = self.pixels(batch)
        stage = self.first_stage.to(pixels.device)
        with torch.autocast(pixels.device.type, enabled=False):
            return stage.encode(pixels).float()

    def loss(self, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return self.losses(batch).mean(), {}

    def losses(self, batch: Batch) -> Tensor:
        """(B,), by one call of the model."""
        raise NotImplementedError

    def decoder(self) -> Decoder:
        """The model as it is used."""
        raise NotImplementedError

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """`psnr` and `edge_error` of held-out images as the model decodes them."""
        if self.held_out is None or self.held_out.images is None:
            return {}
        return quality.figures(self._decoded(images := self.held_out.images[:WATCHED]), images)

    @torch.no_grad()
    def pictures(self) -> dict[str, np.ndarray]:
        """Originals above what the model makes of their latents: (N, 2 H, W, 3)."""
        if self.held_out is None or self.held_out.images is None:
            return {}
        images = self.held_out.images[:SHOWN]
        return {"decoded": np.concatenate([images, self._decoded(images)], axis=1)}

    def _decoded(self, images: np.ndarray) -> np.ndarray:
        return quality.decoded(self.decoder(), self.first_stage, images)

    def blocks(self) -> Iterable[nn.Module]:
        unet = self.model.decoder_unet
        return [*unet.down_blocks, unet.mid_block, *unet.up_blocks]


class Task(DecoderTask):
    """The teacher: the squared error of x_0 at uniform timesteps, weighed as 2206.00364, section 5, has it,
    by 1 / out^2: what the U-Net itself says then counts alike at every level of noise.

    whitening: latents (N, C, h, w) that means and deviations are taken from; None where it has them.
    """

    def __init__(
        self,
        model: DecoderNetwork,
        source: ExampleSource,
        *,
        first_stage: nn.Module,
        whitening: Tensor | None = None,
        held_out: Examples | None = None,
        optimizer: Optimizer = "adamw",
    ) -> None:
        super().__init__(
            model, source, first_stage=first_stage, held_out=held_out, optimizer=optimizer
        )
        self._levels = model.levels
        if whitening is not None:
            model.whiten(whitening)

    def losses(self, batch: Batch) -> Tensor:
        clean, latents = self.pixels(batch), self.latents(batch)
        noise = self.noise(batch, clean.device)
        t, added = self.process.timesteps(noise), noise.normal(*clean.shape[1:])
        found = self.model(self.process.noised(clean, added, t), t, latents)
        of = preconditioning(*self._levels(t, clean.ndim), self.config.sigma_data)
        return ((found - clean) / of.out).square().flatten(1).mean(dim=1)

    def decoder(self) -> DiffusionDecoder:
        return DiffusionDecoder(self.model, steps=10)
