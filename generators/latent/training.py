"""Training latent diffusion: noise added to a first stage's latents is predicted from captions, at times from none."""

# B samples, H W pixels of a side, C h w of latents

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from generators.dalle.training import parts
from generators.latent import text
from generators.latent.model import LatentDiffusion
from generators.latent.text import TextEncoder
from generators.noise import SampleNoise
from generators.pixels import to_images
from generators.task import SHOWN, Batch, GeneratorTask, Optimizer
from pipeline.errors import UserError
from pipeline.loading.examples import Examples, ExampleSource

EVALUATED = 64  # held-out samples per batch
CHECKED = 256  # samples, the first ones, whose latents are measured together
PICTURE_GUIDANCE = 3.0


class Task(GeneratorTask):
    """The mean squared error of what the config predicts (2112.10752, equation 3).

    first_stage: frozen; its `scale` brings latents to a deviation of 1. encoder: of captions, frozen.
    caption_drop: share of the samples with the caption "", so that guidance is possible. Batches may
    be of any size in pixels, each of one, that the model's `unit` divides. Raises UserError, also for
    latents whose deviation after scaling is far from 1.
    """

    model: LatentDiffusion

    def __init__(
        self,
        model: LatentDiffusion,
        source: ExampleSource,
        *,
        first_stage: nn.Module,
        encoder: TextEncoder,
        held_out: Examples | None = None,
        caption_drop: float = 0.1,
        optimizer: Optimizer = "adamw",
    ) -> None:
        super().__init__(model, source, held_out=held_out, optimizer=optimizer)
        self.config, self.process = model.config, model.process
        self.first_stage = first_stage.eval().requires_grad_(False)
        self.encoder, self.caption_drop = encoder, caption_drop
        if not 0 <= caption_drop <= 1:
            raise UserError(f"caption_drop {caption_drop} is no share", "give a number from 0 to 1")
        # As a number: to read it off the GPU at every step would wait for it.
        self._factor = self.first_stage.scale.factor
        self._unchecked: list[Tensor] | None = []

    def tensors(self, examples: Examples) -> Batch:
        """`latents` (B, C, h, w) of a cache, unscaled, or `images`; what `text.add` adds."""
        return self._told(examples, self.caption_drop)

    def _told(self, examples: Examples, drop: float) -> Batch:
        batch = super().tensors(examples)
        cached = examples.encodings.get("latents")
        if cached is not None:
            batch.pop("images", None)
            batch["latents"] = torch.from_numpy(cached).float()
            self._require_size(cached.shape[2:], self.config.reduction, "latents")
        else:
            self._require_size(examples.images.shape[1:3], self.config.unit, "pixels")
        text.add(batch, examples, self.encoder, drop)
        return batch

    def _require_size(self, size: Sequence[int], unit: int, what: str) -> None:
        height, width = size
        if height % unit or width % unit:
            raise UserError(
                f"images of {width} x {height} {what} train no model of multiples of {unit}",
                f"give sides that are multiples of {self.config.unit} pixels",
            )

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        """Scaled ones (B, C, h, w), of a cache or made now."""
        found = batch.get("latents")
        if found is None:
            pixels = self.pixels(batch)
            stage = self.first_stage.to(pixels.device)
            with torch.autocast(pixels.device.type, enabled=False):
                found = stage.encode(pixels)
        self._check(found)
        return found * self._factor

    def _check(self, latents: Tensor) -> None:
        """UserError where the first of all latents are not as large as was measured: training would
        fail quietly. One odd image among them, or a batch of such ones, is no reason to stop.
        """
        if self._unchecked is None:
            return
        self._unchecked.append(latents)
        if sum(map(len, self._unchecked)) >= CHECKED:
            pooled = torch.cat([found.flatten() for found in self._unchecked])
            self._unchecked = None
            self.first_stage.scale.scaled(pooled)

    def loss(self, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return self._losses(batch).mean(), {}

    def _losses(self, batch: Batch) -> Tensor:
        """(B,)."""
        clean = self.latents(batch)
        noise = self.noise(batch, clean.device)
        t, added = self.process.timesteps(noise), noise.normal(*clean.shape[1:])
        noisy = self.process.noised(clean, added, t)
        output = self.model(noisy, t, text.read(batch, self.encoder), **self.more(batch))
        return self.process.loss(output, clean, added, t)

    def more(self, batch: Batch) -> dict[str, Any]:
        """What else the model takes."""
        return {}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The loss on held-out samples, with all captions, always at the same noise."""
        if self.held_out is None:
            return {}
        total = sum(
            float(self._losses(self._moved(part)).sum()) for part in parts(self.held_out, EVALUATED)
        )
        return {"loss": total / len(self.held_out.places)}

    @torch.no_grad()
    def pictures(self) -> dict[str, np.ndarray]:
        """Held-out images after the first stage, and what is drawn of their captions."""
        if self.held_out is None:
            return {}
        batch = self._moved(next(parts(self.held_out, SHOWN)))
        latents = self.latents(batch)
        drawn = self.model.sample(
            text.read(batch, self.encoder),
            SampleNoise(range(len(latents)), latents.device),
            empty=text.empty(self.encoder, latents.device),
            guidance=PICTURE_GUIDANCE,
            size=latents.shape[2:],
            **self.picturing(batch),
        )
        stage = self.first_stage.to(latents.device)
        shown = {"reconstructions": latents, "samples": drawn}
        return {
            name: to_images(stage.decode(stage.scale.unscaled(found)))
            for name, found in shown.items()
        }

    def picturing(self, batch: Batch) -> dict[str, Any]:
        """What else `sample` takes."""
        return {}

    def _moved(self, examples: Examples) -> Batch:
        """A batch of which nothing is dropped, on the model's device."""
        batch, device = self._told(examples, 0.0), self.model.device
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def blocks(self) -> Iterable[nn.Module]:
        denoiser = self.model.denoiser
        if self.config.denoiser == "dit":
            return denoiser.transformer_blocks
        return [*denoiser.down_blocks, denoiser.mid_block, *denoiser.up_blocks]
