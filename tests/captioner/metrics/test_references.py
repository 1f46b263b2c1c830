"""References: captions find their images however they are keyed, and strangers are counted."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioner.metrics.references import read_references
from pipeline.errors import UserError

IMAGE = {"uid": "u1", "shard": "00000", "key": "k1", "sha256": "s1"}


def lines(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("name", [{"uid": "u1"}, {"shard": "00000", "key": "k1"}, {"sha256": "s1"}])
def test_every_key_finds_its_image(tmp_path: Path, name: dict):
    other = {key: value + "x" for key, value in name.items()}
    rows = [name | {"caption": "A dog."}, other | {"caption": "no"}, name | {"caption": "A cat."}]
    parquet = tmp_path / "r.parquet"
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    for spec in (lines(tmp_path / "r.jsonl", *rows), str(parquet)):
        references = read_references(spec)
        assert references.strangers() == len(references) == 2
        assert references.of(IMAGE) == ["A dog.", "A cat."]
        assert references.of(IMAGE | dict.fromkeys(name, "zz")) == []
        assert references.strangers() == 1
        assert references.fields == tuple(name)


def test_lists_of_captions(tmp_path: Path):
    spec = lines(tmp_path / "r.jsonl", {"uid": "u1", "captions": ["a dog", "", "two cats"]})
    assert read_references(spec).of(IMAGE) == ["a dog", "two cats"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"name": "u1", "caption": "a"}], "has the columns caption, name"),
        ([{"uid": "u1", "text_": "a"}], "has the columns"),
        ([{"uid": "u1", "caption": ""}], "holds no captions"),
    ],
)
def test_another_file_is_told(tmp_path: Path, rows: list[dict], message: str):
    with pytest.raises(UserError, match=message) as e:
        read_references(lines(tmp_path / "r.jsonl", *rows))
    assert str(e.value).startswith("REFERENCES=")
    with pytest.raises(UserError, match="there is no such file"):
        read_references(str(tmp_path / "nothing.jsonl"))
