"""SQL over a data folder: typed views from its first minute on, from anywhere, over hostile texts."""

import io
import shutil
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from jobs.__main__ import main
from pipeline import catalog, commit, manifest, runs, statistics, storage
from pipeline.commit import Record
from pipeline.errors import UserError
from pipeline.runs import Run
from pipeline.schemas import CAPTIONS, COLUMNS, EXPERIMENT, MIX
from tests.support.mixing import mixed
from tests.support.shards import pairs, write_tar
from tests.support.stages import caption

ROWS = {"shards": 2, "samples": 12, "captions": 24, "caption_texts": 72, "mix": 24, "runs": 4}


def fill(out: str, raw: str) -> None:
    """Two shards of six samples inside the data folder, two caption runs, two mixes."""
    urls = [write_tar(f"{raw}/{i:05d}.tar", pairs(6, start=10 * i)) for i in range(2)]
    caption(out, urls, run="second")
    shards = caption(out, urls)
    mixed(out, shards, "95", name="most")
    mixed(out, shards, "0", name="none")


@pytest.fixture
def filled(out: str) -> str:
    fill(out, f"{out}/shards")
    return out


def counts(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    found = {v: connection.sql(f"SELECT count(*) FROM {v}").fetchall()[0][0] for v in catalog.VIEWS}
    return {view: count for view, count in found.items() if count}


def types(connection: duckdb.DuckDBPyConnection) -> dict[str, list]:
    views = {view: connection.sql(f"SELECT * FROM {view}") for view in catalog.VIEWS}
    return {name: list(zip(v.columns, map(str, v.types), strict=True)) for name, v in views.items()}


def test_views_have_their_types_before_there_is_anything(tmp_path: Path, out: str, filled: str):
    empty = str(tmp_path / "empty")
    manifest.register(empty, [f"{filled}/shards/00000.tar"])
    with catalog.connect(empty) as fresh, catalog.connect(filled) as full:
        assert counts(fresh) == {"shards": 1}
        assert types(fresh) == types(full)
        assert counts(full) == ROWS
        assert list(statistics.named(fresh)) == []
        names = types(fresh)
    assert [n for n, _ in names["captions"]] == ["run", "shard", *CAPTIONS.names]
    assert [n for n, _ in names["mix"]] == ["run", "shard", *MIX.names]


def test_from_any_folder_and_after_it_moved(
    tmp_path: Path, filled: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert counts(catalog.connect("out")) == ROWS
    for name in ("elsewhere", "a, b", "it's", "x[1]*?", "\u00fc"):
        moved = str(tmp_path / name)
        shutil.move(filled, moved)
        filled = moved
        with catalog.connect(moved) as connection:
            assert counts(connection) == ROWS
            runs_seen = connection.sql("SELECT DISTINCT run, shard FROM captions ORDER BY ALL")
            assert runs_seen.fetchall() == [
                (run, shard) for run in ("colour", "second") for shard in ("00000", "00001")
            ]
        catalog.refresh(moved)
        monkeypatch.chdir(moved)  # as in `cd OUT; duckdb catalog.duckdb`
        with duckdb.connect("catalog.duckdb", read_only=True) as plain:
            assert counts(plain) == ROWS


def test_the_plain_shell_needs_a_search_path_only(
    tmp_path: Path, filled: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir("/")
    catalog.refresh(filled)
    catalog.refresh(filled)
    assert [p.name for p in Path(filled).glob("*catalog*")] == ["catalog.duckdb"]
    assert not list(Path(filled).glob(".*.tmp*"))
    with duckdb.connect(f"{filled}/catalog.duckdb", read_only=True) as plain:
        plain.execute(f"SET file_search_path = '{filled}'")
        assert counts(plain) == ROWS
    shards = caption(filled, [write_tar(f"{filled}/shards/00002.tar", pairs(5, start=50))])
    with duckdb.connect(f"{filled}/catalog.duckdb", read_only=True) as plain:
        plain.execute(f"SET file_search_path = '{filled}'")
        assert counts(plain)["captions"] == ROWS["captions"] + 5  # views, not copies
    assert shards[0].name == "00002"


def test_in_an_object_store(tmp_path: Path, store: str):
    fill(f"{store}/out", str(tmp_path / "raw"))
    with catalog.connect(f"{store}/out") as connection:
        assert counts(connection) == ROWS
        assert len(list(statistics.named(connection))) == 9
    catalog.refresh(f"{store}/out")
    assert storage.exists(f"{store}/out/catalog.duckdb")


def test_every_run_is_there_with_its_settings(filled: str):
    with catalog.connect(filled) as connection:
        rows = connection.sql(
            "SELECT kind, run, len(config_hash), config->>'captioner', "
            "config->'blend'->>'long', environment->>'pyarrow', shards FROM runs ORDER BY ALL"
        ).fetchall()
    shards = ["00000", "00001"]
    assert rows == [
        ("captions", "colour", 64, "colour", None, pa.__version__, shards),
        ("captions", "second", 64, "colour", None, pa.__version__, shards),
        ("mix", "most", 64, None, "0.95", pa.__version__, shards),
        ("mix", "none", 64, None, "0.0", pa.__version__, shards),
    ]


def test_stages_with_columns_of_their_own_share_a_view(filled: str):
    for stage, column in (
        ("a@x", pa.field("score", pa.float32())),
        ("b@y", pa.field("n", pa.int64())),
    ):
        schema = pa.schema([column, *COLUMNS])
        rows = [{"uid": str(i), "key": str(i), "status": "ok"} for i in range(3)]
        table = pa.Table.from_pylist(rows, schema=schema)
        record = Record("00000", "", {}, {}, {"samples": 3, **commit.tally(table)})
        run = Run(filled, "columns", stage, {})
        commit.write_sidecar(run.file("00000.parquet"), table, record)
        runs.begin(run, ["00000"])
    with catalog.connect(filled) as connection:
        seen = connection.sql("SELECT stage, count(*) FROM columns GROUP BY ALL ORDER BY ALL")
        assert seen.fetchall() == [("a@x", 3), ("b@y", 3)]
        assert counts(connection)["samples"] == ROWS["samples"] + 3
        joined = connection.sql(
            "SELECT uid, key, shard, score, n, a_status FROM annotations ORDER BY uid"
        )
        assert joined.fetchall() == [(str(i), str(i), "00000", None, None, "ok") for i in range(3)]
        assert connection.sql('SELECT count(*) FROM "b@y"').fetchall() == [(3,)]
    shutil.copytree(f"{filled}/columns/a@x", f"{filled}/columns/a@z")
    with catalog.connect(filled) as connection:
        models = connection.sql(
            "SELECT model, count(score IS NULL) FROM a GROUP BY ALL ORDER BY ALL"
        )
        assert models.fetchall() == [("x", 3), ("z", 3)]
        assert "score" not in connection.sql("FROM annotations").columns  # of which model?


def test_what_an_experiment_found_is_a_view(
    filled: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    cells = [("95", "short", 41.5), ("ground-truth", "short", 60.0), ("95", "descriptive", 90.0)]
    rows = [
        {"noise": 1.0, "blend": blend, "kind": kind, "seeds": 3, "images": 48, "attributes": value}
        | {"spread": None, "least": value, "most": value, "all_right": 10.0, "of_told": value}
        for blend, kind, value in cells
    ]
    run = Run(filled, "results", "blends", {"prompts": 16})
    runs.begin(run, ())
    with storage.write_atomic(run.file("table.parquet")) as part:
        commit.write_parquet(pa.Table.from_pylist(rows, EXPERIMENT), part)
    best = "SELECT run, blend, attributes FROM experiment WHERE kind = 'short' ORDER BY attributes"
    with catalog.connect(filled) as connection:
        assert connection.sql(best).fetchall() == [
            ("blends", "95", 41.5),
            ("blends", "ground-truth", 60.0),
        ]
        assert [n for n, _ in types(connection)["experiment"]] == ["run", *EXPERIMENT.names]
        settings = "SELECT config->>'prompts' FROM runs WHERE kind = 'results' AND run = 'blends'"
        assert connection.sql(settings).fetchall() == [("16",)]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{best};\n.quit\n"))
    assert main(["sql", "--out", filled]) == 0
    told = capsys.readouterr().out
    assert "experiment" in told.splitlines()[0] and "ground-truth" in told


def test_what_is_no_data_folder_or_damaged_is_told(tmp_path: Path, filled: str):
    with pytest.raises(UserError, match="is no data folder"):
        catalog.connect(str(tmp_path))
    catalog.refresh(str(tmp_path))
    assert not (tmp_path / "catalog.duckdb").exists()
    Path(filled, "captions/colour/00000.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    with pytest.raises(UserError, match="no view of captions") as e:
        catalog.connect(filled)
    assert "\n" not in str(e.value)
    assert e.value.message.count("00000.parquet") == 1


HOSTILE = [
    'it\'s "quoted" -- and commented',
    "'; DROP VIEW captions; --",
    "line\nbreak\ttab\r\x00nul \x1b[31mred\x07",
    "$run {x} %s \\ \u202e right to left",
    "x" * 5000,
    "\u732b\u732b \U0001f600",
]


def test_hostile_captions_are_only_text(tmp_path: Path, out: str):
    samples = [
        (f"{i:09d}", {**members, "txt": text.encode()})
        for (i, text), (_, members) in zip(enumerate(HOSTILE), pairs(6), strict=True)
    ]
    shards = caption(out, [write_tar(tmp_path / "00000.tar", samples)])
    mixed(out, shards, "0")
    with catalog.connect(out) as connection:
        wanted = [text.replace("\x00", "") for text in HOSTILE]
        stored = connection.sql("SELECT text FROM mix ORDER BY key").fetchall()
        assert [text for (text,) in stored] == wanted
        shown = statistics.answer(connection, "SELECT key, text FROM mix ORDER BY key")
        shown += "".join(text for _, text in statistics.named(connection))
        assert all(c.isprintable() or c == "\n" for c in shown)
        assert max(map(len, shown.splitlines())) < 1000
        assert statistics.answer(connection, "SELECT count(*) AS n FROM captions") == "n\n-\n6"
        name = "'; DROP VIEW mix; --"
        assert list(statistics.named(connection, run=name, mix=name)) == []
        assert counts(connection)["mix"] == 6
