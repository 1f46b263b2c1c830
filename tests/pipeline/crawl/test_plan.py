"""The plan of a crawl: parts of a shard each, made once, the same after a kill, of the same lists."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.crawl import plan
from pipeline.crawl.presets import Columns
from pipeline.crawl.url_lists import find
from pipeline.errors import UserError
from pipeline.runs import Run
from tests.support.outputs import leftovers

COLUMNS = Columns(caption="text", keep=("n",))


def write(path: Path, start: int, stop: int) -> None:
    numbers = range(start, stop)
    urls, texts = [f"http://a/{i}" for i in numbers], [f"caption {i}" for i in numbers]
    pq.write_table(pa.table({"url": urls, "text": texts, "n": list(numbers)}), path)


def made(out: str, spec: str, size: int = 4, limit: int = 0, **config: object) -> plan.Plan:
    run = run_of(out, size, **config)
    return plan.make(run, find(str(spec)), COLUMNS, size, limit)


def run_of(out: str, size: int = 4, **config: object) -> Run:
    return Run(out=out, kind="shards", name="", config={"shard_size": size} | config)


def rows(planned: plan.Plan) -> list[list[int]]:
    return [plan.read_part(planned, part).column("n").to_pylist() for part in planned.parts]


def bytes_of(out: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(out, "urls").glob("*.*") if p.is_file()}


def test_parts_never_cross_files(tmp_path, out):
    write(tmp_path / "a.parquet", 0, 10)
    write(tmp_path / "b.parquet", 10, 13)
    planned = made(out, tmp_path)
    assert rows(planned) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [10, 11, 12]]
    assert [part.name for part in planned.parts] == ["00000", "00001", "00002", "00003"]
    assert [part.rows for part in planned.parts] == [4, 4, 2, 3]
    assert plan.load(run_of(out)) == planned == made(out, tmp_path)


@pytest.mark.parametrize(
    ("limit", "counts"), [(1, [1]), (4, [4]), (11, [4, 4, 2, 1]), (99, [4, 4, 2, 3])]
)
def test_limit(tmp_path, out, limit, counts):
    write(tmp_path / "a.parquet", 0, 10)
    write(tmp_path / "b.parquet", 10, 13)
    planned = made(out, tmp_path, limit=limit)
    assert [part.rows for part in planned.parts] == counts
    asked = (run_of("/nowhere"), find(str(tmp_path)), COLUMNS, 4, limit)
    assert [part.rows for part in plan.preview(*asked).parts] == counts


def test_many_rows_in_one_batch_and_many_batches_in_one_part(tmp_path, out):
    numbers = list(range(25_001))
    table = pa.table(
        {"url": [f"http://a/{i}" for i in numbers], "text": ["x"] * 25_001, "n": numbers}
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    assert [len(r) for r in rows(made(out, tmp_path, size=12_000))] == [12_000, 12_000, 1001]
    small = rows(made(out + "2", tmp_path, size=999))
    assert [n for r in small for n in r] == numbers


def test_the_bytes_do_not_depend_on_how_the_list_is_cut(tmp_path, out):
    numbers = list(range(3000))
    table = pa.table(
        {"url": [f"http://a/{i}" for i in numbers], "text": ["x"] * 3000, "n": numbers}
    )
    for name, group in (("one", 3000), ("two", 77)):
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / "a.parquet", row_group_size=group)
    one, two = made(out, tmp_path / "one", 1000), made(out + "2", tmp_path / "two", 1000)
    assert [part.sha256 for part in one.parts] == [part.sha256 for part in two.parts]


def test_a_changed_list_is_refused(tmp_path, out):
    path = tmp_path / "a.parquet"
    write(path, 0, 10)
    write(tmp_path / "b.parquet", 10, 13)
    before = made(out, tmp_path)
    os.utime(path, (1, 1))  # touched, but the same
    assert made(out, tmp_path) == before
    (tmp_path / "moved").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"{name}.parquet").rename(tmp_path / "moved" / f"{name}.parquet")
    assert made(out, tmp_path / "moved") == before
    write(tmp_path / "moved/b.parquet", 10, 14)
    with pytest.raises(UserError, match=r"moved/b\.parquet is not the list that was planned") as e:
        made(out, tmp_path / "moved")
    assert "give another OUT" in e.value.hint
    (tmp_path / "moved/b.parquet").unlink()
    with pytest.raises(
        UserError, match=r"2 lists were planned there, now there are 1: .*b\.parquet"
    ):
        made(out, tmp_path / "moved")


def test_a_list_of_the_same_size_is_refused(tmp_path, out):
    path = tmp_path / "a.txt"
    path.write_text("http://a/1\nhttp://a/2\n")
    run = run_of(out)
    plan.make(run, find(str(path)), Columns(), 4)
    path.write_text("http://a/1\nhttp://a/3\n")
    with pytest.raises(UserError, match=r"a\.txt is not the list"):
        plan.make(run, find(str(path)), Columns(), 4)


def test_other_settings_are_refused(tmp_path, out):
    write(tmp_path / "a.parquet", 0, 10)
    made(out, tmp_path)
    with pytest.raises(UserError, match=r"shard_size \(was 4, is 5\)"):
        made(out, tmp_path, size=5)


def test_a_list_without_rows(tmp_path, out):
    write(tmp_path / "a.parquet", 0, 0)
    with pytest.raises(UserError, match=r"a\.parquet holds no rows"):
        made(out, tmp_path)
    assert plan.load(run_of(out)) is None


def test_a_plan_that_failed_binds_nobody(tmp_path, out):
    """A list that cannot be read to its end is mended; nothing of the first attempt is left."""
    path = tmp_path / "a.csv"
    good = "".join(f"http://a/{i},x,{i}\n" for i in range(20_000))
    path.write_text(f"url,text,n\n{good}http://a/broken\n")
    run, limited = run_of(out, 3000), run_of(out, 3000, limit=7)
    with pytest.raises(UserError, match=r"a\.csv cannot be read as csv"):
        plan.make(run, find(str(path)), Columns(caption="text"), 3000)
    assert len(list(Path(out, "urls").glob("*.parquet"))) > 3
    path.write_text("url,text\nhttp://a/1,x\n")
    planned = plan.make(limited, find(str(path)), Columns(caption="text"), 3000)
    assert [part.rows for part in planned.parts] == [1]
    assert [p.name for p in Path(out, "urls").glob("*.parquet")] == ["00000.parquet"]


def test_planned_but_not_whole_is_no_plan(tmp_path, out):
    write(tmp_path / "a.parquet", 0, 10)
    made(out, tmp_path)
    path = Path(out, "urls", plan.FILE)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parts": None}))
    assert plan.load(run_of(out)) is None
    path.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        plan.load(run_of(out))


def test_on_an_object_store(tmp_path, store):
    write(tmp_path / "a.parquet", 0, 10)
    storage.write_bytes(f"{store}/lists/a.parquet", (tmp_path / "a.parquet").read_bytes())
    planned = made(f"{store}/out", f"{store}/lists/a.parquet")
    assert rows(planned) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert made(f"{store}/out", f"{store}/lists/a.parquet") == planned


_MAKE = """
import sys
from pipeline.crawl import plan
from tests.pipeline.crawl.test_plan import made
made(sys.argv[1], sys.argv[2], 10)
"""


def test_killed_while_planning(tmp_path, out):
    """At whatever part it is killed, the next command finishes the same plan."""
    path = tmp_path / "a.parquet"
    write(path, 0, 3000)
    expected = tmp_path / "expected"
    made(str(expected), path, 10)
    killed = 0
    for parts in (1, 60, 150):
        command = [sys.executable, "-c", _MAKE, out, str(path)]
        job = subprocess.Popen(command, stderr=subprocess.PIPE)
        while job.poll() is None and len(list(Path(out).glob("urls/*.parquet"))) < parts:
            time.sleep(0.002)
        job.kill()
        killed += job.wait() < 0
        assert killed == 0 or plan.load(run_of(out, 10)) is None or job.returncode == 0
    assert killed >= 2
    made(out, path, 10)
    assert bytes_of(out) == bytes_of(str(expected))
    assert leftovers(Path(out)) == []
