"""Take-downs: what was removed on request, so that no later step brings it back."""

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import commit, storage
from pipeline.schemas import TOMBSTONES

if TYPE_CHECKING:
    from pipeline.samples import Sample

FILE = "tombstones.parquet"
TAKEN_DOWN = "taken_down"
"""The reason of every row of a sample that is buried."""

BURIED_URL = "taken_down:"
"""Stands in a URL list where a buried URL stood; whoever has tombstones at all has this one."""


@dataclass(frozen=True)
class Tombstones:
    """What is buried. Hashes, not the things themselves: a list of what must not be is no archive."""

    uids: frozenset[str] = frozenset()
    sha256s: frozenset[str] = frozenset()  # of an image's bytes, as fetched or as stored
    urls: frozenset[str] = frozenset()  # sha256 of a URL as its list gave it

    def __bool__(self) -> bool:
        return bool(self.uids or self.sha256s or self.urls)

    def __or__(self, other: "Tombstones") -> "Tombstones":
        return Tombstones(
            self.uids | other.uids, self.sha256s | other.sha256s, self.urls | other.urls
        )

    def __le__(self, other: "Tombstones") -> bool:
        return self | other == other

    def bury(self, sample: "Sample") -> bool:
        """Whether a sample is one of these: by its uid, its URL, or the bytes of its image."""
        found = marks_of(sample, hashed=bool(self.sha256s))
        return not (
            self.uids.isdisjoint(found.uids)
            and self.urls.isdisjoint(found.urls)
            and self.sha256s.isdisjoint(found.sha256s)
        )


NONE = Tombstones()


def url_hash(url: str) -> str:
    """What a tombstone keeps of a URL."""
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()


def marks_of(sample: "Sample", *, hashed: bool = True) -> Tombstones:
    """All that a sample can be known by: hashes of the bytes that it has and that it tells of."""
    told, url = sample.meta.get("sha256"), sample.meta.get("url")
    sha256s = {told.lower()} if isinstance(told, str) and len(told) == 64 else set()
    if hashed and sample.image:
        sha256s.add(hashlib.sha256(sample.image).hexdigest())
    urls = {url_hash(url)} if isinstance(url, str) and url else set()
    return Tombstones(frozenset((sample.uid,)), frozenset(sha256s), frozenset(urls))


def load(out: str) -> Tombstones:
    """Those of a data folder."""
    return at(storage.join(out, FILE))


def at(url: str) -> Tombstones:
    """Those of a file that need not exist; read again only where it changed."""
    try:
        return _read(url, storage.fingerprint(url)) if url else NONE
    except FileNotFoundError:
        return NONE


@functools.lru_cache(maxsize=8)
def _read(url: str, content: storage.Fingerprint) -> Tombstones:
    rows = pq.read_table(commit.in_memory(url)).to_pydict()
    found = Tombstones(
        *(frozenset(v for v in rows[c] if v) for c in ("uid", "sha256", "url_sha256"))
    )
    return replace(found, urls=found.urls | {url_hash(BURIED_URL)}) if found else NONE


def add(out: str, buried: Tombstones, reason: str) -> None:
    """Buries more; what is buried already keeps its reason. Same content, same bytes."""
    url = storage.join(out, FILE)
    rows = pq.read_table(commit.in_memory(url)).to_pylist() if storage.exists(url) else []
    known = {(row["uid"], row["sha256"], row["url_sha256"]): row["reason"] for row in rows}
    for name, values in _by_column(buried).items():
        for value in values:
            key = tuple(value if name == column else None for column in _COLUMNS)
            known.setdefault(key, reason or None)
    if len(known) == len(rows):
        return
    table = _table(known)
    with storage.write_atomic(url) as part:
        commit.write_parquet(table, part)


_COLUMNS = ("uid", "sha256", "url_sha256")


def _by_column(buried: Tombstones) -> Mapping[str, Iterable[str]]:
    urls = buried.urls - {url_hash(BURIED_URL)}
    return dict(zip(_COLUMNS, (buried.uids, buried.sha256s, urls), strict=True))


def _table(known: Mapping[tuple, str | None]) -> pa.Table:
    ordered = sorted(known.items(), key=lambda item: [value or "" for value in item[0]])
    rows = [dict(zip(_COLUMNS, key, strict=True)) | {"reason": why} for key, why in ordered]
    return pa.Table.from_pylist(rows, schema=TOMBSTONES)
