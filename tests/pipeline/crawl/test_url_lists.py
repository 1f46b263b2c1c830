"""URL lists of every format that img2dataset reads: the same rows, streamed, and clear refusals."""

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.crawl import json_stream
from pipeline.crawl.column_types import part_schema
from pipeline.crawl.plan import cut
from pipeline.crawl.presets import PRESETS, Columns, checked
from pipeline.crawl.url_lists import FORMATS, SUFFIXES, find
from pipeline.errors import UserError
from tests.support import img2dataset_peer as peer
from tests.support import real

ROWS = [
    {"url": f"http://example.org/{i}.jpg", "text": f'caption {i}, "é" \\ 图', "n": i, "sim": i / 8}
    for i in range(25)
]
KEPT = Columns(caption="text", keep=("n", "sim"))


def write(path: Path, rows: list[dict] = ROWS) -> str:
    """A list in the format that its name says."""
    kind = path.name.split(".")[1]
    table = pa.Table.from_pylist(rows)
    file = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, file, row_group_size=7)
    elif kind in ("csv", "tsv"):
        delimiter = {"csv": ",", "tsv": "\t"}[kind]
        pyarrow.csv.write_csv(table, file, pyarrow.csv.WriteOptions(delimiter=delimiter))
    elif kind == "json":
        file.write(json.dumps(rows, ensure_ascii=False, indent=1).encode())
    elif kind == "jsonl":
        file.writelines(json.dumps(row).encode() + b"\n" for row in rows)
    else:
        file.writelines(row["url"].encode() + b"\n" for row in rows)
    data = file.getvalue()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return str(path)


def table_of(spec: str, columns: Columns = KEPT, size: int = 10_000, **options: object) -> pa.Table:
    lists = find(spec, **options)
    columns = checked(columns, (), lists)
    return pa.concat_tables(cut(lists, columns, part_schema(columns, lists), size))


def opened_pieces(monkeypatch) -> list[int]:
    """How much of each file is read, from here on."""
    read: list[int] = []
    plain = storage.open_read

    class Counting(io.RawIOBase):
        def __init__(self, url: str) -> None:
            self._file = plain(url)
            self._number = len(read)
            read.append(0)

        def readable(self) -> bool:
            return True

        def seekable(self) -> bool:
            return True

        def seek(self, offset: int, whence: int = 0) -> int:
            return self._file.seek(offset, whence)

        def tell(self) -> int:
            return self._file.tell()

        def readinto(self, buffer: memoryview) -> int:
            data = self._file.read(len(buffer))
            buffer[: len(data)] = data
            read[self._number] += len(data)
            return len(data)

    monkeypatch.setattr(storage, "open_read", lambda url: io.BufferedReader(Counting(url)))
    return read


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_has_the_same_rows(tmp_path, suffix):
    url = write(tmp_path / f"list{suffix}")
    if suffix.startswith(".txt"):
        found = table_of(url, Columns())
        assert found.column("url").to_pylist() == [row["url"] for row in ROWS]
        return
    found = table_of(url)
    assert found.schema.names == ["n", "sim", "caption", "url", "retry_of"]
    assert found.schema.field("n").type == pa.int64()
    assert found.schema.field("sim").type == pa.float64()
    names = {"text": "caption"}
    expected = [{names.get(k, k): v for k, v in row.items()} | {"retry_of": None} for row in ROWS]
    assert found.to_pylist() == expected


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_as_img2dataset_reads_it(tmp_path, suffix):
    pytest.importorskip("img2dataset")
    url = write(tmp_path / f"list{suffix}")
    is_text = suffix.startswith(".txt")
    asked = {} if is_text else {"caption_col": "text", "keep": ["n", "sim"]}
    theirs = peer.read(url, suffix[1:], tmp_path, shard_size=10, **asked)
    lists = find(url)
    columns = Columns() if is_text else KEPT
    ours = list(cut(lists, columns, part_schema(columns, lists), 10))
    assert len(ours) == len(theirs) == 3
    for mine, (_, _, other) in zip(ours, theirs, strict=True):
        assert mine.drop_columns(["retry_of"]).equals(other.replace_schema_metadata())


