"""Take-downs: what was removed on request, so that no later step brings it back."""

from dataclasses import dataclass

import pyarrow.parquet as pq

from pipeline import commit, storage

FILE = "tombstones.parquet"


@dataclass(frozen=True)
class Tombstones:
    """What is buried. Hashes, not the things themselves: a list of what must not be is no archive."""

    uids: frozenset[str] = frozenset()
    sha256s: frozenset[str] = frozenset()  # of an image's bytes as fetched
    urls: frozenset[str] = frozenset()  # sha256 of a URL as its list gave it

    def __bool__(self) -> bool:
        return bool(self.uids or self.sha256s or self.urls)


NONE = Tombstones()


def load(out: str) -> Tombstones:
    """Those of a data folder."""
    url = storage.join(out, FILE)
    if not storage.exists(url):
        return NONE
    rows = pq.read_table(commit.in_memory(url)).to_pydict()
    return Tombstones(*(frozenset(v for v in rows[c] if v) for c in ("uid", "sha256", "url_sha256")))
