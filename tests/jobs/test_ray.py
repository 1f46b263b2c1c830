"""On a real local Ray: isolation, invariance, and nothing that listens to the world."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from tests.support import driver, shards
from tests.support.outputs import digest, leftovers

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    from jobs import cluster

    before = listening()
    cluster.connect("", cpus=2)
    yield before
    cluster.disconnect()


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("raw")
    for i in range(5):
        shards.write_tar(folder / f"{i:05d}.tar", shards.pairs(12, start=12 * i))
    return str(folder)


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "0" * 24 + "01000000"}
"""127.0.0.1, the same as an IPv6 address, and ::1."""


def listening() -> set[str]:
    """Addresses that something on this machine listens on beyond loopback, in /proc's hex."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address = local.split(":")[0]
            if state == "0A" and address not in LOOPBACK:
                found.add(local)
    return found


def test_local_ray_listens_on_loopback_only(local_ray):
    assert listening() - local_ray == set()


@pytest.mark.parametrize("failures", [1, 2])
def test_a_local_ray_that_does_not_come_up_is_started_once_more(monkeypatch, failures):
    from jobs import cluster

    calls = []

    def init(**given):
        calls.append(given)
        if len(calls) <= failures:
            raise RuntimeError("Timed out waiting for file gcs_server_port")

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", init)
    if failures == 1:
        cluster.connect("", cpus=2)
    else:
        with pytest.raises(UserError, match=r"gcs_server_port.*EXECUTOR=inline"):
            cluster.connect("", cpus=2)
    assert len(calls) == 2


def test_loopback_is_settled_before_anybody_imports_ray():
    """img2dataset, for one, imports Ray: too late for whoever would settle it then."""
    code = "import os, sys, jobs; print(os.environ['RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER'], 'ray' in sys.modules)"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert told.stdout.split() == ["0", "False"]


def test_one_and_two_workers_write_the_same_bytes_as_no_ray(raw, tmp_path):
    for name, executor, workers in (("a", "inline", "1"), ("b", "ray", "1"), ("c", "ray", "2")):
        driver.main(str(tmp_path / name), raw, executor, workers, "colour")
    first = digest(tmp_path / "a")
    assert len(first) > 5 * 3
    assert first == digest(tmp_path / "b") == digest(tmp_path / "c")
    assert leftovers(tmp_path) == []


def test_samples_that_kill_their_worker_become_rows(tmp_path):
    samples = shards.pairs(23)
    for index in (4, 17):
        samples[index] = shards.pair(f"{index:09d}", index, text="kill")
    good = shards.pairs(6, start=100)
    raw = tmp_path / "raw"
    raw.mkdir()
    shards.write_tar(raw / "00000.tar", samples)
    shards.write_tar(raw / "00001.tar", good)

    driver.main(str(tmp_path / "out"), str(raw), "ray", "2", "killer")

    table = pq.read_table(tmp_path / "out/captions/colour/00000.parquet").to_pylist()
    killed = [i for i, row in enumerate(table) if row["reason"] == "killed_worker"]
    assert len(table) == 23
    assert killed == [4, 17]
    assert all(row["status"] == "ok" for i, row in enumerate(table) if i not in killed)
    mixed = pq.read_table(tmp_path / "out/mix/mixed/00000.parquet").to_pylist()
    assert [r["reason"] for r in mixed if r["status"] != "ok"] == ["killed_worker"] * 2
    assert pq.read_table(tmp_path / "out/captions/colour/00001.parquet").num_rows == 6


def test_a_worker_that_no_node_can_hold_is_refused_at_once():
    from jobs.cluster import OnRay

    executor = OnRay(None, slots=1, threads=1, gpus=64.0, deadline_sec=60.0)
    with pytest.raises(UserError, match="no node of this Ray has"):
        executor.start()


@pytest.mark.slow
def test_a_sample_that_never_ends_becomes_a_row(tmp_path):
    samples = shards.pairs(6)
    samples[2] = shards.pair("000000002", 2, text="hang")
    raw = tmp_path / "raw"
    raw.mkdir()
    shards.write_tar(raw / "00000.tar", samples)

    driver.main(str(tmp_path / "out"), str(raw), "ray", "1", "hanging")

    table = pq.read_table(tmp_path / "out/captions/colour/00000.parquet").to_pylist()
    assert [row["reason"] for row in table] == [None, None, "killed_worker", None, None, None]
