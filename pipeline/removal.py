"""The removal of buried samples from everything in a data folder that is ours to rewrite."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from pipeline import blanking, card, commit, manifest, runs, storage, tombstones
from pipeline.blanking import NO_UIDS
from pipeline.blend import Blend
from pipeline.commit import Record
from pipeline.crawl import plan as plans
from pipeline.holdings import REMADE, Holdings
from pipeline.keep_list import verdicts_sha256
from pipeline.loading import cached
from pipeline.loading.cache_format import SUFFIX, open_cache_file
from pipeline.mix import Recipe, write_sizes
from pipeline.replaced import Replaced
from pipeline.restating import Restating
from pipeline.runs import Run
from pipeline.takedown_search import Found, buried_rows, journal_lines
from pipeline.tar_cutting import cut, places
from pipeline.tombstones import Tombstones


@dataclass
class Report:
    """What a take-down did, or would do."""

    removed: Counter[tuple[str, str]] = field(default_factory=Counter)  # (path, what) -> how many
    elsewhere: dict[str, int] = field(default_factory=dict)  # shards not ours to rewrite -> samples
    unread: dict[str, str] = field(default_factory=dict)  # shards -> why
    others: dict[str, int] = field(default_factory=dict)  # see Holdings.others
    buried: Tombstones = tombstones.NONE
    missing: Tombstones = tombstones.NONE  # asked for, and nowhere to be found


class Removal:
    """One take-down at work. Each step leaves alone what is as it should be."""

    def __init__(self, holdings: Holdings, report: Report, found: Found) -> None:
        self._there = holdings
        self._report = report
        self._buried = report.buried
        self._found = found
        self._log = Replaced(holdings.out)
        self._say = Restating(holdings, self._log, found)

    def run(self) -> None:
        self._plans()
        self._shards()
        self._manifest()
        self._sidecars()
        self._mixes()
        self._encodings()
        self._journals()
        self._taught()
        self._unfinished()
        if self._report.removed or self._log.paths:
            self._remade()
        self._log.clear()

    def _count(self, path: str, what: str, number: int = 1) -> None:
        if number:
            self._report.removed[path, what] += number

    # what is still to be fetched

    def _plans(self) -> None:
        """URL lists of crawls: the buried rows tell nothing any more."""
        for path in self._there.planned:
            table = blanking.as_written(commit.read_sidecar(self._there.url(path)))
            self._blank(path, table, blanking.is_buried(table, self._buried, NO_UIDS))
        for path in self._there.paths(f"urls/{plans.FILE}", f"urls/*/{plans.FILE}"):
            self._say.plan(path)

    # shards

    def _shards(self) -> None:
        """Raw shards of our own and what was put in quarantine, each with its table and stats."""
        for path in self._there.apart:
            self._cut(path, stubs=False)
        tables = self._there.raw_tables
        stems = {path.rpartition(".")[0] for path in (*self._there.raw, *tables)}
        for stem in sorted(stems):
            self._cut(f"{stem}.tar", stubs=True)
            table = self._blank_raw(f"{stem}.parquet") if f"{stem}.parquet" in tables else None
            self._restate(stem, table)
        for path in self._there.paths("shards/sizes.json", "shards/*/sizes.json"):
            self._say.sizes(path)

    def _cut(self, path: str, *, stubs: bool) -> None:
        """Takes samples out of a tar; removes a tar that is left without any."""
        keys = self._found.places.get(path)
        if not keys:
            return
        url = self._there.url(path)
        old = storage.fingerprint(url).etag or commit.sha256_file(url)
        with storage.write_atomic(url) as part:
            made = cut(url, part, keys, stubs=stubs)
            self._log.note(path, old, made.sha256)
            if not made.left and not stubs:
                part.unlink()
        if not made.left and not stubs:
            storage.remove(url)
        self._count(path, "samples", len(keys))

    def _blank_raw(self, path: str) -> pa.Table:
        table = blanking.as_written(commit.read_sidecar(self._there.url(path)))
        rows = buried_rows(self._there, path, table, self._buried, self._found)
        return self._blank(path, table, rows)

    def _blank(self, path: str, table: pa.Table, rows: np.ndarray) -> pa.Table:
        """Blanks rows of a table without a record of its own."""
        table = blanking.as_written(table)
        if not rows.any():
            return table
        made = blanking.blanked(table, rows, self._there.tables[path])
        if not made.equals(table):
            self._replace(path, _parquet(made))
            self._count(path, "rows", blanking.differing(table, made, rows))
        return made

    def _restate(self, stem: str, table: pa.Table | None) -> None:
        if self._say.restate(stem, table):
            self._count(f"{stem}_stats.json", "records brought up to date")

    def _manifest(self) -> None:
        """Notes what registered shards are now."""
        learned = {}
        for shard in self._there.registered:
            path = self._there.shard_path(shard.name)
            if path in self._log.paths:
                now = storage.fingerprint(shard.url)
                learned[shard.name] = {
                    "size": now.size,
                    "etag": now.etag or None,
                    "mtime_ns": now.mtime_ns or None,
                    "sha256": None if now.etag else commit.sha256_file(shard.url),
                }
        manifest.learn(self._there.out, learned)

    # what was made of shards

    def _sidecars(self) -> None:
        """Blanks rows, and goes on as long as a record names a sidecar by its old content."""
        gone: dict[str, np.ndarray] = {}
        changed = True
        while changed:
            changed = False
            for path in self._there.sidecars:
                record = commit.read_sidecar_record(self._there.url(path))
                if record is None:
                    self._report.unread[path] = "no sidecar of ours, or torn: make it again"
                    continue
                if path not in gone:
                    uids = commit.read_sidecar(self._there.url(path), ["uid"])
                    gone[path] = blanking.is_buried(uids, self._buried)
                changed |= self._sidecar(path, record, gone[path])

    def _sidecar(self, path: str, record: Record, rows: np.ndarray) -> bool:
        """Whether a sidecar had to be replaced."""
        inputs = self._say.inputs(record)
        if not rows.any() and inputs == record.inputs:
            return False
        url = self._there.url(path)
        table = blanking.as_written(commit.read_sidecar(url))
        made = blanking.blanked(table, rows)
        counts = blanking.recounted(record.counts, made)
        now = replace(record, inputs=inputs, counts=counts)
        if made.equals(table) and now == record:
            return False
        data = _parquet(commit.recorded(made, now))
        if path.startswith("keep/"):
            self._replace(path, data, named=verdicts_sha256)
        else:
            self._replace(path, data)
        if not made.equals(table):
            self._count(path, "rows", blanking.differing(table, made, rows))
        return True

    def _mixes(self) -> None:
        for path in self._there.paths("mix/*/*.parquet"):
            stem = path.removesuffix(".parquet")
            table = commit.read_sidecar(self._there.url(path))
            rows = blanking.is_buried(table, self._buried)
            if rows.any():
                self._cut(f"{stem}.tar", stubs=self._there.is_registered(f"{stem}.tar"))
                table = self._blank(path, self._placed(f"{stem}.tar", table), rows)
            self._restate(stem, table)
        for path in self._there.paths(f"mix/*/{runs.FILE}"):
            self._describe(path)

    def _placed(self, path: str, table: pa.Table) -> pa.Table:
        """A mix's table with the offsets that its tar's members have now."""
        url = self._there.url(path)
        there = places(url) if storage.exists(url) else {}
        keys = table.column("key").to_pylist()
        for member in ("jpg", "txt", "json"):
            name = f"{member}_offset"
            old = table.column(name).to_pylist()
            new = [
                there.get(f"{key}.{member}", (offset,))[0] if offset is not None else None
                for key, offset in zip(keys, old, strict=True)
            ]
            place = table.column_names.index(name)
            table = table.set_column(place, table.schema.field(name), pa.array(new, pa.int64()))
        return table

    def _describe(self, path: str) -> None:
        """sizes.json and the card of a mix that lost samples."""
        folder = path.rpartition("/")[0]
        if not any(p.startswith(f"{folder}/") for p in self._log.paths):
            return
        said = json.loads(storage.read_bytes(self._there.url(path)))
        run = Run(self._there.out, said["kind"], said["run"], said["config"])
        found = (commit.read_stats_record(run, name) for name in said["shards"])
        records = [record for record in found if record is not None]
        totals: dict[str, Counter[str]] = {}
        for record in records:
            for column, counts in record.counts.items():
                if isinstance(counts, dict):
                    totals.setdefault(column, Counter()).update(counts)
        card.write(run, _recipe(said["config"]), totals, write_sizes(run, records))

    def _encodings(self) -> None:
        """Caches of training shards that were replaced; `encode` makes them again without."""
        for path in self._there.paths(f"{cached.KIND}/*/*{SUFFIX}"):
            try:
                files = open_cache_file(self._there.url(path)).record.inputs.get("files", {})
            except (OSError, ValueError):
                self._report.unread[path] = "no file of a cache, or torn: encode it again"
                continue
            replaced = ((p, files.get(p.rpartition("/")[2])) for p in self._log.paths)
            if any(old and self._log.now(p, old) != old for p, old in replaced):
                storage.remove(self._there.url(path))
                self._count(path, "encodings, to be made again")

    # and the rest

    def _journals(self) -> None:
        """Answers about buried samples; a journal's other lines stay as they are."""
        for path in self._there.journals:
            lines = list(journal_lines(self._there.url(path)))
            kept = [line for line, uid in lines if uid not in self._buried.uids]
            if len(kept) < len(lines):
                storage.write_bytes(self._there.url(path), b"".join(kept))
                self._count(path, "answers", len(lines) - len(kept))

    def _taught(self) -> None:
        for path in self._there.paths("taught/captions.parquet"):
            table = commit.read_sidecar(self._there.url(path))
            self._blank(path, table, blanking.is_buried(table, self._buried))

    def _unfinished(self) -> None:
        """Work of killed steps, which holds what they worked on; they begin anew."""
        for path in self._there.unfinished():
            shutil.rmtree(self._there.url(path))
            self._count(path, "unfinished work, to be made again")

    def _remade(self) -> None:
        for path in self._there.paths(*REMADE):
            storage.remove(self._there.url(path))
            self._count(path, "files, to be made again")

    def _replace(
        self, path: str, data: bytes, named: Callable[[str], str] = commit.sha256_file
    ) -> None:
        """Replaces a file; what it was called by and will be is noted first.

        named: what records call the content of a file by, given where it is.
        """
        url = self._there.url(path)
        with storage.write_atomic(url) as part:
            part.write_bytes(data)
            self._log.note(path, named(url), named(str(part)))


def _parquet(table: pa.Table) -> bytes:
    stream = pa.BufferOutputStream()
    commit.write_parquet(table, stream)
    return stream.getvalue().to_pybytes()


def _recipe(config: dict) -> Recipe:
    """Of the settings in a mix's run.json."""
    return Recipe(
        captions=config["captions"],
        blend=Blend(tuple(config["blend"].items())),
        keep=config["keep"],
        seed=config["seed"],
        max_side=config["max_side"],
    )