def test_json_of_columns_as_pandas_writes_it(tmp_path):
    columns = {name: {str(i): row[name] for i, row in enumerate(ROWS)} for name in ROWS[0]}
    path = tmp_path / "list.json"
    path.write_text(json.dumps(columns))
    assert table_of(str(path)).equals(table_of(write(tmp_path / "rows.json")))


@given(
    st.lists(
        st.dictionaries(
            st.text(max_size=3),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                lambda inner: st.lists(inner, max_size=3),
                max_leaves=4,
            ),
            max_size=3,
        ),
        max_size=6,
    ),
    st.sampled_from([None, 1]),
)
@settings(max_examples=60, deadline=None)
def test_json_in_small_pieces(rows, indent):
    class Dripping(io.StringIO):
        def read(self, size: int = -1) -> str:
            return super().read(3)

    text = json.dumps(rows, indent=indent)
    assert list(json_stream.rows(lambda: Dripping(text))) == rows


@pytest.mark.parametrize(
    "text",
    [
        *("", "[{}", "[1]", '{"a": 1}', "[{}] x", '{"a": {"0": 1}, "b": {}}', "[{},]"),
        *('{"a": {"0": 1}, "b": {"1": 2}}', '[{"a": 1', "[" * 100_000, "nonsense"),
    ],
)
def test_broken_json(tmp_path, text):
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"list\.json cannot be read as json"):
        for _ in find(str(path))[0].batches(["url"]):
            pass


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if not s.endswith(".gz")])
def test_streamed(tmp_path, suffix, monkeypatch):
    """The first rows are there when a small piece of the file has been read."""
    long = "q" * 400
    rows = [{"url": f"http://example.org/{i}?{long}", "text": f"{i}"} for i in range(60_000)]
    path = tmp_path / f"list{suffix}"
    url = write(path, rows) if suffix != ".parquet" else str(path)
    if suffix == ".parquet":  # one row group, as pyarrow writes by default, its texts not alike
        pq.write_table(pa.Table.from_pylist(rows), path, compression="none", use_dictionary=False)
    read = opened_pieces(monkeypatch)
    batches = find(url)[0].batches(["url"] if suffix == ".txt" else ["url", "text"])
    assert len(next(batches)["url"]) > 0
    batches.close()
    assert sum(read) < 12e6 < path.stat().st_size / 2


