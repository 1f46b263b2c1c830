"""The named statistics on captions small enough to count by hand, and answers to any SQL."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from pipeline import catalog, commit, manifest, statistics
from pipeline.commit import Record
from pipeline.errors import UserError
from pipeline.runs import Run
from pipeline.schemas import CAPTIONS, EVALUATIONS, KEEP, MIX
from tests.support.shards import pairs, write_tar

if TYPE_CHECKING:
    import duckdb


def caption_row(key: int, short: str | None, long: str | None = None, **fields: object) -> dict:
    return {
        "uid": f"{key:032x}",
        "key": str(key),
        "caption": "Alt text",
        "caption_short": short,
        "caption_long": long,
        "caption_status": "ok",
        "short_status": "ok" if short else "failed",
        "short_tokens": 10 * key if short else None,
        "short_similarity": key / 10 if short else None,
        "short_similarity_min": 0.0 if short else None,
        "long_status": "ok" if long else "absent",
        "status": "ok" if short else "failed",
        "reason": None if short else "truncated",
    } | fields


SAID = [
    caption_row(1, "A dog's bed", "a dog."),
    caption_row(2, "A dog runs", "A cat, a cat"),
    caption_row(3, "A dog runs"),
    caption_row(4, "two dogs dogs dogs", short_status="repetitive"),
    caption_row(8, "two", short_tokens=76),
    caption_row(9, None),
]


def mixed_row(key: int, drawn: str | None, source: str | None, reason: str | None = None) -> dict:
    return {
        "uid": f"{key:032x}",
        "key": str(key),
        "source_shard": "00000",
        "source_key": f"raw{key}",
        "caption_drawn": drawn,
        "caption_source": source,
        "status": "dropped" if reason else "ok",
        "reason": reason,
    }


MIXED = [
    mixed_row(1, "long", "long"),
    mixed_row(2, "long", "long"),
    mixed_row(3, "long", "short"),
    mixed_row(4, "original", "original"),
    mixed_row(8, "long", None, "no_caption"),
    mixed_row(9, None, None, "truncated"),
]


KEPT = [
    {"uid": f"{key:032x}", "key": str(key), "keep": keep, "reason": reason}
    for key, keep, reason in (
        (1, True, None),
        (2, True, None),
        (3, False, "width >= 256"),
        (4, False, "width >= 256"),
        (5, False, None),
    )
]


EVALUATED = [
    {"run": "r", "style": style, "metric": metric, "item": item, "value": value, "count": 5}
    for style, metric, item, value in (
        ("short", "cider", None, 0.51237),
        ("long", "cider", None, 0.25),
        ("original", "loops", None, 0.0),
        ("reference", "loops", None, 0.125),
        ("short", "first_word", "a", 0.6),
    )
]


def write(run: Run, shard: str, rows: list[dict], schema: pa.Schema) -> None:
    table = pa.Table.from_pylist([dict.fromkeys(schema.names) | row for row in rows], schema=schema)
    counts = {"samples": len(rows), **commit.tally(table)}
    commit.write_sidecar(run.file(f"{shard}.parquet"), table, Record(shard, "", {}, {}, counts))


@pytest.fixture
def connection(counted: str) -> Iterator["duckdb.DuckDBPyConnection"]:
    with catalog.connect(counted) as connected:
        yield connected


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run `r` over two shards, another run with one caption, mix `m` and another."""
    folder = tmp_path_factory.mktemp("statistics")
    out = str(folder / "out")
    manifest.register(out, [write_tar(folder / "00000.tar", pairs(1))])
    captions, other = Run(out, "captions", "r", {}), Run(out, "captions", "other", {})
    write(captions, "00000", SAID[:4], CAPTIONS)
    write(captions, "00001", SAID[4:], CAPTIONS)
    write(other, "00000", [caption_row(1, "one")], CAPTIONS)
    write(Run(out, "keep", "k", {}), "00000", KEPT, KEEP)
    write(Run(out, "keep", "l", {}), "00000", KEPT[:1], KEEP)
    write(Run(out, "mix", "m", {}), "00000", MIXED, MIX)
    write(Run(out, "mix", "n", {}), "00000", [mixed_row(1, "original", "original")], MIX)
    write(Run(out, "evaluations", "r", {}), "metrics", EVALUATED, EVALUATIONS)
    second = [EVALUATED[0] | {"run": "other"}]
    write(Run(out, "evaluations", "other", {}), "metrics", second, EVALUATIONS)
    return out


def ask(
    connection: "duckdb.DuckDBPyConnection",
    name: str,
    run: str = "r",
    mix: str = "m",
    keep: str = "k",
) -> list:
    """The rows of a named statistic, less the first column where it is the run asked for."""
    sql = statistics.query(name)
    names = {"run": run, "mix": mix, "keep": keep}
    wanted = {k: v for k, v in names.items() if f"${k}" in sql}
    return connection.sql(sql, params=wanted).fetchall()


def test_every_query_is_named_and_every_name_is_a_query():
    files = Path(statistics.__file__).parent.joinpath("queries").glob("*.sql")
    assert {f.stem for f in files} == set(statistics.NAMES)


