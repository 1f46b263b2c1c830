"""Resharding: samples of many shards, or of what a keep-list keeps, moved into shards of equal size.

Three steps, each resumable. Every source is read once, and a table of places says where its samples
lie and which of them go on. DuckDB orders all places (on disk where they are many) and cuts them
into parts, one for each shard to be. Then each shard fetches its samples by byte range: in the old
order these are long runs; shuffled, it is one read of each sample, which an object store answers
with one request each. Every byte is so read twice and written once.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import pyarrow.parquet as pq

from pipeline import commit, storage, tombstones
from pipeline.keep_list import NOT_KEPT
from pipeline.manifest import Shard
from pipeline.prefetch import prefetch
from pipeline.reading import (
    MAX_JSON_BYTES,
    READING_REASONS,
    BadShard,
    is_moved,
    is_ours,
    key_and_suffix,
    sample_of,
)
from pipeline.reshard_plan import Plan
from pipeline.runs import Run
from pipeline.schemas import OK, RESHARDED
from pipeline.shards_to_be import ShardsToBe
from pipeline.writing import ShardWriter

KIND = "shards"

BAD_MEMBER = "bad_member"
REASONS = (*READING_REASONS, NOT_KEPT, BAD_MEMBER)
"""Why a sample does not go on."""

MAX_SUFFIX = 60  # characters: a tar of the plain kind has no room for much more
_BLOCK_BYTES = 4 << 20  # read at once, where samples lie side by side
_AHEAD, _THREADS = 16, 4  # blocks


class ReshardWork(ShardsToBe):
    """A writer: a part of a plan becomes one shard.

    Members are copied byte by byte under new keys. A sample keeps its uid: a training sample tells
    it in its `.json` already, into which a raw sample's uid, source_shard and source_key are written.
    BadShard where a source is not what was planned.
    """

    schema = RESHARDED

    def __init__(self, plan: Plan, sources: Sequence[Shard], run: Run) -> None:
        self.plan = plan
        self.sources = {shard.name: shard for shard in sources}
        self.run = run
        self._tombstones = storage.join(run.out, tombstones.FILE)

    def counts(self) -> Sequence[int]:
        """Samples of each shard."""
        return self.plan.counts

    def made_of(self) -> dict:
        """The plan."""
        return {"plan": self.plan.identity}

    def written(self, shard: Shard, lost: frozenset[int], writer: ShardWriter) -> Iterator[dict]:
        """A row of RESHARDED for each place of a part."""
        for number, (place, members) in enumerate(self._copied(shard)):
            key = f"{shard.name}{number:04d}"
            yield self._write(key, place, members, number in lost, writer)

    def probe(self, shard: Shard, lost: frozenset[int], indices: range) -> None:
        """Goes through some samples of a shard and keeps nothing: does the process survive?"""
        for number, (place, members) in enumerate(self._copied(shard)):
            if number in indices and number not in lost:
                sample_of(place["shard"], place["key"], members)

    def _copied(self, shard: Shard) -> Iterator[tuple[dict, dict[str, bytes]]]:
        """Each place of a part with the members that lie there, read ahead in runs."""
        part = commit.read_sidecar(self.plan.part(int(shard.name))).to_pylist()
        read = partial(_members_of, sources=self.sources)
        blocks = prefetch(_runs(part), read, threads=_THREADS, depth=_AHEAD, size=_bytes_of)
        for block in blocks:
            yield from block

    def _write(
        self, key: str, place: dict, members: dict[str, bytes], is_lost: bool, writer: ShardWriter
    ) -> dict:
        """Appends a sample to the shard and returns its row; one that may not go on only has a row."""
        row = {
            "uid": place["uid"],
            "key": key,
            "source_shard": place["shard"],
            "source_key": place["key"],
        }
        reason = "killed_worker" if is_lost else self._refused(place, members)
        if reason:
            return row | {"status": "failed", "reason": reason}
        writer.add_members(key, _with_uid(place, members))
        return row | {"status": OK, "reason": None}

    def _refused(self, place: dict, members: dict[str, bytes]) -> str:
        if any(len(suffix.encode("utf-8", "backslashreplace")) > MAX_SUFFIX for suffix in members):
            return BAD_MEMBER
        for url in (self.sources[place["shard"]].tombstones, self._tombstones):
            buried = tombstones.at(url)
            if buried and buried.bury(sample_of(place["shard"], place["key"], members)):
                return tombstones.TAKEN_DOWN
        return ""


def inherit_tombstones(out: str, to: str) -> None:
    """Buries in one data folder what is buried in another, for the same reasons."""
    url = storage.join(out, tombstones.FILE)
    rows = pq.read_table(commit.in_memory(url)).to_pylist() if storage.exists(url) else []
    for why in sorted({row["reason"] or "" for row in rows}):
        of_it = [row for row in rows if (row["reason"] or "") == why]
        columns = [frozenset(r[c] for r in of_it if r[c]) for c in ("uid", "sha256", "url_sha256")]
        tombstones.add(to, tombstones.Tombstones(*columns), why)


def _runs(places: Sequence[dict]) -> Iterator[list[dict]]:
    """Places that lie side by side in one file, up to _BLOCK_BYTES."""
    run: list[dict] = []
    for place in places:
        last = run[-1] if run else None
        follows = last and (last["shard"], last["start"] + last["size"]) == (
            place["shard"],
            place["start"],
        )
        if run and not (follows and _bytes_of(run) + place["size"] <= _BLOCK_BYTES):
            yield run
            run = []
        run.append(place)
    if run:
        yield run


def _bytes_of(run: Sequence[dict]) -> int:
    return run[-1]["start"] + run[-1]["size"] - run[0]["start"]


def _members_of(
    run: Sequence[dict], sources: Mapping[str, Shard]
) -> list[tuple[dict, dict[str, bytes]]]:
    """The members at each place of a run; BadShard where they are another key's, or cut off."""
    shard, start = sources[run[0]["shard"]], run[0]["start"]
    data = storage.read_range(shard.url, start, _bytes_of(run))
    found = []
    for place in run:
        at = place["start"] - start
        members = _parsed(data[at : at + place["size"]], place["key"])
        if len(data) != _bytes_of(run) or not members:
            where = f"{storage.public(shard.url)}: {place['key']!r} is not where it was"
            raise BadShard(f"{where}; run the same command again")
        found.append((place, members))
    return found


