"""A keep-list from a list of uids: every known sample stays that the list names."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import commit, storage
from pipeline.manifest import Shard
from pipeline.reading import BadShard, ReadReport, read_samples
from pipeline.runs import Run
from pipeline.select.keeping import KEPT, KeepWork
from pipeline.select.rows import among
from pipeline.select.sidecar import Sidecar, column_of
from pipeline.select.uid_file import UidFile, pairs_of
from pipeline.stage import inputs_of
from pipeline.tombstones import TAKEN_DOWN

_NAMED = 5
_COLUMNS = ["uid", "key", "reason"]


class ImportWork(KeepWork):
    """Marks a shard's samples. Which they are, its sidecars say; without any, the shard is read."""

    def __init__(
        self,
        url: str,
        run: Run,
        titles: tuple[str, ...],
        taken_down: frozenset[str] = frozenset(),
        following: Sequence[Shard] = (),
    ) -> None:
        """url: of the list. titles: runs of columns in which the samples may stand."""
        super().__init__(run, following)
        self.list_url = url
        self.titles = titles
        self.taken_down = taken_down
        self.reasons = (f"not in {storage.public(url).rsplit('/', 1)[-1]}", TAKEN_DOWN)
        self._list: UidFile | None = None

    def setup(self) -> None:
        super().setup()
        self._list = UidFile(self.list_url)

    def is_still(self, shard: Shard, record: commit.Record) -> bool:
        """The list's hash is in the run's config; so only the shard and take-downs may differ."""
        inputs = dict(record.inputs)
        if not shard.is_still(inputs.pop("shard")):
            return False
        try:
            uids = Sidecar(self.url(shard)).read(["uid"]).column("uid") if self.taken_down else None
        except BadShard:
            return False
        return inputs == self._others(uids)

    def made(self, shard: Shard, lost: frozenset[int] = frozenset()) -> commit.Record:
        """Marks and commits one shard; BadShard where it cannot be read."""
        samples, identity = self._samples(shard)
        uids, keys, reasons = (column_of(samples, name) for name in _COLUMNS)
        codes = np.where(self._list.find(pairs_of(uids)) < 0, np.int16(0), np.int16(KEPT))
        buried = pc.fill_null(pc.equal(reasons, TAKEN_DOWN), False)
        if self.taken_down:
            buried = pc.or_(buried, among(uids, self.taken_down))
        codes = np.where(buried.to_numpy(zero_copy_only=False), np.int16(1), codes)
        inputs = identity | self._others(uids)
        return self.write(shard, uids, keys, codes, self.reasons, inputs)

    def _others(self, uids: pa.Array | pa.ChunkedArray | None) -> dict:
        """What a record says beside the shard: which of its uids are buried."""
        if not self.taken_down:
            return {}
        buried = sorted(uids.filter(among(uids, self.taken_down)).to_pylist())
        return {"taken_down": buried} if buried else {}

    def _samples(self, shard: Shard) -> tuple[pa.Table, dict]:
        """uid, key and reason of a shard's samples, and the shard's identity."""
        for title in self.titles:
            url = storage.join(self.run.out, title, f"{shard.name}.parquet")
            try:
                sidecar = Sidecar(url)
                identity = sidecar.record.inputs["shard"]
                if shard.is_still(identity):
                    return sidecar.read(_COLUMNS).combine_chunks(), {"shard": identity}
            except (OSError, BadShard):
                continue
        report = ReadReport()
        rows = [(s.uid, s.key, s.reason) for s in read_samples(shard, report)]
        columns = zip(*rows, strict=True) if rows else ((), (), ())
        made = [pa.array(values, pa.string()) for values in columns]
        return pa.table(made, names=_COLUMNS), inputs_of(shard, report)


def unknown_uids(url: str, run: Run, shards: list[str]) -> tuple[int, list[str]]:
    """How many uids of a list no sample of a finished keep-list has, and the first few of them."""
    uids = UidFile(url)
    seen = np.zeros(len(uids), bool)
    for shard in shards:
        table = Sidecar(run.file(f"{shard}.parquet")).read(["uid"])
        places = uids.find(pairs_of(table.column("uid")))
        seen[places[places >= 0]] = True
    return uids.unseen(seen, _NAMED)
