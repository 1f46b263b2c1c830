"""One training shard: where each of its samples is, and whether it still is what its mix wrote."""

import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import commit, storage, tombstones
from pipeline.errors import UserError
from pipeline.limits import MAX_BYTES
from pipeline.mix import KIND
from pipeline.schemas import OK
from pipeline.writing import MEMBERS

AGAIN = "run make mix again; it redoes what is missing"
_PLACES = [f"{member}_{what}" for member in MEMBERS for what in ("offset", "size")]


@dataclass(frozen=True)
class TrainingShard:
    """A tar of a mix, by its URL, and how many samples it holds."""

    url: str
    samples: int

    @property
    def folder(self) -> str:
        return posixpath.dirname(self.url)

    def beside(self, suffix: str) -> str:
        return self.url.removesuffix(".tar") + suffix


@dataclass(frozen=True)
class Rows:
    """Where the samples of a shard are in its tar: member -> offsets and sizes, each int64 (n,)."""

    places: Mapping[str, np.ndarray]
    sources: Sequence[str]
    _source: np.ndarray
    buried: frozenset[int]
    """Those that a take-down is still to cut out."""

    def span(self, row: int, *members: str) -> tuple[int, int]:
        """First byte, and the one behind the last, of some members of a sample."""
        begins = [int(self.places[f"{member}_offset"][row]) for member in members]
        ends = [
            begin + int(self.places[f"{member}_size"][row])
            for begin, member in zip(begins, members, strict=True)
        ]
        return min(begins), max(ends)

    def source(self, row: int) -> str:
        """Whence the stored caption comes."""
        return self.sources[self._source[row]]


def table_of(shard: TrainingShard, columns: Sequence[str]) -> pa.Table:
    """Some columns of a shard's parquet, of the rows that are in the tar."""
    url = shard.beside(".parquet")
    try:
        if storage.is_local(url):  # Arrow reads the columns it needs, without threads of its own
            file = pq.ParquetFile(url, page_checksum_verification=True)
            table = file.read([*columns, "status"], use_threads=False)
            file.close()
        else:
            table = commit.read_sidecar(url, [*columns, "status"])
        table = table.filter(pc.equal(table.column("status"), OK))
    except FileNotFoundError as e:
        raise gone(url) from e
    except Exception as e:  # Arrow and stores raise whatever they like
        why = " ".join(storage.scrub(str(e), url).split())
        raise UserError(f"SHARDS: {storage.public(url)} cannot be read: {why}", AGAIN) from e
    if table.num_rows != shard.samples:
        raise UserError(
            f"SHARDS: {storage.public(url)} has {table.num_rows} samples, {shard.samples} were counted",
            f"it was changed since; start anew, or {AGAIN}",
        )
    return table


def read_rows(shard: TrainingShard) -> Rows:
    """Checks a shard against what its mix said of it, and reads where its samples are."""
    stats = stats_of(shard.url)
    try:
        now = storage.fingerprint(shard.url).size
    except FileNotFoundError as e:
        raise gone(shard.url) from e
    except Exception as e:  # stores raise whatever they like
        raise unreadable(shard.url, e) from e
    then = stats["files"].get(posixpath.basename(shard.url), {}).get("size")
    if now != then:
        raise UserError(
            f"SHARDS: {storage.public(shard.url)} has {now} bytes, its mix wrote {then}", AGAIN
        )
    buried = _tombstones(shard)
    table = table_of(shard, [*_PLACES, "caption_source", *(["uid"] if buried else [])])
    places = {name: table.column(name).to_numpy().astype(np.int64) for name in _PLACES}
    for member in MEMBERS:
        offset, size = places[f"{member}_offset"], places[f"{member}_size"]
        if (
            (offset < 0).any()
            or (size < 0).any()
            or (size > MAX_BYTES).any()
            or (offset + size > now).any()
        ):
            raise UserError(
                f"SHARDS: {storage.public(shard.beside('.parquet'))} has places outside of the tar",
                AGAIN,
            )
    source = table.column("caption_source").combine_chunks().dictionary_encode()
    uids = table.column("uid").to_pylist() if buried else []
    return Rows(
        places,
        source.dictionary.to_pylist(),
        source.indices.to_numpy().astype(np.int16),
        frozenset(row for row, uid in enumerate(uids) if uid in buried),
    )


def _tombstones(shard: TrainingShard) -> frozenset[str]:
    """The uids buried in the mix's data folder: a take-down that was killed left them in the tar."""
    out, _, run = shard.folder.rpartition(f"/{KIND}/")
    if not out or "/" in run or shard.url.startswith(("http://", "https://")):
        return frozenset()
    try:
        return tombstones.load(out).uids
    except Exception as e:  # stores raise whatever they like
        raise unreadable(storage.join(out, tombstones.FILE), e) from e


def stats_of(url: str) -> dict:
    """A shard's `_stats.json`; UserError where it is missing or says nothing."""
    stats = json_at(url.removesuffix(".tar") + "_stats.json")
    if not stats or not isinstance(stats.get("successes"), int) or "files" not in stats:
        raise UserError(
            f"SHARDS: {storage.public(url)} is no whole training shard: its _stats.json is missing "
            "or damaged",
            AGAIN,
        )
    return stats


def json_at(url: str) -> dict | None:
    try:
        found = json.loads(storage.read_bytes(url))
    except Exception:  # stores raise whatever they like
        return None
    return found if isinstance(found, dict) else None


def gone(url: str) -> UserError:
    """A file that was there when the loader was made."""
    return UserError(f"SHARDS: {storage.public(url)} does not exist any more", AGAIN)


def unreadable(url: str, error: Exception) -> UserError:
    """One that a store does not give, for another reason."""
    why = " ".join(storage.scrub(str(error), url).split())
    return UserError(
        f"SHARDS: {storage.public(url)} cannot be read: {why}",
        "check the store and your credentials, then run the same command again",
    )
