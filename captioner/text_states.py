"""The text tower of any open_clip model or captioner: ids into a state per token and one vector."""

# B texts, T tokens of the context, D width of the tower, E width of its contrastive space

from collections.abc import Callable, Sequence

from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from captioner.chunks import bounded
from captioner.scorer import is_captioner, scorer_identity
from captioner.text import TextTower
from captioner.tokens import Tokenizer, to_tensor
from pipeline.errors import UserError

Tower = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Ids (B, T), padded -> states (B, T, D), and the vectors that are compared with images (B, E)."""


def describe_text_states(name: str, flag: str = "TEXT") -> dict:
    """What identifies a text tower: its architecture and its weights. Builds nothing.

    A cache records it, and refuses a training that names another. Raises UserError.
    """
    architecture = "" if is_captioner(name) else name.partition(":")[0]
    return {"architecture": architecture, "weights": scorer_identity(name, flag)}


def captioner_tower(text: TextTower) -> Tower:
    """The text tower of one of our captioners; its states are those that the decoder reads."""
    return lambda ids: text(ids)[::-1]


def open_clip_tower(model: nn.Module, tokenizer: object, name: str, flag: str) -> Tower:
    """The text tower of an open_clip model; UserError where it is not of CLIP's kind.

    Its states are those after the last norm, as Stable Diffusion 2 has them.
    """
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
