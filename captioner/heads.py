"""Reads heads on embeddings from files: safetensors, or torch's with nothing but tensors unpickled."""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from captioner.checkpoint import read_tensors
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
    if file.stat().st_size > MAX_BYTES:
        raise UserError(
            f"{flag}={path} has {file.stat().st_size} bytes, a head has at most {MAX_BYTES}",
            "give the head alone, not the model that it stands on",
        )
    if file.suffix == ".safetensors":
        tensors, metadata = _read_safetensors(file)
    else:
        metadata = {}
        tensors = {key: tensor.float().numpy() for key, tensor in read_tensors(file).items()}
    return head_of(tensors, file.stem, sha256_of(file), metadata)


def _read_safetensors(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as opened:  # numpy has no bfloat16
            keys = opened.keys()
            tensors = {key: opened.get_tensor(key).float().numpy() for key in keys}
            return tensors, dict(opened.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file} is not a readable checkpoint ({type(error).__name__})",
            "give safetensors, or a torch file that holds tensors only",
        ) from error
