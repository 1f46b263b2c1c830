"""The crawl as a writer: one part of the URL lists becomes one raw shard, with a row for every URL."""

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace

import pyarrow as pa

from pipeline import commit, storage, tombstones
from pipeline.crawl import layout, quarantine
from pipeline.crawl.collapse import SYSTEMIC, WINDOW, Collapse, Watch
from pipeline.crawl.fetch import Fetcher
from pipeline.crawl.making import Made, Maker, taken_down
from pipeline.crawl.plan import Part, Plan, key_of, read_part
from pipeline.crawl.presets import Columns
from pipeline.crawl.resize import Imaging, ResizeSettings
from pipeline.crawl.settings import FetchSettings
from pipeline.crawl.window import Window
from pipeline.manifest import Shard
from pipeline.reading import BadShard
from pipeline.runs import Run
from pipeline.writing import ShardWriter

KIND = "shards"

_IN_FLIGHT_BYTES = 64 * 2**20  # of bodies that the fetcher holds
_WAITING_BYTES = 32 * 2**20  # of bodies that wait for a thread
_WINDOW_BYTES = 32 * 2**20  # of images that wait for their turn; the rest is on disk
_ROWS = 1000  # unpacked at a time
_UNFETCHED = ("taken_down", "killed_worker")  # which tell nothing of the network


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How hard a crawl tries; it may change from one command to the next."""

    fetch: FetchSettings
    threads: int = 1  # that decode and resize
    deadline_sec: float = 7200.0  # for fetching one shard
    max_failed: float = 0.9  # share of systemic failures above which it stops


class CrawlWork:
    """Fetches the URLs of a part and writes the shard of that name; see `pipeline.crawl.layout`.

    The work items are the shards that are to be. A part of the plan that is not known any more, or
    that has other rows, is another shard.
    """

    def __init__(
        self,
        plan: Plan,
        run: Run,
        columns: Columns,
        resize: ResizeSettings,
        effort: Effort,
        *,
        verify: bool = True,
    ) -> None:
        self.plan = plan
        self.run = run
        self.columns = columns
        self.effort = effort
        self.verify = verify
        self._imaging = Imaging(resize, blurs=bool(columns.boxes))
        self._suffix = resize.encode_format
        self._parts = {part.name: part for part in plan.parts}
        self._fetcher: Fetcher | None = None
        self._watch = Watch(effort.max_failed)  # over all shards of this worker
        self._unproven: list[str] = []  # small shards that may be the beginning of a collapse

    def planned(self, parts: tuple[Part, ...] | None = None) -> list[Shard]:
        """The shards to write: those of the given parts, or of all."""
        return self.plan.shards(self.run, self.plan.parts if parts is None else parts)

    def setup(self) -> None:
        """Loads the resizer; UserError where it is needed and not installed."""
        self._imaging.setup()

    def close(self) -> None:
        """Ends what is under way, and closes all connections."""
        if self._fetcher is not None:
            self._fetcher.close()
            self._fetcher = None

    def done(self, shard: Shard) -> commit.Record | None:
        """The record of a shard that is whole, and of the rows that its part has now.

        Whatever became of its quarantine: people may empty that.
        """
        record = commit.read_stats_record(self.run, shard.name)
        if record is None or record.config_hash != self.run.config_hash:
            return None
        return record if record.inputs == {"part": self._part(shard).sha256} else None

    def perform(self, shard: Shard, lost: frozenset[int]) -> commit.Record:
        """Fetches and commits one shard; Collapse where nearly everything fails on this side.

        Small shards that were the beginning of it are then not done, either.
        """
        part = self._part(shard)
        table = self._read(part)
        schema = layout.shard_schema(table.schema, self._hash_type)
        apart = quarantine.Quarantine(quarantine.url_of(self.run, shard.name))

        watch, urls = None if part.retries else self._watch, table.column("url")

        def rows(writer: ShardWriter) -> Iterator[dict]:
            with apart.committed(), closing(self._made(table, lost)) as all_made:
                listed = _rows_of(table)
                for index, made, data in all_made:
                    if watch and made.reason not in _UNFETCHED:
                        watch.see(urls[index].as_py() or "", made.reason, made.message)
                    key = key_of(shard.name, index, self.plan.shard_size)
                    row = layout.empty_row(next(listed), schema, self._hash_type)
                    yield self._write(row | {"key": key}, made, data, writer, apart)
                if watch:
                    watch.end()

        def record(written: pa.Table) -> commit.Record:
            return commit.Record(
                shard=shard.name,
                config_hash=self.run.config_hash,
                inputs={"part": part.sha256},
                environment={},
                counts=layout.counts(written),
            )

        try:
            done = commit.write_shard(self.run, shard.name, schema, rows, record, layout.stats)
        except Collapse:
            for name in self._unproven:
                storage.remove(commit.stats_url(self.run, name))
            raise
        if watch:
            self._note(done)
        return done

    def _note(self, done: commit.Record) -> None:
        ill, rows = sum(self.failures(done.counts).values()), done.counts["rows"]
        if rows >= WINDOW or ill <= self.effort.max_failed * rows:
            self._unproven.clear()
        else:
            self._unproven.append(done.shard)

    def probe(self, shard: Shard, lost: frozenset[int], indices: range) -> None:
        """Fetches some URLs of a shard and keeps nothing: does the process survive?"""
        table = self._read(self._part(shard))
        others = frozenset(range(table.num_rows)) - set(indices)
        for _ in self._made(table, lost | others):
            pass

    def failures(self, counts: dict) -> dict[str, int]:
        """Reason -> URLs, of those that speak of this side and not of the list."""
        return {why: n for why, n in counts["reason"].items() if why in SYSTEMIC}

    @property
    def _hash_type(self) -> str:
        return self.columns.hash_type if self.columns.hash else ""

    def _part(self, shard: Shard) -> Part:
        return self._parts[shard.name]

    def _read(self, part: Part) -> pa.Table:
        try:
            return read_part(self.plan, part)
        except (OSError, pa.ArrowException) as e:
            raise BadShard(f"{self.plan.url(part.name)} is damaged: plan under another OUT") from e

    def _write(
        self,
        row: dict,
        made: Made,
        data: bytes,
        writer: ShardWriter,
        apart: quarantine.Quarantine,
    ) -> dict:
        """Appends the sample to the shard, or what it is to the quarantine; returns its row."""
        if made.reason == "taken_down":  # as `make takedown` leaves a row
            row = dict.fromkeys(row) | {name: row[name] for name in ("key", "retry_of")}
        else:
            row |= made.fields
        row["status"] = layout.status_of(made.reason)
        row["error_message"], row["reason"] = made.message or None, made.reason or None
        if made.quarantined:
            kinds = dict.fromkeys(kind for kind in (*layout.ALWAYS, self._hash_type) if kind)
            hashes = {kind: row[kind] for kind in kinds}
            apart.add(row["key"], data, {"url": row["url"], "reason": made.reason, **hashes})
        elif not made.reason:
            members = {self._suffix: data}
            if self.columns.caption:
                members["txt"] = (row["caption"] or "").encode()
            writer.add_members(row["key"], members | {"json": layout.sample_json(row)})
        return row

    def _made(self, table: pa.Table, lost: frozenset[int]) -> Iterator[tuple[int, Made, bytes]]:
        """What every row of a part becomes, in order, while others are fetched and decoded."""
        buried = tombstones.load(self.run.out)
        maker = Maker(self.columns, self._imaging, buried, self.verify)
        urls, needed = table.column("url"), self._needed()
        window: Window[Made] = Window(_WINDOW_BYTES)
        given: list[int] = []  # indices that are not fetched, found while the list is read

        def wanted() -> Iterator[tuple[int, str]]:
            for index, url in enumerate(urls.to_pylist()):
                if index in lost or _is_buried(url, buried):
                    given.append(index)
                else:
                    yield index, url or ""

        def unfetched(index: int) -> Made:
            fields = {"attempts": 0}
            if index in lost:
                return Made(fields, reason="killed_worker", message="killed_worker")
            return taken_down(fields)

        fetching = self._fetching().fetch_all(
            wanted(), deadline_sec=self.effort.deadline_sec, in_flight_bytes=_IN_FLIGHT_BYTES
        )
        with (
            closing(window),
            closing(fetching),
            ThreadPoolExecutor(self.effort.threads, "decode") as pool,
        ):
            waiting: deque[tuple[int, int, Future[Made]]] = deque()
            held = 0

            def settle() -> None:
                """The oldest that a thread has is made, and takes its place."""
                nonlocal held
                index, size, future = waiting.popleft()
                made = future.result()
                held -= size
                window.put(index, replace(made, data=b""), made.data)

            for index, fetched in fetching:
                row = {name: table.column(name)[index].as_py() for name in needed}
                waiting.append((index, len(fetched.data), pool.submit(maker, fetched, row)))
                held += len(fetched.data)
                while len(waiting) > 4 * self.effort.threads or held > _WAITING_BYTES:
                    settle()
                while waiting and waiting[0][2].done():
                    settle()
                while given:
                    index = given.pop()
                    window.put(index, unfetched(index), b"")
                yield from window.take()
            while waiting:
                settle()
            while given:
                index = given.pop()
                window.put(index, unfetched(index), b"")
            yield from window.take()

    def _needed(self) -> list[str]:
        """What of the list the making of an image needs."""
        columns = (self._hash_type, self.columns.phash, self.columns.boxes)
        return [name for name in columns if name]

    def _fetching(self) -> Fetcher:
        """One for all shards of this worker: it remembers hosts and their rules."""
        if self._fetcher is None:
            self._fetcher = Fetcher(self.effort.fetch)
        return self._fetcher

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_fetcher": None}


def _is_buried(url: str | None, buried: tombstones.Tombstones) -> bool:
    if not buried.urls or url is None:
        return False
    return hashlib.sha256(url.encode()).hexdigest() in buried.urls


def _rows_of(table: pa.Table) -> Iterator[dict]:
    for batch in table.to_batches(_ROWS):
        yield from batch.to_pylist()
