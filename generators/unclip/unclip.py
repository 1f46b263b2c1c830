"""unCLIP whole: captions and images in, images out, by way of embeddings that can be changed on the way."""

# n images, H W pixels of a side, E width of the contrastive space

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from generators.diffusion.samplers import Predict, Sampling, invert
from generators.noise import SampleNoise
from generators.pixels import to_images, to_model
from generators.towers import TextCondition, Towers
from generators.unclip import conditions
from generators.unclip.best_of import Prior, best_of
from generators.unclip.manipulation import natural_strength, slerp, text_diff
from generators.unclip.pixel_decoder import PixelDecoder
from generators.unclip.upsampler_network import Model as Upsampler
from pipeline.draws import key64
from pipeline.errors import UserError

Via = Literal["prior", "text", "caption"]
"""Where the decoder's image embedding comes from: a prior; the caption's own embedding in its place;
nowhere, so that the caption alone speaks (2204.06125, section 5.1)."""


@dataclass(frozen=True)
class Choice:
    """How images are drawn.

    guidance: the decoder's, 1 is without. via: see `Via`. prior_guidance, candidates: how the prior
    draws, and how many, of which the best is kept. sampling, prior_sampling: the decoder's and a
    diffusion prior's, their own where None. inversion: steps of DDIM, there and back, where an image's own noise is asked for.
    """

    guidance: float = 1.0
    via: Via = "prior"
    prior_guidance: float = 1.0
    candidates: int = 2
    sampling: Sampling | None = None
    prior_sampling: Sampling | None = None
    inversion: str | int = 100

    def __post_init__(self) -> None:
        if self.via not in get_args(Via):
            raise UserError(f"VIA={self.via} is no way", f"there are {', '.join(get_args(Via))}")
        if self.candidates < 1:
            raise UserError(f"CANDIDATES={self.candidates} leaves none", "give 1 or more")


