"""Captions from files: every key, every form of caption, and what cannot be read."""

import json

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.caption_table import CaptionTable
from pipeline.errors import UserError


def said(path, style="short"):
    with duckdb.connect() as connection:
        keys = CaptionTable(str(path)).create_view(connection, style)
        return keys, dict(connection.sql("SELECT k, captions FROM said").fetchall())


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_of_one_key_are_several_captions_in_order(tmp_path):
    path = lines(
        tmp_path / "c.jsonl",
        {"uid": "a", "caption": " first\n one "},
        {"uid": "b", "caption": "b's"},
        {"uid": "a", "caption": "second"},
        {"uid": "a", "caption": "  "},
        {"uid": None, "caption": "nobody's"},
    )
    assert said(path) == (("uid",), {"a": ["first one", "second"], "b": ["b's"]})


def test_lists_of_captions_and_keys_of_shard_and_key(tmp_path):
    rows = [
        {"shard": "00000", "key": "1", "captions": ["x", "y"]},
        {"shard": "00001", "key": "1", "captions": []},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    assert said(tmp_path / "c.parquet") == (
        ("shard || '/' || key", "stem || '/' || key"),
        {"00000/1": ["x", "y"]},
    )


def test_hashes_match_what_the_shard_holds_or_what_was_fetched(tmp_path):
    path = lines(tmp_path / "c.jsonl", {"sha256": "ff", "text": "said"})
    assert said(path) == (("sha256", "source_sha256"), {"ff": ["said"]})


def test_of_a_caption_run_only_what_is_ok_counts_and_each_style_has_its_own(tmp_path):
    rows = [
        {
            "uid": str(i),
            "caption": "original",
            "caption_short": f"short {i}",
            "short_status": status,
            "caption_long": "long",
            "long_status": "ok",
        }
        for i, status in enumerate(("ok", "truncated", "ok"))
    ]
    run = tmp_path / "captions" / "first"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    pq.write_table(pa.Table.from_pylist(rows[:2]), run / "00000.parquet")
    pq.write_table(pa.Table.from_pylist(rows[2:]), run / "00001.parquet")
    assert said(run)[1] == {"0": ["short 0"], "2": ["short 2"]}
    assert said(run, "long")[1] == {str(i): ["long"] for i in range(3)}
    assert said(run, "base")[1] == {str(i): ["original"] for i in range(3)}
    assert CaptionTable(str(run)).data_folder == ""
    (tmp_path / "shards.parquet").touch()
    assert CaptionTable(str(run)).data_folder == str(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.parquet", None),
        ("empty", None),
        ("c.jsonl", '{"uid": "a", "words": "x"}\n'),
        ("c.jsonl", '{"name": "a", "caption": "x"}\n'),
        ("c.jsonl", "not json\n"),
        ("c.parquet", "no parquet"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_the_remedy(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as e:
        said(tmp_path / name)
    assert "CAPTIONS=" in e.value.message and "\n" not in e.value.message and e.value.hint


def test_what_looks_like_a_time_or_a_number_stays_the_text_it_is(tmp_path):
    rows = [
        {"shard": "s", "key": "1:01", "caption": "12:31"},
        {"shard": 7, "key": 8, "caption": "x"},
    ]
    assert said(lines(tmp_path / "c.jsonl", *rows))[1] == {"s/1:01": ["12:31"], "7/8": ["x"]}


def test_a_caption_may_be_a_text_here_and_a_list_there_and_appear_late(tmp_path):
    rows = [{"uid": f"{i}", "width": i} for i in range(30_000)]
    rows += [{"uid": "a", "captions": "one"}, {"uid": "b", "captions": ["two", None, "three"]}]
    rows += [{"uid": "c", "captions": {"no": "text"}}, {"uid": "d", "captions": None}]
    assert said(lines(tmp_path / "c.jsonl", *rows))[1] == {"a": ["one"], "b": ["two", "three"]}


def test_a_quote_in_a_name_is_only_a_quote(tmp_path):
    path = lines(tmp_path / "it's.jsonl", {"uid": "a", "caption": "x'); DROP TABLE said; --"})
    assert said(path)[1] == {"a": ["x'); DROP TABLE said; --"]}


def test_a_changed_file_is_another_one(tmp_path):
    path = lines(tmp_path / "c.jsonl", {"uid": "a", "caption": "x"})
    before = CaptionTable(str(path)).identity()
    path.touch()
    assert before == CaptionTable(str(path)).identity()
    lines(path, {"uid": "a", "caption": "longer"})
    assert before != CaptionTable(str(path)).identity()
