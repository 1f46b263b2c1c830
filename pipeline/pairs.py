"""Training pairs: the images of shards, where their bytes lie, and what to learn to say of them."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.caption_table import CaptionTable
from pipeline.draws import key64
from pipeline.errors import UserError
from pipeline.images import BadImage, decode
from pipeline.manifest import Shard
from pipeline.prefetch import prefetch
from pipeline.reading import BadShard, read_samples
from pipeline.samples import Sample
from pipeline.schemas import OK, PAIRS, table_of

_ROWS_AHEAD = 64
_ROW_GROUP = 10_000
_RECIPE, _STRANGERS = b"recipe", b"strangers"

_SAMPLES = pa.schema(
    [
        *[field for field in PAIRS if field.name not in ("captions", "split")],
        pa.field("stem", pa.string()),  # of the shard's file name, where that is no other shard's
        pa.field("source_sha256", pa.string()),  # of what was fetched, before any resizing
        pa.field("captions", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class Recipe:
    """What decides the pairs."""

    shards: tuple[Shard, ...]
    style: str  # "base", "short" or "long"
    captions: CaptionTable | None  # None: those that the shards bring along
    held_out: int = 0  # samples that are kept for examination
    seed: int = 0
    are_names_known: bool = True  # whether the shards have the names that the captions' keys mean

    @property
    def digest(self) -> str:
        """Equal for equal inputs; a touched caption file or shard changes it."""
        parts = [self.style, self.held_out, self.seed, self.captions and self.captions.identity()]
        parts += [[shard.name, shard.size, shard.etag, shard.mtime_ns] for shard in self.shards]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Gathered:
    """The accounting: samples = train + held_out + dropped by reason."""

    train: int
    held_out: int
    dropped: Counter[str]
    strangers: int  # keys of the caption table that no sample has

    @property
    def samples(self) -> int:
        return self.train + self.held_out + self.dropped.total()


def gather(recipe: Recipe, path: Path, threads: int = 2) -> Gathered:
    """Reads every shard once, decodes every image once, and writes PAIRS to `path`.

    So training meets no image that cannot be read, and reads any of them at random. What is there
    already from the same recipe is kept. Raises UserError where nothing is left to train on, where
    a shard cannot be read, or where `path` holds pairs of another recipe.
    """
    if path.exists():
        known = (pq.read_schema(path).metadata or {}).get(_RECIPE, b"").decode()
        if known != recipe.digest:
            raise UserError(
                f"{path} was gathered from other shards, captions or settings", "give another OUT"
            )
        return _accounting(path)
    if recipe.captions is not None:
        recipe.captions.files()  # missing ones should not wait for all the images
    stems = _stems(recipe.shards)
    samples = path.with_name("samples.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with pq.ParquetWriter(samples, _SAMPLES) as writer:
            for shard in recipe.shards:
                rows = _rows(recipe, shard, stems[shard.name], threads)
                writer.write_table(table_of(rows, _SAMPLES), _ROW_GROUP)
        _join(recipe, samples, path)
    finally:
        samples.unlink(missing_ok=True)
    return _accounting(path)


def read(path: Path, split: str) -> pa.Table:
    """The usable pairs of a split, in the order of the shards."""
    table = pq.read_table(path, filters=[("split", "=", split), ("status", "=", OK)])
    return table.select(["uid", "key", "shard", "offset", "size", "captions"])


def _stems(shards: Sequence[Shard]) -> dict[str, str | None]:
    """Shard name -> its file's name without suffix, None where several share that."""
    found = {shard.name: shard.url.rsplit("/", 1)[-1].split(".")[0] for shard in shards}
    often = Counter(found.values())
    return {name: stem if often[stem] == 1 else None for name, stem in found.items()}


def _rows(recipe: Recipe, shard: Shard, stem: str | None, threads: int) -> Iterator[dict]:
    own = (f"caption_{recipe.style}", "captions") if recipe.style != "base" else ("captions",)
    try:
        yield from prefetch(
            read_samples(shard),
            lambda sample: _row(sample, shard.name, stem, own),
            threads=max(1, threads),
            depth=_ROWS_AHEAD,
            size=lambda sample: len(sample.image),
        )
    except (BadShard, OSError) as e:
        raise UserError(
            f"SHARDS: {storage.scrub(str(e), shard.url)}", "leave that shard out, or mend it"
        ) from e


def _row(sample: Sample, shard: str, stem: str | None, own: Sequence[str]) -> dict:
    reason = sample.reason
    if not reason:
        try:
            decode(sample.image, min_side=1)
        except BadImage as e:
            reason = e.reason
    return {
        "uid": sample.uid,
        "key": sample.key,
        "shard": shard,
        "offset": sample.offset,
        "size": len(sample.image),
        "sha256": hashlib.sha256(sample.image).hexdigest() if sample.image else None,
        "stem": stem,
        "source_sha256": _text(sample.meta.get("sha256")),
        "captions": _own_captions(sample, own),
        "status": "failed" if reason else OK,
        "reason": reason or None,
    }


def _own_captions(sample: Sample, fields: Sequence[str]) -> list[str]:
    """What the `.json` holds for this style, else the original caption."""
    for name in fields:
        value = sample.meta.get(name)
        texts = [_text(v) for v in (value if isinstance(value, list) else [value])]
        if found := [text for text in texts if text]:
            return found
    return [sample.text] if sample.text_status == OK else []


def _text(value: object) -> str | None:
    """A JSON value as a text that any file can hold; None where it is none."""
    if not isinstance(value, str):
        return None
    return " ".join(value.encode("utf-8", "replace").decode().replace("\x00", "").split()) or None


