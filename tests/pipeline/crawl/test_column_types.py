"""Values of every kind in lists: each column gets a type that loses nothing, and no list breaks it."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.crawl.column_types import _converted, _Guess
from pipeline.crawl.presets import Columns
from pipeline.errors import UserError
from tests.pipeline.crawl.test_url_lists import table_of


def kept_of(path: Path, values: list) -> tuple[pa.DataType, list]:
    """Type and values that a column of JSON becomes, in the shape of rows and of lines."""
    rows = [{"url": "u", "k": value} for value in values]
    found = []
    for name, text in (("a.json", json.dumps(rows)), ("a.jsonl", "\n".join(map(json.dumps, rows)))):
        (path / name).write_text(text)
        column = table_of(str(path / name), Columns(keep=("k",))).column("k")
        found.append((column.type, column.to_pylist()))
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([["ok"], ["caf\ud83d"]], [["ok"], ["caf?"]]),
        ([{"a": "\ud800"}, {"a": "b"}], [{"a": "?"}, {"a": "b"}]),
        ([True, 2], ["true", "2"]),
        ([1.5, True], ["1.5", "true"]),
        ([2**63, -1], [str(2**63), "-1"]),
        ([2**60 + 1, 1.5], [str(2**60 + 1), "1.5"]),
        ([[1, "a"], [2]], ['[1, "a"]', "[2]"]),
        ([[1], "s"], ["[1]", "s"]),
        ([{}, {}], ["{}", "{}"]),
        ([{"a": {}}], ['{"a": {}}']),
        ([{"a": 1}, {"a": "x"}], ['{"a": 1}', '{"a": "x"}']),
        ([[], [1]], [[], [1]]),
        ([1, 1.5, None], [1.0, 1.5, None]),
        ([float("nan"), "x"], [None, "x"]),
    ],
)
def test_values_of_json(tmp_path, values, expected):
    assert kept_of(tmp_path, values)[1] == expected


@pytest.mark.parametrize(
    ("first", "second"), [(2**60 + 1, 1.5), (5, [1]), ({"a": 1}, {"a": "x"}), ({}, 3), (1, True)]
)
def test_a_value_of_another_kind_far_behind(tmp_path, first, second):
    """In another batch than the first: nothing is lost, all of it is JSON in text."""
    kind, found = kept_of(tmp_path, [first] * 10_000 + [second])
    assert kind == pa.string()
    assert [json.loads(found[0]), json.loads(found[-1])] == [first, second]


@given(
    st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=2), inner, max_size=2)
            ),
            max_leaves=5,
        ),
        max_size=5,
    )
)
@settings(max_examples=150, deadline=None)
def test_any_values_of_json_have_a_type(values):
    """Planning never fails on a value, and parquet holds what comes out."""
    guess = _Guess()
    guess.see(values)
    column = _converted(values, guess.type)
    assert len(column) == len(values)
    column.validate(full=True)
    pq.write_table(pa.table({"k": column}), io.BytesIO())


def pieces(folder: Path, *columns: pa.Array) -> str:
    """A folder with a parquet list for each of these columns."""
    for number, column in enumerate(columns):
        table = pa.table({"url": ["u"] * len(column), "k": column})
        pq.write_table(table, folder / f"{number}.parquet")
    return str(folder)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (pa.array([[1]]), pa.array(["s"]), ["[1]", "s"]),
        (pa.array([2**60 + 1]), pa.array([1.5]), [str(2**60 + 1), "1.5"]),
        (pa.array([7]), pa.array([1.5]), [7.0, 1.5]),
        (pa.array([True]), pa.array([5]), ["true", "5"]),
        (pa.array([[2**60 + 1]]), pa.array([[0.5]]), [f"[{2**60 + 1}]", "[0.5]"]),
        (pa.array([{"a": 1}]), pa.array([{"a": "x"}]), ['{"a": 1}', '{"a": "x"}']),
        (pa.array([-1]), pa.array([2**64 - 1], pa.uint64()), ["-1", str(2**64 - 1)]),
    ],
)
def test_parquet_files_that_differ(tmp_path, one, other, expected):
    for folder, columns, wanted in (("a", (one, other), expected), ("b", (other, one), expected)):
        (tmp_path / folder).mkdir()
        found = table_of(pieces(tmp_path / folder, *columns), Columns(keep=("k",)))
        values = found.column("k").to_pylist()
        assert values == (wanted if folder == "a" else wanted[::-1])


def test_captions_that_are_lists(tmp_path):
    spec = pieces(tmp_path, pa.array([["a", "b"], None]))
    found = table_of(spec, Columns(caption="k"))
    assert found.column("caption").to_pylist() == ['["a", "b"]', None]


def not_utf8(kind: pa.DataType) -> pa.Array:
    raw = pa.binary() if kind == pa.string() else pa.large_binary()
    return pa.Array.from_buffers(kind, 2, pa.array([b"x\xff", b"good"], raw).buffers())


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_text_of_parquet_that_is_no_utf8(tmp_path, kind):
    bad = not_utf8(kind)
    nested = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), bad)
    table = pa.table(
        {
            "url": bad,
            "text": bad,
            "k": bad,
            "l": nested,
            "s": pa.StructArray.from_arrays([bad, pa.array([1, 2])], ["a", "b"]),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    found = table_of(str(tmp_path / "a.parquet"), Columns(caption="text", keep=("k", "l", "s")))
    found.validate(full=True)
    both = ["x\ufffd", "good"]
    for name in ("url", "caption", "k"):
        assert found.column(name).to_pylist() == both
    assert found.column("l").to_pylist() == [[text] for text in both]
    assert found.column("s").to_pylist() == [{"a": both[0], "b": 1}, {"a": both[1], "b": 2}]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_name_that_stands_twice(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        path.write_text("url,k,k\nhttp://a/,1,2\n")
    else:
        arrays = [pa.array(["http://a/"]), pa.array([1]), pa.array([2])]
        pq.write_table(pa.Table.from_arrays(arrays, names=["url", "k", "k"]), path)
    with pytest.raises(UserError, match=f"KEEP_COLS=k: .*a.{kind} has 2 columns of that name"):
        table_of(str(path), Columns(keep=("k",)))
    assert table_of(str(path), Columns()).column("url").to_pylist() == ["http://a/"]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["1", "-20", ""], [1, -20, None]),
        (["0.50", "1e-05", "-3"], [0.5, 1e-05, -3.0]),
        (["true", "False"], [True, False]),
        (["007", "8"], ["007", "8"]),  # names, not numbers
        (["1.5", "007"], ["1.5", "007"]),
        (["0x1F", "2"], ["0x1F", "2"]),
        (["+5", "2"], ["+5", "2"]),
        (["12345678901234567891", "5"], ["12345678901234567891", "5"]),
        (["9007199254740993", "0.5"], ["9007199254740993", "0.5"]),
        (["true", "1"], ["true", "1"]),
    ],
)
def test_text_is_typed_only_where_nothing_is_lost(tmp_path, texts, expected):
    (tmp_path / "a.csv").write_text("url,k\n" + "".join(f"u,{text}\n" for text in texts))
    found = table_of(str(tmp_path / "a.csv"), Columns(keep=("k",)))
    assert found.column("k").to_pylist() == expected


def test_hashes_are_text_even_if_all_digits(tmp_path):
    (tmp_path / "a.csv").write_text("url,h,p\nu,1234,1234567890123456\n")
    columns = Columns(hash="h", phash="p", keep=("h",))
    (row,) = table_of(str(tmp_path / "a.csv"), columns).to_pylist()
    assert (row["h"], row["sha256"], row["p"]) == ("1234", "1234", "1234567890123456")
