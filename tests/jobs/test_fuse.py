"""Fusing a caption run: a run of its own that blends can name, resumed, redone, refused."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import pytest

from jobs.__main__ import main
from pipeline import blend, commit, manifest, mix, runs
from pipeline.schemas import CAPTIONS
from tests.support.chat_server import ChatServer
from tests.support.outputs import digest, leftovers
from tests.support.shards import pair, write_tar
from tests.support.stages import ColourStage, caption, status_of
from tests.support.text_services import fused, inserted

PER_SHARD = 25


@pytest.fixture
def out(tmp_path) -> Path:
    """A data folder with two captioned shards; some samples have no original, one has no image."""
    for number in range(2):
        samples = [pair(f"{i:04d}", 100 * number + i) for i in range(PER_SHARD)]
        samples[3][1].pop("txt")
        samples[3][1]["json"] = b"{}"
        samples[4] = pair("0004", 4, "")
        samples[5][1]["jpg"] = b"<html>"
        write_tar(tmp_path / f"raw/{number:05d}.tar", samples)
    urls = [str(p) for p in sorted((tmp_path / "raw").glob("*.tar"))]
    caption(str(tmp_path / "out"), urls)
    return tmp_path / "out"


@pytest.fixture
def server():
    with ChatServer(fused) as running:
        yield running


def fuse(out: Path, server: ChatServer, *flags: str, **named: object) -> int:
    settings = {"out": out, "captions": "colour", "model": server.name, "executor": "inline"}
    given = [f for k, v in (settings | named).items() for f in (f"--{k.replace('_', '-')}", str(v))]
    return main(["fuse", *given, *flags])


def rows(out: Path, shard: str = "00000", run: str = "colour-fused") -> list[dict]:
    table = commit.read_sidecar(str(out / f"captions/{run}/{shard}.parquet"))
    assert table.schema == CAPTIONS
    return table.to_pylist()


def test_every_row_is_fused_or_says_why_not(out, server, capsys):
    assert fuse(out, server) == 0
    for shard in ("00000", "00001"):
        before = rows(out, shard, "colour")
        for was, now in zip(before, rows(out, shard), strict=True):
            assert (now["uid"], now["caption"]) == (was["uid"], was["caption"])
            assert (now["status"], now["reason"]) == (was["status"], was["reason"])
            if was["reason"]:
                assert now["long_status"] == "failed"
            elif was["caption_status"] == was["long_status"] == "ok":
                assert now["long_status"] == "ok"
                assert now["caption_long"] == f"{was['caption_long']}, known as {was['caption']}"
            else:
                assert (now["long_status"], now["caption_long"]) == ("absent", None)
    printed = capsys.readouterr().out
    found = {k: int(n) for k, n in re.findall(r"(fused|no_\w+) (\d+)", printed)}
    assert found["no_image"] == 2 and found["no_original"] == 4
    assert found["no_synthetic"] > 0
    assert sum(found.values()) == 2 * PER_SHARD
    assert f"{found['fused']} questions asked" in printed
    assert len(server.asked) == found["fused"]


def test_a_blend_takes_it_as_a_source_of_its_own(out, server):
    assert fuse(out, server) == 0
    weights = "colour-fused.long=0.95,original=0.05"
    command = ["mix", "--out", str(out), "--blend", weights, "--executor", "inline"]
    assert main([*command, "--captions", "colour", "--run", "m"]) == 0
    source = "colour-fused.long"
    said = {row["uid"]: row for shard in ("00000", "00001") for row in rows(out, shard)}
    plain = {r["uid"]: r for s in ("00000", "00001") for r in rows(out, s, "colour")}
    used = Counter()
    for number in range(2):
        table = commit.read_sidecar(str(out / f"mix/m/{number:05d}.parquet")).to_pylist()
        with tarfile.open(out / f"mix/m/{number:05d}.tar") as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar}
        for row in (row for row in table if row["status"] == "ok"):
            text = members[f"{row['key']}.txt"].decode()
            meta = json.loads(members[f"{row['key']}.json"])
            fused_row, drawn = said[row["uid"]], row["caption_drawn"]
            is_fused = fused_row["long_status"] == "ok"
            assert drawn == blend.draw(blend.parse(weights), row["uid"])
            used[row["caption_source"]] += 1
            if row["caption_source"] == source:
                assert text == fused_row["caption_long"]
            elif drawn == source:  # what was not fused falls back
                assert not is_fused
                has_long = plain[row["uid"]]["long_status"] == "ok"
                assert (row["caption_source"] == "long") == has_long
                assert row["caption_source"] in ("long", "short", "original")
            assert meta[mix.json_field(source)] == (fused_row["caption_long"] or "")
            assert meta["caption_long"] == (
                plain[row["uid"]]["caption_long"]
                if plain[row["uid"]]["long_status"] == "ok"
                else ""
            )
    assert used[source] > 25
    assert sum(used.values()) == 2 * (PER_SHARD - 1)
    card = (out / "mix/m/README.md").read_text()
    assert "openai:org/model-1, fusing originals with colour.long" in card
    assert server.url not in card


def test_alone_it_can_be_the_current_run(out, server):
    """Nothing is dropped because it was not fused: the original stands in."""
    assert fuse(out, server) == 0
    command = ["mix", "--out", str(out), "--captions", "colour-fused", "--run", "alone"]
    assert main([*command, "--executor", "inline"]) == 0
    table = commit.read_sidecar(str(out / "mix/alone/00000.parquet")).to_pylist()
    reasons = Counter(row["reason"] for row in table)
    assert reasons == {None: PER_SHARD - 3, "not_an_image": 1, "no_caption": 2}
    assert {r["caption_source"] for r in table if r["status"] == "ok"} == {"long", "original"}


def test_a_rerun_asks_nothing_and_what_is_torn_is_answered_by_the_journal(out, server, capsys):
    assert fuse(out, server) == 0
    first, asked = digest(out), len(server.asked)
    assert fuse(out, server) == 0
    assert "0 done now" in capsys.readouterr().out
    os.truncate(out / "captions/colour-fused/00001.parquet", 100)
    assert fuse(out, server) == 0
    assert "1 done now" in capsys.readouterr().out
    assert fuse(out, server, run="again") == 0
    assert len(server.asked) == asked
    assert digest(out).items() >= first.items()
    again = [rows(out, shard, "again") for shard in ("00000", "00001")]
    assert again == [rows(out, shard) for shard in ("00000", "00001")]


def test_new_captions_are_fused_anew(out, server, capsys):
    assert fuse(out, server) == 0
    before = rows(out, "00000")
    url = str(out / "captions/colour/00001.parquet")
    table, record = commit.read_sidecar(url), commit.read_sidecar_record(url)
    index = table.schema.get_field_index("caption_long")
    texts = [text and f"now {text}" for text in table["caption_long"].to_pylist()]
    commit.write_sidecar(url, table.set_column(index, table.field(index), [texts]), record)
    capsys.readouterr()
    assert fuse(out, server) == 0
    assert "1 done now" in capsys.readouterr().out
    assert rows(out, "00000") == before
    assert {r["caption_long"][:4] for r in rows(out, "00001") if r["caption_long"]} == {"now "}


def test_a_shard_that_changed_is_named(out, server, capsys):
    raw = out.parent / "raw/00001.tar"
    write_tar(raw, [pair("0001", 7)])
    manifest.register(str(out), [str(raw)])
    assert fuse(out, server) == 3
    assert "00001 changed since run colour: caption it again" in capsys.readouterr().out
    (out / "captions/colour/00000.parquet").unlink()
    assert fuse(out, server) == 3
    assert "00000 has no captions of run colour" in capsys.readouterr().out


def test_limit_and_dry_run(out, server, capsys):
    assert fuse(out, server, "--dry-run") == 0
    assert "2 shards: 0 done, 2 to do" in capsys.readouterr().out
    assert not (out / "captions/colour-fused").exists() and not (out / "answers").exists()
    assert fuse(out, server, limit=PER_SHARD + 3) == 0
    found = [len(rows(out, s, f"colour-fused-limit{PER_SHARD + 3}")) for s in ("00000", "00001")]
    assert found == [PER_SHARD, 3]
    assert fuse(out, server) == 0
    assert len(rows(out, "00001")) == PER_SHARD


def test_short_captions_too(out, server):
    assert fuse(out, server, style="short", run="s") == 0
    ok = {r["uid"]: r["caption_long"] for r in rows(out, run="s") if r["long_status"] == "ok"}
    assert ok
    assert all(status_of(uid, "short") == "ok" for uid in ok)
    assert all(text.startswith("a ") and " picture, known as" in text for text in ok.values())


def test_a_server_that_is_down_is_one_line_and_nothing_half_written(out, server, capsys):
    server.stop()
    assert fuse(out, server, deadline=1) == 2
    error = capsys.readouterr().err
    assert "no server answers at" in error
    assert len(error.strip().splitlines()) == 2
    assert list((out / "captions/colour-fused").glob("*.parquet")) == []
    server.start()
    assert fuse(out, server) == 0


MISTAKES = {
    "no such run": ({"captions": "typo"}, "has no run captions/typo"),
    "no such model": ({"model": "gpt"}, "is neither openai:"),
    "no instruction": ({"instruction": "/nowhere.toml"}, "/nowhere.toml"),
    "no tokens": ({"max_tokens": 0}, "--max-tokens 0 is not possible"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_remedy(mistake, out, server, capsys):
    settings, message = MISTAKES[mistake]
    assert fuse(out, server, **settings) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 2
    assert server.asked == []


def test_settings_are_kept_and_refused_under_a_used_name(out, server, tmp_path, capsys):
    assert fuse(out, server) == 0
    words = tmp_path / "mine.toml"
    words.write_text('user = "<text_a>{original}</text_a> <text_b>{synthetic}</text_b>"')
    assert fuse(out, server, instruction=words) == 2
    assert "prompts.long (was" in capsys.readouterr().err
    (out / "captions/colour-fused/run.json").unlink()
    assert (
        fuse(out, server, instruction=words) == 0
    )  # nothing of the old settings is taken for done
    assert "2 done now" in capsys.readouterr().out
    assert fuse(out, server, instruction=words, run="mine") == 0
    config = runs.require(str(out), "captions", "mine")["config"]
    assert config["styles"] == {"long": {"max_tokens": 256, "seed": 0, "temperature": 0.0}}
    assert config["source"]["run"] == "colour"
    caption(str(out), [str(out.parent / "raw/00000.tar")], "short", ColourStage(("short",)))
    assert fuse(out, server, captions="short") == 2
    assert "give --style short" in capsys.readouterr().err


def test_killed_and_run_again_it_asks_nothing_twice(out, tmp_path):
    with ChatServer(fused, delay=0.05) as server:
        command = [sys.executable, "-m", "jobs", "fuse", "--out", str(out), "--captions", "colour"]
        command += ["--model", server.name, "--executor", "inline", "--in-flight", "4"]
        job = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while sum(server.answered.values()) < 24:  # in the second shard
            assert job.poll() is None
            time.sleep(0.01)
        job.send_signal(signal.SIGKILL)
        job.wait()
        assert fuse(out, server, in_flight=4) == 0
        questions = {inserted(asked) for asked in server.asked}
        twice = len(server.asked) - len(questions)
    assert twice <= 4  # those that were in flight as it was killed
    assert leftovers(out / "captions") == []
    with ChatServer(fused) as server:
        asked = {r["uid"] for s in ("00000", "00001") for r in rows(out, s) if r["long_tokens"]}
        assert len(asked) == len(questions)
        assert fuse(out, server, run="undisturbed") == 0
        assert server.asked == []
    assert rows(out, run="undisturbed") == rows(out)
