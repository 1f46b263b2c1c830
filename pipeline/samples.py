"""One image-text pair of a shard, and the identity that it keeps for ever."""

import hashlib
from dataclasses import dataclass, field


def uid_of(shard: str, key: str) -> str:
    """128 bits in hex of (shard name, key): what every table joins on."""
    return hashlib.sha256(f"{shard}/{key}".encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Sample:
    """What a shard holds under one key.

    `image` is empty exactly where `reason` says why there is none. `text` is the original
    caption as written, with `text_status` from TEXT_STATUSES; `meta` is the parsed `.json`.
    """

    index: int
    uid: str
    key: str
    image: bytes = b""
    offset: int = -1  # of the image's bytes in the shard's file
    span: tuple[int, int] = (0, 0)  # of all its members there, from the first header to the end
    reason: str = ""
    text: str | None = None
    text_status: str = "missing"
    meta: dict = field(default_factory=dict)
    meta_status: str = "missing"  # ok | missing | invalid
