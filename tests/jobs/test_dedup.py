"""The verb dedup: which copy stays, what leaves first, what is told, redone, refused and survived."""

import random
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jobs.__main__ import main
from pipeline import catalog, commit
from pipeline.dedup.search import Search
from pipeline.dedup.work import SCHEMA
from tests.support import dedup_columns, real, shards
from tests.support.dedup_columns import CLIP, IMAGE, uid
from tests.support.outputs import digest, leftovers

FAR = 0xF0F0F0F0F0F0F0F0
SAME = "ab" * 32


def dedup(out: Path, *flags: str, **named: object) -> int:
    given = {"out": out, "executor": "inline"} | named
    told = [f for k, v in given.items() for f in (f"--{k.replace('_', '-')}", str(v))]
    return main(["dedup", *told, *flags])


def rows(out: Path, run: str = "default", *names: str) -> dict[str, dict]:
    """Key -> row, of all shards."""
    found = {}
    for path in sorted((out / f"columns/dedup@{run}").glob("*.parquet")):
        table = commit.read_sidecar(str(path))
        assert table.schema == SCHEMA
        image = commit.read_sidecar(str(out / f"columns/{IMAGE}/{path.name}"), ["uid", "key"])
        assert table.select(["uid", "key"]).equals(image)
        found |= {row["key"]: row for row in table.to_pylist()}
    return found


def verdict(row: dict) -> tuple:
    return row["duplicate_kind"], row["duplicate_of"]


@pytest.fixture
def out(tmp_path) -> Path:
    """Two shards: copies of bytes, of looks, a chain of looks, a failed image, a plain one."""
    dedup_columns.fill(
        tmp_path / "out",
        {
            "00000": [
                {"key": "a", "sha256": SAME, "phash": FAR, "width": 20, "similarity": 0.1},
                {"key": "b", "phash": FAR ^ 0b111, "width": 30, "similarity": 0.2},
                {"key": "c", "phash": 1, "width": 90, "similarity": 0.3},
                {"key": "failed", "reason": "truncated"},
            ],
            "00001": [
                {"key": "d", "sha256": SAME, "phash": FAR, "width": 20, "similarity": 0.4},
                {"key": "e", "phash": 1 | 0b1111000, "width": 80, "similarity": 0.5},
                {"key": "f", "phash": 1 | 0b1111111000, "width": 70, "similarity": 0.6},
                {"key": "plain", "phash": 1, "pdq_quality": 10},
            ],
        },
    )
    return tmp_path / "out"


def test_every_sample_has_a_verdict(out, capsys):
    assert dedup(out) == 0
    found = rows(out)
    assert list(found) == ["a", "b", "c", "failed", "d", "e", "f", "plain"]
    a, b = uid("00000", "a"), uid("00000", "b")
    c, d = uid("00000", "c"), uid("00001", "d")
    stays = min(a, d)  # equal in size, and nothing else is known of them
    copy = "d" if stays == a else "a"
    other = "a" if stays == a else "d"
    # What it is a copy of leaves, too: `duplicate_of` names what is still there in the end.
    assert verdict(found[copy]) == ("exact", b) and found[copy]["duplicate_distance"] == 0
    assert verdict(found[other]) == ("perceptual", b)  # the largest
    assert found[other]["duplicate_distance"] == 3
    assert verdict(found["b"]) == (None, None)
    # What is copied from a duplicate is in its group, so that the last group says what stays.
    assert {found[k]["perceptual_group"] for k in "abd"} == {b}
    assert {found[k]["exact_group"] for k in "ad"} == {stays} and not found["b"]["exact_group"]
    # e is four bits from c; f is three from e, but seven from c, and so it stays.
    assert verdict(found["e"]) == ("perceptual", c)
    assert verdict(found["f"]) == verdict(found["plain"]) == (None, None)
    assert found["f"]["perceptual_group"] is None
    assert (found["failed"]["status"], found["failed"]["reason"]) == ("failed", "truncated")
    printed = capsys.readouterr().out
    assert "samples   8 in = 7 ok + 1 truncated" in printed
    assert "kept 4  perceptual 2  exact 1" in printed
    assert re.search(f"perceptual +2 groups of 5 samples; the largest: 3 like {b}", printed)


