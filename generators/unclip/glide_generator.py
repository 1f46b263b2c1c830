"""A trained GLIDE as one uses it: captions in, images out, or parts of images drawn anew."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from generators.diffusion.samplers import Sampling
from generators.noise import SampleNoise
from generators.pixels import to_images, to_model
from generators.unclip.decoder_parts import load_words
from generators.unclip.pixel_decoder import PixelDecoder
from pipeline.draws import key64
from pipeline.errors import UserError


@dataclass(frozen=True)
class Glide:
    """`generators.load(folder).sample("a red heart on grass", 4)`: images, (4, H, W, 3).

    batch_size: images that are drawn at once, which bounds memory.
    """

    model: PixelDecoder
    batch_size: int = 64

    def sample(
        self,
        prompt: str,
        n: int = 1,
        *,
        seed: int = 0,
        guidance: float = 3.0,
        steps: str | int = "",
        sampler: str = "",
        eta: float = 0.0,
    ) -> np.ndarray:
        """n images of a prompt: uint8 (n, H, W, 3). Image i follows from (seed, prompt, i) alone.

        guidance: 1 is without. steps, sampler, eta: of `samplers.Sampling`; the model's own where "".
        """
        how = self.sampling(steps, sampler, eta)
        return self.images([prompt] * n, range(n), seed=seed, guidance=guidance, sampling=how)

    def inpaint(
        self,
        prompt: str,
        image: np.ndarray,
        mask: np.ndarray,
        n: int = 1,
        *,
        seed: int = 0,
        guidance: float = 3.0,
        steps: str | int = "",
        sampler: str = "",
        eta: float = 0.0,
    ) -> np.ndarray:
        """n times an image whose pixels stay, bit by bit, where the mask is true, and which shows the
        prompt elsewhere: uint8 (n, H, W, 3).

        image: uint8 (H, W, 3) of the model's size. mask: (H, W) bool.
        """
        size = self.image_size
        if image.dtype != np.uint8 or image.shape != (size, size, 3):
            raise UserError(
                f"an image of shape {image.shape} and type {image.dtype} cannot be changed",
                f"give uint8 ({size}, {size}, 3)",
            )
        if mask.dtype != np.bool_ or mask.shape != (size, size):
            raise UserError(
                f"a mask of shape {mask.shape} and type {mask.dtype} fits no image of {size} pixels",
                f"give bool ({size}, {size}), true where pixels stay",
            )
        how = self.sampling(steps, sampler, eta)
        kept = (image, mask)
        return self.images(
            [prompt] * n, range(n), seed=seed, guidance=guidance, sampling=how, kept=kept
        )

    @torch.no_grad()
    def images(
        self,
        prompts: Sequence[str],
        numbers: Sequence[int],
        *,
        seed: int = 0,
        guidance: float = 3.0,
        sampling: Sampling | None = None,
        kept: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Image number `numbers[b]` of `prompts[b]` in row b: uint8 (B, H, W, 3).

        kept: an image (H, W, 3) that all of them have where a mask (H, W) is true.
        """
        model, size = self.model, self.image_size
        found = [np.empty((0, size, size, 3), np.uint8)]
        inside = {}
        if kept is not None:
            inside["known"] = to_model(kept[0][None]).to(self.device)
            inside["mask"] = torch.from_numpy(kept[1])[None, None].to(self.device)
        for start in range(0, len(prompts), self.batch_size):
            run = slice(start, start + self.batch_size)
            rows = list(zip(prompts[run], numbers[run], strict=True))
            noise = SampleNoise([key64(seed, p, i, "sample") for p, i in rows], self.device)
            own = {k: v.expand(len(rows), -1, -1, -1) for k, v in inside.items()}
            pixels = model.sample(
                None,
                model.read(prompts[run]),
                noise,
                empty=model.read([""]),
                guidance=guidance,
                sampling=sampling,
                **own,
            )
            found.append(to_images(pixels))
        return np.concatenate(found)

    def sampling(self, steps: str | int = "", sampler: str = "", eta: float = 0.0) -> Sampling:
        """The model's own where nothing is given."""
        own = self.model.config.sampling
        return Sampling(sampler or own.sampler, str(steps) or own.steps, eta)

    @property
    def image_size(self) -> int:
        """Pixels of a side."""
        return self.model.config.image_size

    @property
    def device(self) -> torch.device:
        return self.model.device


def load(model: PixelDecoder, folder: Path | str) -> Glide:
    """A trained model with its words, which are in its folder."""
    return Glide(load_words(model, folder))
