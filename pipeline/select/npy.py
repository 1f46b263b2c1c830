"""An .npy file from a stranger: its header is checked against its size before anything is believed."""

import io
import math
from pathlib import Path

import numpy as np

from pipeline import storage

MAX_BYTES = 1 << 38
"""Of a local file, which is mapped, not read."""

MAX_REMOTE_BYTES = 1 << 33
"""Of a file that is fetched into memory."""

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_HEADER_BYTES = 1 << 16


def open_array(url: str) -> np.ndarray:
    """The array, read-only; ValueError where it is no array of numbers that fills the file exactly.

    Raises OSError where there is no such file. Nothing in it is unpickled.
    """
    size = storage.fingerprint(url).size
    limit = MAX_BYTES if storage.is_local(url) else MAX_REMOTE_BYTES
    if size > limit:
        raise ValueError(f"it has {size} bytes, more than {limit}")
    with storage.open_read(url) as file:
        head = io.BytesIO(file.read(_HEADER_BYTES))
    read_header = _HEADERS.get(np.lib.format.read_magic(head))
    if read_header is None:
        raise ValueError("it is an .npy of an unknown version")
    shape, in_fortran_order, kind = read_header(head)
    if kind.hasobject:
        raise ValueError("it holds Python objects, which are never unpickled")
    offset, count = head.tell(), math.prod(shape)
    if size != offset + count * kind.itemsize or (in_fortran_order and len(shape) > 1):
        raise ValueError(f"its header says {shape} of {kind}, which {size} bytes are not")
    if not count:
        return np.zeros(shape, kind)
    if storage.is_local(url):
        return np.memmap(Path(url), kind, "r", offset, shape)
    return np.frombuffer(storage.read_bytes(url), kind, count, offset).reshape(shape)