def _parsed(data: bytes, key: str) -> dict[str, bytes]:
    """The members of one sample, suffix -> bytes; none where it is another sample's place."""
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", encoding="utf-8") as tar:
            for member in tar:
                name = member.name.encode("utf-8", "backslashreplace").decode().removeprefix("./")
                found = key_and_suffix(name) if member.isreg() else None
                if found is None:
                    continue
                if found[0] != key:
                    return {}
                members[found[1]] = tar.extractfile(member).read()
    except tarfile.TarError:
        return {}
    return members


def _with_uid(place: dict, members: dict[str, bytes]) -> dict[str, bytes]:
    """The members of a sample, of which the `.json` tells its uid; a `.json` that is none stays
    beside it, as `source.json`."""
    raw = members.get("json")
    sample = sample_of(place["shard"], place["key"], {"json": raw} if raw is not None else {})
    if is_ours(sample.meta) or is_moved(sample.meta):
        return members
    came = {"uid": place["uid"], "source_shard": place["shard"], "source_key": place["key"]}
    told = json.dumps(sample.meta | came, ensure_ascii=False).encode("utf-8", "replace")
    kept = {} if raw is None or sample.meta_status == "ok" else {"source.json": raw}
    if len(told) > MAX_JSON_BYTES:
        told, kept = json.dumps(came, ensure_ascii=False).encode(), {"source.json": raw}
    return {s: m for s, m in members.items() if s != "json"} | {"json": told} | kept
