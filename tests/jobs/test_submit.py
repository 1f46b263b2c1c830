"""On a real Ray head with a token: verbs submitted, followed, refused, stopped; and what Prometheus reads."""

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from jobs import submission
from jobs.__main__ import main
from pipeline.errors import UserError
from tests.support import shards
from tests.support.ray_head import ROOT, Head, head
from tests.support.stages import caption

TOKEN = "1f" * 32


@pytest.fixture(scope="module")
def cluster() -> Head:
    pytest.importorskip("aiohttp_cors", reason="ray[default] is not installed")
    with head(TOKEN) as started:
        yield started


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    urls = [
        shards.write_tar(tmp_path / "raw" / f"{i:05d}.tar", shards.pairs(9, start=9 * i))
        for i in range(2)
    ]
    caption(str(out), urls)
    return out


def submit(cluster: Head, *words: str, token: str = TOKEN) -> subprocess.CompletedProcess:
    """In a process of its own: Ray reads a token once in each."""
    return subprocess.run(
        [sys.executable, "-m", "jobs", "submit", "--address", cluster.jobs, *words],
        cwd=ROOT,
        env=cluster.environment | {"RAY_AUTH_TOKEN": token},
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.mark.slow
@pytest.mark.ray
def test_a_mix_runs_on_the_cluster_and_its_log_comes_back(cluster: Head, captioned: Path):
    args = f"--args=--out {captioned} --captions colour --run mixed --workers 2 --max-failed 1"
    done = submit(cluster, "--verb", "mix", args)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "2 planned = 2 done now" in done.stdout
    assert "18 in = 18 ok" in done.stdout
    assert len(list(captioned.glob("mix/mixed/*.tar"))) == 2
    assert "SUCCEEDED  python -m jobs mix" in submit(cluster, "--action", "list").stdout


@pytest.mark.slow
@pytest.mark.ray
def test_the_exit_code_is_that_of_the_verb(cluster: Head, tmp_path: Path):
    done = submit(cluster, "--verb", "stats", f"--args=--out {tmp_path}/nothing")
    assert done.returncode == 2
    assert "is no data folder" in done.stdout
    assert "ended as FAILED, with exit code 2" in done.stderr


@pytest.mark.slow
@pytest.mark.ray
def test_a_job_shows_its_metrics_and_is_stopped(cluster: Head, tmp_path: Path):
    args = f"--args=--out {tmp_path}/scenes --n 1000000 --shard-size 20 --workers 1"
    begun = submit(cluster, "--verb", "scenes", args, "--detach")
    assert begun.returncode == 0, begun.stderr
    job = begun.stdout.split()[0]
    assert "ray_recaption_samples_per_sec" in awaited(cluster, "ray_recaption_samples_per_sec")
    assert "RUNNING" in submit(cluster, "--action", "status", "--job", job).stdout
    assert "STOPPED" in submit(cluster, "--action", "stop", "--job", job).stdout
    assert submit(cluster, "--action", "logs", "--job", job).returncode == 3


def awaited(cluster: Head, name: str) -> str:
    """The line of a metric, as soon as there is one above zero; else what there is in the end."""
    deadline = time.monotonic() + 300
    found = ""
    while time.monotonic() < deadline:
        text = urllib.request.urlopen(cluster.metrics, timeout=30).read().decode()
        found = "\n".join(line for line in text.splitlines() if "recaption" in line)
        for line in found.splitlines():
            if line.startswith(name + "{") and float(line.split()[-1]) > 0:
                return line
        time.sleep(2)
    return "none above zero"


@pytest.mark.slow
@pytest.mark.ray
def test_an_unknown_job_and_a_wrong_token_are_one_line(cluster: Head):
    for words, token in (
        (["--action", "stop", "--job", "absent"], TOKEN),
        (["--action", "logs", "--job", "absent"], TOKEN),
        (["--action", "list"], "2e" * 32),
    ):
        done = submit(cluster, *words, token=token)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert token not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("verb", "args", "why"),
    [
        ("nothing", "", "cannot be submitted"),
        ("submit", "", "cannot be submitted"),
        ("sql", "--out /data", "cannot be submitted"),
        ("mix", "--out 'data", "No closing quotation"),
        ("mix", "--out data/mine --captions a", "relative to a folder of the cluster"),
        ("mix", "--out /data --shards @list.txt", "relative to a folder of the cluster"),
        ("mix", "--out /data --address here:1", "leave it out"),
        ("mix", "--out /data --workers -1", "--workers -1 is not possible"),
    ],
)
def test_what_would_fail_there_is_refused_here(verb: str, args: str, why: str):
    with pytest.raises(UserError, match=why):
        submission.command(verb, args)


def test_nothing_in_arguments_reaches_a_shell(tmp_path: Path):
    line = submission.command("mix", f"--out '/data; touch {tmp_path}/a' --run '$(id)'")
    assert os.system(f"set -- {line}; test $# = 10") == 0  # the words of a shell are ours
    assert not (tmp_path / "a").exists()
    assert line.endswith("--address auto")
    assert submission.command("stats", "--out /data") == "python -m jobs stats --out /data"


def test_secrets_in_urls_are_not_told():
    line = "python -m jobs mix --out s3://key:secret@bucket/x --shards 'https://h/0.tar?token=t'"
    assert submission.public(line) == (
        "python -m jobs mix --out s3://bucket/x --shards https://h/0.tar"
    )


@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379", "http://127.0.0.1:9"])
def test_an_address_without_job_server_is_one_line(address: str, capsys: pytest.CaptureFixture):
    assert main(["submit", "--address", address, "--action", "list"]) == 2
    assert f"error: ADDRESS={address}" in capsys.readouterr().err
