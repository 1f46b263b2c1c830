"""make evaluate-captions: truth on rendered scenes, every way to give references, and clear refusals."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from pipeline import catalog, commit, manifest, runs, statistics
from pipeline.commit import Record
from pipeline.reading import read_samples
from pipeline.runs import Run
from pipeline.samples import uid_of
from pipeline.scenes.captions import LONG, SHORT, long_caption, short_caption
from pipeline.scenes.shards import scene_of
from pipeline.schemas import CAPTIONS, EVALUATED_CAPTIONS, EVALUATIONS
from tests.support.captioners import save_tiny
from tests.support.outputs import digest, leftovers
from tests.support.shards import cut

NUM = 60
Said = Callable[[int, list], dict[str, str]]


def write_run(out: Path, run: str, say: Said) -> None:
    """A caption run of what `say` says of the number of an image, given all scenes."""
    scenes, rows = [], []
    for shard in ("00000", "00001"):
        for row in pq.read_table(out / f"shards/{shard}.parquet").to_pylist():
            scenes.append(scene_of(row))
            uid, text = uid_of(shard, row["key"]), row["caption"]
            status = {"caption": text, "caption_status": "ok" if text else "missing"}
            rows.append((shard, {"uid": uid, "key": row["key"], "status": "ok"} | status))
    made = Run(str(out), "captions", run, {"captioner": run, "styles": {"short": {}, "long": {}}})
    runs.begin(made, ["00000", "00001"])
    for i, (_, row) in enumerate(rows):
        for style, text in say(i, scenes).items():
            row |= {f"caption_{style}": text, f"{style}_status": "ok" if text else "failed"}
            row |= {f"{style}_similarity": 0.3, f"{style}_similarity_min": 0.1}
    for shard in ("00000", "00001"):
        own = [dict.fromkeys(CAPTIONS.names) | row for name, row in rows if name == shard]
        missing = {"short_status": "failed", "long_status": "failed"}
        table = pa.Table.from_pylist(
            [missing | {k: v for k, v in row.items() if v is not None} for row in own], CAPTIONS
        )
        counts = {"samples": len(own), **commit.tally(table)}
        record = Record(shard, made.config_hash, {}, {}, counts)
        commit.write_sidecar(made.file(f"{shard}.parquet"), table, record)


def truth(shift: int = 0) -> Said:
    def say(i: int, scenes: list) -> dict[str, str]:
        scene = scenes[(i + shift) % len(scenes)]
        return {
            "short": short_caption(scene, i % len(SHORT)),
            "long": long_caption(scene, i % len(LONG)),
        }

    return say


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes in two shards, captioned truly, and with the captions of other scenes."""
    out = tmp_path_factory.mktemp("evaluations") / "out"
    flags = {"out": out, "level": "B", "n": NUM, "shard-size": 40, "executor": "inline"}
    assert main(["scenes", *(f for k, v in flags.items() for f in (f"--{k}", str(v)))]) == 0
    manifest.register(str(out), [str(out / f"shards/0000{i}.tar") for i in range(2)])
    write_run(out, "true", truth())
    write_run(out, "next", truth(shift=1))
    return out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A captioner's directory, small enough to score in no time."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy of these, to write in."""
    return Path(shutil.copytree(made, tmp_path / "out"))


def evaluate(out: Path, **flags: object) -> int:
    given = {"out": out} | flags
    return main(["evaluate-captions", *(f for k, v in given.items() for f in (f"--{k}", str(v)))])


def figures(out: Path, name: str) -> dict[tuple[str, str], float]:
    rows = pq.read_table(out / f"evaluations/{name}/metrics.parquet").to_pylist()
    return {(row["metric"], row["style"]): row["value"] for row in rows if row["item"] is None}


def test_true_captions_claim_nothing_false_and_others_much(out: Path, capsys):
    assert evaluate(out, run="true") == evaluate(out, run="next") == 0
    printed = capsys.readouterr().out
    assert f"measured {2 * NUM + len(originals(out))} captions of {NUM} images" in printed
    true, other = figures(out, "true"), figures(out, "next")
    for style in ("short", "long"):
        assert true["false_claims", style] == true["captions_with_false_claims", style] == 0
        assert other["false_claims", style] > 0.3
        assert other["captions_with_false_claims", style] > 0.8
    assert true["main_is_right", "short"] == 1 > 0.3 > other["main_is_right", "short"]
    assert true["claims_f1", "long"] > 0.98
    assert true["cider", "short"] > 2 * other["cider", "short"]
    assert true["clip_score", "long"] == pytest.approx(0.75)
    rows = pq.read_table(out / "evaluations/next/captions.parquet").to_pylist()
    false = sum(row["false_claims"] for row in rows if row["style"] == "long")
    claims = sum(row["claims"] for row in rows if row["style"] == "long")
    assert other["false_claims", "long"] == pytest.approx(false / claims)


