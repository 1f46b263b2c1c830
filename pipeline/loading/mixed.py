"""The shards of a mix as one numbered set: which sample is where, found without opening a tar."""

import hashlib
import posixpath
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from threading import Lock

import numpy as np
import pyarrow as pa

from pipeline import runs, specs, storage
from pipeline.errors import UserError
from pipeline.loading.training_shard import (
    AGAIN,
    Rows,
    TrainingShard,
    json_at,
    read_rows,
    stats_of,
    table_of,
)
from pipeline.runs import canonical

_AT_ONCE = 16  # requests to an object store
_KEPT_ROWS = 8 << 20  # some 50 bytes each


class Mixed:
    """The samples of some shards, numbered through, shard by shard in the order of their URLs.

    mixes: folder -> the config in its run.json. Threads may share it.
    """

    def __init__(self, shards: Sequence[TrainingShard], mixes: Mapping[str, Mapping]) -> None:
        self.shards, self.mixes = list(shards), dict(mixes)
        self._ends = np.cumsum([shard.samples for shard in shards]).tolist()
        self._rows: OrderedDict[int, Rows] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return self._ends[-1]

    def locate(self, index: int) -> tuple[int, int]:
        """Shard and row of a sample; rows count those alone that are in the tar."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def rows(self, number: int) -> Rows:
        """Of the shard of this number; read when first asked for, and kept as far as memory goes."""
        with self._lock:
            if number in self._rows:
                self._rows.move_to_end(number)
                return self._rows[number]
        rows = read_rows(self.shards[number])
        with self._lock:
            self._rows[number] = rows
            kept = sum(self.shards[n].samples for n in self._rows)
            while kept > _KEPT_ROWS and len(self._rows) > 1:
                kept -= self.shards[self._rows.popitem(last=False)[0]].samples
        return rows

    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Widths and heights of all samples, in pixels: int32 (N,) each. Reads every parquet."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            tables = list(pool.map(lambda shard: table_of(shard, ["width", "height"]), self.shards))
        return tuple(
            np.concatenate([table.column(name).to_numpy() for table in tables])
            for name in ("width", "height")
        )

    def texts(self, num: int) -> list[str]:
        """Stored captions from all over: of up to `num` samples, evenly spread over all shards."""
        num = min(num, len(self))
        wanted: dict[int, list[int]] = {}
        for shard, row in (self.locate(k * len(self) // num) for k in range(num)):
            wanted.setdefault(shard, []).append(row)

        def read(shard: int) -> list[str]:
            texts = table_of(self.shards[shard], ["text"]).column("text")
            return texts.take(pa.array(wanted[shard])).to_pylist()

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return [text for texts in pool.map(read, wanted) for text in texts]

    def name(self, index: int) -> str:
        """What to call a sample in a message."""
        number, row = self.locate(index)
        shard = self.shards[number]
        key = table_of(shard, ["key"]).column("key")[row].as_py()
        return f"{storage.public(shard.url)} {key}"

    def mix_of(self, number: int) -> Mapping:
        return self.mixes.get(self.shards[number].folder, {})

    def digest(self) -> str:
        """Identifies the samples and their numbers, wherever their folders lie."""
        told = [(posixpath.basename(shard.url), shard.samples) for shard in self.shards]
        text = canonical([told, list(self.mixes.values())])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def to_json(self) -> dict:
        return {"shards": [asdict(shard) for shard in self.shards], "mixes": self.mixes}

    @classmethod
    def from_json(cls, value: Mapping) -> "Mixed":
        return cls([TrainingShard(**shard) for shard in value["shards"]], value["mixes"])


def find(asked: str | Iterable[str]) -> Mixed:
    """The training shards that SHARDS names: folders, globs, brace patterns, lists.

    Their numbers of samples come from sizes.json, or from each `_stats.json`; no parquet is read.
    Raises UserError for shards that no mix wrote, that are half-written or gone, for a folder of
    which the mix is not finished, and where there is no sample at all.
    """
    asked = [asked] if isinstance(asked, str) else list(asked)
    urls = sorted({url for spec in asked for url in specs.expand(spec)})
    folders: dict[str, list[str]] = {}
    for url in urls:
        folders.setdefault(posixpath.dirname(url), []).append(url)
    shards, mixes = [], {}
    for folder, own in folders.items():
        mixes[folder], found = _of_folder(folder, own)
        shards += found
    shards = [shard for shard in shards if shard.samples]
    if not shards:
        raise UserError(
            f"SHARDS={','.join(map(storage.public, asked))} hold no sample",
            "see the reasons in the parquet files of the mix",
        )
    return Mixed(shards, mixes)


def _of_folder(folder: str, urls: Sequence[str]) -> tuple[Mapping, list[TrainingShard]]:
    """The mix's config, and the shards asked for."""
    said = json_at(storage.join(folder, runs.FILE)) or {}
    there = _listed(folder)
    if there is not None:
        for url in urls:
            _require_whole(url, there)
        planned = {f"{name}.tar" for name in said.get("shards", ())}
        tars = {name for name in there if name.endswith(".tar")}
        if tars == {posixpath.basename(url) for url in urls}:  # all that there are were asked for
            missing = [n for n in sorted(planned) if n.replace(".tar", "_stats.json") not in there]
            if missing:
                raise UserError(
                    f"SHARDS={storage.public(folder)}: {len(missing)} of {len(planned)} shards of this"
                    f" mix are not written, as {missing[0]}",
                    f"{AGAIN}; or name the shards to train on",
                )
    sizes = json_at(storage.join(folder, "sizes.json")) or {}

    def opened(url: str) -> TrainingShard:
        count = sizes.get(posixpath.basename(url))
        if there is None or not isinstance(count, int):
            count = stats_of(url)["successes"]
        return TrainingShard(url, int(count))

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return said.get("config", {}), list(pool.map(opened, urls))


def _listed(folder: str) -> set[str] | None:
    """The names in a folder; None where the store cannot list, as a web server."""
    if folder.startswith(("http://", "https://")):
        return None
    try:
        return {posixpath.basename(url) for url in storage.list_files(folder, "")}
    except Exception as e:  # stores raise whatever they like
        raise UserError(
            f"SHARDS: cannot list {storage.public(folder)}: {storage.scrub(str(e), folder)}",
            "check the address and your credentials",
        ) from e


def _require_whole(url: str, there: set[str]) -> None:
    name = posixpath.basename(url)
    stem = name.removesuffix(".tar")
    if name not in there:
        raise UserError(f"SHARDS: {storage.public(url)} does not exist", "check the name")
    if f"{stem}.parquet" not in there:
        raise UserError(
            f"SHARDS: {storage.public(url)} is no training shard: it has no {stem}.parquet beside it",
            "give the shards that make mix writes: OUT/mix/<run>",
        )
    if f"{stem}_stats.json" not in there:
        raise UserError(
            f"SHARDS: {storage.public(url)} is half-written: it has no {stem}_stats.json", AGAIN
        )
