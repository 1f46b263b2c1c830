"""A data folder with everything in it that a take-down must reach, made by the steps themselves."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import commit, manifest, runs, storage
from pipeline.annotate.annotator import run_of
from pipeline.annotate.text import TextAnnotator
from pipeline.annotate.work import AnnotateWork
from pipeline.crawl import layout, quarantine
from pipeline.keep_list import KeepList
from pipeline.manifest import Shard
from pipeline.mix import MixWork
from pipeline.runs import Run
from pipeline.samples import uid_of
from pipeline.schemas import KEEP, table_of
from pipeline.stage import SidecarWork
from tests.support.mixing import Mixed, mixed
from tests.support.shards import jpeg, pairs, write_tar
from tests.support.stages import ColourStage, caption

OWN, OTHER = "00000", "00001"
_PART = pa.schema(
    [
        pa.field("url", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("retry_of", pa.string()),
    ]
)


def url_of(key: str) -> str:
    return f"https://example.org/{key}.jpg"


def alt(key: str) -> str:
    return f"what {key} shows"


def key_of(index: int, shard: str = OWN) -> str:
    return f"{shard}{index:04d}"


@dataclass
class Folder:
    """What was made; `works` are the steps that would make it again."""

    out: Path
    shards: list[Shard]
    captions: SidecarWork
    columns: AnnotateWork
    mix: Mixed

    @property
    def works(self) -> list:
        return [self.captions, self.columns, self.mix.work]

    def now(self) -> list[Shard]:
        return manifest.load(str(self.out))

    def undone(self) -> list[str]:
        """What the steps would do again."""
        return [
            f"{type(work).__name__} {shard.name}"
            for work in self.works
            for shard in self.now()
            if work.done(shard) is None
        ]


def crawled(out: Path, samples: int = 6) -> None:
    """OUT/shards/00000 as a crawl writes it; the last row failed, and one went to quarantine."""
    run = Run(out=str(out), kind="shards", name="", config={"crawl": 1})
    runs.begin(run, [OWN])
    rows = [
        {"url": url_of(key_of(i)), "caption": alt(key_of(i)), "retry_of": None}
        for i in range(samples + 2)
    ]
    part = storage.join(str(out), "urls", f"{OWN}.parquet")
    with storage.write_atomic(part) as path:
        commit.write_parquet(pa.Table.from_pylist(rows, schema=_PART), path)
    sha256 = commit.sha256_file(part)
    plan = {"parts": [{"name": OWN, "rows": len(rows), "sha256": sha256, "retries": False}]}
    storage.write_bytes(storage.join(str(out), "urls", "plan.json"), json.dumps(plan).encode())
    schema = layout.shard_schema(_PART, "")
    apart = quarantine.Quarantine(quarantine.url_of(run, OWN))

    def made(writer):
        with apart.committed():
            for i, listed in enumerate(rows):
                row = layout.empty_row(listed, schema, "") | {"key": key_of(i), "attempts": 1}
                if i == samples:  # bytes that are not what the list promised
                    row |= {"reason": "hash_mismatch", "error_message": "hash mismatch"}
                    row["status"] = layout.FAILED_TO_DOWNLOAD
                    apart.add(row["key"], jpeg(100 + i), {"url": row["url"]})
                elif i == samples + 1:
                    row |= {
                        "reason": "dns",
                        "error_message": "no address",
                        "status": "failed_to_download",
                    }
                else:
                    data = jpeg(i)
                    row |= {
                        "status": "success",
                        "sha256": hashlib.sha256(b"as fetched" + data).hexdigest(),
                    }
                    members = {"jpg": data, "txt": row["caption"].encode()}
                    writer.add_members(row["key"], members | {"json": layout.sample_json(row)})
                yield row

    def record(table):
        return commit.Record(OWN, run.config_hash, {"part": sha256}, {}, layout.counts(table))

    commit.write_shard(run, OWN, schema, made, record, layout.stats)


def folder(root: Path, samples: int = 6) -> Folder:
    """OUT with a crawled shard of its own and one elsewhere, annotated, captioned, kept, mixed."""
    out = root / "out"
    crawled(out, samples)
    other = write_tar(root / "elsewhere" / f"{OTHER}.tar", pairs(samples, start=50))
    shards = caption(str(out), [str(out / "shards" / f"{OWN}.tar"), other])
    run = Run(
        out=str(out),
        kind="captions",
        name="colour",
        config=runs.require(str(out), "captions", "colour")["config"],
    )
    captions = SidecarWork(ColourStage(), run)
    captions.setup()
    annotator = TextAnnotator()
    columns = AnnotateWork([(annotator, run_of(annotator, str(out)))], threads=1)
    columns.setup()
    runs.begin(columns.sidecars[0].run, [OWN, OTHER])
    learned = {}
    for shard in shards:
        columns.perform(shard, frozenset())
        record = captions.done(shard)
        learned[shard.name] = {"sha256": record.inputs["shard"]["sha256"], "samples": samples}
    manifest.learn(str(out), learned)
    shards = manifest.load(str(out))
    _keep(str(out), shards, columns.sidecars[0])
    made = mixed(str(out), shards, "70", keep="all")
    _journal(out, shards)
    storage.write_bytes(str(out / "samples.png"), b"a contact sheet")
    return Folder(out, shards, captions, columns, made)


def _keep(out: str, shards: list[Shard], columns: SidecarWork) -> None:
    """A keep-list made from the columns, of all but the last sample of each shard."""
    run = Run(out=out, kind="keep", name="all", config={"where": "characters > 0"})
    runs.begin(run, [s.name for s in shards])
    for shard in shards:
        url = columns.run.file(f"{shard.name}.parquet")
        rows = commit.read_sidecar(url, ["uid", "key"]).to_pylist()
        for i, row in enumerate(rows):
            kept = i < len(rows) - 1
            row |= {"keep": kept, "reason": None if kept else "characters > 0"}
        table = table_of(rows, KEEP)
        inputs = columns.done(shard).inputs | {
            f"columns/{columns.run.name}": commit.sha256_file(url)
        }
        counts = {"samples": len(rows), **commit.tally(table)}
        counts["status"] = {"ok": len(rows) - 1, "dropped": 1}
        record = commit.Record(shard.name, run.config_hash, inputs, {}, counts)
        commit.write_sidecar(run.file(f"{shard.name}.parquet"), table, record)
    assert KeepList(out, "all").identity(shards[0])


def _journal(out: Path, shards: list[Shard]) -> None:
    lines = [
        json.dumps({"key": "0" * 64, "uid": uid_of(s.name, key), "text": f"answer about {key}"})
        for s in shards
        for key in keys_of(s.name)
    ]
    data = "".join(f"{line}\n" for line in lines) + '{"torn": '
    storage.write_bytes(str(out / "answers" / "model" / "0.jsonl"), data.encode())


def keys_of(shard: str, samples: int = 6) -> list[str]:
    if shard == OWN:
        return [key_of(i) for i in range(samples)]
    return [f"{i:09d}" for i in range(50, 50 + samples)]


def again(folder: Folder, shards: list[Shard]) -> None:
    """Makes captions, columns and mix anew over what is there now."""
    for shard in shards:
        folder.captions.perform(shard, frozenset())
        for sidecars in folder.columns.sidecars:
            storage.remove(sidecars.run.file(f"{shard.name}.parquet"))
        folder.columns.perform(shard, frozenset())
        MixWork(folder.mix.work.recipe, folder.mix.run).perform(shard, frozenset())


def holding(out: Path, needles: list[bytes]) -> list[str]:
    """Files under a folder in which any of some bytes stands, parquet unpacked."""
    found = []
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.suffix == ".parquet":
            rows = pq.read_table(path).to_pylist()
            data = json.dumps(rows, default=str, ensure_ascii=False).encode()
        if any(needle in data for needle in needles):
            found.append(path.relative_to(out).as_posix())
    return found
