"""Captions as a state per token and one vector, by the text tower of any open_clip model or captioner."""

# B texts, T tokens of the context, D width of the tower, E width of its contrastive space

from collections.abc import Callable, Sequence

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from captioner.checkpoint import load_checkpoint
from captioner.chunks import bounded
from captioner.coca import device_name
from captioner.scorer import is_captioner, load_open_clip, scorer_identity
from captioner.text import TextTower
from captioner.tokens import ClipTokenizer, Tokenizer, to_tensor
from pipeline.encoders import TextStates
from pipeline.errors import UserError

Tower = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Ids (B, T), padded -> states (B, T, D), and the vectors that are compared with images (B, E)."""


def describe_text_states(name: str, flag: str = "TEXT") -> dict:
    """What identifies a text tower: its architecture and its weights. Builds nothing.

    A cache records it, and refuses a training that names another. Raises UserError.
    """
    architecture = "" if is_captioner(name) else name.partition(":")[0]
    return {"architecture": architecture, "weights": scorer_identity(name, flag)}


def load_text_states(
    name: str, *, device: str = "cpu", precision: str = "fp32", flag: str = "TEXT"
) -> "TextTowerStates":
    """A text tower by a name of captioner.scorer.load_scorer.

    Of open_clip's models the states are those after the last norm, as Stable Diffusion 2 has them;
    of our captioners those that their decoder reads. Raises UserError for towers whose texts are no
    CLIP tokens.
    """
    if is_captioner(name):
        checkpoint = load_checkpoint(name)
        base = checkpoint.base.to(device)
        tower, context = captioner_tower(base.text), base.text.contrastive_context
        return TextTowerStates(tower, checkpoint.tokenizer, context, device, precision)
    model, tokenizer = load_open_clip(name, device=device, flag=flag)
    tower = open_clip_tower(model, tokenizer, name, flag)
    return TextTowerStates(tower, ClipTokenizer(), tokenizer.context_length, device, precision)


def captioner_tower(text: TextTower) -> Tower:
    """The text tower of one of our captioners."""
    return lambda ids: text(ids)[::-1]


def open_clip_tower(model: nn.Module, tokenizer: object, name: str, flag: str) -> Tower:
    """The text tower of an open_clip model; UserError where it is not of CLIP's kind."""
    norm = _last_norm(model)
    if norm is None or not isinstance(tokenizer, SimpleTokenizer):
        raise UserError(
            f"{flag}={name} has no text tower of CLIP's kind", "for example ViT-L-14:openai"
        )
    return _with_states(model, norm)


def tokenized(
    tokenizer: Tokenizer, texts: Sequence[str], context: int
) -> tuple[Tensor, list[int], int]:
    """Ids (B, T), how many of each row are the text's, and how many texts do not fit.

    These lose their end, as open_clip's tokenizer cuts them.
    """
    room = context - 2
    whole = [tokenizer.encode(bounded(text)) for text in texts]
    ids = to_tensor(tokenizer, [one[:room] for one in whole], context)
    lengths = [min(len(one), room) + 2 for one in whole]
    return ids, lengths, sum(len(one) > room for one in whole)


class TextTowerStates:
    """A `pipeline.encoders.TextEncoder`. context: T, start and end among them."""

    def __init__(
        self, tower: Tower, tokenizer: Tokenizer, context: int, device: str, precision: str
    ) -> None:
        self._tower, self._tokenizer, self.context = tower, tokenizer, context
        self._device = torch.device(device)
        self._is_bf16 = precision == "bf16"
        self.environment = {"device": device_name(self._device), "torch": torch.__version__}

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> TextStates:
        ids, lengths, num_cut = tokenized(self._tokenizer, texts, self.context)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._is_bf16):
            states, pooled = self._tower(ids.to(self._device))
        return TextStates(
            states=states.float().cpu().numpy(),
            lengths=np.array(lengths),
            pooled=pooled.float().cpu().numpy(),
            num_cut=num_cut,
        )


def _last_norm(model: nn.Module) -> nn.Module | None:
    """The norm that a text tower of CLIP's kind ends with; None where it does not see every token."""
    text = getattr(model, "text", model)
    if getattr(text, "cls_emb", None) is not None:
        return None
    norm = getattr(text, "ln_final", None)
    return norm if isinstance(norm, nn.Module) else None


def _with_states(model: nn.Module, norm: nn.Module) -> Tower:
    """A model's text tower that also gives what its last norm gives."""

    def tower(ids: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []
        hook = norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            pooled = model.encode_text(ids)
        finally:
            hook.remove()
        return seen[0], pooled

    return tower
