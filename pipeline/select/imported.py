"""A keep-list from a list of uids: every known sample stays that the list names."""

import numpy as np
import pyarrow as pa

from pipeline import commit, storage
from pipeline.manifest import Shard
from pipeline.reading import BadShard, ReadReport, read_samples
from pipeline.runs import Run
from pipeline.select.keeping import KEPT, KeepWork
from pipeline.select.sidecar import Sidecar
from pipeline.select.uid_file import UidFile, pairs_of
from pipeline.stage import inputs_of
from pipeline.tombstones import TAKEN_DOWN

_NAMED = 5


class ImportWork(KeepWork):
    """Marks a shard's samples. Which they are, its sidecars say; without any, the shard is read."""

    def __init__(
        self, url: str, run: Run, titles: tuple[str, ...], taken_down: frozenset[str] = frozenset()
    ) -> None:
        """url: of the list. titles: runs of columns in which the samples may stand."""
        super().__init__(run)
        self.list_url = url
        self.titles = titles
        self.taken_down = taken_down
        self.reasons = (f"not in {storage.public(url).rsplit('/', 1)[-1]}", TAKEN_DOWN)
        self._list: UidFile | None = None

    def setup(self) -> None:
        self._list = UidFile(self.list_url)

    def is_still(self, shard: Shard, record: commit.Record) -> bool:
        """The list's hash is in the run's config; so only the shard and take-downs may differ."""
        inputs = dict(record.inputs)
        return shard.is_still(inputs.pop("shard")) and inputs == self._others()

    def perform(self, shard: Shard, lost: frozenset[int]) -> commit.Record:
        """Marks and commits one shard; BadShard where it cannot be read."""
        uids, keys, identity = self._samples(shard)
        codes = np.where(self._list.find(pairs_of(uids)) < 0, np.int16(0), np.int16(KEPT))
        buried = np.array([uid in self.taken_down for uid in uids.to_pylist()], bool)
        codes = np.where(buried, np.int16(1), codes)
        return self.write(shard, uids, keys, codes, self.reasons, identity | self._others())

    def _others(self) -> dict:
        return {"taken_down": len(self.taken_down)} if self.taken_down else {}

    def _samples(self, shard: Shard) -> tuple[pa.Array, pa.Array, dict]:
        for title in self.titles:
            url = storage.join(self.run.out, title, f"{shard.name}.parquet")
            try:
                sidecar = Sidecar(url)
                identity = sidecar.record.inputs["shard"]
                if shard.is_still(identity):
                    table = sidecar.read(["uid", "key"]).combine_chunks()
                    return _array(table, "uid"), _array(table, "key"), {"shard": identity}
            except (OSError, BadShard):
                continue
        report = ReadReport()
        pairs = [(sample.uid, sample.key) for sample in read_samples(shard, report)]
        uids, keys = zip(*pairs, strict=True) if pairs else ((), ())
        columns = [pa.array(values, pa.string()) for values in (uids, keys)]
        return *columns, inputs_of(shard, report)


def unknown_uids(url: str, run: Run, shards: list[str]) -> tuple[int, list[str]]:
    """How many uids of a list no sample of a finished keep-list has, and the first few of them."""
    uids = UidFile(url)
    seen = np.zeros(len(uids), bool)
    for shard in shards:
        table = Sidecar(run.file(f"{shard}.parquet")).read(["uid"])
        places = uids.find(pairs_of(table.column("uid")))
        seen[places[places >= 0]] = True
    return uids.unseen(seen, _NAMED)


def _array(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)
