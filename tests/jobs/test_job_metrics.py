"""metrics.jsonl: figures that add up, a price, and a job that goes on where it cannot be written."""

import json
from pathlib import Path

import pytest

from jobs import annotate, prices
from jobs.annotate import Annotate
from jobs.job import Execution
from pipeline.errors import UserError
from tests.support import driver, shards
from tests.support.stages import ColourStage

TABLE = {"currency": "USD", "core_hour": 3600.0, "gpu_hour": 0}
METRICS = "captions/colour/metrics.jsonl"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("raw")
    for i in range(2):
        shards.write_tar(folder / f"{i:05d}.tar", shards.pairs(12, start=12 * i))
    return str(folder)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def caption(out: Path, raw: str, **more: str) -> None:
    driver.caption(Execution(out=str(out), executor="inline", **more), raw, ColourStage())


def test_the_last_line_adds_up_and_has_a_price(raw: str, tmp_path: Path, capsys):
    table = tmp_path / "prices.json"
    table.write_text(json.dumps(TABLE))
    caption(tmp_path / "out", raw, prices=str(table))
    last = lines(tmp_path / "out" / METRICS)[-1]
    assert last["final"] is True
    assert (last["samples"], last["shards_done"], last["shards_planned"]) == (24, 2, 2)
    assert last["parts"]["read"]["samples"] == 24
    assert 0 < last["busy_share"] <= 1
    assert last["cost"] == pytest.approx(last["elapsed_sec"], rel=0.01)  # one core, 1 USD a second
    assert last["cost_per_million"] == pytest.approx(last["cost"] / 24 * 1e6, rel=1e-3)
    said = capsys.readouterr().out
    assert "USD per million samples" in said
    assert "samples/s; 1 worker at work" in said


def test_every_stage_of_a_pass_is_measured(raw: str, tmp_path: Path):
    out = tmp_path / "out"
    annotate.run(Annotate(out=str(out), shards=raw, stages="image,text", executor="inline"))
    [path] = out.glob("columns/*/metrics.jsonl")
    last = lines(path)[-1]
    assert {"read", "prepare", "wait", "image", "text"} <= set(last["parts"])
    assert last["parts"]["image"]["samples"] == last["parts"]["text"]["samples"] == 24
    assert 0 <= last["wait_share"] <= 1


def test_a_rerun_adds_nothing_and_half_a_line_goes(raw: str, tmp_path: Path):
    caption(tmp_path, raw)
    path = tmp_path / METRICS
    before = path.read_bytes()
    caption(tmp_path, raw)
    assert path.read_bytes() == before
    path.write_bytes(before + b'{"job": "kil')
    (tmp_path / "captions/colour/00000.parquet").unlink()
    caption(tmp_path, raw)
    whole = lines(path)
    assert len(whole) == len(before.splitlines()) + 1
    assert (whole[-1]["samples"], whole[-1]["shards_done"]) == (12, 2)


def test_a_job_goes_on_where_its_metrics_cannot_be_written(raw: str, tmp_path: Path, capsys):
    (tmp_path / METRICS).mkdir(parents=True)
    caption(tmp_path, raw)
    assert len(list(tmp_path.glob("captions/colour/*.parquet"))) == 2
    assert "no more metrics.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 100_000,
        json.dumps(TABLE | {"gpu_hour": -1}),
        json.dumps(TABLE | {"gpu_hour": True}),
        json.dumps(TABLE | {"core_hour": float("nan")}),
        json.dumps(TABLE | {"currency": ""}),
        json.dumps({"currency": "USD", "core_hour": 1}),
        json.dumps(TABLE | {"tpu_hour": 1}),
    ],
)
def test_a_bad_price_table_is_refused_before_any_work(raw: str, tmp_path: Path, text: str):
    table = tmp_path / "prices.json"
    table.write_text(text)
    with pytest.raises(UserError, match=r"PRICES=.*core_hour") as refused:
        caption(tmp_path / "out", raw, prices=str(table))
    assert len(str(refused.value)) < 600
    assert not (tmp_path / "out/captions").exists()


def test_hours_times_prices():
    table = prices.Prices("USD", core_hour=0.5, gpu_hour=2)
    assert table.of(7200, cores=4, gpus=1) == 2 * (4 * 0.5 + 2)
