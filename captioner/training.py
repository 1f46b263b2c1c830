"""Training CoCa: the base with both of its losses, and one style with the captioning loss alone."""

# B batch, S tokens, n image tokens, D width, V vocabulary, E embedding of both modalities

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from captioner.checkpoint import Stack
from captioner.losses import captioning_loss, contrastive_loss
from captioner.model import CoCa
from captioner.tokens import Tokenizer, to_tensor

EVALUATED = 64  # held-out pairs per batch
MAX_SCALE = 100.0  # of the contrastive logits; CLIP (2103.00020), section 2.5

Examples = Callable[[Sequence[Any]], list[tuple[np.ndarray, str]]]
"""Samples of one batch -> a uint8 image (size, size, 3) and a caption for each."""


class _Task:
    """What both trainings share: batches of images and captions, and who is optimised how."""

    model: nn.Module
    size: int

    def __init__(
        self,
        examples: Examples,
        size: int,
        tokenizer: Tokenizer,
        context_length: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        optimizer: Literal["muon", "adamw"] = "muon",
        held_out: Sequence[tuple[np.ndarray, str]] = (),
    ) -> None:
        self.examples, self.size = examples, size
        self.optimizer, self.held_out = optimizer, held_out
        self.tokenizer, self.context_length = tokenizer, context_length
        self._mean = torch.tensor(mean).view(1, 3, 1, 1)
        self._std = torch.tensor(std).view(1, 3, 1, 1)

    def batch(self, samples: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Crops (B, size, size, 3) uint8, and ids (B, S), S as short as the captions allow.

        A caption that does not fit the context loses its end, and with it the end token.
        """
        return self._tensors(self.examples(samples))

    def _tensors(self, examples: Sequence[tuple[np.ndarray, str]]) -> tuple[Tensor, Tensor]:
        images, captions = zip(*examples, strict=True)
        ids = [self.tokenizer.encode(caption) for caption in captions]
        room = self.context_length - 2
        # One pad behind the longest: the text tower's features are those of the whole context.
        length = min(max(map(len, ids)) + 3, self.context_length)
        batch = to_tensor(self.tokenizer, [row[:room] for row in ids], length)
        for row, encoded in zip(batch, ids, strict=True):
            if len(encoded) > room:
                row[room + 1] = 0
        return torch.from_numpy(np.stack(images)), batch

    def pixels(self, crops: Tensor) -> Tensor:
        """Crops (B, size, size, 3) uint8 -> normalised (B, 3, size, size)."""
        x = crops.permute(0, 3, 1, 2).float() / 255
        return (x - self._mean.to(x.device)) / self._std.to(x.device)

    def parameter_groups(self) -> list[dict]:
        """AdamW, without decay of vectors; or Muon for the matrices between layers, AdamW for
        embeddings, the last layer, and vectors.
        """
        groups: dict[str, list[Tensor]] = {"muon": [], "table": [], "vector": []}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups[_kind(name, parameter)].append(parameter)
        found = [
            {"params": groups["muon"], "optimizer": self.optimizer},
            {"params": groups["table"]},
            {"params": groups["vector"], "weight_decay": 0.0},
        ]
        return [group for group in found if group["params"]]

    def evaluate(self) -> dict[str, float]:
        """The mean losses over the held-out pairs, where there are any."""
        total: dict[str, float] = {}
        for start in range(0, len(self.held_out), EVALUATED):
            part = self.held_out[start : start + EVALUATED]
            device = next(self.model.parameters()).device
            batch = tuple(tensor.to(device) for tensor in self._tensors(part))
            loss, values = self.loss(batch, None)
            for name, value in ({"loss": loss} | values).items():
                total[name] = total.get(name, 0.0) + float(value) * len(part)
        return {name: value / len(self.held_out) for name, value in total.items()}

    def blocks(self) -> Iterable[nn.Module]:
        """Every transformer block."""
        for module in self.model.modules():
            if isinstance(module, nn.ModuleList):
                yield from module


def _kind(name: str, parameter: Tensor) -> str:
    """Muon orthogonalises updates of matrices that map features to features, not of tables."""
    if parameter.ndim < 2:
        return "vector"
    is_table = parameter.ndim > 2 or "embedding" in name
    return "table" if is_table or name.endswith("text_decoder.text_projection") else "muon"


class Pretraining(_Task):
    """The base: which caption belongs to which image, and what each caption says. CoCa, Eq. 5."""

    def __init__(
        self,
        model: CoCa,
        *args: object,
        contrastive: float,
        captioning: float = 1.0,
        **options: object,
    ) -> None:
        super().__init__(*args, **options)
        self.model = model
        self.weights = (contrastive, captioning)

    def loss(self, batch: tuple[Tensor, Tensor], draws: object) -> tuple[Tensor, dict]:
        """Both losses, weighted; the captioning loss is a mean over tokens."""
        crops, ids = batch
        images, texts, logits, scale = self.model(self.pixels(crops), ids)
        contrastive = contrastive_loss(images.float(), texts.float(), scale.clamp(max=MAX_SCALE))
        captioning = captioning_loss(logits.float(), ids)
        total = self.weights[0] * contrastive + self.weights[1] * captioning
        return total, {"contrastive": contrastive, "captioning": captioning}


class StyleModel(nn.Module):
    """One style's text stacks behind an image tower: the base's, frozen, or the stack's own, tuned.

    What only the contrastive feature uses (CLS, the tower's last norm, projections) stays as it is.
    """

    def __init__(self, visual: VisionTransformer, stack: Stack) -> None:
        super().__init__()
        self.stack, text = stack, stack.text
        unused = [text.cls_emb, text.text_projection, *text.ln_final.parameters()]
        if stack.visual is not None:
            unused.append(stack.visual.proj)
        for parameter in unused:
            parameter.requires_grad_(False)
        # No submodule where it is frozen: a checkpoint need not repeat what never changes.
        self._frozen = [] if stack.visual is not None else [visual.requires_grad_(False)]

    def _apply(self, fn: Callable, recurse: bool = True) -> "StyleModel":
        for module in self._frozen:
            module._apply(fn)
        return super()._apply(fn, recurse)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Normalised pixels (B, 3, size, size), ids (B, S) -> logits (B, S, V)."""
        if self._frozen:
            with torch.no_grad():
                tokens = self._frozen[0](pixels)[1]
        else:
            tokens = self.stack.visual(pixels)[1]
        return self.stack.text_decoder(tokens, self.stack.text.embed_tokens(ids))


class FineTuning(_Task):
    """One style from the base: the captioning loss alone (CoCa, section 4.2).

    model: a StyleModel, or one with adapters.
    """

    def __init__(self, model: nn.Module, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.model = model

    def loss(self, batch: tuple[Tensor, Tensor], draws: object) -> tuple[Tensor, dict]:
        """The captioning loss, a mean over tokens."""
        crops, ids = batch
        logits = self.model(self.pixels(crops), ids)
        return captioning_loss(logits.float(), ids), {}


def init_from_fan_in(model: CoCa, seed: int) -> None:
    """Draw every matrix with standard deviation 1/sqrt(fan in), whatever the width.

    CLIP's fixed 0.02 for tables keeps a narrow model from learning for thousands of steps.
    """
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 or not parameter.requires_grad:
                continue
            if "embedding" in name:
                std = 0.5 if "token" in name else 0.1
            elif name.endswith(("_projection", "visual.proj")):  # applied as x @ w
                std = parameter.shape[0] ** -0.5
            else:
                std = parameter[0].numel() ** -0.5
            parameter.normal_(std=std, generator=draws)