@pytest.mark.parametrize(
    "rule, stays", [("largest", "b"), ("similarity", "d"), ("first", "a"), ("auto", "b")]
)
def test_which_copy_stays(out, rule, stays):
    assert dedup(out, keep_rule=rule, clip=CLIP) == 0
    found = rows(out)
    assert {key for key in "abd" if found[key]["duplicate_kind"] is None} == {stays}


def test_kinds_and_radius_are_as_asked(out, capsys):
    assert dedup(out, run="e", kinds="exact") == 0
    assert {row["duplicate_kind"] for row in rows(out, "e").values()} == {None, "exact"}
    assert dedup(out, run="r", kinds="perceptual", radius=2) == 0
    found = rows(out, "r")
    assert [k for k, row in found.items() if row["duplicate_kind"]] in (["a"], ["d"])
    assert dedup(out, run="q", radius=2, min_quality=0) == 0
    assert verdict(rows(out, "q")["plain"]) == ("perceptual", uid("00000", "c"))
    capsys.readouterr()
    assert dedup(out, run="r", kinds="perceptual", radius=3) == 2
    assert "radius (was 2, is 3)" in capsys.readouterr().err


def many(count: int, seed: int = 0) -> list[dict]:
    """Rows with planted copies of every kind."""
    draw = np.random.default_rng(seed)
    made = []
    for i in range(count):
        row = {
            "key": f"{i:05d}",
            "phash": int(draw.integers(0, 2**64, dtype=np.uint64)),
            "sha256": draw.bytes(32).hex(),
            "embedding": draw.standard_normal(24),
            "similarity": float(draw.random()),
            "width": int(draw.integers(10, 20)),
        }
        if i % 4 == 1:
            row |= {name: made[i // 2][name] for name in ("sha256", "phash", "embedding")}
        elif i % 4 == 2:
            bits = sum(1 << int(bit) for bit in draw.integers(0, 64, 3))
            row |= {"phash": made[i // 2]["phash"] ^ bits}
        elif i % 4 == 3:
            noise = 0.02 * draw.standard_normal(24)
            row |= {"embedding": made[i // 2]["embedding"] + noise}
        made.append(row)
    return made


ALL = {"kinds": "exact,perceptual,semantic"}


def test_semantic_duplicates_are_those_of_the_rule(tmp_path, capsys):
    made = many(400)
    out = tmp_path / "out"
    dedup_columns.fill(out, {"00000": made[:150], "00001": made[150:]})
    assert dedup(out, kinds="semantic") == 0
    found = rows(out)
    vectors = np.stack([np.asarray(row["embedding"], np.float16) for row in made]).astype(float)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    best_first = sorted(range(400), key=lambda i: -made[i]["similarity"])
    taken = {}
    for place, i in enumerate(best_first):
        if i not in taken:
            near = [j for j in best_first[place + 1 :] if vectors[i] @ vectors[j] > 0.97]
            taken |= {j: i for j in near if j not in taken}
    assert len(taken) > 150
    by_uid = {row["uid"]: key for key, row in found.items()}
    told = {k: by_uid[r["duplicate_of"]] for k, r in found.items() if r["duplicate_kind"]}
    assert told == {f"{j:05d}": f"{i:05d}" for j, i in taken.items()}
    row = found[next(iter(told))]
    assert row["duplicate_similarity"] > 0.97 and row["duplicate_distance"] is None


def test_the_last_group_names_what_stays(tmp_path):
    out = tmp_path / "out"
    dedup_columns.fill(out, {"00000": many(300), "00001": many(200, seed=1)})
    assert dedup(out, **ALL) == 0
    with catalog.connect(str(out)) as connection:
        strays = connection.sql(
            'FROM "dedup@default" AS d WHERE duplicate_kind IS NOT NULL AND NOT EXISTS ('
            'FROM "dedup@default" AS k WHERE k.duplicate_kind IS NULL '
            "AND k.uid = coalesce(d.semantic_group, d.perceptual_group, d.exact_group))"
        ).fetchall()
        kinds = connection.sql('SELECT DISTINCT duplicate_kind FROM "dedup@default"').fetchall()
        lost = connection.sql(
            'FROM "dedup@default" AS d ANTI JOIN (FROM "dedup@default" WHERE duplicate_kind IS NULL) '
            "AS k ON k.uid = d.duplicate_of WHERE duplicate_kind IS NOT NULL"
        ).fetchall()
        chained = connection.sql(
            "SELECT count(*) FROM \"dedup@default\" WHERE duplicate_kind = 'exact' "
            "AND duplicate_of <> exact_group"
        ).fetchall()
    assert strays == [] and lost == [] and chained[0][0] > 0
    assert {kind for (kind,) in kinds} == {None, "exact", "perceptual", "semantic"}


def test_neither_shards_nor_their_order_change_who_stays(tmp_path):
    made = many(240)
    for i, row in enumerate(made):  # else ties are broken by uid, and that names the shard
        row["num_bytes"] = 1000 + i

    def told(name: str, parts: list[list[dict]]) -> dict[str, tuple]:
        out = tmp_path / name / "out"
        dedup_columns.fill(out, {f"{i:05d}": part for i, part in enumerate(parts)})
        assert dedup(out, **ALL) == 0
        found = rows(out)
        keys = {row["uid"]: key for key, row in found.items()}
        return {
            k: (row["duplicate_kind"], keys.get(row["duplicate_of"])) for k, row in found.items()
        }

    shuffled = random.Random(0).sample(made, len(made))
    assert told("one", [made]) == told("three", [shuffled[:50], shuffled[50:51], shuffled[51:]])


@pytest.fixture
def evaluated(tmp_path) -> Path:
    """A data folder of photographs, and folders of what must not be in it."""
    for name, looks in (("00000", range(4)), ("00001", range(4, 8))):
        samples = [(f"{i:04d}", {"jpg": picture(i), "txt": b"x"}) for i in looks]
        samples.append((f"copy{looks[0]:04d}", {"jpg": picture(looks[0]), "txt": b"x"}))
        shards.write_tar(tmp_path / f"raw/{name}.tar", samples)
    out = tmp_path / "out"
    annotate = ["annotate", "--shards", str(tmp_path / "raw"), "--out", str(out)]
    assert main([*annotate, "--stages", "image", "--executor", "inline"]) == 0
    return out


def picture(look: int, side: int = 256, quality: int = 90) -> bytes:
    """Smooth shapes that no other look has, as a JPEG."""
    draw = np.random.default_rng(look)
    coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    image = coarse.resize((side, side), Image.Resampling.BICUBIC)
    return shards.encoded(image, "JPEG", quality=quality)


def kinds_of(out: Path, run: str) -> dict[str, tuple]:
    found = {}
    for path in (out / f"columns/dedup@{run}").glob("*.parquet"):
        for row in commit.read_sidecar(str(path)).to_pylist():
            found[row["key"]] = verdict(row)
    return found


def test_what_is_in_an_evaluation_set_leaves_first(evaluated, tmp_path, capsys):
    sets = tmp_path / "sets"
    (sets / "deep").mkdir(parents=True)
    (sets / "deep/same.jpg").write_bytes(picture(1))
    (sets / "near.jpg").write_bytes(picture(4, side=128, quality=60))
    (sets / "broken.jpg").write_bytes(b"<html>")
    (sets / "other.jpg").write_bytes(picture(99))
    assert dedup(evaluated, evaluation=sets, run="e") == 0
    found = kinds_of(evaluated, "e")
    assert found["0001"] == ("contaminated", "sets/deep/same.jpg")
    assert found["0004"] == found["copy0004"] == ("contaminated", "sets/near.jpg")
    assert {key for key, (kind, _) in found.items() if kind == "contaminated"} == {
        *("0001", "0004", "copy0004")
    }
    assert {found["0000"][0], found["copy0000"][0]} == {None, "exact"}
    assert "4 items to keep out: 4 by bytes, 3 by looks, 0 by meaning" in capsys.readouterr().out
    # Another content under the same name is another input, and its folder's columns say the same.
    (sets / "other.jpg").write_bytes(picture(2))
    assert dedup(evaluated, evaluation=sets, run="e") == 0
    assert "2 done now" in capsys.readouterr().out
    assert kinds_of(evaluated, "e")["0002"] == ("contaminated", "sets/other.jpg")


def test_evaluation_sets_of_every_sort(evaluated, tmp_path, capsys):
    shards.write_tar(tmp_path / "bench.tar", [("k", {"jpg": picture(1)}), ("n", {"txt": b"x"})])
    image = commit.read_sidecar(next(map(str, evaluated.glob("columns/image@*/00000.parquet"))))
    told = {row["key"]: row for row in image.to_pylist()}
    (tmp_path / "list.txt").write_text(f"# known\n{told['0002']['sha256']}\n")
    (tmp_path / "looks.txt").write_text(told["0003"]["phash"] + "\n")
    table = pa.table({"name": ["first"], "sha256": [told["0000"]["sha256"]], "phash": ["00" * 8]})
    commit.write_parquet(table, tmp_path / "rows.parquet")
    sets = f"sha256:{tmp_path}/list.txt;" + ";".join(
        str(tmp_path / f) for f in ("bench.tar", "looks.txt", "rows.parquet")
    )
    assert dedup(evaluated, evaluation=sets, run="e") == 0
    found = kinds_of(evaluated, "e")
    assert found["0001"] == ("contaminated", "bench.tar/k")
    assert found["0002"] == ("contaminated", f"list.txt/{told['0002']['sha256']}")
    assert found["0003"] == ("contaminated", f"looks.txt/{told['0003']['phash']}")
    assert found["0000"] == found["copy0000"] == ("contaminated", "rows.parquet/first")
    # The whole data folder against itself.
    assert dedup(evaluated, evaluation=evaluated, run="self") == 0
    assert {kind for kind, _ in kinds_of(evaluated, "self").values()} == {"contaminated"}
    capsys.readouterr()
    odd = tmp_path / "odd.parquet"
    commit.write_parquet(pa.table({"sha256": ["xyz"]}), odd)
    (tmp_path / "md5.txt").write_text("ab" * 16)
    mistakes = (
        (tmp_path / "none.parquet", "does not exist"),
        (tmp_path / "nothing", "does not exist"),
        (tmp_path / "x[12].tar", "nothing matches"),
        (evaluated / "columns/image@pixels-1/run.json", "torn"),
        (odd, "row 1: 'xyz' is no sha256"),
        (tmp_path / "md5.txt", "a list of md5"),
    )
    for number, (bad, why) in enumerate(mistakes):
        assert dedup(evaluated, evaluation=bad, run=f"bad-{number}") == 2
        assert why in capsys.readouterr().err


def test_contamination_in_meaning(tmp_path):
    made = many(40)
    dedup_columns.fill(tmp_path / "out", {"00000": made})
    taken = pa.table({"uid": ["x"], "embedding": [list(np.float32(made[4]["embedding"]) * 2)]})
    commit.write_parquet(taken, tmp_path / "known.parquet")
    assert dedup(tmp_path / "out", kinds="semantic", evaluation=tmp_path / "known.parquet") == 0
    found = rows(tmp_path / "out")
    vectors = np.stack([np.asarray(row["embedding"], np.float16) for row in made]).astype(float)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = {f"{i:05d}" for i in np.flatnonzero(vectors @ vectors[4] > 0.97)}
    assert {"00004", "00009"} <= near  # 9 is a copy of 4
    assert {
        k: verdict(row) for k, row in found.items() if row["duplicate_kind"] == "contaminated"
    } == dict.fromkeys(near, ("contaminated", "known.parquet/x"))
    assert found["00004"]["duplicate_similarity"] > 0.999


def test_nothing_is_done_twice_and_everything_anew_where_anything_changed(out, capsys):
    assert dedup(out) == 0
    before = digest(out)
    capsys.readouterr()
    assert dedup(out) == 0
    assert "0 done now" in capsys.readouterr().out and digest(out) == before
    (out / "columns/dedup@default/00001.parquet").unlink()
    assert dedup(out) == 0
    assert "1 done now" in capsys.readouterr().out and digest(out) == before
    assert not (out / "columns/dedup@default/.work").exists() and leftovers(out) == []
    # One shard's hashes are others now: all shards are looked at again.
    url = str(out / f"columns/{IMAGE}/00001.parquet")
    table, record = commit.read_sidecar(url), commit.read_sidecar_record(url)
    changed = [row | ({"phash": None} if row["key"] == "e" else {}) for row in table.to_pylist()]
    commit.write_sidecar(url, pa.Table.from_pylist(changed, table.schema), record)
    assert dedup(out) == 0
    assert "2 done now" in capsys.readouterr().out
    assert verdict(rows(out)["e"]) == (None, None)


def test_a_plan_touches_nothing(out, capsys):
    before = sorted(out.rglob("*"))
    assert dedup(out, "--dry-run") == 0
    assert "2 to do" in capsys.readouterr().out
    assert sorted(out.rglob("*")) == before


def test_mistakes_are_told_in_one_line(out, tmp_path, capsys):
    def told(*flags: str, **named: object) -> str:
        assert dedup(*flags, **named) == 2
        return capsys.readouterr().err

    assert "no columns of stage image yet" in (said := told(tmp_path / "new"))
    assert "make annotate STAGES=image first" in said
    assert "fuzzy is no kind" in told(out, kinds="exact,fuzzy")
    assert "--image image@x" in told(out, image="image@x")
    assert "--radius 17 is not possible" in told(out, radius=17)
    (out / "columns" / CLIP / "run.json").unlink()
    assert "make annotate STAGES=clip first" in told(out, kinds="semantic")
    damaged = out / f"columns/{IMAGE}/00001.parquet"
    data = bytearray(damaged.read_bytes())
    data[60] ^= 255
    damaged.write_bytes(data)
    assert "00001.parquet is damaged" in told(out)


def test_a_shard_without_columns_is_named_and_the_others_are_done(out, capsys):
    (out / f"columns/{IMAGE}/00001.parquet").unlink()
    assert dedup(out) == 3
    said = capsys.readouterr()
    assert f"00001: shard 00001 has no columns {IMAGE}: annotate it first" in said.out
    assert set(rows(out)) == {"a", "b", "c", "failed"}
    assert verdict(rows(out)["a"])[0] == "perceptual"


def test_a_shard_without_columns_does_not_repeat_the_search(out, monkeypatch):
    (out / f"columns/{IMAGE}/00001.parquet").unlink()
    searched, find = [], Search.find
    monkeypatch.setattr(Search, "find", lambda self, *a: searched.append(1) or find(self, *a))
    assert dedup(out) == 3 and len(searched) == 1
    before = digest(out)
    assert dedup(out) == 3 and len(searched) == 1 and digest(out) == before
    (out / "columns/dedup@default/00000.parquet").unlink()
    assert dedup(out) == 3 and len(searched) == 2 and digest(out) == before


KILLING = """
import os, signal, sys
from pipeline import commit
from pipeline.dedup.scratch import Scratch

left = [int(sys.argv[1])]

def mortal(function):
    def called(*arguments, **named):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return function(*arguments, **named)
    return called

commit.write_sidecar = mortal(commit.write_sidecar)
Scratch.find_exact = mortal(Scratch.find_exact)
Scratch.conclude = mortal(Scratch.conclude)
from jobs.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


def test_killed_anywhere_and_run_again(tmp_path):
    made = {"00000": many(150), "00001": many(100, seed=1)}
    for name in ("whole", "killed"):
        dedup_columns.fill(tmp_path / name / "out", made)
    flags = {**ALL, "clusters": 3, "executor": "inline"}
    assert dedup(tmp_path / "whole/out", **flags) == 0
    out = tmp_path / "killed/out"
    given = [f for k, v in ({"out": out} | flags).items() for f in (f"--{k}", str(v))]
    for after in (2, 3, 3):  # between the clusters, as the search ends, between the shards
        command = [sys.executable, "-c", KILLING, str(after), "dedup", *given]
        assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert dedup(out, **flags) == 0
    assert digest(out) == digest(tmp_path / "whole/out")
    assert leftovers(out) == [] and not list(out.glob("columns/dedup@default/.work"))


def test_a_data_folder_in_an_object_store(out):
    store = f"memory:///dedup-{uuid.uuid4().hex}/out"
    fsspec.filesystem("memory").put(f"{out}/", f"{store}/", recursive=True)
    flags = {**ALL, "clip": CLIP}
    assert dedup(out, **flags) == 0 and dedup(store, **flags) == 0
    for path in sorted((out / "columns/dedup@default").glob("*.parquet")):
        assert (
            fsspec.filesystem("memory").cat(f"{store}/{path.relative_to(out)}") == path.read_bytes()
        )


@pytest.mark.slow
@pytest.mark.ray
def test_clusters_on_ray_are_those_made_here(tmp_path):
    for name, executor in (("here", "inline"), ("ray", "ray")):
        dedup_columns.fill(tmp_path / name / "out", {"00000": many(300)})
        assert dedup(tmp_path / name / "out", **ALL, clusters=4, executor=executor) == 0
    assert digest(tmp_path / "ray/out") == digest(tmp_path / "here/out")


def test_copies_of_photographs_are_found_and_crops_are_not(tmp_path):
    """Precision and recall on real pictures: resized and recompressed ones are near, crops not."""
    photographs = sorted((real.data() / "flickr8k_875/images").glob("*.jpg"))[:60]
    samples = []
    for i, path in enumerate(photographs):
        image = Image.open(path).convert("RGB")
        smaller = image.resize((image.width * 3 // 5, image.height * 3 // 5))
        crop = image.crop((image.width // 4, 0, image.width, image.height * 4 // 5))
        made = {
            "whole": path.read_bytes(),
            "again": path.read_bytes(),
            "poor": shards.encoded(image, "JPEG", quality=40),
            "small": shards.encoded(smaller, "JPEG", quality=80),
            "crop": shards.encoded(crop, "JPEG", quality=90),
        }
        samples += [(f"{i:03d}-{name}", {"jpg": data}) for name, data in made.items()]
    random.Random(0).shuffle(samples)
    for number in range(2):
        shards.write_tar(tmp_path / f"raw/{number:05d}.tar", samples[number::2])
    out = tmp_path / "out"
    annotate = ["annotate", "--shards", str(tmp_path / "raw"), "--out", str(out)]
    assert main([*annotate, "--stages", "image", "--executor", "inline"]) == 0
    assert dedup(out) == 0
    with catalog.connect(str(out)) as connection:
        told = connection.sql(
            'SELECT d.key, k.key, d.duplicate_kind FROM "dedup@default" AS d '
            'LEFT JOIN "dedup@default" AS k ON k.uid = d.duplicate_of'
        ).fetchall()
    pairs = [(key, of, kind) for key, of, kind in told if of]
    assert all(key[:3] == of[:3] for key, of, _ in pairs)  # never another photograph
    assert not any("crop" in key + of for key, of, _ in pairs)
    kinds = [kind for *_, kind in pairs]
    assert kinds.count("exact") == 60 and kinds.count("perceptual") >= 118  # of 120
