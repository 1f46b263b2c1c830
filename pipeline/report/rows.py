"""The drawn samples as the page shows them: captions, fate, blend, columns, and a small picture."""

import base64
import json
from collections.abc import Iterable, Iterator

import duckdb

from pipeline import storage
from pipeline.report import pictures
from pipeline.report.chosen import Chosen
from pipeline.report.fates import STEPS
from pipeline.report.histograms import Column
from pipeline.schemas import STYLES

SAMPLE_BYTES = 9_000
"""Of the page for each sample: 500 of them, and all else, stay below 5 MB."""

_TEXT_BYTES = 1_200
_VALUE_CHARACTERS = 200
_LEAST_PICTURE = 900

_SCORES = ("status", "tokens", "similarity", "logprob", "finish", "reason")


def rows(
    connection: duckdb.DuckDBPyConnection, out: str, chosen: Chosen, columns: list[Column]
) -> list[dict]:
    """A dict for each row of `drawn`, in its order. Texts and pictures are cut to SAMPLE_BYTES."""
    found = {row["uid"]: row for row in _fates(connection)}
    for row in found.values():
        row |= {"texts": {}, "other": {}, "bars": [], "values": []}
    for field, run in (("texts", chosen.captions), ("other", chosen.compare)):
        if run:
            for uid, texts in _captions(connection, run):
                found[uid][field] = texts
    _add_columns(connection, columns, found)
    places = _add_blend(connection, chosen, found) if chosen.mix else {}
    if not chosen.captions:
        _add_originals(connection, columns, found)
    _add_pictures(out, chosen, found, places)
    return list(found.values())


def cut(text: str, most: int = _TEXT_BYTES) -> str:
    """The text, or as much of it as fits in so many bytes of UTF-8, and a mark."""
    data = text.encode("utf-8", "replace")
    if len(data) <= most:
        return text
    return data[:most].decode("utf-8", "ignore") + " […]"


def _dicts(relation: duckdb.DuckDBPyRelation) -> Iterator[dict]:
    for row in relation.fetchall():
        yield dict(zip(relation.columns, row, strict=True))


def _fates(connection: duckdb.DuckDBPyConnection) -> Iterator[dict]:
    for row in _dicts(connection.sql("SELECT uid, key, shard, rank, reason, near FROM drawn")):
        rank = row.pop("rank")
        yield row | {"key": cut(row["key"], 300), "step": None if rank is None else STEPS[rank]}


def _captions(connection: duckdb.DuckDBPyConnection, run: str) -> Iterator[tuple[str, dict]]:
    """uid, and for each style that was asked for its text and scores."""
    asked = "SELECT * EXCLUDE (image_embedding) FROM captions SEMI JOIN drawn USING (uid)"
    for row in _dicts(connection.sql(f"{asked} WHERE run = $run", params={"run": run})):
        texts = {"original": _said(row["caption"], {"status": row["caption_status"]})}
        for style in STYLES:
            if row[f"{style}_status"] != "absent":
                scores = {score: row[f"{style}_{score}"] for score in _SCORES}
                texts[style] = _said(row[f"caption_{style}"], scores)
        yield row["uid"], texts


def _said(text: str | None, scores: dict) -> dict:
    known = {name: _plain(value) for name, value in scores.items() if value is not None}
    return {"text": None if text is None else cut(text), **known}


def _add_columns(
    connection: duckdb.DuckDBPyConnection, columns: list[Column], found: dict[str, dict]
) -> None:
    """Bar and value of every column; a sample without a row of that table misses the value."""
    done = 0
    while done < len(columns):
        source = columns[done].source
        own = [column for column in columns[done:] if column.source is source]
        asked = ", ".join(f"{c.bar}, {_value(c)}" for c in own)
        relation = connection.sql(
            f"SELECT uid, {asked} FROM {source.relation} SEMI JOIN drawn USING (uid)"
        )
        known = {uid: values for uid, *values in relation.fetchall()}
        for uid, row in found.items():
            values = known.get(uid, [-1, None] * len(own))
            row["bars"] += values[0::2]
            row["values"] += map(_plain, values[1::2])
        done += len(own)


def _value(column: Column) -> str:
    return (
        f"left({column.value}, {_VALUE_CHARACTERS})" if column.kind == "category" else column.value
    )


def _plain(value: object) -> object:
    """Six digits are enough, and JSON has no infinities."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if abs(value) < float("inf") else str(value)
    return value


def _add_blend(
    connection: duckdb.DuckDBPyConnection, chosen: Chosen, found: dict[str, dict]
) -> dict[str, tuple[str, int, int]]:
    """Notes which caption the mix chose; returns where the images lie."""
    asked = (
        "SELECT uid, shard, caption_source, caption_drawn, text, caption, jpg_offset, jpg_size"
        " FROM mix SEMI JOIN drawn USING (uid) WHERE run = $mix"
    )
    places = {}
    for mixed in _dicts(connection.sql(asked, params={"mix": chosen.mix})):
        row = found[mixed["uid"]]
        row["source"] = mixed["caption_source"]
        row["drawn"] = mixed["caption_drawn"]
        if not chosen.captions:
            row["texts"] = {"original": _said(mixed["caption"], {})}
            if mixed["text"] is not None and mixed["text"] != mixed["caption"]:
                row["texts"]["blend"] = _said(mixed["text"], {})
        if mixed["jpg_size"]:
            places[mixed["uid"]] = (mixed["shard"], mixed["jpg_offset"], mixed["jpg_size"])
    return places


def _add_originals(
    connection: duckdb.DuckDBPyConnection, columns: list[Column], found: dict[str, dict]
) -> None:
    """Where nothing was captioned: the text that an annotator has read."""
    with_text = [c.source for c in columns if c.name == "caption" and "@" in c.source.title]
    for source in with_text[:1]:
        asked = f"SELECT uid, caption FROM {source.relation} SEMI JOIN drawn USING (uid)"
        for uid, text in connection.sql(asked).fetchall():
            found[uid]["texts"].setdefault("original", _said(text, {}))


def _add_pictures(
    out: str, chosen: Chosen, found: dict[str, dict], places: dict[str, tuple[str, int, int]]
) -> None:
    wanted: dict[str, set[str]] = {}
    for uid, row in found.items():
        row |= {"image": "", "no_image": pictures.NOT_READ}
        if uid not in places and row["near"]:
            wanted.setdefault(row["shard"], set()).add(uid)
    for uid, data, reason in _images(out, chosen, places, wanted):
        row = found[uid]
        room = max(_LEAST_PICTURE, (SAMPLE_BYTES - _size(row)) * 3 // 4)  # base64
        data, row["no_image"] = (b"", reason) if reason else pictures.shown(data, room)
        row["image"] = base64.b64encode(data).decode()
    for row in found.values():
        del row["near"]


def _images(
    out: str, chosen: Chosen, places: dict, wanted: dict
) -> Iterable[tuple[str, bytes, str]]:
    for uid, data in pictures.from_mix(storage.join(out, "mix", chosen.mix), places):
        yield uid, data, ""
    yield from pictures.from_raw(out, wanted)


def _size(row: dict) -> int:
    return len(json.dumps(row, ensure_ascii=False).encode())
