"""Training DALL-E's prior: captions become words, images tokens of a frozen first stage, both are predicted."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generators.dalle.bpe import Bpe
from generators.dalle.decode import Choice, draw
from generators.dalle.transformer import Config, Transformer
from generators.pixels import to_images
from generators.task import SHOWN, Batch, GeneratorTask, Optimizer
from pipeline.draws import Draws
from pipeline.errors import UserError
from pipeline.loading.examples import Examples, ExampleSource
from pipeline.places import Place

TEXT_WEIGHT, IMAGE_WEIGHT = 1 / 8, 7 / 8
EVALUATED = 64  # held-out samples per batch


class Task(GeneratorTask):
    """The second stage of 2102.12092, section 2.2.

    tokenizer: the words. first_stage: a frozen model with `tokens` and `decode_tokens`; None where
    the examples come with cached `tokens`, and no pictures are wanted. bpe_dropout: the share of
    merges that is forbidden in training. optimizer: of the matrices inside of blocks.
    """

    model: Transformer

    def __init__(
        self,
        model: Transformer,
        source: ExampleSource,
        *,
        held_out: Examples | None = None,
        tokenizer: Bpe,
        first_stage: nn.Module | None = None,
        bpe_dropout: float = 0.1,
        optimizer: Optimizer = "adamw",
    ) -> None:
        super().__init__(model, source, held_out=held_out, optimizer=optimizer)
        self.config: Config = model.config
        self.tokenizer, self.bpe_dropout = tokenizer, bpe_dropout
        self.first_stage = first_stage and first_stage.eval().requires_grad_(False)
        if not 0 <= bpe_dropout < 1:
            raise UserError(f"bpe_dropout {bpe_dropout} is impossible", "give 0 to below 1")
        require_fit(self.config, tokenizer, first_stage)

    def tensors(self, examples: Examples) -> Batch:
        """`text` (B, T), and `tokens` (B, N) where they are cached, else `images`."""
        return self._with_words(examples, self.bpe_dropout)

    def _with_words(self, examples: Examples, dropout: float) -> Batch:
        batch = super().tensors(examples)
        cached = examples.encodings.get("tokens")
        if cached is not None:
            batch.pop("images", None)
            batch["tokens"] = self._checked(torch.from_numpy(cached.astype(np.int64)).flatten(1))
        batch["text"] = torch.tensor(
            [
                self.text_ids(text, place, dropout)
                for text, place in zip(examples.texts, examples.places, strict=True)
            ]
        )
        return batch

    def text_ids(self, text: str, place: Place, dropout: float) -> list[int]:
        """Words and padding, T ids."""
        draws = Draws(place.seed, place.step, place.index, "bpe dropout")
        ids = self.tokenizer.encode_dropped(text, dropout, draws)
        return padded(ids, self.config)

    def image_tokens(self, batch: Batch) -> Tensor:
        """(B, N), cached or made now."""
        if "tokens" in batch:
            return batch["tokens"]
        if self.first_stage is None:
            raise UserError(
                "DALL-E has neither cached tokens nor a first stage that makes them",
                "give FIRST_STAGE=<folder of a trained one>",
            )
        pixels = self.pixels(batch)
        stage = self.first_stage.to(pixels.device)
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            return self._checked(stage.tokens(pixels).flatten(1))

    def _checked(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] != self.config.image_length:
            raise UserError(
                f"an image has {tokens.shape[1]} tokens, the model {self.config.image_length}",
                f"give images of {self.config.image_size} pixels, or another first stage",
            )
        return tokens

    def loss(self, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """1/8 of the text's cross-entropy and 7/8 of the image's, each a mean over its tokens."""
        return self._loss(batch)

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        text, image = batch["text"], self.image_tokens(batch)
        text_logits, image_logits = self.model(text, image)
        # Every sample has equally many tokens of a kind: the mean over tokens is one over samples.
        text_nll = F.cross_entropy(text_logits.flatten(0, 1), text.flatten())
        image_nll = F.cross_entropy(image_logits.flatten(0, 1), image.flatten())
        loss = TEXT_WEIGHT * text_nll + IMAGE_WEIGHT * image_nll
        return loss, {"text_nll": text_nll.detach(), "image_nll": image_nll.detach()}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Nats per token of held-out texts (their padding included) and images."""
        if self.held_out is None:
            return {}
        totals: dict[str, float] = {}
        num = len(self.held_out.places)
        for part in parts(self.held_out, EVALUATED):
            loss, values = self._loss(self._moved(part))
            for name, value in ({"loss": loss} | values).items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(part.places)
        return {name: total / num for name, total in totals.items()}

    @torch.no_grad()
    def pictures(self) -> dict[str, np.ndarray]:
        """Samples of held-out captions, and what the first stage leaves of their images."""
        if self.held_out is None or self.first_stage is None:
            return {}
        batch = self._moved(next(parts(self.held_out, SHOWN)))
        side = self.config.grid
        keys = [Draws(i, "picture") for i in range(len(batch["text"]))]
        drawn = draw(self.model, batch["text"], keys, Choice())
        shown = {"samples": drawn, "reconstructions": self.image_tokens(batch)}
        stage = self.first_stage.to(drawn.device)
        return {
            name: to_images(stage.decode_tokens(tokens.unflatten(1, (side, side))))
            for name, tokens in shown.items()
        }

    def _moved(self, examples: Examples) -> Batch:
        """A batch without dropout, on the model's device."""
        device = self.model.start.device
        batch = self._with_words(examples, dropout=0.0)
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def blocks(self) -> Iterable[nn.Module]:
        return self.model.blocks


def padded(ids: Sequence[int], config: Config) -> list[int]:
    """T ids: what does not fit is cut, and each empty position gets its own padding token."""
    kept = list(ids[: config.text_length])
    return kept + [config.text_vocabulary + i for i in range(len(kept), config.text_length)]


def parts(examples: Examples, size: int) -> Iterable[Examples]:
    """Runs of up to `size` examples, in order."""
    for start in range(0, len(examples.places), size):
        run = slice(start, start + size)
        images = None if examples.images is None else examples.images[run]
        encodings = {name: values[run] for name, values in examples.encodings.items()}
        yield Examples(examples.places[run], images, examples.texts[run], encodings)


def require_fit(config: Config, tokenizer: Bpe, first_stage: nn.Module | None) -> None:
    """UserError where words or image tokens are not those of the model."""
    if tokenizer.size > config.text_vocabulary:
        raise UserError(
            f"{tokenizer.size} words do not fit a model with {config.text_vocabulary}",
            "give words or a model of another size",
        )
    if first_stage is None:
        return
    theirs = first_stage.vocabulary, config.image_size // first_stage.factor
    ours = config.image_vocabulary, config.grid
    if theirs != ours:
        raise UserError(
            f"the first stage gives {theirs[0]} codes in a grid of {theirs[1]}, the model takes "
            f"{ours[0]} in {ours[1]}",
            "give another first stage, or another preset",
        )
