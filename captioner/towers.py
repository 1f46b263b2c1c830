"""Both towers of any open_clip model or captioner, frozen: images and captions into one space, captions into states."""

# B samples, S pixels of a side, T tokens of the context, D width of their states, E of the common space

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioner.checkpoint import load_checkpoint
from captioner.scorer import ImageView, is_captioner, load_open_clip, open_clip_view
from captioner.text_states import (
    Tower,
    captioner_tower,
    describe_text_states,
    open_clip_tower,
    tokenized,
)
from captioner.tokens import ClipTokenizer, Tokenizer
from pipeline.encoders import TextStates


def load_towers(
    name: str, *, device: str = "cpu", precision: str = "fp32", flag: str = "CLIP"
) -> "ContrastiveTowers":
    """Towers by a name of `captioner.scorer.load_scorer`, or a folder of diffusers' unCLIP; of a captioner
    those of its base.

    precision: fp32 or bf16, of their arithmetic. flag: what the user calls the name. Raises UserError,
    also for towers whose texts are no CLIP tokens.
    """
    if folder_of_diffusers(name):
        from captioner.folder_towers import load_folder_towers

        return load_folder_towers(name, device=device, precision=precision, flag=flag)
    identity = describe_text_states(name, flag)
    if is_captioner(name):
        checkpoint = load_checkpoint(name)
        base, tokenizer = checkpoint.base, checkpoint.tokenizer
        size = checkpoint.model_config["vision_cfg"]["image_size"]
        view = ImageView(size, checkpoint.mean, checkpoint.std)
        context = base.text.contrastive_context
        # Without the decoder, which is half of a captioner.
        module: nn.Module = nn.ModuleDict({"visual": base.visual, "text": base.text})
        image, text = (lambda pixels: base.visual(pixels)[0]), captioner_tower(base.text)
    else:
        module, own = load_open_clip(name, flag=flag)
        text = open_clip_tower(module, own, name, flag)
        view, image = open_clip_view(module), module.encode_image
        tokenizer, context = ClipTokenizer(), own.context_length
    towers = ContrastiveTowers(
        module, view, image, text, tokenizer, context, identity=identity, precision=precision
    )
    return towers.to(device)


def folder_of_diffusers(name: str) -> bool:
    """Whether a name stands for the towers in a folder of UnCLIPPipeline."""
    return (Path(name) / "text_encoder" / "config.json").is_file()


class ContrastiveTowers:
    """What `generators.towers.Towers` asks for, and what fills a cache with the same numbers.

    `prepare` and `tokenize` may run in threads. about: what identifies them, the same on any device.
    Their weights take no gradient; pixels that ask for one get it.
    """

    def __init__(
        self,
        module: nn.Module,
        view: ImageView,
        image_tower: Callable[[Tensor], Tensor],
        text_tower: Tower,
        tokenizer: Tokenizer,
        context: int,
        *,
        identity: dict,
        precision: str = "fp32",
    ) -> None:
        self._module = module.eval().requires_grad_(False)
        self._view, self._image_tower, self._text_tower = view, image_tower, text_tower
        self._tokenizer, self._is_bf16 = tokenizer, precision == "bf16"
        self.device = next(module.parameters()).device
        self.image_size, self.context = view.size, context
        with torch.no_grad():
            states, _, pooled = self.encode_text(self.tokenize([""]).to(self.device))
        self.text_width, self.embed_dim = states.shape[-1], pooled.shape[-1]
        self.about = {
            **identity,
            "embed_dim": self.embed_dim,
            "text_width": self.text_width,
            "context": context,
            "image_size": self.image_size,
        }

    def prepare(self, images: np.ndarray) -> Tensor:
        """uint8 (B, H, W, 3) -> uint8 (B, S, S, 3); float32 (B, 3, S, S) where a model sees no middle square."""
        return torch.from_numpy(np.stack([self._view.prepare(image) for image in images]))

    def encode_image(self, prepared: Tensor) -> Tensor:
        """Unit embeddings (B, E), fp32, of what `prepare` gave, or of normalised pixels (B, 3, S, S)."""
        with self._arithmetic():
            features = self._image_tower(self._view.normalised(prepared))
        return F.normalize(features.float(), dim=-1)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Ids (B, T) int64; texts beyond the context lose their end."""
        return tokenized(self._tokenizer, texts, self.context)[0]

    def encode_text(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States (B, T, D), the mask (B, T) of the text's own, and unit embeddings (B, E), in fp32.

        Start and end are the text's own; what stands behind the end is none of it.
        """
        with self._arithmetic():
            states, pooled = self._text_tower(ids)
        is_end = (ids == self._tokenizer.end).long()
        mask = is_end.cumsum(dim=1) - is_end == 0
        return states.float(), mask, F.normalize(pooled.float(), dim=-1)

    def to(self, device: torch.device | str) -> Self:
        """Moves them, wherever they are held."""
        if torch.device(device) != self.device:  # tasks ask at every step
            self._module.to(device)
            self.device = next(self._module.parameters()).device
        return self

    @torch.inference_mode()
    def embed(self, images: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3) -> unit embeddings float32 (B, E)."""
        return self.encode_image(self.prepare(images).to(self.device)).cpu().numpy()

    @torch.inference_mode()
    def text_states(self, texts: Sequence[str]) -> TextStates:
        """What `encode_text` gives, for a cache."""
        ids, _, num_cut = tokenized(self._tokenizer, texts, self.context)
        states, mask, pooled = (part.cpu() for part in self.encode_text(ids.to(self.device)))
        return TextStates(states.numpy(), mask.sum(dim=1).numpy(), pooled.numpy(), num_cut)

    def _arithmetic(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_bf16)