def originals(out: Path) -> list[str]:
    tables = [pq.read_table(out / f"captions/true/0000{i}.parquet") for i in range(2)]
    rows = pa.concat_tables(tables).to_pylist()
    return [row["caption"] for row in rows if row["caption_status"] == "ok"]


def test_captions_that_failed_are_not_measured(out: Path):
    write_run(out, "gaps", lambda i, scenes: {"short": "a dog" if i % 3 else "", "long": ""})
    assert evaluate(out, run="gaps") == 0
    found = figures(out, "gaps")
    assert found["captions", "short"] == 40
    assert found["ok", "short"] == 1
    assert ("captions", "long") not in found


def test_outputs_are_whole_typed_recorded_and_the_same_again(out: Path, tmp_path: Path):
    again = Path(shutil.copytree(out, tmp_path / "again"))
    for folder in (out, again, again):
        assert evaluate(folder, run="true") == 0
    assert digest(out) == digest(again)
    assert leftovers(out) == []
    folder = out / "evaluations/true"
    for name, schema in (("metrics", EVALUATIONS), ("captions", EVALUATED_CAPTIONS)):
        table = pq.read_table(folder / f"{name}.parquet")
        assert table.schema.remove_metadata() == schema
        record = commit.read_sidecar_record(str(folder / f"{name}.parquet"))
        assert record.counts["rows"] == table.num_rows
        assert record.config_hash == json.loads((folder / "run.json").read_text())["config_hash"]
    changed = commit.read_sidecar_record(str(folder / "metrics.parquet")).inputs
    write_run(out, "true", truth(shift=2))
    assert evaluate(out, run="true") == 0
    assert commit.read_sidecar_record(str(folder / "metrics.parquet")).inputs != changed


def test_views_and_statistics(out: Path):
    with catalog.connect(str(out)) as connection:
        assert connection.sql("SELECT count(*) FROM evaluated_captions").fetchall() == [(0,)]
    assert evaluate(out, run="true") == evaluate(out, run="next", limit=10) == 0
    with catalog.connect(str(out)) as connection:
        sql = "SELECT evaluation, run, style, count(*) FROM evaluated_captions GROUP BY ALL ORDER BY ALL"
        counted = [row for row in connection.sql(sql).fetchall() if row[2] != "original"]
        assert counted == [
            *[("next-limit10", "next", style, 10) for style in ("long", "short")],
            *[("true", "true", style, NUM) for style in ("long", "short")],
        ]
        joined = connection.sql(
            "SELECT count(*) FROM evaluated_captions AS e JOIN captions AS c USING (run, uid, key) "
            "WHERE e.style = 'long' AND e.false_claims > 0"
        ).fetchall()
        assert joined[0][0] > 5
        drift = connection.sql(statistics.query("drift"), params={"run": "true"}).fetchall()
        assert len(connection.sql("FROM runs WHERE kind = 'evaluations'").fetchall()) == 2
        tables = dict(statistics.named(connection))
        assert any(title.startswith("evaluations: ") for title in tables)
    found = figures(out, "true")
    assert len(drift) == 3
    for _, style, captions, capital, lower, stop, space, divergence in drift:
        names = ("captions", "capitals", "lower_case", "full_stops", "leading_spaces")
        measured = [found[name, style] for name in names]
        assert [captions, capital, lower, stop, space] == pytest.approx(measured, abs=1e-4)
        if style != "original":
            assert divergence == pytest.approx(found["js_first_words", style], abs=1e-3)


def people(out: Path, *names: str) -> list[dict]:
    """Two captions of each of the first 20 images, keyed by some of its names."""
    rows = []
    for row in pq.read_table(out / "shards/00000.parquet").to_pylist()[:20]:
        scene = scene_of(row)
        image = {"uid": uid_of("00000", row["key"]), "shard": "00000"} | row
        captions = [short_caption(scene, 0), long_caption(scene, 1)]
        rows.append({name: image[name] for name in names} | {"captions": captions})
    return rows


