"""What a deduplication reads: the sidecars of stage `image`, and of stage `clip`, of every shard."""

import binascii
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import commit, runs, storage
from pipeline.annotate.annotator import KIND
from pipeline.annotate.clip import embedding_matrix
from pipeline.errors import UserError
from pipeline.manifest import Shard
from pipeline.reading import BadShard
from pipeline.runs import canonical
from pipeline.schemas import OK

_IMAGE = ("uid", "status", "sha256", "phash", "pdq_quality", "width", "height", "num_bytes")


@dataclass(frozen=True)
class ShardRows:
    """The rows of one shard's sidecars, aligned: all arrays are of length n."""

    image: pa.Table  # _IMAGE
    ok: np.ndarray  # bool
    uid: np.ndarray  # uint64 (ok rows, 2)
    sha256: np.ndarray  # uint64 (ok rows, 4)
    phash: np.ndarray  # uint64, 0 where there is none
    comparable: np.ndarray  # bool: it has a perceptual hash that tells it from others
    similarity: pa.Array  # float32, null where unknown
    embedding: np.ndarray | None  # float16 (n, d), nan where there is none


@dataclass
class Sources:
    """Sidecars by shard, those that cannot be used set aside with the reason."""

    out: str
    image: str  # run of columns
    clip: str  # run of columns; "" where none is read
    min_quality: int
    shards: Sequence[Shard]
    inputs: dict[str, dict] = field(default_factory=dict)  # shard -> identities of what is read
    rows: dict[str, int] = field(default_factory=dict)  # shard -> samples
    bad: dict[str, str] = field(default_factory=dict)  # shard -> why it is left out

    def __post_init__(self) -> None:
        """Hashes every sidecar: what is derived from all of them is redone when any changes."""
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(self._look, self.shards))
        for shard, inputs in zip(self.shards, found, strict=True):
            if isinstance(inputs, str):
                self.bad[shard.name] = inputs
            else:
                self.inputs[shard.name] = inputs

    @cached_property
    def digest(self) -> str:
        """Of everything that goes in."""
        return hashlib.sha256(canonical(self.inputs).encode()).hexdigest()

    @cached_property
    def usable(self) -> list[Shard]:
        """The shards that are compared, by name."""
        return sorted((s for s in self.shards if s.name in self.inputs), key=lambda s: s.name)

    def read(self, shard: Shard, embeddings: bool = False) -> ShardRows:
        """The rows of one shard; UserError where a file is damaged, or two are out of step."""
        image = self._table(self.image, shard, list(_IMAGE))
        ok = pc.equal(image["status"], OK).to_numpy()
        comparable = self._comparable(image, ok)
        phash = np.zeros(len(image), np.uint64)
        try:
            phash[comparable] = _numbers(image["phash"].filter(pa.array(comparable)), 1)[:, 0]
            uid = _numbers(image["uid"].filter(pa.array(ok)), 2)
            sha256 = _numbers(image["sha256"].filter(pa.array(ok)), 4)
        except (pa.ArrowException, ValueError) as e:
            raise UserError(
                f"{self._url(self.image, shard)} has a uid or hash that is none: {e}",
                "delete it and make it again: make annotate STAGES=image",
            ) from e
        similarity, embedding = pa.nulls(len(image), pa.float32()), None
        if self.clip:
            names = ["uid", "similarity"] + ["embedding"] * embeddings
            clip = self._table(self.clip, shard, names)
            if not clip["uid"].equals(image["uid"]):
                raise UserError(
                    f"{self.clip} and {self.image} have different rows of shard {shard.name}",
                    "make both again: make annotate STAGES=image,clip",
                )
            similarity = clip["similarity"].combine_chunks()
            if embeddings:
                embedding = embedding_matrix(clip["embedding"])
        return ShardRows(image, ok, uid, sha256, phash, comparable, similarity, embedding)

    def verdict_rows(self, shard: Shard) -> pa.Table:
        """uid, key, status and reason of a shard's samples."""
        return self._table(self.image, shard, ["uid", "key", "status", "reason"])

    def _comparable(self, image: pa.Table, ok: np.ndarray) -> np.ndarray:
        quality = image["pdq_quality"].fill_null(0).to_numpy()
        return ok & image["phash"].is_valid().to_numpy() & (quality >= self.min_quality)

    def _table(self, run: str, shard: Shard, columns: list[str]) -> pa.Table:
        url = self._url(run, shard)
        try:
            return commit.read_sidecar(url, columns)
        except (OSError, pa.ArrowException) as e:
            raise UserError(
                f"{url} is damaged, or lacks columns: {' '.join(str(e).split())[:200]}",
                "delete it and make it again: make annotate",
            ) from e

    def _look(self, shard: Shard) -> dict | str:
        try:
            return self._inputs(shard)
        except (OSError, BadShard) as e:
            return storage.scrub(str(e), shard.url)

    def _inputs(self, shard: Shard) -> dict:
        inputs: dict = {}
        for run in (self.image, self.clip) if self.clip else (self.image,):
            url = self._url(run, shard)
            record = commit.read_sidecar_record(url)
            if record is None:
                raise BadShard(f"shard {shard.name} has no columns {run}: annotate it first")
            identity = record.inputs["shard"]
            if not replace(shard, limit=identity["limit"]).is_still(identity):
                raise BadShard(f"shard {shard.name} changed since {run}: annotate it again")
            inputs.setdefault("shard", identity)
            self.rows[shard.name] = record.counts["rows"]
            inputs[f"{KIND}/{run}"] = commit.sha256_file(url)
        return inputs

    def _url(self, run: str, shard: Shard) -> str:
        return storage.join(self.out, KIND, run, f"{shard.name}.parquet")


def _numbers(digits: pa.ChunkedArray, words: int) -> np.ndarray:
    """Strings of hex digits to uint64 (n, words): `hashes.from_hex` for millions of them.

    Raises ArrowInvalid or ValueError where one is null, of another length, or no hex.
    """
    if digits.null_count:
        raise ValueError("there is none")
    fixed = digits.cast(pa.binary()).cast(pa.binary(16 * words)).combine_chunks()
    if not len(fixed):
        return np.empty((0, words), np.uint64)
    start, size = fixed.offset * 16 * words, len(fixed) * 16 * words
    data = binascii.unhexlify(fixed.buffers()[1][start : start + size])  # refuses what is no digit
    return np.frombuffer(data, ">u8").astype(np.uint64).reshape(-1, words)


def find_run(out: str, stage: str, name: str, flag: str) -> str:
    """The run of a stage: as named, or the only one there is; UserError with the remedy."""
    if name:
        if runs.load(out, KIND, name) is None:
            raise UserError(f"{flag} {name}: {out} has no columns/{name}", _remedy(stage))
        return name
    found = runs.whole(run for run in runs.names(out, KIND) if run.startswith(f"{stage}@"))
    if not found:
        raise UserError(f"OUT={out} has no columns of stage {stage} yet", _remedy(stage))
    if len(found) > 1:
        raise UserError(
            f"OUT={out} has several runs of stage {stage}: {', '.join(found)}",
            f"name one: {flag} {found[0]}",
        )
    return found[0]


def _remedy(stage: str) -> str:
    return f"run make annotate STAGES={stage} first"
