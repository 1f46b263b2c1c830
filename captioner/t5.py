"""T5's encoder from a folder or the hub: safetensors and a fast tokenizer's JSON, and no code of either."""

# B captions, T tokens, D width of their states

import re
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import nn

from captioner.load import sha256_of
from pipeline.errors import UserError
from pipeline.foreign import UNFIT, believed, read_object

PREFIX = "t5:"
_CONFIG, _WORDS, _WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
_INDEX = _WEIGHTS + ".index.json"  # of weights in several files
_INDEX_BYTES, _WORDS_BYTES = 1 << 24, 1 << 27
_KNOWN = (
    *("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "feed_forward_proj"),
    *("relative_attention_num_buckets", "relative_attention_max_distance", "layer_norm_epsilon"),
    *("pad_token_id", "eos_token_id"),
)
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class T5Folder:
    """Where an encoder's files are, and what its configuration says."""

    path: Path
    settings: dict[str, Any]
    weights: tuple[Path, ...]

    @property
    def identity(self) -> dict[str, Any]:
        """JSON that tells it from other encoders."""
        return {
            "architecture": "T5EncoderModel",
            "config": self.settings,
            "weights": ",".join(map(sha256_of, self.weights)),
            "tokenizer": sha256_of(self.path / _WORDS),
        }


def find_t5(name: str, flag: str = "TEXT") -> T5Folder:
    """The files of `t5:<folder or repository of the Hugging Face hub>`, fetched where need be.

    Raises UserError.
    """
    place = name.removeprefix(PREFIX)
    path = Path(place) if place and Path(place).is_dir() else _fetched(place, f"{flag}={name}")
    with _understood(path, flag):
        settings = believed(read_object(path / _CONFIG), _KNOWN)
        if (path / _WORDS).stat().st_size > _WORDS_BYTES:
            raise ValueError(f"{_WORDS} is longer than {_WORDS_BYTES:,} bytes")
        return T5Folder(path, settings, _weights(path))


def load_t5(
    folder: T5Folder, dtype: torch.dtype, flag: str = "TEXT"
) -> tuple[nn.Module, Tokenizer]:
    """transformers' T5EncoderModel (1910.10683), and its tokenizer without cuts, pads and an end.

    Raises UserError, also where weights are missing, or more than the configuration tells of.
    """
    from transformers import T5Config, T5EncoderModel

    with _understood(folder.path, flag):
        config = T5Config(**folder.settings)
        with torch.device("meta"):  # every weight is about to be read: draw none
            model = T5EncoderModel(config)
        numbers = sum(p.numel() for p in model.parameters())
        if numbers > (stored := sum(file.stat().st_size for file in folder.weights)):
            raise ValueError(f"{stored:,} bytes of safetensors for {numbers:,} weights")
        state = _read(folder.weights, dtype, model.state_dict())
        absent = model.load_state_dict(state, strict=False, assign=True).missing_keys
        if absent:
            raise ValueError(f"no weights for {absent[0]}")
        model.set_input_embeddings(model.shared)
        words = _tokenizer(folder.path / _WORDS)
        words.no_truncation()
        words.no_padding()
        ids = (max(words.get_vocab().values()), config.pad_token_id, config.eos_token_id)
        if not all(isinstance(i, int) and 0 <= i < config.vocab_size for i in ids):
            raise ValueError(f"ids {ids} for an encoder of {config.vocab_size} words")
        if config.pad_token_id == config.eos_token_id:
            raise ValueError("the pad is the end")
    return model, words


def _tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no kind of its own
        raise ValueError(f"{path.name}: {error}") from error


def _read(
    files: tuple[Path, ...], dtype: torch.dtype, names: Container[str]
) -> dict[str, torch.Tensor]:
    """The encoder's weights of a T5 with or without its decoder. names: of those that it may have."""
    state = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                if key.startswith(("encoder.", "shared.")):
                    kind = file.get_slice(key).get_dtype()
                    if key not in names or kind not in _FLOATS:  # other sizes, or quantised ones
                        raise ValueError(f"it holds {key} in {kind}, which is none of its weights")
                    state[key] = file.get_tensor(key).to(dtype)
    # Of the two names that the embedding goes by, files hold one or both.
    both = ("shared.weight", "encoder.embed_tokens.weight")
    found = next((state[name] for name in both if name in state), None)
    return state if found is None else state | dict.fromkeys(both, found)


def _weights(path: Path) -> tuple[Path, ...]:
    if (path / _WEIGHTS).is_file():
        return (path / _WEIGHTS,)
    if not (path / _INDEX).is_file():
        raise ValueError(f"no {_WEIGHTS}")
    names = sorted(set(read_object(path / _INDEX, _INDEX_BYTES)["weight_map"].values()))
    if not all(PurePosixPath(n).name == n and n.endswith(".safetensors") for n in names):
        raise ValueError(f"{_INDEX} names files that are no safetensors of this folder")
    if absent := [name for name in names if not (path / name).is_file()]:
        raise ValueError(f"no {absent[0]}")
    return tuple(path / name for name in names)


def _fetched(place: str, said: str) -> Path:
    """A repository's files, from the Hugging Face cache or hub."""
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", place):
        raise UserError(
            f"{said} is neither a folder nor a repository of the hub",
            "for example t5:google/flan-t5-base, or t5:<folder>",
        )
    from huggingface_hub import HfApi, snapshot_download

    wanted = [_CONFIG, _WORDS, _INDEX, "model*.safetensors"]
    try:
        path = Path(snapshot_download(place, allow_patterns=wanted, local_files_only=True))
        if (path / _WORDS).is_file() and _weights(path):
            return path
    except (OSError, ValueError, LookupError, AttributeError):
        pass  # not fetched yet, or not all of it
    try:
        # Asked once beforehand: the download itself retries for minutes without a network.
        HfApi().model_info(place, timeout=5)
        return Path(snapshot_download(place, allow_patterns=wanted))
    except Exception as error:  # the hub's client raises a dozen kinds; all mean the same here
        raise UserError(
            f"{said} could not be fetched ({type(error).__name__})",
            "check the path or the network, or name a folder with config.json, tokenizer.json and "
            "model.safetensors",
        ) from error


@contextmanager
def _understood(path: Path, flag: str) -> Iterator[None]:
    try:
        yield
    except UNFIT as error:
        why = " ".join(str(error).split())[:300]
        raise UserError(
            f"{flag}: {path} cannot be read: {why}",
            "give a folder with config.json, tokenizer.json and model.safetensors of a T5",
        ) from error