def test_references_are_found_by_any_key(out: Path, tmp_path: Path, capsys):
    found = []
    for names in (("uid",), ("shard", "key"), ("sha256",)):
        (tmp_path / names[0]).mkdir()
        path = tmp_path / names[0] / "people.jsonl"
        rows = [*people(out, *names), dict.fromkeys(names, "stranger") | {"captions": ["a dog"]}]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = path.parent if names == ("uid",) else path  # a folder of files, or a file
        assert evaluate(out, run="true", references=given) == 0
        assert "1 images of REFERENCES are not in this run" in capsys.readouterr().out
        found.append(figures(out, "true"))
    assert found[0] == found[1] == found[2]
    assert found[0]["captions", "reference"] == 40
    assert found[0]["cider", "long"] > 5 * found[0]["cider", "original"] > 0
    table = pq.read_table(out / "evaluations/true/metrics.parquet").to_pylist()
    assert {r["count"] for r in table if (r["metric"], r["style"]) == ("cider", "long")} == {20}


def test_references_are_found_by_the_content_of_images_alone(out: Path, tmp_path: Path, capsys):
    """By the hash of the bytes in the tar, or by that of what was fetched, which its .json tells."""
    path = tmp_path / "people.jsonl"

    def by(hashes: dict[str, str]) -> dict[tuple[str, str], float]:
        rows = [{"sha256": hashes[r["key"]], "captions": r["captions"]} for r in people(out, "key")]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert evaluate(out, run="true", references=path) == 0
        return figures(out, "true")

    contents, sources = {}, {}
    for shard in manifest.load(str(out)):
        for sample in read_samples(shard):
            contents[sample.key] = hashlib.sha256(sample.image).hexdigest()
            sources[sample.key] = hashlib.sha256(sample.key.encode()).hexdigest()
    wanted = by(contents)
    tables = {file: pq.read_table(file) for file in (out / "shards").glob("*.parquet")}
    for file, table in tables.items():
        pq.write_table(table.drop_columns(["sha256"]), file)
    found = by(contents)
    assert found == wanted and found["captions", "reference"] == 40
    printed = capsys.readouterr().out
    assert "drift in style from the original captions" in printed
    for i in range(2):
        told = {key: {"sha256": value} for key, value in sources.items()}
        add_json(out / f"shards/0000{i}.tar", told)
    assert by(sources) == by(contents) == wanted
    shutil.copy(out / "shards/00001.tar", out / "shards/00000.tar")
    assert evaluate(out, run="true", references=path) == 2
    assert "00000 holds other samples" in capsys.readouterr().err
    tear(out)
    shutil.copy(out / "shards/00001.tar", out / "shards/00000.tar")
    assert evaluate(out, run="true", references=path) == 2


def add_json(path: Path, told: dict[str, dict]) -> None:
    """Packs a tar anew, with a .json beside every image."""
    with tarfile.open(path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]
    with tarfile.open(path, "w") as tar:
        for key in dict.fromkeys(name.split(".")[0] for name, _ in members):
            own = [(n, d) for n, d in members if n.startswith(key) and not n.endswith(".json")]
            for name, data in [*own, (f"{key}.json", json.dumps(told[key]).encode())]:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def test_a_scorer_finds_what_the_captioner_did(out: Path, tiny: str):
    shards = str(out / "shards/{00000..00001}.tar")
    how = ("--executor", "inline", "--precision", "fp32", "--threads", "1", "--limit", "44")
    flags = ("--out", str(out), "--shards", shards, "--captioner", tiny, "--run", "own")
    assert main(["caption", *flags, "--styles", "short", *how]) == 0
    run = {"run": "own-limit44", "threads": 1, "batch-size": 7}
    assert evaluate(out, **run) == 0
    stored = figures(out, "own-limit44")
    Path(out / "moved").mkdir()
    for i in range(2):
        (out / f"shards/0000{i}.tar").rename(out / f"moved/0000{i}.tar")
    assert evaluate(out, **run, scorer=tiny) == 2
    assert evaluate(out, **run, scorer=tiny, shards=out / "moved/00000.tar") == 2
    assert figures(out, "own-limit44") == stored
    assert evaluate(out, **run, scorer=tiny, shards=out / "moved/*.tar") == 0
    scored = figures(out, "own-limit44")
    for metric in ("clip_score", "clip_score_worst"):
        assert scored[metric, "short"] == pytest.approx(stored[metric, "short"], abs=1e-4)
    assert 0 < scored["ref_clip_score", "short"] < 2.5
    assert ("clip_score", "original") in scored.keys() - stored.keys()
    assert ("captions", "long") not in scored


