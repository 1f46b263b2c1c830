"""The main job by its command line, with a real (tiny) CoCa: outputs, reruns, refusals, exit codes."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from tests.support import shards
from tests.support.outputs import digest


@pytest.fixture(scope="session")
def captioner(tmp_path_factory) -> str:
    from tests.support.captioners import save_tiny

    return save_tiny(tmp_path_factory.mktemp("captioner"))


@pytest.fixture
def raw(tmp_path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for i in range(2):
        shards.write_tar(folder / f"{i:05d}.tar", shards.pairs(20, start=20 * i))
    return folder


def run(verb: str, *flags: str, **named: object) -> int:
    given = [f for k, v in named.items() for f in (f"--{k.replace('_', '-')}", str(v))]
    return main([verb, *given, *flags])


@pytest.fixture
def recaption(raw, tmp_path, captioner):
    """Runs the main job in this process; settings may be replaced."""

    def go(*flags: str, **named: object) -> int:
        settings = {
            "shards": raw,
            "out": tmp_path / "out",
            "captioner": captioner,
            "executor": "inline",
            "threads": 1,
            "batch_size": 8,
            "run": "first",
        }
        return run("recaption", *flags, **(settings | named))

    return go


def rows(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def test_shards_in_training_shards_and_catalog_out(recaption, tmp_path, capsys):
    assert recaption() == 0
    printed = capsys.readouterr().out
    out = tmp_path / "out"
    assert "samples   40 in = 40 ok" in printed
    assert "realised" in printed
    captions = rows(out / "captions/first/00000.parquet")
    assert [r["key"] for r in captions] == [f"{i:09d}" for i in range(20)]
    assert {r["caption_status"] for r in captions} == {"ok"}
    assert sum(r["long_status"] == "ok" for r in captions) > 5
    mixed = rows(out / "mix/first/00000.parquet")
    by_uid = {r["uid"]: r for r in captions}
    for row in mixed:
        said = by_uid[row["uid"]]
        source = row["caption_source"]
        assert row["text"] == (
            said["caption"] if source == "original" else said[f"caption_{source}"]
        )
        assert source == "original" or said[f"{source}_status"] == "ok"
    assert json.loads((out / "mix/first/sizes.json").read_text()) == {
        "00000.tar": 20,
        "00001.tar": 20,
    }
    assert (out / "catalog.duckdb").exists()


def test_a_rerun_does_nothing_again(recaption, tmp_path, capsys):
    assert recaption() == 0
    first = digest(tmp_path / "out")
    capsys.readouterr()
    assert recaption() == 0
    assert "0 done now" in capsys.readouterr().out
    assert digest(tmp_path / "out") == first


def test_a_changed_shard_alone_is_done_again(recaption, raw, tmp_path, capsys):
    assert recaption() == 0
    before = digest(tmp_path / "out")
    shards.write_tar(raw / "00001.tar", shards.pairs(21, start=50))
    capsys.readouterr()
    assert recaption() == 0
    assert capsys.readouterr().out.count("1 done now") == 2
    after = digest(tmp_path / "out")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {
        "captions/first/00001.parquet",
        *(f"mix/first/00001{end}" for end in (".parquet", ".tar", "_stats.json")),
        "mix/first/README.md",
        "mix/first/sizes.json",
    }


def test_changed_settings_under_a_used_name_are_refused(recaption, capsys):
    assert recaption() == 0
    assert recaption(short_tokens=9) == 2
    error = capsys.readouterr().err
    assert "styles.short.max_tokens (was 30, is 9)" in error
    assert recaption(blend=80) == 2
    assert "blend.long (was 0.95, is 0.8)" in capsys.readouterr().err


def test_limit_has_a_name_of_its_own_and_stops_inside_a_shard(recaption, tmp_path):
    assert recaption(limit=25) == 0
    folder = tmp_path / "out/captions/first-limit25"
    assert [len(rows(folder / f"0000{i}.parquet")) for i in range(2)] == [20, 5]
    sizes = json.loads((tmp_path / "out/mix/first-limit25/sizes.json").read_text())
    assert sum(sizes.values()) == 25
    assert recaption() == 0
    assert len(rows(tmp_path / "out/captions/first/00001.parquet")) == 20


def test_dry_run_writes_no_output(recaption, tmp_path, capsys):
    assert recaption("--dry-run") == 0
    assert "2 shards: 0 done, 2 to do" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert recaption() == 0
    assert recaption("--dry-run", short_tokens=9) == 2  # what would be refused is refused now


def test_a_bad_shard_is_named_and_the_others_are_done(recaption, raw, tmp_path, capsys):
    shards.cut(raw / "00001.tar", 30_000)
    shards.write_tar(raw / "00002.tar", shards.pairs(5, start=70))
    assert recaption() == 3
    printed = capsys.readouterr()
    assert re.search(r"FAILED +00001: .*00001\.tar: torn", printed.out)
    assert "1 of 3 shards failed" in printed.err
    assert "Traceback" not in printed.out + printed.err
    assert len(rows(tmp_path / "out/mix/first/00002.parquet")) == 5
    shards.write_tar(raw / "00001.tar", shards.pairs(20, start=20))
    assert recaption() == 0


def test_nothing_succeeds_at_zero_percent(recaption, raw, capsys):
    for path in raw.glob("*.tar"):
        shards.write_tar(path, [(f"{i:04d}", {"jpg": b"no image"}) for i in range(3)])
    assert recaption() == 3
    assert "not one sample is ok" in capsys.readouterr().err


def test_a_systemic_failure_stops_the_job(recaption, raw, tmp_path, capsys):
    for i in range(12):
        broken = [(f"{j:04d}", {"jpg": b"\xff\xd8 broken"}) for j in range(100)]
        shards.write_tar(raw / f"{i:05d}.tar", broken)
    assert recaption() == 3
    error = capsys.readouterr().err
    assert "stopped after 10 of 12 shards" in error
    assert "--max-failed" in error
    assert not (tmp_path / "out/captions/first/00011.parquet").exists()


def test_no_more_shards_are_tried_when_most_of_them_are_bad(recaption, raw, capsys):
    for i in range(40):
        shards.write_tar(raw / f"{i:05d}.tar", shards.pairs(1))
        shards.cut(raw / f"{i:05d}.tar", 700)
    assert recaption() == 3
    error = capsys.readouterr().err
    assert "stopped after 0 of 40 shards: 10 of the first 10 shards failed" in error


def test_training_shards_keep_their_uids_and_original_texts(recaption, tmp_path):
    assert recaption() == 0
    assert recaption(shards=tmp_path / "out/mix/first", out=tmp_path / "again") == 0
    before = rows(tmp_path / "out/mix/first/00000.parquet")
    after = rows(tmp_path / "again/captions/first/00000.parquet")
    assert [r["uid"] for r in after] == [r["uid"] for r in before]
    assert [r["caption"] for r in after] == [f"alt text of {i:09d}" for i in range(20)]


def test_calibrated_captioner_judges_off_image(raw, tmp_path, captioner, recaption, capsys):
    named = {"captioner": captioner, "shards": raw, "threads": 1}
    assert run("calibrate", **named, out=tmp_path / "mine") == 0
    assert "calibrated on 40 images" in capsys.readouterr().out
    config = json.loads((tmp_path / "mine/config.json").read_text())
    config["styles"]["short"]["calibration"] = {
        "threshold": 2.0, "false_flags": 1.0, "caught": 1.0, "num_pairs": 40,
    }  # fmt: skip
    (tmp_path / "mine/config.json").write_text(json.dumps(config))
    assert recaption(captioner=tmp_path / "mine") == 0
    statuses = {r["short_status"] for r in rows(tmp_path / "out/captions/first/00000.parquet")}
    assert "off_image" in statuses
    assert "ok" not in statuses
    assert run("calibrate", **named | {"shards": "/nowhere.tar"}, out=tmp_path / "x") == 2


def test_blends_by_name_and_standing_alone(recaption, tmp_path, captioner, raw, capsys):
    named = {"out": tmp_path / "out", "executor": "inline"}
    caption = {"shards": raw, "captioner": captioner, "threads": 1, "batch_size": 8}
    assert run("caption", **named, **caption, run="one") == 0
    assert run("mix", **named, captions="one", blend="0", run="plain") == 0
    assert {r["caption_source"] for r in rows(tmp_path / "out/mix/plain/00000.parquet")} == {
        "original"
    }
    blend = "one.long=0.5,short=0.3,original=0.2"
    assert run("mix", **named, captions="one", blend=blend, run="named") == 0
    sources = {r["caption_source"] for r in rows(tmp_path / "out/mix/named/00000.parquet")}
    assert sources >= {"one.long", "short"}
    capsys.readouterr()
    assert run("stats", out=tmp_path / "out", q="select count(*) as n from mix") == 0
    assert "80" in capsys.readouterr().out


MISTAKES = {
    "no shards": ({"shards": "/nowhere/*.tar"}, "SHARDS: nothing matches /nowhere/*.tar"),
    "missing shard": ({"shards": "/nowhere/{0..2}.tar"}, "/nowhere/0.tar does not exist"),
    "unknown model": ({"captioner": "coca_huge:random"}, "unknown captioner model"),
    "missing weights": ({"captioner": "coca_ViT-B-32:/nowhere/x.pt"}, "no checkpoint at"),
    "unknown style": ({"styles": "poem"}, "no style 'poem'"),
    "bad blend": ({"blend": "120"}, "BLEND=120"),
    "bad source": ({"blend": "haiku=1"}, "'haiku' is no caption source"),
    "style not written": ({"styles": "short"}, "BLEND takes long captions"),
    "blend of no run": ({"blend": "typo.long=0.5,original=0.5"}, "has no run captions/typo"),
    "keep-list of no run": ({"keep": "typo"}, "has no run keep/typo"),
    "no threads": ({"threads": 0}, "--threads 0 is not possible"),
    "negative limit": ({"limit": -5}, "--limit -5 is not possible"),
    "unwritable": ({"out": "/proc/nothing"}, "OUT: cannot write"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_remedy(mistake, recaption, capsys):
    settings, message = MISTAKES[mistake]
    assert recaption(**settings) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 2  # what is wrong, what to try
    assert "Traceback" not in error


@pytest.mark.ray
def test_on_ray_as_users_type_it(raw, tmp_path, captioner):
    command = [
        sys.executable,
        "-m",
        "jobs",
        "recaption",
        "--shards",
        str(raw / "{00000..00001}.tar"),
    ]
    command += ["--captioner", captioner, "--threads", "1", "--batch-size", "8", "--run", "first"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "ray"), "--workers", "2"],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "samples   40 in = 40 ok" in done.stdout
    inline = [*command, "--out", str(tmp_path / "inline"), "--executor", "inline"]
    assert main(inline[3:]) == 0
    assert digest(tmp_path / "ray") == digest(tmp_path / "inline")
    shutil.move(tmp_path / "ray", tmp_path / "moved")
    assert run("stats", out=tmp_path / "moved") == 0


def test_interrupted_it_says_how_to_go_on(tmp_path, captioner):
    raw = tmp_path / "raw"
    raw.mkdir()
    for i in range(4):
        shards.write_tar(raw / f"{i:05d}.tar", shards.pairs(150, start=150 * i))
    command = [sys.executable, "-m", "jobs", "caption", "--shards", str(raw), "--run", "first"]
    command += ["--out", str(tmp_path / "out"), "--captioner", captioner, "--executor", "inline"]
    job = subprocess.Popen([*command, "--threads", "1"], stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "out").glob("captions/first/*.parquet")):
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(signal.SIGINT)
    _, error = job.communicate(timeout=60)
    assert job.returncode == 130
    assert re.search(r"stopped after [0-3] of 4 shards; run the same command to go on", error)
    assert "Traceback" not in error
