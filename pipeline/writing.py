"""Shards as tars: the same samples give the same bytes, and training samples the same members."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

MEMBERS = ("jpg", "txt", "json")


class ShardWriter:
    """Writes the members of one sample after another; same input, same bytes.

    After the `with` block, `size` and `sha256` are those of the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = _HashingFile(path)
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._tar.close()
        finally:
            self._file.close()

    def add(self, key: str, jpg: bytes, txt: str, json_: dict) -> dict[str, int]:
        """Appends a training sample: `{key}.jpg`, `{key}.txt`, `{key}.json`, whatever is in them."""
        contents = (jpg, txt.encode(), json_bytes(json_))
        return self.add_members(key, dict(zip(MEMBERS, contents, strict=True)))

    def add_members(self, key: str, members: Mapping[str, bytes]) -> dict[str, int]:
        """Appends a sample; returns where its members' bytes are: `jpg_offset`, `jpg_size`, ..."""
        places = {}
        for suffix, data in members.items():
            header = tarfile.TarInfo(f"{key}.{suffix}")
            header.size = len(data)
            self._tar.addfile(header, io.BytesIO(data))  # mtime 0, no owner
            padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            places[f"{suffix}_offset"] = self._file.tell() - padded
            places[f"{suffix}_size"] = len(data)
        return places

    @property
    def size(self) -> int:
        return self._file.tell()

    @property
    def sha256(self) -> str:
        return self._file.sha256.hexdigest()


def json_bytes(value: dict) -> bytes:
    """A sample's `.json`; ValueError for numbers that JSON cannot hold."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


class _HashingFile:
    """What tarfile writes through: counts and hashes."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=1 << 20)
        self._size = 0
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self._size += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._size

    def close(self) -> None:
        self._file.close()