def _join(recipe: Recipe, samples: Path, path: Path) -> None:
    """Brings captions and samples together, keeps some for examination, writes PAIRS."""
    strangers = 0
    with duckdb.connect() as connection:
        connection.sql(
            f"CREATE VIEW samples AS FROM read_parquet('{_escaped(samples)}', file_row_number = true)"
        )
        joins, captions = "", "captions"
        if recipe.captions is not None:
            keys = recipe.captions.create_view(connection, recipe.style)
            if not recipe.are_names_known:
                keys = _sure_of(keys, connection, recipe)
            joins = " ".join(
                f"LEFT JOIN said AS said{i} ON said{i}.k = samples.{key}"
                if key.isidentifier()
                else f"LEFT JOIN said AS said{i} ON said{i}.k = (samples.{key})"
                for i, key in enumerate(keys)
            )
            captions = f"coalesce({', '.join(f'said{i}.captions' for i in range(len(keys)))}, [])"
            known = " UNION ALL ".join(f"SELECT {key} AS k FROM samples" for key in keys)
            strangers = connection.sql(
                f"SELECT count(*) FROM said ANTI JOIN ({known}) AS known USING (k)"
            ).fetchall()[0][0]
        columns = ", ".join(f"samples.{name}" for name in _SAMPLES.names if name in PAIRS.names)
        table = connection.sql(
            f"SELECT {columns.replace('samples.captions', captions + ' AS captions')} "
            f"FROM samples {joins} ORDER BY file_row_number"
        ).to_arrow_table()
    table = _with_verdicts(table, recipe)
    _require_some(table, recipe, strangers)
    meta = {_RECIPE: recipe.digest.encode(), _STRANGERS: str(strangers).encode()}
    with storage.write_atomic(str(path)) as part:
        pq.write_table(table.replace_schema_metadata(meta), part, row_group_size=_ROW_GROUP)


def _sure_of(
    keys: tuple[str, ...], connection: duckdb.DuckDBPyConnection, recipe: Recipe
) -> tuple[str, ...]:
    """The keys that mean the same here; UserError where names of shards would have to be guessed.

    Shards are numbered by their order where their files are not; a uid is made of that number.
    """
    if "shard" in keys[0]:
        nameless = connection.sql("SELECT count(*) FROM samples WHERE stem IS NULL").fetchall()
        if nameless[0][0]:
            raise UserError(
                "several of SHARDS have one file name, so CAPTIONS cannot name them by shard and key",
                "key the captions by sha256, or train on one of the folders",
            )
        return keys[1:]
    guessed = [shard for shard in recipe.shards if shard.name not in _stems([shard]).values()]
    if keys[0] == "uid" and guessed:
        raise UserError(
            f"CAPTIONS are keyed by uid, which needs the names that {storage.public(guessed[0].url)} and"
            " others had when these were made",
            "put the file two levels below that shards.parquet, as OUT/captions/<run>/, or key by sha256",
        )
    return keys


def _with_verdicts(table: pa.Table, recipe: Recipe) -> pa.Table:
    """Drops what has nothing to say; keeps for examination the samples of the smallest hashes."""
    has_captions = pc.greater(pc.list_value_length(table["captions"]), 0)
    is_read = pc.equal(table["status"], OK)
    is_ok = pc.and_(is_read, has_captions).to_numpy()
    reason = pc.if_else(pc.and_(is_read, pc.invert(has_captions)), "no_caption", table["reason"])
    hashes = [key64(recipe.seed, uid, "held out") for uid in table["uid"].to_pylist()]
    candidates = np.flatnonzero(is_ok)
    order = candidates[np.argsort(np.array(hashes, dtype=np.uint64)[candidates], kind="stable")]
    is_held_out = np.zeros(len(table), dtype=bool)
    is_held_out[order[: recipe.held_out]] = True
    columns = {
        "status": pc.if_else(pa.array(is_ok), OK, "failed"),
        "reason": reason,
        "split": pc.if_else(pa.array(is_held_out), "held_out", "train"),
    }
    names = {name: columns.get(name) for name in PAIRS.names}
    found = [table[name] if column is None else column for name, column in names.items()]
    return pa.table(found, names=list(names)).cast(PAIRS)


def _require_some(table: pa.Table, recipe: Recipe, strangers: int) -> None:
    """UserError where there is nothing to train on, with the likeliest cause."""
    if pc.any(pc.and_(pc.equal(table["split"], "train"), pc.equal(table["status"], OK))).as_py():
        return
    reasons = dict(Counter(reason for reason in table["reason"].to_pylist() if reason))
    if strangers:
        raise UserError(
            f"CAPTIONS={storage.public(recipe.captions.spec)}: none of its {strangers} keys belongs to a "
            "sample of SHARDS",
            "give the shards that were captioned",
        )
    raise UserError(
        f"SHARDS hold no pair to train on ({reasons or 'all are held out'})",
        "give images with captions, or CAPTIONS=<parquet or jsonl>",
    )


def _accounting(path: Path) -> Gathered:
    table = pq.read_table(path, columns=["split", "status", "reason"])
    rows = list(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))
    splits = Counter(split for split, status, _ in rows if status == OK)
    return Gathered(
        train=splits["train"],
        held_out=splits["held_out"],
        dropped=Counter(reason for _, status, reason in rows if status != OK),
        strangers=int(pq.read_schema(path).metadata[_STRANGERS]),
    )


def _escaped(path: Path) -> str:
    return str(path).replace("'", "''")