def test_a_csv_may_hold_what_it_likes(tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes(
        b"\xef\xbb\xbfurl,text,a,b,c,d\r\n"
        b'http://a/1,"two\nlines, ""quoted""",1,,true,007x\r\n'
        b"http://a/2,caf\xe9,2,1.5,false,\r\n"
    )
    columns = Columns(caption="text", keep=("a", "b", "c", "d"))
    assert table_of(str(path), columns).to_pylist() == [
        {"a": 1, "b": None, "c": True, "d": "007x", "caption": 'two\nlines, "quoted"'}
        | {"url": "http://a/1", "retry_of": None},
        {"a": 2, "b": 1.5, "c": False, "d": "", "caption": "caf\ufffd"}
        | {"url": "http://a/2", "retry_of": None},
    ]


def test_jsonl_with_rows_unlike_each_other(tmp_path):
    path = tmp_path / "list.jsonl"
    lines = [
        {"url": "a", "n": 1, "x": [1, "b"]},
        {"url": None, "n": 2.5},
        {"x": "\ud800", "l": [1]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    found = table_of(str(path), Columns(keep=("n", "x", "l"))).to_pylist()
    assert [row["url"] for row in found] == ["a", None, None]
    assert [row["n"] for row in found] == [1.0, 2.5, None]
    assert [row["x"] for row in found] == ['[1, "b"]', None, "?"]
    assert [row["l"] for row in found] == [None, None, [1]]


def test_parquet_types_that_json_lacks_become_text(tmp_path):
    import datetime
    import decimal

    table = pa.table(
        {
            "url": pa.array(["a"], pa.large_string()),
            "day": pa.array([datetime.date(2020, 1, 2)]),
            "price": pa.array([decimal.Decimal("1.50")]),
            "kind": pa.array(["x"]).dictionary_encode(),
            "boxes": pa.array([[[0.1]]], pa.large_list(pa.list_(pa.float32()))),
            "raw": pa.array([b"\xff"]),
        }
    )
    pq.write_table(table, tmp_path / "list.parquet")
    kept = Columns(keep=("day", "price", "kind", "boxes"))
    (row,) = table_of(str(tmp_path / "list.parquet"), kept).to_pylist()
    assert (row["day"], row["price"], row["kind"]) == ("2020-01-02", "1.50", "x")
    assert row["boxes"] == [[pytest.approx(0.1)]]
    with pytest.raises(UserError, match="KEEP_COLS=raw"):
        table_of(str(tmp_path / "list.parquet"), Columns(keep=("raw",)))


def test_a_column_may_have_another_type_in_another_file(tmp_path):
    for name, kind in (("a", pa.int32()), ("b", pa.float64())):
        pq.write_table(
            pa.table({"url": ["u"], "n": pa.array([1], kind)}), tmp_path / f"{name}.parquet"
        )
    found = table_of(str(tmp_path), Columns(keep=("n",)))
    assert found.column("n").to_pylist() == [1.0, 1.0]


def test_where_lists_are(tmp_path, store):
    for name in ("b.csv", "a.csv"):
        write(tmp_path / name)
    (tmp_path / "note.md").write_text("no list")
    names = [found.name for found in find(str(tmp_path))]
    assert names == [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    assert [f.name for f in find(f"{tmp_path}/{{b,a}}.csv")] == names[::-1]
    assert [f.name for f in find(f"{tmp_path}/*.csv")] == names
    (tmp_path / "all").write_text("\n".join(names))
    assert [f.name for f in find(f"@{tmp_path}/all")] == names
    storage.write_bytes(f"{store}/a.csv", (tmp_path / "a.csv").read_bytes())
    assert table_of(f"{store}/a.csv").equals(table_of(str(tmp_path / "a.csv")))
    write(tmp_path / "c.txt.gz")
    with pytest.raises(UserError, match="several formats: csv, txt"):
        find(str(tmp_path))
    assert [f.format for f in find(str(tmp_path), "csv")] == ["csv", "csv"]
    plain = tmp_path / "urls"
    plain.write_text("http://a/1\n\n  http://a/2\n")
    with pytest.raises(UserError, match=r"urls has no known format"):
        find(str(plain))
    assert table_of(str(plain), Columns(), given="txt").num_rows == 2


@pytest.mark.parametrize("kind", FORMATS)
def test_no_list(tmp_path, kind):
    with pytest.raises(UserError, match="does not exist"):
        table_of(str(tmp_path / f"none.{kind}"), Columns())
    path = tmp_path / f"list.{kind}"
    path.write_bytes(b"")
    if kind in ("jsonl", "txt", "csv", "tsv"):
        with pytest.raises(UserError, match=r"no such column|holds no rows|cannot be read"):
            table_of(str(path))
    else:
        with pytest.raises(UserError, match=f"cannot be read as {kind}"):
            table_of(str(path))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            Columns(url="URL"),
            r"URL_COL=URL: .*list.csv has no such column; it has: url, text, n, sim",
        ),
        (Columns(caption="TEXT"), "CAPTION_COL=TEXT"),
        (Columns(keep=("m",)), "KEEP_COLS=m"),
        (Columns(hash="md5sum"), "HASH_COL=md5sum"),
        (Columns(keep=("url",)), "KEEP_COLS=url: a shard has columns of that name"),
    ],
)
def test_wrong_columns(tmp_path, columns, message):
    with pytest.raises(UserError, match=message) as e:
        table_of(write(tmp_path / "list.csv"), columns)
    assert e.value.hint


@pytest.mark.parametrize("name", ["Width", "STATUS"])
def test_names_that_sql_does_not_tell_apart(tmp_path, name):
    write(tmp_path / "list.jsonl", [{"url": "a", name: 1}])
    with pytest.raises(UserError, match=f"KEEP_COLS={name}"):
        table_of(str(tmp_path / "list.jsonl"), Columns(keep=(name,)))


@pytest.mark.parametrize("text", ["url,text\na\n", "url,text\na,b,c\n", '"never closed\n'])
def test_broken_csv(tmp_path, text):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=r"list\.csv"):
        table_of(str(tmp_path / "list.csv"), Columns(caption="text"))


