"""What a generator reads captions by, of any length: T5, or a contrastive text tower that is shown long ones in pieces."""

# B captions, T tokens of each, D width of their states, E width of the contrastive space,
# P pieces of all captions, S tokens that a tower sees at once

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

import open_clip
import torch
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor, nn

from captioner.checkpoint import load_checkpoint
from captioner.chunks import MAX_CHARACTERS, bounded, split_sentences
from captioner.load import resolve
from captioner.scorer import is_captioner, load_open_clip
from captioner.t5 import PREFIX, find_t5, load_t5
from captioner.text import PAD
from captioner.text_states import (
    Tower,
    captioner_tower,
    describe_text_states,
    open_clip_tower,
)
from captioner.tokens import ClipTokenizer, Tokenizer
from captioner.towers import folder_of_diffusers
from pipeline.encoders import TextStates
from pipeline.errors import UserError

T5_LENGTH = 300
"""Tokens of a caption, as PixArt-Sigma reads descriptive ones by T5 (2403.04692)."""
CONTEXTS = 4
"""Contexts of a tower that a caption may fill. The 308 tokens of CLIP hold 94 % of ImageInWords'
descriptions, 99.7 % of a model's and 77 % of people's, which are the longest."""
MAX_LENGTH = 4096
_CHARACTERS = 16  # that a token may have, on average
_AT_ONCE = 256  # pieces: more than a batch of captions mostly has


def describe_text_encoder(name: str, length: int = 0, flag: str = "TEXT") -> dict[str, Any]:
    """What identifies a text encoder: architecture, weights, and the tokens that it has for a caption.

    The same as `about` of the one that is loaded. A cache records it, and refuses a training that names
    another. Builds nothing. Raises UserError.
    """
    if not 0 <= length <= MAX_LENGTH or length in (1, 2):
        raise UserError(
            f"{flag}={name}: a caption of {length} tokens is impossible",
            f"give a length from 3, for start, end and a word, to {MAX_LENGTH}, or 0",
        )
    if folder_of_diffusers(name):
        from captioner.folder_text import describe_folder_text

        return describe_folder_text(name, length, flag)
    if name.startswith(PREFIX):
        return {**find_t5(name, flag).identity, "length": length or T5_LENGTH}
    return {**describe_text_states(name, flag), "length": length or _default_length(name)}


def load_text_encoder(
    name: str,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    length: int = 0,
    flag: str = "TEXT",
) -> "CaptionEncoder":
    """A text encoder by name; a `generators.latent.text.TextEncoder`, and what fills a cache.

    name: `t5:<folder or hub repository>`, or a text tower, named as in captioner.scorer.load_scorer:
    `<open_clip model>:<tag or file>`, a captioner's directory, or `bundled`; or the folder of a diffusers
    pipeline with CLIP's text_encoder/ and tokenizer/. precision: fp32 or bf16, of its arithmetic.
    length: tokens T that it has for a caption, starts and ends among them; 0 takes T5_LENGTH for T5,
    CONTEXTS contexts for towers with CLIP's vocabulary, and one context for captioners with words of
    their own, whose captions fit it, and for folders. flag: what the user calls the name.
    Raises UserError, also for towers whose texts are no CLIP tokens.
    """
    identity = describe_text_encoder(name, length, flag)
    found: CaptionEncoder
    if folder_of_diffusers(name):
        from captioner.folder_text import load_folder_text

        found = load_folder_text(name, identity, precision, flag)
    elif name.startswith(PREFIX):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        model, words = load_t5(find_t5(name, flag), dtype, flag)
        found = T5Captions(model, words, identity)
    elif is_captioner(name):
        checkpoint = load_checkpoint(name)
        text = checkpoint.base.text
        found = TowerCaptions(
            text,
            captioner_tower(text),
            checkpoint.tokenizer,
            text.contrastive_context,
            identity,
            precision,
        )
    else:
        model, own = load_open_clip(name, flag=flag)
        tower = open_clip_tower(model, own, name, flag)
        model.visual = None  # half of the model and more
        found = TowerCaptions(
            model, tower, ClipTokenizer(), own.context_length, identity, precision
        )
    return found.to(device)


def _default_length(name: str) -> int:
    if not is_captioner(name):
        text = open_clip.get_model_config(name.partition(":")[0])["text_cfg"]
        return CONTEXTS * text.get("context_length", 77)
    source = resolve(name)
    contexts = 1 if source.tokenizer else CONTEXTS
    return contexts * source.model_config["text_cfg"]["context_length"]


