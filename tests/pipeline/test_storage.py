"""Files appear whole or not at all; what the machine refuses is told in one line."""

import errno
import itertools
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import UserError


def everything(folder: str) -> list[str]:
    """Every file in a folder, hidden ones too."""
    if storage.is_local(folder):
        return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())
    return sorted(p.rsplit("/", 1)[-1] for p in fsspec.filesystem("memory").find(folder))


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, store: str) -> str:
    return str(tmp_path / "new" / "folder") if request.param == "local" else store


def test_a_file_appears_when_the_block_ends_and_replaces_the_old_one(folder: str):
    url = storage.join(folder, "a.bin")
    for data in (b"old", b"new and longer"):
        with storage.write_atomic(url) as part:
            part.write_bytes(data)
            assert storage.list_files(folder, ".bin") == ([url] if data != b"old" else [])
            assert storage.exists(url) == (data != b"old")
            assert data == b"old" or storage.read_bytes(url) == b"old"
        assert storage.read_bytes(url) == data
        assert everything(folder) == ["a.bin"]
    with storage.open_read(url) as reader:  # whoever reads the old file reads it to its end
        storage.write_bytes(url, b"newest")
        assert reader.read() == b"new and longer"
    assert storage.fingerprint(url).size == 6
    storage.remove(url)
    storage.remove(url)
    assert not storage.exists(url)


def test_an_error_in_the_block_leaves_what_was_there(folder: str):
    url = storage.join(folder, "a.bin")
    storage.write_bytes(url, b"old")
    with pytest.raises(KeyboardInterrupt), storage.write_atomic(url) as part:
        part.write_bytes(b"half")
        raise KeyboardInterrupt
    with storage.write_atomic(url) as part:
        part.write_bytes(b"abandoned")
        part.unlink()
    assert storage.read_bytes(url) == b"old"
    assert everything(folder) == ["a.bin"]


def test_a_killed_writer_leaves_only_what_the_next_job_removes(tmp_path: Path):
    url = str(tmp_path / "a.bin")
    python(
        f"""
        import os
        from pipeline import storage
        with storage.write_atomic({url!r}) as part:
            part.write_bytes(b"half")
            os.kill(os.getpid(), 9)
        """,
        expect=-signal.SIGKILL,
    )
    (tmp_path / ".keep").write_text("")
    assert len(everything(str(tmp_path))) == 2
    assert storage.list_files(str(tmp_path), "") == []
    with storage.exclusive(str(tmp_path)):
        storage.remove_temporaries(str(tmp_path))
    assert everything(str(tmp_path)) == [".keep", ".lock"]


FULL_DISK = """
import os, sys
from pathlib import Path
import pyarrow as pa
from pipeline import catalog, commit, manifest, storage
from pipeline.errors import UserError
from pipeline.writing import ShardWriter

out = "/mnt/out"
raw = Path(sys.argv[1], "00000.tar")
raw.write_bytes(b"x")
manifest.register(out, [str(raw)])

def tar():
    with storage.write_atomic(out + "/a.tar") as part, ShardWriter(part) as writer:
        for i in range(100):
            writer.add(f"{i:05d}", os.urandom(20000), "text", {})

def parquet():
    with storage.write_atomic(out + "/a.parquet") as part:
        commit.write_parquet(pa.table({"a": [os.urandom(1000) for _ in range(1000)]}), part)

def small():
    with open(out + "/filler", "wb", buffering=0) as f:
        try:
            while f.write(bytes(4096)):
                pass
        except OSError:
            pass
    storage.write_bytes(out + "/a.bin", bytes(9000))

for write in (tar, parquet, small, lambda: catalog.refresh(out)):
    try:
        write()
        print("written")
    except UserError as e:
        assert chr(10) not in str(e)
        print(e)
print(sorted(os.listdir(out)))
"""


def test_a_full_disk_is_a_message_and_leaves_nothing(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(FULL_DISK)
    command = f"mount -t tmpfs -o size=256k tmpfs /mnt && {sys.executable} {script} {tmp_path}"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", command],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(storage.__file__).parents[1])},
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"needs a mount namespace: {done.stderr.strip()}")
    *messages, left = done.stdout.splitlines()
    assert len(messages) == 4, done.stderr
    for message in messages:
        assert message.startswith("OUT: cannot write in /mnt/out: ")
        assert "No space left on device" in message
        assert "0.0 GB free (free space" in message
    assert left == "['filler', 'shards.parquet']"


