"""Captioning by a chat model as users type it: killed, refused, moved, robbed of its server."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from captioner.chat import Question
from captioner.chat_captioner import DECODE, small_jpeg
from captioner.journal import key_of, read
from captioner.prompts import load_prompts
from jobs.__main__ import main
from tests.support import shards
from tests.support.chat_server import FAULTS, KEY, MODEL, Asked, ChatServer
from tests.support.outputs import digest, leftovers

PER_SHARD = 40


@pytest.fixture
def raw(tmp_path) -> Path:
    for i in range(2):
        pairs = shards.pairs(PER_SHARD, start=PER_SHARD * i)
        shards.write_tar(tmp_path / f"raw/{i:05d}.tar", pairs)
    return tmp_path / "raw"


def arguments(raw: Path, out: Path, captioner: str, **named: object) -> list[str]:
    settings = {"shards": raw, "out": out, "captioner": captioner, "executor": "inline"} | named
    flags = [f for k, v in settings.items() for f in (f"--{k.replace('_', '-')}", str(v))]
    return ["caption", *flags]


def rows(out: Path, shard: str) -> list[dict]:
    (path,) = out.glob(f"captions/*/{shard}.parquet")
    return pq.read_table(path).to_pylist()


def journalled(out: Path) -> list[str]:
    """The keys in all files of the journal."""
    return [key for file in out.glob("answers/*/*.jsonl") for key, _, _ in read(str(file))]


def test_killed_and_run_again_it_asks_nothing_twice(raw, tmp_path):
    with ChatServer(delay=0.02) as server:
        undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
        assert main(arguments(raw, undisturbed, server.name, in_flight=8)) == 0
        server.asked.clear()
        server.requests.clear()
        command = [sys.executable, "-m", "jobs", *arguments(raw, out, server.name, in_flight=8)]
        for part in (1, 2):
            before = len(server.asked)
            job = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            while len(server.asked) < before + 50 * part:
                assert job.poll() is None
                time.sleep(0.005)
            job.send_signal(signal.SIGKILL)
            assert job.wait() == -signal.SIGKILL
            answered = set(journalled(out))
            assert 30 <= len(answered) <= len(server.asked)
            known = len(server.asked)
        assert main(command[3:]) == 0
        uids = [row["uid"] for row in rows(out, "00000") + rows(out, "00001")]
        shown = {small_jpeg(shards.jpeg(i), 768): uid for i, uid in enumerate(uids)}
        again = {key_in_journal(asked, shown) for asked in server.asked[known:]}
        assert len(again) > 10 and not answered & again
        keys = journalled(out)
        assert len(keys) == len(set(keys)) == 4 * PER_SHARD + 1
        # What was on its way when the process was killed is all that may be asked twice.
        assert len(server.asked) - len(server.requests) <= 2 * 8
        assert max(server.requests.values()) <= 3
        assert digest(out) == digest(undisturbed)
        assert leftovers(out) == []


def key_in_journal(asked: Asked, shown: dict[bytes, str]) -> str:
    """The key of a request; shown: picture -> uid, each picture belongs to one sample."""
    uid = shown[asked.image] if asked.image else ""
    settings = {k: asked.body[k] for k in ("max_tokens", "temperature")}
    question = Question(uid, asked.prompt, asked.system, asked.image, **settings)
    return key_of(question, f"openai:{MODEL}")


def test_a_server_that_moves_changes_nothing_and_a_prompt_does(raw, tmp_path, capsys):
    out = tmp_path / "out"
    with ChatServer() as server:
        assert main(arguments(raw, out, server.name)) == 0
        assert (
            "161 questions asked (0 retries), 0 answered by the journal" in capsys.readouterr().out
        )
        before = digest(out)
        for path in out.glob("captions/*/*.parquet"):
            path.unlink()
        server.stop()
        server.port = 0
        server.start()
        assert main(arguments(raw, out, server.name)) == 0
        assert "0 questions asked (0 retries), 161 answered" in capsys.readouterr().out
        assert digest(out) == before
        own = tmp_path / "prompts"
        own.mkdir()
        (own / "long.toml").write_text('user = "Say everything."')
        assert main(arguments(raw, out, server.name, prompts=own)) == 2
        error = capsys.readouterr().err
        assert "prompts.long (was" in error and "prompts.short" not in error
        assert main(arguments(raw, out, server.name, image_side=32)) == 2
        assert "preprocessing (was" in capsys.readouterr().err
        assert main(arguments(raw, out, server.name, prompts=own, run="own", styles="long")) == 0
        told = {asked.prompt for asked in server.asked}
        assert told == {"Say everything.", *(p.user for p in load_prompts().values())}
        statuses = Counter(row["short_status"] for row in rows_of(out, "own"))
        assert statuses == {"absent": 2 * PER_SHARD}
        assert {asked.body["max_tokens"] for asked in server.asked} == {
            1, *(decode.max_tokens for decode in DECODE.values())
        }  # fmt: skip


def rows_of(out: Path, run: str) -> list[dict]:
    paths = sorted((out / "captions" / run).glob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def test_a_server_that_is_not_there_leaves_nothing(raw, tmp_path, capsys):
    out = tmp_path / "out"
    with ChatServer() as server:
        server.stop()
        assert main(arguments(raw, out, server.name)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 2 and "no server answers at http://127.0.0.1" in error[0]
    assert not list(out.rglob("*.parquet.*")) + list(out.glob("captions/*/*.parquet"))
    assert leftovers(out) == [] and journalled(out) == []


def test_a_server_that_goes_away_stops_the_job_and_the_journal_goes_on(raw, tmp_path, capsys):
    out = tmp_path / "out"
    with ChatServer() as server:

        def fault(number: int) -> str:
            if number == 120:  # in the second shard
                server._loop.create_task(server._stop())
            return ""

        server.fault = fault
        given = arguments(raw, out, server.name, in_flight=4, deadline=0.5, batch_size=4)
        assert main(given) == 2
        assert "no server answers" in capsys.readouterr().err
        assert len(list(out.glob("captions/*/*.parquet"))) == 1
        answered = len(journalled(out))
        assert 80 <= answered <= 125
        server.start()
        assert main(given) == 0
        assert f"{161 - answered} questions asked" in capsys.readouterr().out
        statuses = {row["long_status"] for row in rows(out, "00001")}
        assert "failed" not in statuses


def test_failures_are_rows_and_are_told_by_reason(raw, tmp_path, capsys):
    refusal = {
        "data": {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}
    }
    with ChatServer(fault=lambda n: refusal if n % 10 == 3 else "") as server:
        assert main(arguments(raw, tmp_path / "out", server.name, in_flight=1)) == 0
    assert "16 failed: finish reason 'content_filter'" in capsys.readouterr().out
    both = rows(tmp_path / "out", "00000") + rows(tmp_path / "out", "00001")
    statuses = Counter(row[f"{style}_status"] for row in both for style in ("short", "long"))
    assert statuses["failed"] == 16 and statuses.total() == 160
    for row in both:
        for style in ("short", "long"):
            said = row[f"{style}_reason"]
            assert (said == "finish reason 'content_filter'") == (row[f"{style}_status"] != "ok")
        assert (row["status"], row["reason"]) == ("ok", None)


def test_a_run_without_one_good_caption_says_so(raw, tmp_path, capsys):
    with ChatServer(lambda asked: "I'm sorry, but I can't help with that.") as server:
        given = arguments(raw, tmp_path / "out", server.name, styles="long", max_failed=1)
        assert main(given) == 3
    printed = capsys.readouterr()
    assert "not one caption is ok" in printed.err and "80 ok" in printed.out
    row = rows(tmp_path / "out", "00000")[0]
    assert (row["long_status"], row["long_reason"]) == ("failed", "boilerplate")
    assert row["caption_long"].startswith("I'm sorry") and row["short_status"] == "absent"


def test_the_key_is_nowhere(raw, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    out = tmp_path / "out"
    echo = {"status": 400, "data": {"error": {"message": f"key {KEY} may not see this"}}}
    with ChatServer(key=KEY, fault=lambda n: echo if n % 9 == 5 else "") as server:
        assert main(arguments(raw, out, server.name)) == 0
        assert {asked.key for asked in server.asked} == {KEY}
        monkeypatch.setenv("OPENAI_API_KEY", KEY + "-wrong")
        assert main(arguments(raw, tmp_path / "other", server.name)) == 2
    printed = capfd.readouterr()
    assert "key *** may not see this" in printed.out and "OPENAI_API_KEY" in printed.err
    assert KEY not in printed.out + printed.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


MISTAKES = {
    "no server in the name": ({"captioner": "openai:m"}, "neither openai:<model>@<URL>"),
    "a password": ({"captioner": "openai:m@http://u:secret@h/v1"}, "OPENAI_API_KEY holds the key"),
    "another protocol": ({"captioner": "openai:m@ftp://h/v1"}, "no address of a server"),
    "no prompts": ({"prompts": "/nowhere"}, "/nowhere: No such file"),
    "prompts for CoCa": (
        {"captioner": "bundled", "prompts": "/nowhere"},
        "bundled is told nothing",
    ),
    "top_k": ({"top_k": 5}, "top_k=5 is not possible with a chat model"),
    "beams": ({"beams": 4}, "beams=4 is not possible with a chat model"),
    "beams for the chat part": (
        {"captioner": "short=bundled,long=openai:m@http://h/v1", "beams": 4, "styles": "long"},
        "beams=4 is not possible with a chat model",
    ),
    "too long": (
        {"captioner": "bundled", "long_tokens": 500},
        "long max_tokens=500 exceeds its context",
    ),
    "too long for a part": (
        {"captioner": "short=bundled,long=openai:m@http://h/v1", "short_tokens": 500},
        "short max_tokens=500 exceeds its context",
    ),
    "none in flight": ({"in_flight": 0}, "--in-flight 0 is not possible"),
    "no time": ({"deadline": 0}, "--deadline 0.0 is not possible"),
    "no picture": ({"image_side": 0}, "--image-side 0 is not possible"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_remedy(mistake, raw, tmp_path, capsys):
    settings, message = MISTAKES[mistake]
    given = {"raw": raw, "out": tmp_path / "out", "captioner": "openai:m@http://127.0.0.1:9/v1"}
    assert main(arguments(**given | settings)) == 2
    error = capsys.readouterr().err
    assert message in error and "secret" not in error
    assert len(error.strip().splitlines()) == 2
    assert not list(tmp_path.glob("out/**/run.json"))  # the run has not begun
    assert main([*arguments(**given | settings), "--dry-run"]) == 2


def test_what_searches_is_not_for_the_chat_part(raw, tmp_path, capsys):
    captioner = "short=bundled,long=openai:m@http://127.0.0.1:9/v1"
    given = arguments(raw, tmp_path / "out", captioner, beams=4, candidates=2, length_penalty=0.5)
    assert main([*given, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "styles.short.beams = 4" in printed and "styles.short.candidates = 2" in printed
    assert "styles.long.beams = 1" in printed and "styles.long.candidates = 1" in printed


def test_interrupted_it_ends_though_the_server_hangs(raw, tmp_path):
    with ChatServer(fault=lambda n: "hang" if n > 20 else "") as server:
        command = [sys.executable, "-m", "jobs", *arguments(raw, tmp_path / "out", server.name)]
        job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while len(server.asked) < 40:
            assert job.poll() is None
            time.sleep(0.02)
        job.send_signal(signal.SIGINT)
        _, error = job.communicate(timeout=20)
    assert job.returncode == 130
    assert "run the same command to go on" in error and "Traceback" not in error


def test_a_dry_run_asks_nothing(raw, tmp_path, capsys):
    with ChatServer() as server:
        assert main([*arguments(raw, tmp_path / "out", server.name), "--dry-run"]) == 0
        assert server.asked == []
    assert "prompts.long = sha256:" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
def test_on_ray_one_worker_asks_under_faults(raw, tmp_path, capsys):
    def fault(number: int) -> str:
        return FAULTS[number % 45] if number % 45 < len(FAULTS) else ""

    with ChatServer(fault=fault, delay=0.01) as server:
        given = arguments(raw, tmp_path / "ray", server.name, in_flight=8)
        done = subprocess.run(
            [sys.executable, "-m", "jobs", *(a if a != "inline" else "ray" for a in given)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "161 questions asked" in done.stdout
        assert server.most_in_flight <= 8
        server.fault = lambda n: ""
        assert main(arguments(raw, tmp_path / "inline", server.name)) == 0
    assert digest(tmp_path / "ray") == digest(tmp_path / "inline")
    config = json.loads(next(tmp_path.glob("ray/captions/*/run.json")).read_text())["config"]
    assert config["captioner"] == f"openai:{MODEL}"