@pytest.mark.parametrize(
    ("file", "preset", "rows", "kept"),
    [
        ("laion2b-en-10K.parquet", "laion", 10_001, ["SAMPLE_ID", "LICENSE", "NSFW", "similarity"]),
        ("laion400m_test_10000.parquet", "laion", 10_000, []),
        ("cc3m_validation.tsv", "cc3m", 15_833, []),
    ],
)
def test_real_lists(file, preset, rows, kept):
    found = PRESETS[preset]
    lists = find(str(real.data() / "text/urls" / file), header=found.header)
    columns = checked(found.columns, found.optional, lists)
    assert list(columns.keep) == kept
    tables = list(cut(lists, columns, part_schema(columns, lists), 10_000))
    assert [len(t) for t in tables] == [10_000, rows - 10_000][: len(tables)]
    everything = pa.concat_tables(tables)
    odd = [u for u in everything.column("url").to_pylist() if not u.startswith("http")]
    assert odd == (["UNLIKELY"] if "400m" in file else [])  # a broken row of that list
    assert everything.column("caption").null_count < 10


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_names_columns_that_may_be_kept(preset, tmp_path):
    found = PRESETS[preset]
    names = [*found.columns.read, *found.optional]
    write(tmp_path / "list.jsonl", [dict.fromkeys(names, "x")])
    columns = checked(found.columns, found.optional, find(str(tmp_path / "list.jsonl")))
    assert set(found.optional) <= set(columns.kept)


# --- text files of every make --------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "url,text\rhttp://a/,x\rhttp://b/,y\r",
        "\n\r\n\nurl,text\nhttp://a/,x\n\nhttp://b/,y\n",
        'url,"te\nxt"\nhttp://a/,x\nhttp://b/,y',
        '\ufeff"url","text"\r\nhttp://a/,"x\r\n,"\r\n',
        "url,text\n" + "".join(f"http://a/{i},{'x' * 30_000}\n" for i in range(3)),
    ],
)
def test_csv_as_arrow_reads_it(tmp_path, text):
    """Which is how img2dataset does."""
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode())
    expected = pyarrow.csv.read_csv(str(path))
    (found,) = find(str(path))
    assert found.columns() == expected.column_names
    rows = {name: [] for name in found.columns()}
    for batch in found.batches(found.columns()):
        for name, column in batch.items():
            rows[name] += column.to_pylist()
    assert rows == expected.to_pydict()


def test_urls_in_lines_that_end_with_a_carriage_return(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"http://a/\rhttp://b/\r\nhttp://c/\n")
    found = table_of(str(tmp_path / "a.txt"), Columns()).column("url").to_pylist()
    assert found == ["http://a/", "http://b/", "http://c/"]


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if s.endswith(".gz")])
def test_broken_gzip(tmp_path, suffix):
    rows = [{"url": f"http://a/{i * i}", "text": str(i)} for i in range(5000)]
    path = Path(write(tmp_path / f"a{suffix}", rows))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 30] = b"\xff" * 30
    for damaged in (bytes(data), bytes(data)[: len(data) // 2], b"\x1f\x8b" + b"\xff" * 50):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\..*cannot be read as"):
            table_of(str(path), Columns())


@pytest.mark.parametrize("begins", ["", "caption\turl\n"])
def test_a_table_that_has_the_header_of_its_preset(tmp_path, begins):
    preset = PRESETS["cc3m"]
    path = tmp_path / "a.tsv"
    path.write_text(begins + '"5 inch nail\thttp://a/\ncaption\turl\n')
    found = table_of(str(path), preset.columns, header=preset.header)
    assert found.column("url").to_pylist() == ["http://a/", "url"]
    assert found.column("caption").to_pylist() == ['"5 inch nail', "caption"]


def test_a_csv_without_a_header_may_be_quoted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('http://a/,"x, y"\nhttp://b/,"two\nlines"\n')
    found = table_of(str(path), Columns(caption="text"), header=("url", "text"))
    assert found.column("caption").to_pylist() == ["x, y", "two\nlines"]
