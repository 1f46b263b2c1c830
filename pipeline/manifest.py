"""shards.parquet: every input shard once, under one short name that it keeps."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import commit, storage, tombstones
from pipeline.errors import UserError
from pipeline.schemas import SHARDS

FILE = "shards.parquet"


@dataclass(frozen=True)
class Shard:
    """An input shard: its short name, where it is, and what identifies its content."""

    name: str
    url: str  # to open; never logged or stored as it is, it may carry a token
    size: int
    etag: str = ""
    mtime_ns: int = 0
    sha256: str = ""
    samples: int | None = None
    limit: int | None = None  # read only the first so many samples
    # Where its data folder keeps them: whoever reads the shard honours them.
    tombstones: str = field(default="", compare=False, repr=False)

    @property
    def identity(self) -> dict:
        """What a derived file records of this shard."""
        return {"size": self.size, "etag": self.etag, "sha256": self.sha256, "limit": self.limit}

    def is_still(self, identity: dict) -> bool:
        """Whether a derived file's record speaks of the content that this shard has now."""
        if self.etag or identity["etag"]:
            same = self.etag == identity["etag"]
        else:  # a hash that we do not have yet belongs to a file that nobody touched
            same = self.sha256 in ("", identity["sha256"])
        return same and (self.size, self.limit) == (identity["size"], identity["limit"])


def register(out: str, urls: Iterable[str], *, save: bool = True) -> list[Shard]:
    """Names the given shards, old names first, and notes what their content is now.

    Raises UserError naming the shards that do not exist. A new shard takes its own file name if
    that is five to twelve digits and free, else the next free number. save=False only looks.
    """
    known = {row["url"]: row for row in _load(out)}
    taken = {row["name"] for row in known.values()}
    urls = list(urls)
    _refuse_alike(urls)
    fingerprints = _fingerprints(urls)
    shards = []
    for url, now in zip(urls, fingerprints, strict=True):
        stored = _stored_url(out, url)
        row = known.get(stored) or {"name": _new_name(stored, taken), "url": stored}
        taken.add(row["name"])
        known[stored] = row = row | _content(url, row, now)
        shards.append(_shard(out, row, url))
    if save:
        _save(out, known.values())
    return shards


def load(out: str) -> list[Shard]:
    """Every shard registered so far, by name."""
    rows = sorted(_load(out), key=lambda row: row["name"])
    return [_shard(out, row, _opened_url(out, row["url"])) for row in rows]


def learn(out: str, read: dict[str, dict]) -> None:
    """Notes what reading taught: name -> {"sha256", "samples"} of shards read whole."""
    rows = _load(out)
    learned = [row | read.get(row["name"], {}) for row in rows]
    if learned != rows:
        _save(out, learned)


def _content(url: str, row: dict, now: storage.Fingerprint) -> dict:
    """The size, times and hash to note of a shard, given what was noted before.

    No hash means: not read yet, and untouched since it was first seen. A file that was touched
    is hashed at once, because only its bytes tell whether what was derived from it still holds.
    """
    noted = {"size": now.size, "etag": now.etag or None, "mtime_ns": now.mtime_ns or None}
    if "size" not in row or all(row[k] == v for k, v in noted.items()):
        return noted
    if not storage.is_local(url):
        return noted | {"sha256": None, "samples": None}
    sha256 = _sha256(url)
    return noted | {"sha256": sha256} | ({} if sha256 == row["sha256"] else {"samples": None})


def _refuse_alike(urls: list[str]) -> None:
    """Two URLs that differ only in what is not stored of them would be one shard."""
    stored = Counter(storage.public(url) for url in urls)
    for url, count in stored.items():
        if count > 1:
            raise UserError(
                f"SHARDS: {count} shards are {url}",
                "give each once; what follows a ? or # does not tell them apart",
            )


def _new_name(url: str, taken: set[str]) -> str:
    stem = url.rsplit("/", 1)[-1].removesuffix(".tar")
    if stem.isascii() and stem.isdigit() and 5 <= len(stem) <= 12 and stem not in taken:
        return stem
    number = max((int(name) for name in taken), default=-1) + 1
    return f"{number:05d}"


def _stored_url(out: str, url: str) -> str:
    return storage.public(url).removeprefix(out.rstrip("/") + "/")


def _opened_url(out: str, stored: str) -> str:
    here = storage.is_local(stored) and not stored.startswith("/")
    return storage.join(out, stored) if here else stored


def _shard(out: str, row: dict, url: str) -> Shard:
    fields = {k: v for k, v in row.items() if v is not None}
    return replace(Shard(**fields), url=url, tombstones=storage.join(out, tombstones.FILE))


def _fingerprints(urls: list[str]) -> list[storage.Fingerprint]:
    def look(url: str) -> storage.Fingerprint | Exception:
        try:
            return storage.fingerprint(url)
        except Exception as e:  # stores raise whatever they like
            return e

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(look, urls))
    bad = [(u, f) for u, f in zip(urls, found, strict=True) if isinstance(f, Exception)]
    if bad:
        url, error = bad[0]
        if isinstance(error, FileNotFoundError):
            why = "does not exist"
        else:
            why = f"cannot be read: {' '.join(storage.scrub(str(error), url).split())}"
        more = f" (and {len(bad) - 1} more of {len(urls)})" if len(bad) > 1 else ""
        raise UserError(f"SHARDS: {storage.public(url)} {why}{more}", "check the path or pattern")
    return found


def _sha256(url: str) -> str:
    with storage.open_read(url) as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _load(out: str) -> list[dict]:
    path = storage.join(out, FILE)
    if not storage.exists(path):
        return []
    return pq.read_table(commit.in_memory(path), schema=SHARDS).to_pylist()


def _save(out: str, rows: Iterable[dict]) -> None:
    table = pa.Table.from_pylist(sorted(rows, key=lambda r: r["name"]), schema=SHARDS)
    with storage.write_atomic(storage.join(out, FILE)) as part:
        pq.write_table(table, part)
