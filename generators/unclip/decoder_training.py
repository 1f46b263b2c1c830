"""Training a pixel decoder: noise added to images is predicted, at times without image or caption."""

# B samples, H W pixels of a side, E width of image embeddings, K words of a caption

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from generators.dalle.bpe import Bpe
from generators.dalle.training import parts
from generators.diffusion.samplers import Sampling
from generators.noise import SampleNoise
from generators.pixels import to_images
from generators.task import SHOWN, Batch, GeneratorTask, Optimizer
from generators.towers import Towers
from generators.unclip import conditions
from generators.unclip.inpainting import Known, draw_mask
from generators.unclip.pixel_decoder import PixelDecoder, Text
from pipeline.errors import UserError
from pipeline.loading.examples import Examples, ExampleSource

EVALUATED = 64  # held-out samples per batch
PICTURED = Sampling("ddim", 25)
PICTURE_GUIDANCE = 3.0


class Task(GeneratorTask):
    """The hybrid loss of 2102.09672 on images, with what 2204.06125, section 2.1, and 2112.10741,
    section 4.2, leave out of the conditions, so that guidance is possible.

    towers: frozen ones, where the model is told an image or reads by them. tokenizer: the words, where
    it reads by itself. image_drop, caption_drop: shares of the samples without image and with the caption "",
    drawn apart. optimizer: of the kernels and matrices inside of blocks.
    """

    model: PixelDecoder

    def __init__(
        self,
        model: PixelDecoder,
        source: ExampleSource,
        *,
        held_out: Examples | None = None,
        towers: Towers | None = None,
        tokenizer: Bpe | None = None,
        image_drop: float = 0.1,
        caption_drop: float = 0.5,
        optimizer: Optimizer = "adamw",
    ) -> None:
        super().__init__(model, source, held_out=held_out, optimizer=optimizer)
        self.config, self.towers = model.config, towers
        self.image_drop, self.caption_drop = image_drop, caption_drop
        model.tokenizer = tokenizer
        # The loop puts a wrapper into `model`, which has none of these.
        self.process, self.has_words, self._words = model.process, model.has_words, model.words
        for name, share in (("image_drop", image_drop), ("caption_drop", caption_drop)):
            if not 0 <= share <= 1:
                raise UserError(f"{name} {share} is no share", "give a number from 0 to 1")

    def tensors(self, examples: Examples) -> Batch:
        """`images`; `kept_image` (B,) and what `conditions.add_image` adds; `words` (B, K), or what
        `conditions.add_text` adds; `known` (B, H, W) bool, where it learns to inpaint.
        """
        return self._told(examples, self.image_drop, self.caption_drop)

    def _told(self, examples: Examples, image_drop: float, caption_drop: float) -> Batch:
        batch = super().tensors(examples)
        self._require_size(examples)
        if self.config.embed_dim:
            conditions.add_image(batch, examples, self.towers)
            kept = [not p.draws("drop image").chance(image_drop) for p in examples.places]
            batch["kept_image"] = torch.tensor(kept)
        if self.has_words:
            texts = [
                "" if place.draws("drop caption").chance(caption_drop) else text
                for text, place in zip(examples.texts, examples.places, strict=True)
            ]
            batch["words"] = torch.tensor(self._words(texts))
        else:
            conditions.add_text(batch, examples, self.towers, drop=caption_drop)
        if self.config.inpaint:
            masks = [draw_mask(p.draws("mask"), self.config.image_size) for p in examples.places]
            batch["known"] = torch.from_numpy(np.stack(masks))
        return batch

    def _require_size(self, examples: Examples) -> None:
        size = self.config.image_size
        if examples.images is None or examples.images.shape[1:3] != (size, size):
            shape = None if examples.images is None else examples.images.shape[1:3]
            raise UserError(
                f"images of {shape} pixels train no model of {size}",
                f"give images of {size} pixels",
            )

    def text(self, batch: Batch) -> Text:
        """What the model takes of the captions."""
        if self.has_words:
            return batch["words"]
        return conditions.text_condition(batch, self._towers(batch))

    def embedding(self, batch: Batch) -> Tensor | None:
        """(B, E) of the images; None for GLIDE."""
        if not self.config.embed_dim:
            return None
        return conditions.image_embedding(batch, self._towers(batch))

    def _towers(self, batch: Batch) -> Towers:
        return self.towers.to(batch["images"].device)

    def loss(self, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over samples of the noise's squared error plus the bound that trains its variance."""
        losses = self._losses(batch)
        return losses.mean(), {}

    def _losses(self, batch: Batch) -> Tensor:
        """(B,)."""
        process, clean = self.process, self.pixels(batch)
        noise = self.noise(batch, clean.device)
        t, added = process.timesteps(noise), noise.normal(*clean.shape[1:])
        known = Known.of(clean, batch["known"]) if self.config.inpaint else None
        noisy = process.noised(clean, added, t)
        kept = batch.get("kept_image")
        output = self.model(noisy, t, self.text(batch), self.embedding(batch), kept, known)
        return process.loss(output, clean, added, t)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The loss on held-out samples, with all conditions, always at the same noise."""
        if self.held_out is None:
            return {}
        total = 0.0
        for part in parts(self.held_out, EVALUATED):
            total += float(self._losses(self._moved(part)).sum())
        return {"loss": total / len(self.held_out.places)}

    @torch.no_grad()
    def pictures(self) -> dict[str, np.ndarray]:
        """Held-out images, and what is drawn of their embeddings and captions; in inpainting, what
        was known of them as well.
        """
        if self.held_out is None:
            return {}
        batch = self._moved(next(parts(self.held_out, SHOWN)))
        pixels = self.pixels(batch)
        shown = {"images": to_images(pixels)}
        inside = {}
        if self.config.inpaint:
            known = Known.of(pixels, batch["known"])
            inside = {"known": known.pixels, "mask": known.mask}
            shown["known"] = to_images(known.impose(torch.zeros_like(pixels)))
        drawn = self.model.sample(
            self.embedding(batch),
            self.text(batch),
            SampleNoise(range(len(pixels)), pixels.device),
            empty=self.empty(),
            guidance=PICTURE_GUIDANCE,
            sampling=PICTURED,
            **inside,
        )
        return shown | {"samples": to_images(drawn)}

    def empty(self) -> Text:
        """The caption "", one."""
        towers = self.towers and self.towers.to(self.model.device)
        return self.model.read([""], towers)

    def _moved(self, examples: Examples) -> Batch:
        """A batch of which nothing is dropped, on the model's device."""
        batch = self._told(examples, 0.0, 0.0)
        device = self.model.device
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def blocks(self) -> Iterable[nn.Module]:
        unet = self.model.decoder
        own = self.model.text_proj.text.blocks if self.has_words else ()
        return [*own, *unet.down_blocks, unet.mid_block, *unet.up_blocks]
