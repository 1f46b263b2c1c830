"""Tensors as checkpoint files hold them: on the CPU, each for itself, and their checksum."""

import zlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, in order of name; tied weights become copies, as safetensors wants it."""
    found, seen = {}, set()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        storage_of = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if storage_of in seen else tensor
        seen.add(storage_of)
    return found


def crc32(tensors: Iterable[tuple[str, Tensor]]) -> int:
    """Of names and bytes, in the order in which they come."""
    crc = 0
    for name, tensor in tensors:
        flat = tensor.reshape(-1)
        crc = zlib.crc32(flat.view(torch.uint8).numpy(), zlib.crc32(name.encode(), crc))
    return crc