def test_limits(out: Path, tiny: str):
    assert evaluate(out, run="true", limit=45) == 0
    assert figures(out, "true-limit45")["captions", "short"] == 45
    flags = {"scorer": tiny, "threads": 1, "batch-size": 4}
    for limit in (6, 41):
        assert evaluate(out, run="true", limit=limit, **flags) == 0
        assert figures(out, f"true-limit{limit}")["captions", "short"] == limit


def test_objects(out: Path, tmp_path: Path):
    shapes = {"circle": [], "square": [], "triangle": [], "star": ["asterisk"]}
    images = {}
    for row in pq.read_table(out / "shards/00000.parquet").to_pylist():
        shown = {thing.shape for thing in scene_of(row).things} & shapes.keys()
        images[row["key"]] = sorted(shown)
    path = tmp_path / "objects.json"
    path.write_text(json.dumps({"objects": shapes, "images": images}))
    for run in ("true", "next"):
        assert evaluate(out, run=run, objects=path) == 0
    true, other = figures(out, "true"), figures(out, "next")
    assert true["chair_i", "long"] == true["chair_s", "long"] == 0 < other["chair_s", "long"]
    assert true["objects_told", "long"] == 1 > other["objects_told", "long"]


def drop_shards(out: Path) -> None:
    for path in (out / "captions/true").glob("*.parquet"):
        path.unlink()


def damage(out: Path) -> None:
    path = out / "captions/true/00000.parquet"
    data = bytearray(path.read_bytes())
    data[100:200] = bytes(100)
    path.write_bytes(data)


def tear(out: Path) -> None:
    cut(out / "shards/00001.tar", 5000)


def repack(out: Path) -> None:
    """Another shard under the name of one that was captioned."""
    shutil.copy(out / "shards/00001.tar", out / "shards/00000.tar")


@pytest.mark.parametrize(
    ("flags", "harm", "message"),
    [
        ({}, None, "has caption runs next, true"),
        ({"run": "nothing"}, None, "has no run captions/nothing"),
        (
            {"run": "true", "references": "strangers.jsonl"},
            None,
            "none of its 1 images is in this run",
        ),
        ({"run": "true", "references": "nothing.jsonl"}, None, "there is no such file"),
        ({"run": "true", "objects": "strangers.jsonl"}, None, "lacks 'objects'"),
        ({"run": "true", "scorer": "nothing"}, None, "SCORER=nothing"),
        ({"run": "true", "limit": -1}, None, "--limit -1"),
        ({"run": "true"}, drop_shards, "has captioned no shard yet"),
        ({"run": "true"}, damage, "captions/true/00000.parquet"),
        (
            {"run": "true", "scorer": "tiny", "batch-size": 8},
            repack,
            "00000 holds other samples",
        ),
        ({"run": "true", "scorer": "tiny"}, tear, "SHARDS: "),
        ({"run": "true", "shards": "*.jsonl"}, None, "SHARDS=*.jsonl"),
    ],
)
def test_mistakes_are_told_in_a_line_and_nothing_is_written(
    out: Path, tmp_path: Path, tiny: str, monkeypatch, capsys, flags: dict, harm, message: str
):
    flags = {k: tiny if v == "tiny" else v for k, v in flags.items()}
    monkeypatch.chdir(tmp_path)
    Path("strangers.jsonl").write_text('{"uid": "nobody", "caption": "a dog"}\n')
    if harm:
        harm(out)
    assert evaluate(out, **flags) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) <= 2
    assert not list(out.glob("evaluations/*/*.parquet"))


def test_what_was_measured_before_stays_until_all_is_new(out: Path, monkeypatch):
    assert evaluate(out, run="true") == 0
    before = digest(out)
    damage(out)
    assert evaluate(out, run="true") == 2
    kept = {k: v for k, v in digest(out).items() if k.startswith("evaluations")}
    assert kept == {k: v for k, v in before.items() if k.startswith("evaluations")}


def test_a_run_that_has_not_ended_is_measured_so_far(out: Path, capsys):
    (out / "captions/true/00001.parquet").unlink()
    assert evaluate(out, run="true") == 0
    assert "1 of 2 shards are captioned" in capsys.readouterr().out
    assert figures(out, "true")["captions", "short"] == 40
