"""Samples cut out of a tar: every other member keeps its bytes, header included."""

import hashlib
import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline import storage
from pipeline.reading import STUB, key_and_suffix

_BUFFER = 1 << 20


@dataclass(frozen=True)
class Cut:
    """A tar without some of its samples."""

    size: int  # bytes
    sha256: str
    left: int  # samples that are whole


def cut(url: str, part: Path, uids: Mapping[str, str], *, stubs: bool) -> Cut:
    """Writes the tar at `url` to a file without the samples of some keys.

    uids: key -> uid of what is cut out. stubs: leave a member in its place that only our reader
    sees, so that the samples keep their count and order. Same input, same bytes.
    """
    with storage.open_read(url) as file, part.open("wb") as target:
        out = _Hashing(target)
        keys: set[str] = set()
        done: set[str] = set()
        at = 0
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for start, end, key, is_stub in _members(tar):
                if is_stub or key not in uids:
                    keys |= set() if is_stub or key is None else {key}
                    continue
                _copy(file, at, start, out)
                if stubs and key not in done:
                    out.write(_stub(key, uids[key]))
                done.add(key)
                at = end
            last = tar.offset  # of the end-of-archive mark
        _copy(file, at, last, out)
        out.write(bytes(2 * tarfile.BLOCKSIZE))
        out.write(bytes(-out.size % tarfile.RECORDSIZE))
    return Cut(out.size, out.sha256.hexdigest(), len(keys))


def places(url: str) -> dict[str, tuple[int, int]]:
    """Where the bytes of a tar's files are: name -> (offset, size)."""
    with storage.open_read(url) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        return {member.name: (member.offset_data, member.size) for member in tar}


def _members(tar: tarfile.TarFile) -> Iterator[tuple[int, int, str | None, bool]]:
    """(start of the header, end of the padded content, key or None, whether it is a stub)."""
    for member in tar:
        tar.members.clear()
        name = member.name.encode("utf-8", "backslashreplace").decode().removeprefix("./")
        found = key_and_suffix(name) if member.isreg() else None
        padded = -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        yield (
            member.offset,
            member.offset_data + padded,
            found[0] if found else None,
            name.startswith(STUB),
        )


def _stub(key: str, uid: str) -> bytes:
    """The member that stands for a sample."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        header = tarfile.TarInfo(STUB + key)
        header.size = len(uid)
        tar.addfile(header, io.BytesIO(uid.encode()))
        end = tar.offset
    return file.getvalue()[:end]


def _copy(file: IO[bytes], start: int, end: int, out: "_Hashing") -> None:
    position = file.tell()
    file.seek(start)
    while start < end:
        data = file.read(min(_BUFFER, end - start))
        if not data:
            raise tarfile.ReadError("cut off")
        out.write(data)
        start += len(data)
    file.seek(position)


class _Hashing:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.size = 0
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.sha256.update(data)
        self.size += len(data)
