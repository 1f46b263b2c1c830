"""Checkpoints: one safetensors file each, written whole or not at all, and read without pickle."""

import json
import re
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jobs.job import complain
from pipeline import storage

_NAME = re.compile(r"step-(\d{8,})\.safetensors")


def save(path: Path, tensors: dict[str, Tensor], about: dict) -> None:
    """Writes tensors and JSON values to one file; a kill leaves the old file or the new one."""
    on_cpu = _apart(tensors)
    header = json.dumps(about | {"crc32": _crc32(on_cpu)}, sort_keys=True)
    with storage.write_atomic(str(path)) as part:
        save_file(on_cpu, part, metadata={"format": "pt", "recaption": header})


def load(path: Path) -> tuple[dict[str, Tensor], dict]:
    """What `save` wrote; ValueError where the file is damaged."""
    try:
        with safe_open(path, "pt") as f:
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
            about = json.loads((f.metadata() or {})["recaption"])
    except (SafetensorError, KeyError, ValueError) as e:
        raise ValueError(str(e)) from e
    if _crc32(tensors) != about.get("crc32"):
        raise ValueError("checksum does not match")
    return tensors, about


def about(path: Path) -> dict:
    """The JSON values of a file alone; {} where there is none, or it is not whole."""
    try:
        with safe_open(path, "pt") as f:
            return json.loads((f.metadata() or {})["recaption"])
    except (FileNotFoundError, SafetensorError, KeyError, ValueError):
        return {}


def holds(path: Path, tensors: dict[str, Tensor], about: dict) -> bool:
    """Whether a file is whole, and what `save` would write."""
    try:
        _, found = load(path)
    except (FileNotFoundError, ValueError):
        return False
    return found == about | {"crc32": _crc32(_apart(tensors))}


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


def steps_in(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, newest first."""
    names = (_NAME.fullmatch(path.name) for path in folder.glob("step-*"))
    return sorted((int(name[1]) for name in names if name), reverse=True)


def newest(folder: Path) -> tuple[dict[str, Tensor], dict] | None:
    """The newest whole checkpoint; damaged ones are named and passed over."""
    for step in steps_in(folder):
        path = path_of(folder, step)
        try:
            return load(path)
        except ValueError as e:
            complain(f"note: {path} is damaged ({e}); going on from an older checkpoint, or anew")
    return None


def prune(folder: Path, keep: int, step: int) -> None:
    """Deletes all but the last `keep` checkpoints up to `step`."""
    for old in [s for s in steps_in(folder) if s <= step][keep:]:
        path_of(folder, old).unlink()


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, in order of name; tied weights become copies, as safetensors wants it."""
    found, seen = {}, set()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        storage_of = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if storage_of in seen else tensor
        seen.add(storage_of)
    return found


def _crc32(tensors: dict[str, Tensor]) -> int:
    crc = 0
    for name in sorted(tensors):
        flat = tensors[name].reshape(-1)
        crc = zlib.crc32(flat.view(torch.uint8).numpy(), zlib.crc32(name.encode(), crc))
    return crc
