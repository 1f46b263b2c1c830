"""Files in a real S3 server that answers badly: what is lost, what is doubled, what is told."""

import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from botocore.retries.standard import ExponentialBackoff

from jobs.__main__ import main
from pipeline import object_store, storage
from pipeline.errors import StoreError, UserError
from tests.support.faulty_s3 import BUCKET, FAULTS, SECRETS, FaultyS3, faulty_s3
from tests.support.server import free_port

FILES = {f"{i:02d}.bin": bytes([i]) * (1000 * i) for i in range(12)}


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyS3]:
    with faulty_s3() as running:
        yield running


@pytest.fixture
def s3(server: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """The store, empty and well, for this process; nobody waits long before asking again."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: 0.01)
    monkeypatch.setattr(object_store, "_WAITS", (0.01, 0.01))
    s3fs.S3FileSystem.clear_instance_cache()
    server.rate, server.only = 0.0, {}
    server.met.clear()
    yield server
    s3fs.S3FileSystem.clear_instance_cache()
    client = server.client()
    for key in server.objects():
        client.delete_object(Bucket=BUCKET, Key=key)


def require_no_secret(text: str) -> None:
    for name, secret in SECRETS.items():
        assert secret not in text, name


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_survived(s3: FaultyS3, fault: str):
    s3.rate = 0.3
    s3.only = dict.fromkeys(("GET", "PUT", "HEAD", "DELETE"), (fault,))
    folder = f"s3://{BUCKET}/{fault}"
    for name, data in FILES.items():
        storage.write_bytes(storage.join(folder, name), data)
    urls = [storage.join(folder, name) for name in FILES]
    assert storage.list_files(folder, ".bin") == urls
    assert storage.glob(f"s3://{BUCKET}", f"{fault}/*.bin") == urls
    for url, data in zip(urls, FILES.values(), strict=True):
        assert storage.exists(url) and not storage.exists(url + ".none")
        assert storage.read_bytes(url) == data
        assert storage.read_range(url, 10, 500) == data[10:510]
        assert storage.read_range(url, len(data) + 10, 500) == b""
        assert storage.fingerprint(url).size == len(data)
    assert s3.objects(f"{fault}/") == {f"{fault}/{name}": data for name, data in FILES.items()}
    for url in urls[1:]:
        storage.remove(url)
    assert list(s3.objects(f"{fault}/")) == [f"{fault}/00.bin"]
    assert s3.met[fault] > 10


def test_large_files_come_whole_and_leave_no_part_behind(s3: FaultyS3, tmp_path: Path):
    size = 101 << 20
    s3.rate = 0.5
    s3.only = {"PUT": ("500", "reset", "lost"), "POST": ("500", "lost"), "GET": ("cut",)}
    url = f"s3://{BUCKET}/large/a.bin"
    with storage.write_atomic(url) as part, part.open("wb") as file:
        file.truncate(size)
        file.seek(size - 7)
        file.write(b"the end")
    assert s3.unfinished() == []
    assert storage.fingerprint(url).size == size
    with storage.open_read(url) as file:
        blocks = iter(lambda: file.read(1 << 20), b"")
        *rest, last = itertools.chain(blocks)
    assert len(rest) == 100 and not any(map(any, rest[:3])) and last.endswith(b"the end")
    assert s3.met["cut"] and s3.met.total() - s3.met["cut"] - s3.met["none"]


def test_answers_that_are_too_short_are_not_the_end_of_a_file(s3: FaultyS3):
    url = f"s3://{BUCKET}/short/a.bin"
    storage.write_bytes(url, bytes(range(250)) * 40)
    s3.rate, s3.only = 0.2, {"GET": ("short",)}
    for _ in range(5):
        assert storage.read_bytes(url) == bytes(range(250)) * 40
        assert storage.read_range(url, 100, 9000) == (bytes(range(250)) * 40)[100:9100]
    assert s3.met["short"] > 2
    s3.rate = 1.0
    with pytest.raises(StoreError, match="was sent only to byte 9099 of 9100"):
        storage.read_range(url, 100, 9000)


def test_what_others_wrote_since_is_seen(s3: FaultyS3):
    folder = f"s3://{BUCKET}/shared"
    storage.write_bytes(f"{folder}/a.bin", b"a")
    for listed in (storage.list_files, storage.glob):
        assert len(listed(folder, "*.bin" if listed is storage.glob else ".bin")) == 1
    assert not storage.exists(f"{folder}/b.bin")
    s3.client().put_object(Bucket=BUCKET, Key="shared/b.bin", Body=b"b")
    assert storage.exists(f"{folder}/b.bin")
    assert len(storage.list_files(folder, ".bin")) == len(storage.glob(folder, "*.bin")) == 2


def test_a_store_that_stays_broken_is_told_in_one_line(s3: FaultyS3, capsys):
    s3.rate, s3.only = 1.0, dict.fromkeys(("GET", "PUT", "HEAD"), ("500",))
    for use in (storage.read_bytes, storage.exists, storage.fingerprint):
        with pytest.raises(StoreError) as e:
            use(f"s3://{BUCKET}/a")
        assert not e.value.refused and "\n" not in str(e.value)
    with pytest.raises(StoreError):
        storage.write_bytes(f"s3://{BUCKET}/a", b"a")
    assert main(["stats", "--out", f"s3://{BUCKET}/data"]) == 3
    said = capsys.readouterr().err
    assert said.startswith(f"error: s3://{BUCKET}/data/shards.parquet: ")
    assert said.count("\n") == 2 and "  try: see whether it can be reached" in said
    require_no_secret(said)


def test_nobody_at_the_address(s3: FaultyS3, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert main(["stats", "--out", f"s3://{BUCKET}/data"]) == 3
    said = capsys.readouterr().err
    assert "Could not connect" in said and said.count("\n") == 2


@pytest.mark.parametrize(
    ("url", "why", "remedy"),
    [
        ("s3://no-such-bucket/data", "bucket does not exist", "make that bucket"),
        (f"s3://AKIAME:hush-hush@{BUCKET}/data", "Invalid bucket name", "check the address"),
        ("s5://bucket/data", "Protocol not known", "check the address"),
    ],
)
def test_what_no_patience_helps_is_told_at_once(
    s3: FaultyS3, url: str, why: str, remedy: str, capsys
):
    given = ["scenes", "--out", url, "--n", "2", "--executor", "inline"]
    assert main(given) == 2
    said = capsys.readouterr().err
    assert why in said and remedy in said and said.count("\n") == 2
    assert "hush" not in said and "AKIA" not in said
    assert s3.met["none"] <= 6
    with pytest.raises(UserError, match="OUT: cannot write"):
        storage.require_writable(url)


def test_without_credentials(s3: FaultyS3, monkeypatch: pytest.MonkeyPatch, capsys):
    for name in SECRETS:
        monkeypatch.delenv(name)
    assert main(["stats", "--out", f"s3://{BUCKET}/data"]) == 2
    assert "check your credentials" in capsys.readouterr().err


def test_signed_addresses_are_not_shown(s3: FaultyS3, tmp_path: Path, capsys):
    """Libraries quote them in another spelling: %2F becomes /."""
    query = "X-Amz-Credential=AKIAQ%2F20260101%2Fs3&X-Amz-Signature=0123456789abcdef"
    for key, port in (("none.tar", s3.address), ("a.tar", f"http://127.0.0.1:{free_port()}")):
        given = ["--shards", f"{port}/{BUCKET}/{key}?{query}", "--out", str(tmp_path)]
        assert main(["annotate", *given, "--executor", "inline"]) == 2
        said = "".join(capsys.readouterr())
        assert key in said and "AKIAQ" not in said and "0123456789abcdef" not in said


def test_errors_travel_between_processes():
    error = StoreError("s3://b/a", "why", "remedy", refused=True)
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)