def test_folders_that_cannot_be_written_to_are_refused_before_work(tmp_path: Path):
    """Below a regular file and in /proc not even root can write."""
    (tmp_path / "file").write_text("")
    uses = (
        storage.require_writable,
        lambda folder: storage.exclusive(folder).__enter__(),
        lambda folder: storage.write_bytes(folder + "/a", b""),
    )
    for bad, use in itertools.product((str(tmp_path / "file" / "out"), "/proc/self/out"), uses):
        with pytest.raises(UserError, match=f"OUT: cannot write in {bad}: ") as e:
            use(bad)
        assert "\n" not in str(e.value)
    storage.require_writable(str(tmp_path / "fine"))
    assert everything(str(tmp_path / "fine")) == []


def test_other_errors_are_not_blamed_on_the_disk(tmp_path: Path):
    with pytest.raises(ConnectionResetError), storage.write_atomic(str(tmp_path / "a")):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_one_job_at_a_time_until_it_ends_however_it_ends(tmp_path: Path):
    folder = str(tmp_path / "run")
    holder = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            f"from pipeline import storage\nwith storage.exclusive({folder!r}):\n"
            " print('held', flush=True)\n input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"is being written by another job \(.* another RUN\)"):
            storage.exclusive(folder).__enter__()
        with pytest.raises(UserError, match=r"is being written by another job \(be patient\)"):
            storage.exclusive(folder, hint="be patient").__enter__()
    finally:
        holder.kill()
        holder.wait()
    with storage.exclusive(folder):
        pass
    with storage.exclusive("memory://no/lock/here"), storage.exclusive("memory://no/lock/here"):
        pass


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("/data/a?b#c.tar", "/data/a?b#c.tar"),
        ("https://h/a.tar", "https://h/a.tar"),
        ("https://user:pass@h:8080/a/b@c.tar?X-Amz-Signature=s#f", "https://h:8080/a/b@c.tar"),
        ("https://token@h/a.tar", "https://h/a.tar"),
        ("s3://key:se@cret@bucket/a.tar", "s3://bucket/a.tar"),
        ("simplecache::https://u:p@h/a.tar?token=t", "simplecache::https://h/a.tar"),
        ("abfs://container@account.dfs/a.tar?sig=s", "abfs://container@account.dfs/a.tar"),
        ("hf://datasets/org/name@main/a.tar", "hf://datasets/org/name@main/a.tar"),
    ],
)
def test_what_is_shown_of_a_url_has_no_secrets(url: str, public: str):
    assert storage.public(url) == public
    assert storage.public(public) == public


safe = st.text("abcdefghij0123456789_%-", min_size=6, max_size=12)


@given(user=safe, password=safe, host=safe, name=safe, token=safe)
def test_no_secret_survives(user: str, password: str, host: str, name: str, token: str):
    url = f"https://{user}:{password}@{host}/{name}.tar?token={token}#{token}"
    assert storage.public(url) == f"https://{host}/{name}.tar"
    error = f"403 for {url} (query token={token})"
    scrubbed = storage.scrub(error, url).replace(host, "").replace(name, "")
    assert password not in scrubbed
    assert f"token={token}" not in scrubbed


def test_places_do_not_depend_on_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for way in ("a/b", "./a//b", "a/../a/b/", f"{tmp_path}/a/b", f"file://{tmp_path}/a/b"):
        assert storage.absolute(way) == f"{tmp_path}/a/b"
    assert storage.absolute("~/x") == str(Path("~/x").expanduser())
    assert storage.absolute("s3://b/../x") == "s3://b/../x"
    assert storage.join("/", "a") == "/a"
    assert storage.join("memory://", "a", "b") == "memory://a/b"


def python(code: str, expect: int = 0) -> str:
    """Runs code in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert done.returncode == expect, done.stderr
    return done.stdout
