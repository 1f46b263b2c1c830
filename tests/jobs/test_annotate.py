"""The verb annotate as users type it: on real files, killed, on Ray, and with their mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from pipeline import catalog
from tests.support import shards
from tests.support.killed import kill_at
from tests.support.outputs import digest, leftovers

BROKEN = (
    "000000900",
    {"jpg": b"<html>no image</html>", "txt": b"un chien dans la neige", "json": b"{}"},
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    for i in range(6):
        shards.write_tar(folder / f"{i:05d}.tar", [*shards.pairs(30, start=30 * i), BROKEN])
    return folder


def arguments(raw: Path, out: Path, **more: object) -> list[str]:
    given = {"shards": raw, "out": out, "executor": "inline", "threads": 1} | more
    return [
        "annotate",
        *(str(v) for k, x in given.items() for v in (f"--{k.replace('_', '-')}", x)),
    ]


def test_columns_of_several_stages_can_be_asked_in_sql(raw, tmp_path, capsys):
    assert main(arguments(raw, tmp_path, stages="image,text")) == 0
    printed = capsys.readouterr().out
    assert "samples   186 in = 180 ok + 6 not_an_image" in printed
    with catalog.connect(str(tmp_path)) as connection:
        found = connection.sql(
            "SELECT image_reason, count(*), min(width), max(height), mode(language) "
            "FROM annotations GROUP BY ALL ORDER BY ALL"
        ).fetchall()
    assert [row[:4] for row in found] == [("not_an_image", 6, None, None), (None, 180, 64, 48)]
    assert found[0][4] == "fr"  # a text is measured whatever its image is


def test_a_rerun_does_nothing_and_a_stage_can_be_made_anew_alone(raw, tmp_path, capsys):
    assert main(arguments(raw, tmp_path, stages="image,text")) == 0
    first = digest(tmp_path)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("columns/*/*.parquet")}
    assert main(arguments(raw, tmp_path, stages="image,text")) == 0
    assert "6 planned = 0 done now" in capsys.readouterr().out
    image = [p for p in times if p.parent.name.startswith("image@")]
    image[2].unlink()
    assert main(arguments(raw, tmp_path, stages="image")) == 0
    assert "1 done now" in capsys.readouterr().out
    assert digest(tmp_path) == first
    assert {p for p in times if p.stat().st_mtime_ns != times[p]} == {image[2]}


def test_killed_at_any_moment_the_bytes_are_the_same(raw, tmp_path):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert main(arguments(raw, whole, stages="image,text")) == 0
    for ending, after in (("run.json", 1), (".parquet", 0), (".parquet", 2), (".parquet", 5)):
        kill_at(ending, *arguments(raw, torn, stages="image,text"), after=after)
    assert len(list(torn.glob("columns/*/*.parquet"))) not in (0, 12)
    assert main(arguments(raw, torn, stages="image,text")) == 0
    assert digest(torn) == digest(whole)
    assert leftovers(torn) == []


@pytest.mark.ray
def test_on_ray_the_bytes_are_those_of_one_process(raw, tmp_path):
    assert main(arguments(raw, tmp_path / "inline", stages="image,text")) == 0
    given = arguments(raw, tmp_path / "ray", stages="image,text", executor="ray", workers=2)
    subprocess.run([sys.executable, "-m", "jobs", *given], check=True, timeout=300)
    assert digest(tmp_path / "ray") == digest(tmp_path / "inline")


def test_clip_and_what_is_derived_from_it(raw, tmp_path, capsys):
    hashes = tmp_path / "known.txt"
    assert main(arguments(raw, tmp_path / "out", stages="image", limit=40)) == 0
    [image] = (tmp_path / "out/columns").glob("image@*")
    rows = pq.read_table(image / "00000.parquet").to_pylist()
    hashes.write_text(rows[7]["md5"] + "\n")
    head = tmp_path / "head.safetensors"
    _write_head(head, 192)
    more = {"stages": "clip,aesthetic,safety", "clip": "bundled", "limit": 40, "batch_size": 8}
    heads = {"aesthetic_head": head, "blocklists": hashes}
    assert main(arguments(raw, tmp_path / "out", **more, **heads)) == 0
    with catalog.connect(str(tmp_path / "out")) as connection:
        assert connection.sql(
            "SELECT count(embedding), count(similarity) FROM clip"
        ).fetchall() == [(39, 39)]
        told = connection.sql("SELECT key, blocked FROM safety WHERE blocked IS NOT NULL")
        assert told.fetchall() == [(rows[7]["key"], "known.txt:md5")]
        [[scored]] = connection.sql("SELECT count(aesthetic) FROM aesthetic").fetchall()
        assert scored == 39
    capsys.readouterr()
    _write_head(head, 64)
    assert main(arguments(raw, tmp_path / "out", **more, **heads)) == 2
    assert "takes embeddings of 64 numbers, these have 192" in capsys.readouterr().err


def test_a_trial_of_a_few_samples_is_no_source_for_all(raw, tmp_path, capsys):
    hashes = tmp_path / "known.txt"
    hashes.write_text("00" * 16)
    asked = {"stages": "safety", "blocklists": hashes}
    assert main(arguments(raw, tmp_path / "out", stages="image", limit=5)) == 0
    assert main(arguments(raw, tmp_path / "out", **asked)) == 2
    assert "is of the first 5 samples only" in capsys.readouterr().err
    assert main(arguments(raw, tmp_path / "out", **asked, limit=5)) == 0
    assert main(arguments(raw, tmp_path / "out", stages="image")) == 0
    assert main(arguments(raw, tmp_path / "out", **asked)) == 0
    counts = {
        p.name.endswith("-limit5"): len(list(p.glob("*.parquet")))
        for p in tmp_path.glob("out/columns/safety@*")
    }
    assert counts == {True: 1, False: 6}


def _write_head(path: Path, width: int) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    weights = {"0.weight": np.full((1, width), 0.5, np.float32), "0.bias": np.ones(1, np.float32)}
    save_file(weights, path, metadata={"activation": "none", "output": "score"})


MISTAKES = {
    "unknown stage": ({"stages": "image,beauty"}, "STAGES=image,beauty: beauty is no stage"),
    "no stage": ({"stages": ""}, "nothing is no stage"),
    "clip of no model": ({"stages": "clip"}, "STAGES=clip needs a model: CLIP is missing"),
    "unknown model": ({"stages": "clip", "clip": "ViT-Z:x"}, "CLIP=ViT-Z:x"),
    "no detector": ({"stages": "faces"}, "FACE_DETECTOR is missing"),
    "no head": ({"stages": "aesthetic"}, "AESTHETIC_HEAD is missing"),
    "head of no embeddings": (
        {"stages": "aesthetic", "aesthetic_head": "x.pth"},
        "has no columns of stage clip",
    ),
    "nothing to tell by": ({"stages": "safety"}, "STAGES=safety has nothing to tell by"),
    "a list that is missing": (
        {"stages": "image,safety", "blocklists": "/nowhere.txt"},
        "BLOCKLISTS=/nowhere.txt",
    ),
    "a name for what has names": ({"run": "mine"}, "RUN means nothing here"),
    "no shards": ({"shards": ""}, "knows no shards"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_remedy(mistake, raw, tmp_path, capsys):
    settings, message = MISTAKES[mistake]
    assert main(arguments(raw, tmp_path / "out", **settings)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 2


def test_a_dry_run_writes_nothing(raw, tmp_path, capsys):
    assert main([*arguments(raw, tmp_path / "out", stages="image,text"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "columns image@" in printed
    assert "6 shards: 0 done, 6 to do" in printed
    assert not (tmp_path / "out").exists()


def test_what_decides_a_column_stands_in_its_run(raw, tmp_path):
    assert main(arguments(raw, tmp_path, stages="text")) == 0
    [run] = tmp_path.glob("columns/text@*/run.json")
    told = json.loads(run.read_text())
    assert told["config"]["limit"] == 0
    assert len(told["config"]) > 2
    assert told["shards"] == [f"{i:05d}" for i in range(6)]