class CaptionEncoder:
    """Frozen; `tokenize` may run in threads.

    A caption's tokens stand at the front of its row, and what stands behind is neither seen by others
    nor anything but zeros: a row's mask follows from how many tokens it has.
    """

    _pad: int

    def __init__(self, module: nn.Module, length: int, end: int, about: Mapping[str, Any]) -> None:
        self._module = module.eval().requires_grad_(False)
        self.device = next(module.parameters()).device
        self.context, self._end, self.about = length, end, dict(about)
        self.num_cut = 0
        """Captions so far that did not fit T tokens and lost their end."""
        self._counting = threading.Lock()
        with torch.no_grad():
            self.text_width: int = self.encode_text(self.tokenize([""]).to(self.device))[0].shape[
                -1
            ]

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Ids (B, T) int64, padded; texts that do not fit lose their end, and are counted."""
        return self._tokenized(texts)[0]

    def encode_text(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """States (B, T, D) in fp32, mask (B, T) of the captions' own, and vectors (B, E) or None."""
        # Nothing but the last end tells: a pad may be a word's id as well, as CLIP's is.
        is_end = (ids == self._end).long()
        mask = is_end.flip(1).cumsum(dim=1).flip(1) > 0
        states, pooled = self._encoded(ids, mask)
        return states, mask, pooled

    def to(self, device: torch.device | str) -> Self:
        """Moves it, wherever it is held."""
        if torch.device(device) != self.device:  # tasks ask at every step
            self._module.to(device)
            self.device = next(self._module.parameters()).device
        return self

    @torch.inference_mode()
    def text_states(self, texts: Sequence[str]) -> TextStates:
        """What `encode_text` gives, for a cache."""
        ids, num_cut = self._tokenized(texts)
        states, mask, pooled = self.encode_text(ids.to(self.device))
        return TextStates(
            states=states.cpu().numpy(),
            lengths=mask.sum(dim=1).cpu().numpy(),
            pooled=None if pooled is None else pooled.cpu().numpy(),
            num_cut=num_cut,
        )

    def _tokenized(self, texts: Sequence[str]) -> tuple[Tensor, int]:
        """Ids, and how many texts do not fit."""
        ids, num_cut = torch.full((len(texts), self.context), self._pad), 0
        for row, text in zip(ids, texts, strict=True):
            seen = text[: max(MAX_CHARACTERS, _CHARACTERS * self.context)]
            own, is_cut = self._ids(seen)
            row[: len(own)] = torch.tensor(own)
            num_cut += is_cut or len(seen) < len(text)
        with self._counting:
            self.num_cut += num_cut
        return ids, num_cut

    def _ids(self, text: str) -> tuple[list[int], bool]:
        """At most T ids, and whether there were more; `end` is the last of them."""
        raise NotImplementedError

    def _encoded(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """States, zero where the mask is false, and vectors."""
        raise NotImplementedError


class T5Captions(CaptionEncoder):
    """T5, whose positions are relative: a caption of any length is one text to it."""

    def __init__(self, model: nn.Module, words: FastTokenizer, about: Mapping[str, Any]) -> None:
        self._words, self._pad = words, model.config.pad_token_id
        super().__init__(model, about["length"], model.config.eos_token_id, about)

    def _ids(self, text: str) -> tuple[list[int], bool]:
        found = self._words.encode(written(text), add_special_tokens=False).ids
        # A text may spell out special tokens.
        own = [i for i in found if i not in (self._pad, self._end)]
        return [*own[: self.context - 1], self._end], len(own) >= self.context

    def _encoded(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, None]:
        longest = int(mask.sum(dim=1).max())
        ids, seen = ids[:, :longest], mask[:, :longest]
        with torch.autocast(self.device.type, enabled=False):
            found = self._module(input_ids=ids, attention_mask=seen.long()).last_hidden_state
        states = found.new_zeros(*mask.shape, found.shape[-1], dtype=torch.float32)
        states[:, :longest] = found.float().masked_fill(~seen[..., None], 0.0)
        return states, None


def written(text: str) -> str:
    """A text as UTF-8 can hold it: halves of surrogate pairs, which JSON can escape, become "?"."""
    return text.encode(errors="replace").decode()


class TowerCaptions(CaptionEncoder):
    """A text tower that sees S tokens at once, and of longer captions one piece after the other.

    Pieces are of whole sentences where these fit, each with a start and an end of its own; a row's
    states are those of its pieces in their order. What fits S is what the tower makes of it.
    """

    def __init__(
        self,
        module: nn.Module,
        tower: Tower,
        tokenizer: Tokenizer,
        window: int,
        about: Mapping[str, Any],
        precision: str,
    ) -> None:
        self._tower, self._tokenizer, self._window = tower, tokenizer, window
        self._is_bf16, self._pad = precision == "bf16", PAD
        super().__init__(module, about["length"], tokenizer.end, about)

    def _ids(self, text: str) -> tuple[list[int], bool]:
        seen = bounded(text, len(text))
        if self.context > self._window:
            pieces = split_sentences(seen, self, self._window - 2)
        else:
            pieces = [self.encode(seen)]  # one piece or a part of it, as the tower is cut elsewhere
        ids: list[int] = []
        for piece in pieces:
            room = self.context - len(ids) - 2
            if room < bool(ids):  # of a further piece not even a word fits
                return ids, True
            ids += [self._tokenizer.start, *piece[:room], self._end]
            if len(piece) > room:
                return ids, True
        return ids, False

    def encode(self, text: str) -> list[int]:
        """Ids without start and end, also where a text spells these out."""
        marks = (self._tokenizer.start, self._end)
        return [i for i in self._tokenizer.encode(text) if i not in marks]

    def _encoded(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        own = ids[mask]
        is_start = own == self._tokenizer.start
        first, piece = is_start.nonzero()[:, 0], is_start.cumsum(dim=0) - 1
        place = torch.arange(len(own), device=ids.device) - first[piece]
        pieces = ids.new_full((len(first), self._window), PAD)
        pieces[piece, place] = own
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_bf16):
            parts = [self._tower(part) for part in pieces.split(_AT_ONCE)]
        states, pooled = (torch.cat(found).float() for found in zip(*parts, strict=True))
        found = states.new_zeros(*mask.shape, states.shape[-1])
        found[mask] = states[piece, place]
        counts = ((ids == self._tokenizer.start) & mask).sum(dim=1)
        # In a set order on any device, unlike sums by index.
        return found, torch.segment_reduce(pooled, "mean", lengths=counts, axis=0)
