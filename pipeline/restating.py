"""Records made true again of files that were replaced: what they are called now, what is in them."""

import json
from collections import Counter
from dataclasses import asdict, replace

import pyarrow as pa

from pipeline import blanking, commit, storage
from pipeline.commit import Record
from pipeline.holdings import SIDECARS, Holdings
from pipeline.replaced import Replaced
from pipeline.schemas import OK
from pipeline.takedown_search import Found


class Restating:
    """Says what records should say, once files that they speak of were replaced; see `Replaced`."""

    def __init__(self, holdings: Holdings, log: Replaced, found: Found) -> None:
        self._there = holdings
        self._log = log
        self._found = found

    def inputs(self, record: Record) -> dict:
        """What an output was made from, by what that is called now."""
        inputs = dict(record.inputs)
        for name, value in record.inputs.items():
            if name == "shard" and isinstance(value, dict):
                inputs[name] = self._shard_now(record.shard, value)
            elif isinstance(value, str) and name.partition("/")[0] in SIDECARS:
                inputs[name] = self._log.now(f"{name}/{record.shard}.parquet", value)
        return inputs

    def restate(self, stem: str, table: pa.Table | None) -> bool:
        """Makes a `_stats.json` true of the files beside it; whether it was not."""
        path = f"{stem}_stats.json"
        if not storage.exists(self._there.url(path)):
            return False
        before = json.loads(storage.read_bytes(self._there.url(path)))
        said = before | self._told(stem, table, before)
        if said == before:
            return False
        storage.write_bytes(self._there.url(path), json.dumps(said, indent=1).encode())
        return True

    def plan(self, path: str) -> None:
        """Makes the plan of a crawl true of its parts."""
        folder = path.rpartition("/")[0]
        before = storage.read_bytes(self._there.url(path))
        said = json.loads(before)
        for part in said["parts"] or ():
            part["sha256"] = self._log.now(f"{folder}/{part['name']}.parquet", part["sha256"])
        after = json.dumps(said, indent=1, ensure_ascii=False).encode()
        if after != before:
            storage.write_bytes(self._there.url(path), after)

    def sizes(self, path: str) -> None:
        """Makes a `sizes.json` true of the `_stats.json` beside it, as `pipeline.mix` writes it."""
        folder = path.rpartition("/")[0]
        said = json.loads(storage.read_bytes(self._there.url(path)))
        stats = {name: f"{folder}/{name.removesuffix('.tar')}_stats.json" for name in said}
        now = {
            name: json.loads(storage.read_bytes(self._there.url(stats[name])))["successes"]
            for name in said
            if storage.exists(self._there.url(stats[name]))
        }
        now = {name: count for name, count in (said | now).items() if count}
        if now != said:
            storage.write_bytes(self._there.url(path), json.dumps(now, indent=1).encode())

    def _told(self, stem: str, table: pa.Table | None, before: dict) -> dict:
        """What a `_stats.json` should say."""
        if "record" not in before:
            return self._told_of_foreign(stem, table, before)
        if not self._concerns(stem, before, table):
            return {}
        record = Record.from_dict(before["record"])
        folder, _, name = stem.rpartition("/")
        inputs = self.inputs(record)
        if "part" in inputs:
            part = f"{folder.replace('shards', 'urls', 1)}/{name}.parquet"
            inputs["part"] = self._log.now(part, inputs["part"])
        counts = blanking.recounted(record.counts, table) if table is not None else record.counts
        record = replace(record, inputs=inputs, counts=counts)
        done = counts["status"].get(OK, 0)
        status = {"success": done, **counts["reason"]}
        told = {"count": counts["rows"], "successes": done, "status_dict": status}
        if table is not None:
            told |= blanking.stats_of(table)
        files = {
            file: self._identity(f"{folder}/{file}", known)
            for file, known in before["files"].items()
            if storage.exists(self._there.url(f"{folder}/{file}"))
        }
        return told | {"files": files, "record": asdict(record)}

    def _concerns(self, stem: str, before: dict, table: pa.Table | None) -> bool:
        """Whether anything that a shard's stats speak of was replaced, now or before a kill."""
        record = Record.from_dict(before["record"])
        folder = stem.rpartition("/")[0]
        own = {f"{folder}/{file}" for file in before["files"]}
        moved = self.inputs(record) != record.inputs or "part" in record.inputs
        return bool(own & self._log.paths) or (moved and bool(self._log.paths))

    def _told_of_foreign(self, stem: str, table: pa.Table | None, before: dict) -> dict:
        """Of a shard that img2dataset wrote."""
        if not {f"{stem}.tar", f"{stem}.parquet"} & self._log.paths:
            return {}
        if table is not None and "status" in table.column_names:
            told = blanking.stats_of(table)
            statuses = Counter(table.column("status").to_pylist())
            return told | {"successes": statuses["success"]}
        stubs = len(self._found.stubs.get(f"{stem}.tar", {}))
        gone = len(self._found.places.get(f"{stem}.tar", {}))
        return {"successes": max(0, before.get("count", stubs + gone) - stubs - gone)}

    def _identity(self, path: str, known: dict) -> dict:
        """Size and hash of a file as it is; hashed anew only where it was replaced."""
        if path not in self._log.paths:
            return known
        url = self._there.url(path)
        return {"size": storage.fingerprint(url).size, "sha256": commit.sha256_file(url)}

    def _shard_now(self, name: str, identity: dict) -> dict:
        path = self._there.shard_path(name)
        old = identity["etag"] or identity["sha256"]
        if path is None or self._log.now(path, old) == old:
            return identity
        now = storage.fingerprint(self._there.url(path))
        sha256 = "" if now.etag else self._log.now(path, old)
        return identity | {"size": now.size, "etag": now.etag, "sha256": sha256}
