"""Annotators over shards: what each writes is its own, whoever else is asked in the same pass."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import commit, manifest, runs
from pipeline.annotate.annotator import DECODED_SIDE, View, run_of
from pipeline.annotate.derived import DerivedStage
from pipeline.annotate.work import AnnotateWork
from pipeline.derived import DerivedWork
from pipeline.manifest import Shard
from pipeline.reading import BadShard
from tests.support.shards import jpeg, pair, pairs, write_tar

BROKEN = ("000000900", {"jpg": jpeg(1)[:200], "txt": b"cut", "json": b"{}"})
NO_IMAGE = ("000000901", {"txt": b"only words"})


@dataclass
class Brightness:
    """Needs pixels, in batches: the mean of an image, and that of its whole batch."""

    batch_size: int = 4
    seen: list = field(default_factory=list)

    name, model, needs_pixels = "brightness", "v1", True
    columns = (pa.field("mean", pa.float64()), pa.field("batch_mean", pa.float64()))
    environment: ClassVar = {"device": "cpu"}

    @property
    def config(self) -> dict:
        return {"batch_size": self.batch_size}

    def setup(self) -> None: ...

    def prepare(self, view: View) -> float:
        assert view.pixels.shape[:2] == (view.info.height, view.info.width)
        return float(view.pixels.mean())

    def annotate(self, prepared: Sequence[float]) -> list[dict]:
        self.seen.append(len(prepared))
        mean = sum(prepared) / len(prepared)
        return [{"mean": p, "batch_mean": mean} for p in prepared]


@dataclass
class Length:
    """Needs no pixels, and refuses texts that it does not like."""

    name, model, needs_pixels, batch_size = "length", "v1", False, 1
    columns = (pa.field("letters", pa.int32()),)
    config, environment = {}, {}

    def setup(self) -> None: ...

    def prepare(self, view: View) -> str:
        return view.sample.text or ""

    def annotate(self, prepared: Sequence[str]) -> list[dict]:
        return [
            {"reason": "too_odd"} if text.endswith("7") else {"letters": len(text)}
            for text in prepared
        ]


@dataclass
class Ratio:
    """Derived: brightness for each letter."""

    name, model = "ratio", "v1"
    columns = (pa.field("ratio", pa.float64()),)
    config, environment = {}, {}
    sources: ClassVar = {"brightness@v1": ("mean",), "length@v1": ("letters",)}

    def setup(self) -> None: ...

    def annotate(self, rows: Sequence[dict]) -> list[dict]:
        return [{"ratio": r["brightness@v1"]["mean"] / r["length@v1"]["letters"]} for r in rows]


@pytest.fixture
def shards(tmp_path: Path, out: str) -> list[Shard]:
    odd = [*pairs(3, start=50), BROKEN, NO_IMAGE, pair("000000902", 5)]
    urls = [
        write_tar(tmp_path / "raw/00000.tar", pairs(30)),
        write_tar(tmp_path / "raw/00001.tar", odd),
    ]
    return manifest.register(out, urls)


def annotate(out: str, shards: list[Shard], *annotators: object, threads: int = 3) -> AnnotateWork:
    work = AnnotateWork([(a, run_of(a, out)) for a in annotators], threads)
    work.setup()
    for sidecar in work.sidecars:
        runs.begin(sidecar.run, [s.name for s in shards])
    for shard in shards:
        if work.done(shard) is None:
            work.perform(shard, frozenset())
    return work


def rows(out: str, run: str, shard: str = "00001") -> list[dict]:
    return pq.read_table(f"{out}/columns/{run}/{shard}.parquet").to_pylist()


def files(out: str) -> dict[str, bytes]:
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in sorted(Path(out).glob("columns/*/*.parquet"))
    }


def test_every_sample_has_a_row_in_every_table(out: str, shards: list[Shard]):
    work = annotate(out, shards, Brightness(), Length())
    bright, length = rows(out, "brightness@v1"), rows(out, "length@v1")
    keys = ["000000050", "000000051", "000000052", "000000900", "000000901", "000000902"]
    assert [r["key"] for r in bright] == [r["key"] for r in length] == keys
    assert [r["reason"] for r in bright] == [None, None, None, "truncated", "no_image", None]
    assert [r["letters"] for r in length] == [21, 21, 21, 3, 10, 21]  # its text needs no image
    assert [r["reason"] for r in rows(out, "length@v1", "00000") if r["reason"]] == ["too_odd"] * 3
    record = work.done(shards[1])
    assert record.counts["samples"] == 6
    assert work.failures(record.counts) == {"truncated": 1, "no_image": 1}


def test_columns_do_not_depend_on_company_or_threads(tmp_path: Path, out: str, shards: list[Shard]):
    annotate(out, shards, Brightness(), Length())
    together = files(out)
    for number, (threads, orders) in enumerate(
        [(1, [Length(), Brightness()]), (7, [Brightness()])]
    ):
        other = str(tmp_path / f"out{number}")
        again = manifest.register(other, [shard.url for shard in shards])
        for annotator in orders:
            annotate(other, again, annotator, threads=threads)
        assert files(other).items() <= together.items()


def test_batches_are_runs_of_readable_samples_of_one_shard(out: str, shards: list[Shard]):
    annotator = Brightness()
    annotate(out, shards, annotator)
    assert annotator.seen == [4] * 7 + [2, 4]
    means = [r["mean"] for r in rows(out, "brightness@v1") if r["mean"] is not None]
    assert {r["batch_mean"] for r in rows(out, "brightness@v1")} == {None, sum(means) / 4}


def test_only_what_is_missing_is_made(out: str, shards: list[Shard]):
    annotate(out, shards, Brightness())
    before = files(out)
    again = Brightness()
    annotate(out, shards, again, Length())
    assert again.seen == []
    assert files(out).items() >= before.items()
    Path(out, "columns/brightness@v1/00001.parquet").unlink()
    annotate(out, shards, again, Length())
    assert again.seen == [4]
    assert files(out).items() >= before.items()


def test_a_sample_that_kills_has_a_row_and_nobody_is_asked_about_it(out: str, shards: list[Shard]):
    work = AnnotateWork([(a, run_of(a, out)) for a in (Brightness(), Length())], 1)
    work.perform(shards[1], frozenset({1}))
    for run in ("brightness@v1", "length@v1"):
        assert rows(out, run)[1]["reason"] == "killed_worker"


def test_large_images_are_decoded_at_one_size_for_all(tmp_path: Path, out: str):
    sizes, big = [], jpeg(3, (2400, 1600))

    class Sizes(Brightness):
        def prepare(self, view: View) -> float:
            sizes.append((view.info.width, view.info.height, *view.pixels.shape))
            assert threading.current_thread() is not threading.main_thread()
            return 0.0

    members = {"jpg": big, "txt": b"x", "json": b"{}"}
    annotate(
        out, manifest.register(out, [write_tar(tmp_path / "r.tar", [("1", members)])]), Sizes()
    )
    assert sizes == [(2400, 1600, 600, 900, 3)]
    assert 600 >= DECODED_SIDE > 400  # the next smaller eighth would fall below


def test_derived_columns_follow_their_sources(out: str, shards: list[Shard]):
    annotate(out, shards, Brightness(), Length())
    stage = DerivedStage(Ratio())
    run = run_of(stage.annotator, out)
    work = DerivedWork(stage, stage.sources, run)
    record = work.perform(shards[1], frozenset())
    found, bright = rows(out, "ratio@v1"), rows(out, "brightness@v1")
    assert [r["reason"] for r in found] == [r["reason"] for r in bright]
    assert found[0]["ratio"] == bright[0]["mean"] / 21
    assert record.counts["reason"] == {"no_image": 1, "truncated": 1}
    work.perform(shards[0], frozenset())
    assert [r["reason"] for r in rows(out, "ratio@v1", "00000") if r["reason"]] == ["too_odd"] * 3
    assert work.done(shards[1]) is not None
    source = f"{out}/columns/length@v1/00001.parquet"
    table = pq.read_table(source)
    told = commit.read_sidecar_record(source)
    commit.write_sidecar(source, table.set_column(2, "letters", [[1] * 6]).cast(table.schema), told)
    assert work.done(shards[1]) is None
    Path(source).unlink()
    with pytest.raises(BadShard, match="no columns of run length@v1"):
        work.perform(shards[1], frozenset())