@dataclass(frozen=True)
class UnClip:
    """A stack of trained models with the towers they were trained with (2204.06125).

    prior: needed for captions only. upsamplers: from the decoder's size up, in their order. last: another
    network for the last step of the last of them, as Karlo has it.
    batch_size: images that are drawn at once, which bounds memory and changes nothing else.
    """

    decoder: PixelDecoder
    towers: Towers
    prior: Prior | None = None
    upsamplers: Sequence[Upsampler] = ()
    last: Upsampler | None = None
    choice: Choice = field(default_factory=Choice)
    batch_size: int = 16

    def __post_init__(self) -> None:
        size = self.decoder.config.image_size
        for upsampler in self.upsamplers:
            config = upsampler.config
            if config.image_size != size * config.factor:
                raise UserError(
                    f"an upsampler from {config.image_size // config.factor} to {config.image_size} "
                    f"pixels cannot follow images of {size}",
                    "give UPSAMPLERS= in their order, the first for the decoder's size",
                )
            size = config.image_size

    @property
    def image_size(self) -> int:
        """Pixels of a side of what comes out."""
        last = self.upsamplers[-1] if self.upsamplers else self.decoder
        return last.config.image_size

    def sample(self, prompt: str, n: int = 1, *, seed: int = 0) -> np.ndarray:
        """n images of a prompt: uint8 (n, H, W, 3). Image i follows from (seed, prompt, i) alone."""
        return self.images([prompt] * n, range(n), seed=seed)

    def images(
        self, prompts: Sequence[str], numbers: Sequence[int], *, seed: int = 0
    ) -> np.ndarray:
        """Image number `numbers[b]` of `prompts[b]` in row b: uint8 (B, H, W, 3)."""
        return self._batched(
            [key64(seed, p, i, "sample") for p, i in zip(prompts, numbers, strict=True)],
            lambda run, seeds: self._of_captions(list(prompts[run]), seeds),
        )

    def variations(
        self, image: np.ndarray, n: int = 1, *, seed: int = 0, eta: float = 1.0
    ) -> np.ndarray:
        """n images that share what the towers see in one, (H, W, 3) uint8 (section 3.1).

        They start from the image's own noise and go by DDIM: eta 0 gives the image back, as well as
        an embedding, that noise and so many steps can; the larger eta is, the freer they are.
        """
        embedding, start = self._parts(image)
        return self._from_parts(embedding, start, n, seed, eta)

    def interpolate(
        self, first: np.ndarray, second: np.ndarray, n: int = 9, *, seed: int = 0
    ) -> np.ndarray:
        """n images from one to another, both (H, W, 3) uint8: uint8 (n, H, W, 3) (section 3.2).

        Embedding and noise go along arcs.
        """
        (a, noise_a), (b, noise_b) = self._parts(first), self._parts(second)
        shares = torch.linspace(0, 1, n, device=a.device)
        embedding = slerp(a.expand(n, -1), b.expand(n, -1), shares)
        start = slerp(noise_a.expand(n, -1, -1, -1), noise_b.expand(n, -1, -1, -1), shares)
        return self._from_parts(embedding, start, n, seed, eta=0.0)

    def text_diff(
        self,
        image: np.ndarray,
        before: str,
        after: str,
        strengths: Sequence[float | None] = (None,),
        *,
        seed: int = 0,
    ) -> np.ndarray:
        """An image (H, W, 3) uint8 changed by what one caption says and another does not, an image for
        each strength, 0 to 1, None as far as the captions lie apart: uint8 (n, H, W, 3) (section 3.3).
        """
        embedding, start = self._parts(image)
        said = conditions.encoded([before, after], self.towers, self.decoder.device).pooled
        turned = [text_diff(embedding, said[:1], said[1:], strength) for strength in strengths]
        return self._from_parts(torch.cat(turned), start, len(strengths), seed, eta=0.0)

    def natural_strength(self, image: np.ndarray, before: str, after: str) -> float:
        """The share of the arc at which `text_diff` of no strength stops."""
        said = conditions.encoded([before, after], self.towers, self.decoder.device).pooled
        return float(natural_strength(self.embedding(image), said[:1], said[1:]))

    def inpaint(
        self, image: np.ndarray, known: np.ndarray, prompt: str, n: int = 1, *, seed: int = 0
    ) -> np.ndarray:
        """n times an image that stays, bit by bit, where `known` is true, and shows a prompt elsewhere.

        image: uint8 (H, W, 3). known: (H, W) bool. -> uint8 (n, H, W, 3).
        """
        size = self.image_size
        if known.shape != (size, size) or known.dtype != np.bool_:
            raise UserError(
                f"a mask of shape {known.shape} and type {known.dtype} fits no image of {size} pixels",
                f"give bool ({size}, {size}), true where pixels stay",
            )
        self._require_size(image)
        small = self.decoder.config.image_size
        # A pixel of the small image is known where all that it stands for is.
        factor = size // small
        kept = known.reshape(small, factor, small, factor).all(axis=(1, 3))
        mask = torch.from_numpy(kept)[None, None].to(self.decoder.device)
        pixels = to_model(_resized(image, small)[None]).to(self.decoder.device)
        drawn = self._batched(
            [key64(seed, prompt, i, "inpaint") for i in range(n)],
            lambda run, seeds: self._of_captions(
                [prompt] * len(seeds),
                seeds,
                known=pixels.expand(len(seeds), -1, -1, -1),
                mask=mask.expand(len(seeds), -1, -1, -1),
            ),
        )
        return np.where(known[None, :, :, None], image[None], drawn)

    def embedding(self, image: np.ndarray) -> Tensor:
        """(1, E) of an image (H, W, 3) uint8 of any size."""
        prepared = self.towers.prepare(image[None]).to(self.decoder.device)
        with torch.no_grad():
            return self.towers.encode_image(prepared)

    @torch.no_grad()
    def _of_captions(self, prompts: list[str], seeds: Sequence[int], **how: Tensor) -> np.ndarray:
        text = conditions.encoded(prompts, self.towers, self.decoder.device)
        noise = SampleNoise([key64(seed, "decoder") for seed in seeds], self.decoder.device)
        return self._decoded(self._told(text, seeds), self._text(prompts), noise, seeds, **how)

    def _told(self, text: TextCondition, seeds: Sequence[int]) -> Tensor | None:
        """Image embeddings (B, E) for captions."""
        choice = self.choice
        if choice.via == "caption":
            return None
        if choice.via == "text":
            return text.pooled
        if self.prior is None:
            raise UserError("a caption takes a prior", "give PRIOR=, or VIA=text or VIA=caption")
        how: dict[str, Any] = {}
        if choice.prior_sampling:
            how["sampling"] = choice.prior_sampling
        if choice.prior_guidance != 1:
            empty = conditions.empty(self.towers, self.decoder.device)
            how |= {"guidance": choice.prior_guidance, "empty": empty}
        return best_of(self.prior, text, seeds, choice.candidates, **how)

    def _parts(self, image: np.ndarray) -> tuple[Tensor, Tensor]:
        """An image as its embedding (1, E) and the noise (1, 3, h, w) from which DDIM makes it."""
        self._require_size(image)
        embedding = self.embedding(image)
        small = to_model(_resized(image, self.decoder.config.image_size)[None])
        with torch.no_grad():
            predict = self._predict(embedding)
            noise = invert(
                self.decoder.process,
                predict,
                small.to(self.decoder.device),
                Sampling("ddim", self.choice.inversion, clip=0),
            )
        return embedding, noise

    def _predict(self, embedding: Tensor) -> Predict:
        text = self._text([""] * len(embedding))
        return self.decoder.guided(
            embedding, text, empty=self._text([""]), guidance=self.choice.guidance
        )

    def _from_parts(
        self, embedding: Tensor, start: Tensor, n: int, seed: int, eta: float
    ) -> np.ndarray:
        sampling = Sampling("ddim", self.choice.inversion, eta, clip=0 if eta == 0 else 1.0)
        embedding = embedding.expand(n, -1)
        start = start.expand(n, -1, -1, -1)

        @torch.no_grad()
        def draw(run: slice, seeds: Sequence[int]) -> np.ndarray:
            noise = SampleNoise(seeds, self.decoder.device)
            return self._decoded(
                embedding[run],
                self._text([""] * len(seeds)),
                noise,
                seeds,
                start=start[run],
                sampling=sampling,
            )

        return self._batched([key64(seed, i, "edit") for i in range(n)], draw)

    def _decoded(
        self,
        embedding: Tensor | None,
        text: TextCondition | Tensor,
        noise: SampleNoise,
        seeds: Sequence[int],
        *,
        sampling: Sampling | None = None,
        **how: Tensor,
    ) -> np.ndarray:
        """uint8 (B, H, W, 3): the decoder's images, enlarged."""
        pixels = self.decoder.sample(
            embedding,
            text,
            noise,
            empty=self._text([""]),
            guidance=self.choice.guidance,
            sampling=sampling or self.choice.sampling,
            **how,
        )
        for number, upsampler in enumerate(self.upsamplers):
            keys = [key64(seed, number, "upsampler") for seed in seeds]
            noise = SampleNoise(keys, pixels.device)
            last = self.last if upsampler is self.upsamplers[-1] else None
            pixels = upsampler.sample(pixels.clamp(-1, 1), noise, last=last)
        return to_images(pixels)

    def _text(self, texts: Sequence[str]) -> TextCondition | Tensor:
        return self.decoder.read(texts, self.towers)

    def _batched(
        self, seeds: list[int], draw: Callable[[slice, Sequence[int]], np.ndarray]
    ) -> np.ndarray:
        size = self.image_size
        found = [np.empty((0, size, size, 3), np.uint8)]
        for start in range(0, len(seeds), self.batch_size):
            run = slice(start, start + self.batch_size)
            found.append(draw(run, seeds[run]))
        return np.concatenate(found)

    def _require_size(self, image: np.ndarray) -> None:
        size = self.image_size
        if image.dtype != np.uint8 or image.shape != (size, size, 3):
            raise UserError(
                f"an image of shape {image.shape} and type {image.dtype} cannot be changed",
                f"give uint8 ({size}, {size}, 3)",
            )


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 (H, W, 3) of a square -> (size, size, 3), each pixel the mean of those it stands for."""
    if image.shape[0] == size:
        return image
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))
