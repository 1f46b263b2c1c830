"""Reads heads on embeddings from files: safetensors, or torch's with nothing but tensors unpickled."""

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from captioner.checkpoint import read_weights
from captioner.load import sha256_of
from pipeline.annotate.heads import Head, head_of
from pipeline.errors import UserError

MAX_BYTES = 256 * 2**20  # the largest published head has 22 MB


def load_head(path: str, flag: str = "HEAD") -> Head:
    """The head in a .safetensors or .pth file, with float32 weights.

    flag: what the user calls it. Raises UserError where the file is missing, unreadable, or of a
    layout that `pipeline.annotate.heads.head_of` does not know.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{flag}={path}: there is no such file", "download it, and give its path")
    _require_small(f"{flag}={path}", max(file.stat().st_size, _unpacked(file)))
    tensors, metadata = read_weights(file)
    return head_of(_floats(f"{flag}={path}", tensors), file.stem, sha256_of(file), metadata)


def _floats(head: str, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The weights as float32; an expanded tensor may be of any size, whatever the file's."""
    _require_small(head, 4 * sum(math.prod(tensor.shape) for tensor in tensors.values()))
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            name = " ".join(key.split())[:80]
            raise UserError(
                f"{head}: tensor {name} is of {tensor.dtype}", "a head's weights are real numbers"
            )
    return {key: tensor.float().numpy() for key, tensor in tensors.items()}


def _unpacked(file: Path) -> int:
    """Bytes of all members of a torch file, which is a zip; 0 of any other."""
    try:
        with zipfile.ZipFile(file) as opened:
            return sum(member.file_size for member in opened.infolist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return 0


def _require_small(head: str, num_bytes: int) -> None:
    if num_bytes > MAX_BYTES:
        raise UserError(
            f"{head} has {num_bytes} bytes, a head has at most {MAX_BYTES}",
            "give the head alone, not the model that it stands on",
        )
