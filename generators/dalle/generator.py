"""A trained DALL-E as one uses it: captions in, images out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from generators import checkpoint
from generators.dalle.bpe import Bpe, readable
from generators.dalle.decode import Choice, draw
from generators.dalle.training import padded, require_fit
from generators.dalle.transformer import Transformer
from generators.pixels import to_images, to_model
from pipeline.draws import Draws
from pipeline.errors import UserError

TOKENIZER, FIRST_STAGE = "tokenizer.json", "first_stage"


@dataclass(frozen=True)
class Dalle:
    """`generators.load(folder).sample("a red heart on grass", 4)`: an image, (4, H, W, 3).

    batch_size: images that are drawn at once, which bounds memory and changes nothing else.
    """

    model: Transformer
    tokenizer: Bpe
    first_stage: nn.Module
    batch_size: int = 32

    def sample(
        self,
        prompt: str,
        n: int = 1,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        guidance: float = 1.0,
    ) -> np.ndarray:
        """n images of a prompt: uint8 (n, H, W, 3). Image i follows from (seed, prompt, i) alone.

        The settings are those of `generators.dalle.decode.Choice`.
        """
        choice = Choice(temperature, top_k, top_p, guidance)
        return self.images(self.tokens([prompt] * n, range(n), seed, choice))

    def complete(
        self,
        prompt: str,
        image: np.ndarray,
        rows: float,
        n: int = 1,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        guidance: float = 1.0,
    ) -> np.ndarray:
        """n images that begin as an image does: its first rows of tokens are kept (2102.12092, section 3.3).

        image: uint8 (H, W, 3) of the model's size. rows: share of the rows that is kept, 0 to 1.
        """
        config = self.model.config
        if not 0 <= rows <= 1:
            raise UserError(f"rows {rows} is no share of the image", "give a number from 0 to 1")
        size, num = config.image_size, round(rows * config.grid) * config.grid
        if image.dtype != np.uint8 or image.shape != (size, size, 3):
            raise UserError(
                f"an image of shape {image.shape} and type {image.dtype} cannot be completed",
                f"give uint8 ({size}, {size}, 3)",
            )
        pixels = to_model(image[None]).to(self.device)
        with torch.no_grad():
            kept = self.first_stage.tokens(pixels).flatten(1)[:, :num]
        choice = Choice(temperature, top_k, top_p, guidance)
        return self.images(self.tokens([prompt] * n, range(n), seed, choice, kept))

    def tokens(
        self,
        prompts: Sequence[str],
        numbers: Sequence[int],
        seed: int,
        choice: Choice,
        prefix: Tensor | None = None,
    ) -> Tensor:
        """Image tokens (B, N) of prompts: sample number `numbers[b]` of `prompts[b]` in row b.

        prefix: tokens (1, n) that all of them begin with.
        """
        found = [torch.empty(0, self.model.config.image_length, dtype=torch.long)]
        for start in range(0, len(prompts), self.batch_size):
            run = slice(start, start + self.batch_size)
            rows = list(zip(map(readable, prompts[run]), numbers[run], strict=True))
            config = self.model.config
            ids = [padded(self.tokenizer.encode(prompt), config) for prompt, _ in rows]
            text = torch.tensor(ids, device=self.device)
            streams = [Draws(seed, prompt, number, "sample") for prompt, number in rows]
            begun = None if prefix is None else prefix.expand(len(rows), -1)
            found.append(draw(self.model, text, streams, choice, begun).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def images(self, tokens: Tensor) -> np.ndarray:
        """uint8 (B, H, W, 3) of tokens (B, N)."""
        config = self.model.config
        grids = tokens.to(self.device).unflatten(1, (config.grid, config.grid))
        found = [np.empty((0, config.image_size, config.image_size, 3), np.uint8)]
        found += [
            to_images(self.first_stage.decode_tokens(p)) for p in grids.split(self.batch_size)
        ]
        return np.concatenate(found)

    @property
    def image_size(self) -> int:
        """Pixels of a side."""
        return self.model.config.image_size

    @property
    def device(self) -> torch.device:
        return self.model.start.device


def load(model: Transformer, folder: Path | str) -> Dalle:
    """A trained prior with its words and its first stage, which are in its folder."""
    folder = Path(folder)
    tokenizer = Bpe.load(folder / TOKENIZER)
    first_stage = checkpoint.load_module(folder / FIRST_STAGE, model.start.device)
    require_fit(model.config, tokenizer, first_stage)
    return Dalle(model, tokenizer, first_stage)


def save_parts(folder: Path | str, tokenizer: Bpe, first_stage: nn.Module, record: dict) -> None:
    """Writes what `load` reads beside the weights: the words, and the first stage as it was trained with.

    record: what `checkpoint.describe` said of it. Its folder may hold another one by now.
    """
    folder = Path(folder)
    tokenizer.save(folder / TOKENIZER)
    weights = first_stage.state_dict()
    name, about = record["model"], record["about"]
    checkpoint.save(folder / FIRST_STAGE, name, first_stage.config, weights, about)