EXPECTED = {
    "keep": [
        ("k", "kept", 2, 0.4, "00000/1"),
        ("k", "width >= 256", 2, 0.4, "00000/3"),
        ("k", "not_kept", 1, 0.2, "00000/5"),
    ],
    "lengths": [
        ("r", "long", 2, 3.0, 3.0, 3.9, 4, None, None, None, None, None),
        ("r", "original", 6, 2.0, 2.0, 2.0, 2, None, None, None, None, None),
        ("r", "short", 5, 2.8, 3.0, 3.8, 4, 35.2, 30.0, 68.8, 76, 0.2),
    ],
    "vocabulary": [
        ("r", "long", 6, 3, 0.5),
        ("r", "original", 12, 2, 0.1667),
        ("r", "short", 14, 7, 0.5),  # a dog's bed dog runs two dogs
    ],
    "first_words": [
        ("r", "long", "a cat,", 1, 0.5),
        ("r", "long", "a dog.", 1, 0.5),
        ("r", "original", "alt text", 6, 1.0),
        ("r", "short", "a dog", 2, 0.4),
        ("r", "short", "a dog's", 1, 0.2),
        ("r", "short", "two", 1, 0.2),
        ("r", "short", "two dogs", 1, 0.2),
    ],
    "repetition": [
        ("r", "long", 2, 0.0, 0.0, None, 1),
        ("r", "original", 6, 0.0, 0.8333, "Alt text", 6),
        ("r", "short", 5, 0.2, 0.2, "A dog runs", 2),
    ],
    "drift": [
        ("r", "long", 2, 0.5, 0.5, 0.5, 0.0, 1.0),
        ("r", "original", 6, 1.0, 0.0, 0.0, 0.0, 0.0),
        ("r", "short", 5, 0.6, 0.4, 0.0, 0.0, 1.0),
    ],
    "evaluations": [
        ("r", "cider", 0.5124, 0.25, None, None),
        ("r", "loops", None, None, 0.0, 0.125),
    ],
    "similarity": [("r", "short", 5, 0.36, 0.12, 0.3, 0.72, 0.0)],
    "statuses": [
        ("r", "long", "ok", 2, 1.0),
        ("r", "original", "ok", 6, 1.0),
        ("r", "short", "ok", 4, 0.6667),
        ("r", "short", "failed", 1, 0.1667),
        ("r", "short", "repetitive", 1, 0.1667),
    ],
    "blend": [("m", "long", 2, 0.5), ("m", "original", 1, 0.25), ("m", "short", 1, 0.25)],
    "fallbacks": [("m", "long", "short", 1)],
    "failures": [
        ("captions", "r", "truncated", 1, "00001/9"),
        ("mix", "m", "no_caption", 1, "00000/raw8"),
        ("mix", "m", "truncated", 1, "00000/raw9"),
    ],
}


@pytest.mark.parametrize("name", statistics.NAMES)
def test_numbers_counted_by_hand(connection: "duckdb.DuckDBPyConnection", name: str):
    found = ask(connection, name)
    assert len(found) == len(EXPECTED[name])
    for row, wanted in zip(found, EXPECTED[name], strict=True):
        assert row == pytest.approx(wanted, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("name", statistics.NAMES)
def test_without_a_name_every_run_counts_by_itself(
    connection: "duckdb.DuckDBPyConnection", name: str
):
    every = ask(connection, name, run="", mix="", keep="")
    assert [row for row in every if {"r", "m", "k"} & set(row)] == ask(connection, name)
    assert len(every) > len(ask(connection, name)) or name in ("fallbacks", "failures")
    assert ask(connection, name, run="nobody", mix="nobody", keep="nobody") == []


def test_named_statistics_are_readable_tables(connection: "duckdb.DuckDBPyConnection"):
    found = dict(statistics.named(connection, run="r", mix="m", keep="k"))
    assert [title.split(":")[0] for title in found] == list(statistics.NAMES)
    table = found["blend: which source each training sample's caption comes from"]
    assert table.splitlines() == [
        "mix  source    samples  share",
        "---  --------  -------  -----",
        "m    long            2    0.5",
        "m    original        1   0.25",
        "m    short           1   0.25",
    ]
    assert (
        set(dict(statistics.named(connection, run="nobody", mix="nobody", keep="nobody"))) == set()
    )


@pytest.mark.parametrize(
    "sql",
    [
        "SELEC 1",
        "SELECT nothing FROM captions",
        "SELECT * FROM nothing",
        "SELECT * FROM sql",  # a variable of ours, not a table
        "SELECT caption::INT FROM captions",  # fails only while it runs
        "SELECT error('stop') FROM captions",
        "SELECT $run",
        "SELECT 1; SELEC 2",
        "INSERT INTO captions VALUES (1)",
        "SELECT * FROM read_parquet('/nowhere/*.parquet')",
        "SELECT '",
    ],
)
def test_wrong_sql_is_told_in_one_line(connection: "duckdb.DuckDBPyConnection", sql: str):
    with pytest.raises(UserError) as e:
        statistics.answer(connection, sql)
    assert str(e.value).startswith("SQL: ")
    assert "\n" not in str(e.value)
    assert statistics.answer(connection, "SELECT 42 AS n") == " n\n--\n42"


def test_answers(connection: "duckdb.DuckDBPyConnection"):
    def answer(sql: str) -> str:
        return statistics.answer(connection, sql)

    assert answer("SELECT 1 WHERE false") == "no rows"
    assert answer("") == ""
    assert (
        answer("SELECT 'a' AS x, NULL AS y, 0.123456::DOUBLE AS z;").splitlines()[2]
        == "a     0.1235"
    )
    assert answer('SELECT chr(27) || chr(10) AS "a\x1bb"').split() == ["a.b", "---", ".."]
    assert answer("SELECT repeat('x', 500) AS t").splitlines()[2] == "x" * 157 + "..."
    many = answer("SELECT * FROM range(10001)").splitlines()
    assert (len(many), many[-1]) == (10003, "(the first 10000 rows)")
    assert len(answer("SELECT * FROM range(10000)").splitlines()) == 10002
