"""The text encoder in the folder of a diffusers pipeline, as Stable Diffusion reads captions by it: pads included."""

# B captions, T tokens of each, D width of their states

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from captioner.folder_towers import KNOWN, TEXT, WEIGHTS, WORDS, settings_of, understood
from captioner.load import sha256_of
from captioner.text_encoders import CaptionEncoder, written
from pipeline.errors import UserError
from pipeline.foreign import believed

_PREFIX = "text_model."  # of the weights' names, as published


def describe_folder_text(name: str, length: int = 0, flag: str = "TEXT") -> dict[str, Any]:
    """What identifies it: weights, words, and the tokens that it has for a caption. Raises UserError."""
    root = Path(name)
    settings = settings_of(root / TEXT, flag)
    with understood(root / TEXT, flag):
        most = believed(settings, KNOWN).get("max_position_embeddings", 77)
        if not isinstance(most, int) or most < 3:  # start, end and a word
            raise ValueError(f"captions of {most} tokens")
    if length > most:
        raise UserError(
            f"{flag}={name}: of a caption it sees {most} tokens, not {length}",
            f"give {most} at most",
        )
    with understood(root, flag):
        words = [file for file in (root / WORDS).iterdir() if file.suffix in (".json", ".txt")]
        return {
            "architecture": "CLIPTextModel",
            "weights": sha256_of(root / TEXT / WEIGHTS),
            "tokenizer": ",".join(sha256_of(file) for file in sorted(words)),
            "length": length or most,
        }


def load_folder_text(
    name: str, about: Mapping[str, Any], precision: str, flag: str = "TEXT"
) -> "FolderCaptions":
    """A folder's CLIPTextModel and CLIPTokenizer, whatever its index says; no code is run.

    about: as it was described. Raises UserError.
    """
    return FolderCaptions(*folder_text(name, flag), about, precision)


def folder_text(name: str, flag: str = "TEXT") -> tuple[nn.Module, Any]:
    """The same two, of transformers."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    root = Path(name)
    settings = settings_of(root / TEXT, flag)
    with understood(root / TEXT, flag):
        config = CLIPTextConfig(**believed(settings, KNOWN))
        with torch.device("meta"):
            numbers = sum(p.numel() for p in CLIPTextModel(config).parameters())
        stored = (root / TEXT / WEIGHTS).stat().st_size
        if numbers > stored:
            raise ValueError(f"{stored:,} bytes of safetensors for {numbers:,} weights")
        with torch.random.fork_rng(devices=[]):
            model = CLIPTextModel(config)
        state = {k.removeprefix(_PREFIX): v for k, v in load_file(root / TEXT / WEIGHTS).items()}
        own = {k.removeprefix(_PREFIX): k for k in model.state_dict()}
        if absent := own.keys() - state.keys():
            raise ValueError(f"no weights for {min(absent)}")
        model.load_state_dict({own[k]: state[k] for k in own})
    with understood(root / WORDS, flag):
        words = CLIPTokenizer.from_pretrained(str(root / WORDS), local_files_only=True)
        last = max(words.get_vocab().values())
        ids = (words.bos_token_id, words.eos_token_id, words.pad_token_id, last)
        if not all(isinstance(i, int) and 0 <= i < config.vocab_size for i in ids):
            raise ValueError(f"ids {ids} for an encoder of {config.vocab_size} words")
    return model.eval().requires_grad_(False), words


class FolderCaptions(CaptionEncoder):
    """What Stable Diffusion's U-Net sees: all T states after the last norm, those of pads as well."""

    def __init__(
        self, model: nn.Module, words: Any, about: Mapping[str, Any], precision: str
    ) -> None:
        self._words, self._pad, self._is_bf16 = words, words.pad_token_id, precision == "bf16"
        super().__init__(model, about["length"], words.eos_token_id, about)

    def encode_text(self, ids: Tensor) -> tuple[Tensor, Tensor, None]:
        """States (B, T, D) in fp32, a mask (B, T) that hides none, and no vectors."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_bf16):
            states = self._module(input_ids=ids).last_hidden_state
        return states.float(), torch.ones_like(ids, dtype=torch.bool), None

    def _ids(self, text: str) -> tuple[list[int], bool]:
        found = self._words(written(text), add_special_tokens=False)["input_ids"]
        room = self.context - 2
        own = [self._words.bos_token_id, *found[:room], self._end]
        return own, len(found) > room
