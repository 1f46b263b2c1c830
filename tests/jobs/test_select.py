"""select, keep-export, keep-import: keep-lists that a mix honours, resumed, redone, refused."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.__main__ import main
from jobs.annotate import Annotate, _source
from pipeline import commit, manifest, tombstones
from pipeline.dedup.sources import find_run
from pipeline.kmeans import normalised
from pipeline.manifest import Shard
from pipeline.samples import uid_of
from pipeline.schemas import KEEP
from pipeline.select.column_runs import known
from tests.support.mixing import mixed, table
from tests.support.outputs import digest, leftovers
from tests.support.selecting import annotated, kept, shards_of, uid_at
from tests.support.shards import pairs, write_tar
from tests.support.stages import caption

IMAGE = {"width": pa.int32(), "height": pa.int32()}
CLIP = {"similarity": pa.float32(), "embedding": pa.list_(pa.float16())}
LOST = {"reason": "undecodable"}


def run(verb: str, out: Path | str, *flags: str, **named: object) -> int:
    given = [f for k, v in named.items() for f in (f"--{k.replace('_', '-')}", str(v))]
    return main([verb, "--out", str(out), *given, *flags])


def image_rows(count: int, start: int = 0) -> list[dict]:
    return [{"width": 100 * ((start + i) % 7), "height": 300} for i in range(count)]


def clip_rows(count: int, start: int = 0) -> list[dict]:
    return [{"similarity": ((start + i) * 37 % 100) / 100} for i in range(count)]


@pytest.fixture
def out(tmp_path) -> Path:
    """Two shards of twenty samples with columns of image and clip."""
    return columns(tmp_path / "out", 2)


def columns(out: Path, count: int, per_shard: int = 20) -> Path:
    shards = shards_of(out, count)
    image = [image_rows(per_shard, per_shard * i) for i in range(count)]
    clip = [clip_rows(per_shard, per_shard * i) for i in range(count)]
    for rows in (image, clip):
        rows[0][3] = LOST
    clip[0][5] = {"similarity": None}
    annotated(out, shards, "image@1", image, IMAGE)
    annotated(out, shards, "clip@m", clip, CLIP)
    return out


def shards_in(out: Path) -> list[Shard]:
    return manifest.load(str(out))


def all_kept(out: Path, name: str) -> list[str | None]:
    """The reasons of all shards, one after the other."""
    return [reason for shard in kept(out, name, shards_in(out)) for reason in shard]


WHERE = "similarity > 0.28 and width >= 200"


def test_reasons_and_funnel(out, capsys):
    assert run("select", out, where=WHERE, run="first") == 0
    found = kept(out, "first", shards_in(out))

    def expected(i: int) -> str | None:
        if i == 3:
            return "undecodable"
        if i == 5:
            return "similarity > 0.28 (unknown)"
        if np.float32((i * 37 % 100) / 100) <= 0.28:
            return "similarity > 0.28"
        return None if 100 * (i % 7) >= 200 else "width >= 200"

    assert found == [[expected(i) for i in range(20)], [expected(i) for i in range(20, 40)]]
    flat = [reason for shard in found for reason in shard]
    funnel = json.loads((out / "keep/first/funnel.json").read_text())
    assert (funnel["samples"], funnel["kept"]) == (40, flat.count(None))
    assert [(s["reason"], s["dropped"]) for s in funnel["steps"]] == [
        (name, flat.count(name))
        for name in (
            "undecodable",
            "similarity > 0.28",
            "similarity > 0.28 (unknown)",
            "width >= 200",
        )
    ]
    assert [s["left"] for s in funnel["steps"]][-1] == funnel["kept"]
    printed = capsys.readouterr().out
    assert f"{flat.count('width >= 200')}  {funnel['kept']}" in " ".join(printed.split("-"))
    assert commit.read_sidecar(f"{out}/keep/first/00000.parquet").schema == KEEP


def test_what_is_done_is_not_done_again(out, capsys):
    assert run("select", out, where=WHERE, run="first") == 0
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.glob("keep/first/*.parquet")}
    capsys.readouterr()
    assert run("select", out, where=WHERE, run="first") == 0
    assert "0 done now" in capsys.readouterr().out
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in before} == before


def test_columns_that_changed_are_judged_again(out, capsys):
    assert run("select", out, where=WHERE, run="first") == 0
    capsys.readouterr()
    shards = shards_in(out)
    wider = [image_rows(20), [{"width": 900, "height": 300}] * 20]
    wider[0][3] = LOST
    annotated(out, shards, "image@1", wider, IMAGE)
    assert run("select", out, where=WHERE, run="first") == 0
    assert "1 done now" in capsys.readouterr().out  # the first shard's are what they were
    assert "width >= 200" not in kept(out, "first", shards)[1]


def test_another_question_under_a_used_name_is_refused(out, capsys):
    assert run("select", out, where=WHERE, run="first") == 0
    before = digest(out)
    assert run("select", out, where="similarity > 0.3", run="first") == 2
    assert "conditions" in capsys.readouterr().err
    assert digest(out) == before


def test_names_of_runs(out, capsys):
    for flags in ({"where": WHERE}, {"where": "width > 5"}, {"preset": "clip-score-30"},
                  {"preset": "clip-score-30", "where": WHERE}, {"where": WHERE, "limit": 1}):  # fmt: skip
        code = run("select", out, **flags)
        assert code == (2 if "limit" in flags else 0)  # these shards are no tars to count in
    names = sorted(path.name for path in (out / "keep").iterdir())
    assert len(names) == 4 and "clip-score-30" in names
    assert sum(name.startswith("clip-score-30-") for name in names) == 1


def test_dry_run_says_what_would_be_kept_and_writes_nothing(out, capsys):
    assert run("select", out, "--dry-run", where=WHERE, top="50 % by similarity") == 0
    assert not (out / "keep").exists()
    dry = capsys.readouterr().out
    assert run("select", out, where=WHERE, top="50 % by similarity") == 0
    wet = capsys.readouterr().out
    table = dry[dry.index("samples in ") :]
    assert table in wet and "the top ends at" in table


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, "nothing is asked"),
        ({"where": "1; drop table x"}, "no condition on columns"),
        ({"where": "read_csv('x') is null"}, "read_csv"),
        ({"where": "similarty > 0.2"}, "similarity"),
        ({"where": "nsfw < 0.5"}, "STAGES=safety"),
        ({"preset": "dalle1"}, "STAGES=text"),
        ({"preset": "safe"}, "make dedup"),
        ({"preset": "nothing"}, "datacomp-basic"),
        ({"preset": "image-based"}, "TARGET"),
        ({"top": "best"}, "TOP"),
        ({"where": WHERE, "runs": "clip@x"}, "clip@x"),
        ({"target": "/nowhere/t.npy"}, "TARGET"),
    ],
)
def test_mistakes_are_one_line(out, capsys, flags, said):
    assert run("select", out, **flags) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and len(error.strip().splitlines()) <= 2
    assert not (out / "keep").exists()


def test_no_data_folder(tmp_path, capsys):
    assert run("select", tmp_path / "nothing", where=WHERE) == 2
    assert "make annotate" in capsys.readouterr().err


def test_a_shard_without_its_columns_fails_and_the_others_do_not(out, capsys):
    (out / "columns/image@1/00001.parquet").unlink()
    assert run("select", out, where=WHERE, run="first") == 3
    assert [p.name for p in out.glob("keep/first/*.parquet")] == ["00000.parquet"]
    assert not (out / "keep/first/funnel.json").exists()


def test_shards_that_nobody_annotated_are_left_out(out, capsys):
    shards_of(out, 3)
    assert run("select", out, where=WHERE, run="first") == 0
    assert "1 of 3 shards are not annotated" in capsys.readouterr().out


def test_the_top_is_of_what_is_left(out):
    assert run("select", out, where="width >= 200", top="30 % by similarity", run="best") == 0
    rows = {
        uid_at(f"{i // 20:05d}", i % 20): (np.float32((i * 37 % 100) / 100), i)
        for i in range(40)
        if 100 * (i % 7) >= 200 and i not in (3, 5)
    }
    left = (
        len(rows) + 1
    )  # number 5 has no score, and is one of those among whom the best are sought
    ranked = sorted(rows, key=lambda uid: (-rows[uid][0], uid))[: int(0.3 * left)]
    reasons = all_kept(out, "best")
    assert {uid_at(f"{i // 20:05d}", i % 20) for i, r in enumerate(reasons) if r is None} == set(
        ranked
    )
    assert reasons[5] == "not in the top 30 % by similarity (unknown)"
    assert reasons.count("width >= 200") == sum(100 * (i % 7) < 200 and i != 3 for i in range(40))
    ends = json.loads((out / "keep/best/funnel.json").read_text())["top_ends_at"]
    assert ends == min(float(rows[uid][0]) for uid in ranked)


def test_new_shards_move_the_top(out):
    assert run("select", out, top="10 by similarity", run="best") == 0
    before = digest(out)
    shards = shards_of(out, 3)
    annotated(out, shards[2:], "clip@m", [[{"similarity": 0.99}] * 20], CLIP)
    annotated(out, shards[2:], "image@1", [image_rows(20)], IMAGE)
    assert run("select", out, top="10 by similarity", run="best") == 0
    assert sum(reason is None for reason in all_kept(out, "best")) == 10
    assert digest(out)["keep/best/00000.parquet"] != before["keep/best/00000.parquet"]


def test_clusters_near_a_target(tmp_path):
    out, rng = tmp_path / "out", np.random.default_rng(0)
    shards = shards_of(out, 2)
    axes = normalised(np.eye(8)[np.arange(60) % 4] + rng.normal(scale=0.02, size=(60, 8)))
    rows = [{"similarity": 0.1, "embedding": list(axis)} for axis in axes.astype(np.float16)]
    rows[7], rows[9] = LOST, {"similarity": 0.5}
    annotated(out, shards, "clip@m", [rows[:30], rows[30:]], CLIP)
    np.save(tmp_path / "target.npy", np.eye(8)[[2]])
    target = tmp_path / "target.npy"
    assert run("select", out, target=target, clusters=8, run="near") == 0
    reasons = all_kept(out, "near")
    far = "cluster without a target image"
    assert {r for i, r in enumerate(reasons) if i % 4 != 2 and i not in (7, 9)} == {far}
    assert reasons[7] == "undecodable" and reasons[9] == f"{far} (unknown)"
    assert None in reasons[2::4]
    again = tmp_path / "again"
    annotated(again, shards_of(again, 2), "clip@m", [rows[:30], rows[30:]], CLIP)
    assert run("select", again, target=target, clusters=8, run="near") == 0
    assert kept(again, "near", shards) == kept(out, "near", shards)


def test_what_was_taken_down_stays_out(out):
    assert run("select", out, where="width >= 0", run="all") == 0
    bury(out, uid_at("00001", 4))
    assert run("select", out, where="width >= 0", run="all") == 0
    reasons = kept(out, "all", shards_in(out))
    assert reasons[1][4] == "taken_down" and reasons[1].count(None) == 19


def npy(path: Path, *uids: str) -> Path:
    """A list of uids as DataComp writes it."""
    pairs_ = sorted((int(u[:16], 16), int(u[16:], 16)) for u in uids)
    np.save(path, np.array(pairs_, np.dtype("u8,u8")))
    return path


def bury(out: Path, *uids: str) -> None:
    tombstones.add(str(out), tombstones.Tombstones(frozenset(uids)), "")


def test_take_downs_redo_their_own_shards_only(out, tmp_path, capsys):
    file = npy(tmp_path / "list.npy", *(uid_at(s, i) for s in ("00000", "00001") for i in range(9)))
    verbs = [
        ("select", {"where": "width >= 0", "run": "all"}),
        ("select", {"where": "width >= 0", "top": "9 by similarity", "run": "top"}),
        ("keep-import", {"file": file, "run": "list"}),
    ]

    def redone() -> list[str]:
        said = []
        for verb, flags in verbs:
            assert run(verb, out, **flags) == 0
            printed = capsys.readouterr().out
            said.append(next(w for w in printed.split("= ")[1:] if "done now" in w)[0])
        return said

    assert redone() == ["2", "2", "2"] and redone() == ["0", "0", "0"]
    bury(out, "f" * 32)
    assert redone() == ["0", "0", "0"]
    bury(out, uid_at("00001", 4))
    assert redone() == ["1", "2", "1"]  # the top is of all
    for name in ("all", "top", "list"):
        assert kept(out, name, shards_in(out))[1][4] == "taken_down"
    assert redone() == ["0", "0", "0"]


def test_import_does_not_keep_what_columns_call_taken_down(tmp_path):
    out = tmp_path / "out"
    [shard] = shards_of(out, 1)
    annotated(out, [shard], "image@1", [[{"width": 1}, {"reason": "taken_down"}]], IMAGE)
    file = npy(tmp_path / "list.npy", uid_at(shard, 0), uid_at(shard, 1))
    assert run("keep-import", out, file=file) == 0
    assert kept(out, "list", [shard]) == [[None, "taken_down"]]


def test_import_does_not_keep_what_a_shard_calls_taken_down(tmp_path):
    """Buried by the hash of its URL: no list of uids has it."""
    out = tmp_path / "out"
    meta = {"url": "https://example.org/gone.jpg"}
    samples = pairs(3)
    samples[1][1]["json"] = json.dumps(meta).encode()
    write_tar(tmp_path / "raw/00000.tar", samples)
    marks = tombstones.Tombstones(urls=frozenset({tombstones.url_hash(meta["url"])}))
    out.mkdir()
    tombstones.add(str(out), marks, "")
    file = npy(tmp_path / "list.npy", *(uid_of("00000", key) for key, _ in samples))
    assert run("keep-import", out, file=file, shards=tmp_path / "raw") == 0
    found = commit.read_sidecar(f"{out}/keep/list/00000.parquet").column("reason").to_pylist()
    assert found == [None, "taken_down", None]


def test_a_run_of_the_first_few_does_not_stand_in_the_way(out):
    annotated(out, shards_in(out)[:1], "image@1-limit5", [image_rows(5)], IMAGE)
    assert run("select", out, where=WHERE, run="first") == 0
    for name in ("image@1", "clip@m"):
        stage = name.split("@")[0]
        annotated(out, shards_in(out)[:1], f"{name}-limit7", [[{}]], {})
        assert _source(Annotate(out=str(out)), stage, [], str(out)) == name
        assert find_run(str(out), stage, "", "--image") == name
    wanted = Annotate(out=str(out), clip="clip@m-limit7")
    assert _source(wanted, "clip", [], str(out)) == "clip@m-limit7"


def test_conditions_from_two_places_are_read_apart(out, capsys):
    flags = {"before": "similarity > 0.28 -- alike", "where": "width >= 500 or width < 200"}
    assert run("select", out, **flags, run="two") == 0
    one = "similarity > 0.28 and (width >= 500 or width < 200)"
    assert run("select", out, where=one, run="one") == 0
    assert all_kept(out, "two") == all_kept(out, "one") and None in all_kept(out, "two")
    assert "width >= 500 or width < 200" in all_kept(out, "two")
    capsys.readouterr()
    split = {"before": "similarity > 0.28", "where": "width > 5000) or (width < 5000"}
    assert run("select", out, **split) == 2
    assert "syntax error" in capsys.readouterr().err
    assert run("select", out, before="width > 5000) or (width < 5000") == 2


def test_an_embedding_may_be_asked_for(out):
    assert run("select", out, where="embedding is not null or width > 0", run="first") == 0


def test_a_mix_keeps_what_was_selected(tmp_path):
    out = str(tmp_path / "out")
    urls = [write_tar(tmp_path / f"raw/{i:05d}.tar", pairs(20, start=20 * i)) for i in range(2)]
    shards = caption(out, urls)
    rows = [[{"width": i, "uid": _uid(s, i), "key": _key(s, i)} for i in range(20)] for s in shards]
    annotated(out, shards, "image@1", rows, {"width": pa.int32()})
    assert run("select", out, where="width >= 12", run="wide") == 0
    made = mixed(out, shards, keep="wide")
    for shard in shards:
        found = table(made, shard.name)
        assert [row["status"] == "ok" for row in found] == [i >= 12 for i in range(20)]
        assert {row["reason"] for row in found[:12]} == {"width >= 12"}
    assert sum(made.sizes.values()) == 16
    where = "long_status = 'ok' and caption_long like '%mostly%'"
    assert run("select", out, where=where, run="captioned") == 0
    reasons = (
        commit.read_sidecar(f"{out}/keep/captioned/00000.parquet").column("reason").to_pylist()
    )
    assert set(reasons) == {None, "long_status = 'ok'"}


def _key(shard: Shard, index: int) -> str:
    return f"{20 * int(shard.name) + index:09d}"


def _uid(shard: Shard, index: int) -> str:
    return uid_of(shard.name, _key(shard, index))


def start(out: Path) -> subprocess.Popen:
    command = ["select", "--out", str(out), "--where", WHERE, "--top", "40 % by similarity"]
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", *command, "--run", "first"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def whole(out: Path) -> dict[str, str]:
    return digest(out) | {"funnel": (out / "keep/first/funnel.json").read_text()}


def test_killed_and_run_again(tmp_path):
    """kill -9 after some commits: byte for byte what an undisturbed job writes."""
    calm, killed = (columns(tmp_path / name, 40, 6) for name in ("calm", "killed"))
    assert run("select", calm, where=WHERE, top="40 % by similarity", run="first") == 0
    job = start(killed)
    while len(list(killed.glob("keep/first/*.parquet"))) < 5 and job.poll() is None:
        time.sleep(0.002)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    assert job.returncode == -signal.SIGKILL
    assert not (killed / "keep/first/funnel.json").exists()
    assert run("select", killed, where=WHERE, top="40 % by similarity", run="first") == 0
    assert whole(killed) == whole(calm) and not leftovers(killed)
    (killed / "keep/first/funnel.json").unlink()  # as if killed between the last list and this
    assert run("select", killed, where=WHERE, top="40 % by similarity", run="first") == 0
    assert whole(killed) == whole(calm)


@pytest.mark.ray
def test_ray_writes_the_same(tmp_path):
    inline, ray = (columns(tmp_path / name, 6) for name in ("inline", "ray"))
    asked = {"where": WHERE, "top": "40 % by similarity", "run": "first"}
    assert run("select", inline, **asked) == 0
    flags = asked | {"out": ray, "executor": "ray", "workers": 2}
    given = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    # In a process of its own, as users do: Ray does not start twice in one.
    subprocess.run([sys.executable, "-m", "jobs", "select", *given], check=True, timeout=300)
    assert whole(ray) == whole(inline)


def test_export_is_datacomps_and_import_gives_it_back(out, tmp_path, capsys):
    assert run("select", out, where=WHERE, run="first") == 0
    assert run("keep-export", out, keep="first") == 0
    shards = shards_in(out)
    reasons = kept(out, "first", shards)
    uids = [
        uid_at(s, i)
        for s, rs in zip(shards, reasons, strict=True)
        for i, r in enumerate(rs)
        if not r
    ]
    expected = np.array([(int(u[:16], 16), int(u[16:32], 16)) for u in uids], np.dtype("u8,u8"))
    loaded = np.load(out / "keep/first/uids.npy", allow_pickle=False)
    assert loaded.dtype == expected.dtype and (loaded == np.sort(expected)).all()

    assert run("keep-import", out, file=out / "keep/first/uids.npy", run="back") == 0
    back = kept(out, "back", shards)
    assert [[r is None for r in rs] for rs in back] == [[r is None for r in rs] for rs in reasons]
    assert {r for rs in back for r in rs} == {None, "not in uids.npy"}
    assert run("keep-export", out, keep="back", file=tmp_path / "again.npy") == 0
    first = (out / "keep/first/uids.npy").read_bytes()
    assert (tmp_path / "again.npy").read_bytes() == first


def test_import_names_what_no_sample_has(out, tmp_path, capsys):
    uids = [uid_at("00000", 1), "f" * 32, "0" * 32]
    rows = np.array([(int(u[:16], 16), int(u[16:], 16)) for u in uids], np.dtype("u8,u8"))
    np.save(tmp_path / "list.npy", np.sort(rows))
    assert run("keep-import", out, file=tmp_path / "list.npy") == 0
    said = capsys.readouterr().out
    assert "2 uids are of no known sample" in said and "0" * 32 in said and "f" * 32 in said
    reasons = kept(out, "list", shards_in(out))
    assert reasons[0][1] is None and sum(r is None for rs in reasons for r in rs) == 1
    capsys.readouterr()
    assert run("keep-import", out, file=tmp_path / "list.npy") == 0
    assert "2 done before" in capsys.readouterr().out
    np.save(tmp_path / "list.npy", np.sort(rows)[:1])
    assert run("keep-import", out, file=tmp_path / "list.npy") == 2  # another list under its name
    assert "sha256" in capsys.readouterr().err


def test_import_reads_shards_that_have_no_columns(tmp_path, capsys):
    out = tmp_path / "out"
    urls = [write_tar(tmp_path / f"raw/{i:05d}.tar", pairs(5, start=5 * i)) for i in range(2)]
    chosen = [uid_of("00000", "000000002"), uid_of("00001", "000000009")]
    rows = np.array([(int(u[:16], 16), int(u[16:], 16)) for u in chosen], np.dtype("u8,u8"))
    np.save(tmp_path / "list.npy", rows)  # not sorted, perhaps
    assert run("keep-import", out, file=tmp_path / "list.npy", shards=tmp_path / "raw") == 0
    assert known(str(out)) == [] and len(urls) == 2
    for name, index in (("00000", 2), ("00001", 4)):
        found = commit.read_sidecar(f"{out}/keep/list/{name}.parquet").to_pylist()
        assert [row["keep"] for row in found] == [i == index for i in range(5)]
    made = mixed(str(out), manifest.load(str(out)), "0", keep="list", captions="")
    assert sum(made.sizes.values()) == 2


@pytest.mark.parametrize("verb", ["keep-export", "keep-import"])
def test_mistakes_of_lists_are_one_line(out, tmp_path, capsys, verb):
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY nonsense")
    flags = {"keep": "nothing"} if verb == "keep-export" else {"file": tmp_path / "bad.npy"}
    assert run(verb, out, **flags) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_export_of_a_list_that_is_not_whole(out, capsys):
    assert run("select", out, where=WHERE, run="first") == 0
    (out / "keep/first/00001.parquet").unlink()
    assert run("keep-export", out, keep="first") == 2
    assert "not whole" in capsys.readouterr().err and not (out / "keep/first/uids.npy").exists()
