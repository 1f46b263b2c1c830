"""Evaluation sets that training data must not contain: images, shards, data folders or lists of hashes."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import commit, hashes, manifest, runs, specs, storage
from pipeline.annotate.annotator import KIND
from pipeline.annotate.blocklist import read_blocklist
from pipeline.annotate.clip import embedding_matrix
from pipeline.annotate.image import ImageAnnotator
from pipeline.annotate.work import view_of
from pipeline.errors import UserError
from pipeline.limits import MAX_BYTES
from pipeline.manifest import Shard
from pipeline.prefetch import prefetch
from pipeline.reading import IMAGE_SUFFIXES, BadShard, read_samples
from pipeline.samples import Sample

_LISTS = (".txt", ".csv", ".tsv")
_KINDS = ("sha256", "phash")
_THREADS = min(8, os.cpu_count() or 1)
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_COLUMNS = ("name", "uid", "sha256", "phash", "embedding")


@dataclass(frozen=True, eq=False)
class Item:
    """One image of an evaluation set, by what is known of it."""

    name: str
    sha256: str | None = None
    phash: int | None = None
    embedding: np.ndarray | None = None  # float (d,)


@dataclass(frozen=True)
class EvaluationSet:
    """Where one is, and of which sort it is: `images`, `shards`, `data`, `rows` or `hashes`."""

    name: str
    sort: str
    urls: Sequence[str]  # everything that is read of it
    clip: str = ""  # run of columns
    root: str = ""  # of images
    hashes: str = ""  # their kind, where it was given

    @property
    def digest(self) -> str:
        """Of the bytes of all its files and their names."""
        whole = hashlib.sha256()
        for url in self.urls:
            name = url.removeprefix(self.root) if self.root else url.rsplit("/", 1)[-1]
            whole.update(f"{name}\0{commit.sha256_file(url)}\n".encode())
        return whole.hexdigest()

    def items(self, min_quality: int) -> Iterator[Item]:
        """Everything in it; what cannot be decoded still counts by its bytes."""
        reader = {"images": _of_images, "shards": _of_shards, "data": _of_data, "rows": _of_rows}
        try:
            if self.sort == "hashes":
                yield from _of_hashes(self)
            else:
                yield from reader[self.sort](self, min_quality)
        except (BadShard, OSError, pa.ArrowException) as e:
            why = " ".join(storage.scrub(str(e), self.urls[0]).split())[:200]
            raise UserError(f"--evaluation {self.name}: {why}", "mend it or leave it out") from e


def find_sets(spec: str, image: str, clip: str) -> list[EvaluationSet]:
    """The sets that a spec names, `;` between them; UserError where one is nothing of the kind.

    A data folder that was annotated is read by its columns (runs `image` and, for meaning, `clip`);
    a folder with images, or tars as SHARDS may name them, are hashed; a parquet file has some of
    the columns name, sha256, phash (16 hex digits) and embedding; txt, csv and tsv are hashes, as
    `annotate.blocklist.read_blocklist` takes them: `sha256:known.txt`.
    """
    return [_found(part.strip(), image, clip) for part in spec.split(";") if part.strip()]


def _found(spec: str, image: str, clip: str) -> EvaluationSet:
    kind, _, rest = spec.partition(":")
    kind, spec = (kind, rest) if kind in _KINDS else ("", spec)
    place = storage.absolute(spec)
    name = storage.public(place).rstrip("/").rsplit("/", 1)[-1]
    if storage.exists(storage.join(place, manifest.FILE)):
        return _data_folder(place, name, image, clip)
    if place.endswith(".parquet"):
        return EvaluationSet(name, "rows", [_there(place)])
    if kind or (place.endswith(_LISTS) and not spec.startswith("@")):
        return EvaluationSet(name, "hashes", [_there(place)], hashes=kind)
    if storage.is_local(place) and Path(place).is_dir():
        found = sorted(str(p) for p in Path(place).rglob("*") if _is_image(p))
        if found:
            return EvaluationSet(name, "images", found, root=place)
    return EvaluationSet(name, "shards", [_there(url) for url in specs.expand(spec)])


def _data_folder(place: str, name: str, image: str, clip: str) -> EvaluationSet:
    if runs.load(place, KIND, image) is None:
        raise UserError(
            f"--evaluation {name}: it has no columns/{image}",
            f"annotate it as this one was: make annotate OUT={place} STAGES=image",
        )
    clip = clip if clip and runs.load(place, KIND, clip) is not None else ""
    urls = [
        url
        for run in filter(None, (image, clip))
        for url in storage.list_files(storage.join(place, KIND, run), ".parquet")
    ]
    return EvaluationSet(name, "data", urls, clip)


def _there(url: str) -> str:
    if not storage.exists(url):
        raise UserError(f"--evaluation {storage.public(url)} does not exist", "check the path")
    return url


def _is_image(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return path.suffix.lower().lstrip(".") in IMAGE_SUFFIXES and path.is_file() and not hidden


def _of_images(found: EvaluationSet, min_quality: int) -> Iterator[Item]:
    def item(url: str) -> Item:
        with storage.open_read(url) as f:
            data = f.read(MAX_BYTES + 1)
        inside = url.removeprefix(found.root).lstrip("/")
        return _hashed(f"{found.name}/{inside}", data, min_quality)

    yield from prefetch(found.urls, item, threads=_THREADS, depth=4 * _THREADS, size=_no_size)


def _of_shards(found: EvaluationSet, min_quality: int) -> Iterator[Item]:
    for url in found.urls:
        shard = Shard(name=url.rsplit("/", 1)[-1], url=url, size=0, etag="unread")

        def item(sample: Sample, name: str = shard.name) -> Item:
            return _hashed(f"{name}/{sample.key}", sample.image, min_quality)

        samples = (sample for sample in read_samples(shard) if not sample.reason)
        yield from prefetch(samples, item, threads=_THREADS, depth=4 * _THREADS, size=_no_size)


def _hashed(name: str, data: bytes, min_quality: int) -> Item:
    view = view_of(Sample(index=0, uid="", key=name, image=data))
    if view.reason:
        return Item(name, sha256=hashlib.sha256(data).hexdigest())
    row = ImageAnnotator().prepare(view)
    return Item(name, row["sha256"], _reliable(row, min_quality))


def _reliable(row: dict, min_quality: int) -> int | None:
    plain = (row["pdq_quality"] or 0) < min_quality
    return None if plain or row["phash"] is None else int(row["phash"], 16)


def _of_data(found: EvaluationSet, min_quality: int) -> Iterator[Item]:
    columns = ["uid", "sha256", "phash", "pdq_quality", "status"]
    for url in found.urls:
        folder = url.rpartition("/")[0]
        if folder.rsplit("/", 1)[-1] == found.clip:
            rows = commit.read_sidecar(url, ["uid", "embedding"])
            matrix = embedding_matrix(rows["embedding"])
            for uid, embedding in zip(rows["uid"].to_pylist(), matrix, strict=len(matrix) > 0):
                yield Item(f"{found.name}/{uid}", embedding=embedding)
            continue
        for row in commit.sidecar_rows(url, columns):
            if row["sha256"]:
                yield Item(f"{found.name}/{row['uid']}", row["sha256"], _reliable(row, min_quality))


def _of_rows(found: EvaluationSet, min_quality: int) -> Iterator[Item]:
    """A parquet file of anybody's; its hashes are taken as reliable."""
    file = pq.ParquetFile(commit.in_memory(found.urls[0]))
    names = [name for name in file.schema_arrow.names if name in _COLUMNS]
    if not {"sha256", "phash", "embedding"} & set(names):
        raise UserError(
            f"--evaluation {found.name} has no column sha256, phash or embedding",
            f"its columns: {', '.join(file.schema_arrow.names)[:200]}",
        )
    number = 0
    for batch in file.iter_batches(10_000, columns=names):
        for row in batch.to_pylist():
            told = row.get("name") or row.get("uid") or str(number)
            number += 1
            try:
                yield _item(f"{found.name}/{told}", row)
            except (ValueError, TypeError, AttributeError) as e:
                raise UserError(
                    f"--evaluation {found.name}: row {number}: {e}",
                    "sha256 is 64 hex digits, phash 16, embedding a list of numbers",
                ) from e


def _item(name: str, row: dict) -> Item:
    sha256, phash, embedding = (row.get(column) for column in ("sha256", "phash", "embedding"))
    if sha256 and not _SHA256.fullmatch(sha256):
        raise ValueError(f"{sha256!r} is no sha256")
    return Item(
        name,
        sha256.lower() if sha256 else None,
        int(hashes.from_hex([phash])[0, 0]) if phash else None,
        np.asarray(embedding, np.float32).reshape(len(embedding)) if embedding else None,
    )


def _no_size(item: object) -> int:
    return 0  # what is ahead is bounded by its number


def _of_hashes(found: EvaluationSet) -> Iterator[Item]:
    spec = ":".join(part for part in (found.hashes, found.urls[0]) if part)
    told = read_blocklist(spec, "--evaluation")
    if told.kind not in _KINDS:
        raise UserError(
            f"--evaluation {found.name} is a list of {told.kind}", "give one of sha256 or phash"
        )
    for digits in hashes.to_hex(told.hashes):
        name = f"{found.name}/{digits}"
        if told.kind == "sha256":
            yield Item(name, sha256=digits)
        else:
            yield Item(name, phash=int(digits, 16))
