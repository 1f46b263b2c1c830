"""Bytes of samples: few requests to an object store, bounded memory, and clear words where files change."""

import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline import storage
from pipeline.errors import UserError
from pipeline.loading import ranges
from pipeline.loading.ranges import Ranges, Wanted

DATA = np.random.default_rng(0).bytes(100_000)
BLOCK = 1000


@pytest.fixture
def remote(tmp_path: Path) -> str:
    """The URL of a file that is read as those of an object store are."""
    path = tmp_path / "a.bin"
    path.write_bytes(DATA)
    return f"local://{path}"


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Ranges that stores were asked for."""
    found = []
    read = storage.read_range

    def counted(url: str, offset: int, size: int) -> bytes:
        found.append((offset, size))
        return read(url, offset, size)

    monkeypatch.setattr(storage, "read_range", counted)
    return found


def wanted(url: str, start: int, size: int = 10) -> Wanted:
    begin = start // BLOCK * BLOCK
    return Wanted(url, start, start + size, (begin, begin + BLOCK))


def read(reader: Ranges, asked: list[Wanted]) -> list[bytes]:
    return list(reader.read(asked))


def test_neighbours_share_one_request(remote: str, requests: list):
    reader = Ranges(10 * BLOCK)
    starts = [5, 2010, 300, 2990, 990, 2500, 7]
    found = read(reader, [wanted(remote, start) for start in starts])
    assert found == [DATA[start : start + 10] for start in starts]
    assert sorted(requests) == [(0, BLOCK), (2000, BLOCK)]
    assert read(reader, [wanted(remote, 100)]) == [DATA[100:110]]
    assert len(requests) == 2
    reader.close()


def test_memory_is_bounded_and_no_block_comes_twice(remote: str, requests: list):
    """What had to go is fetched alone: never the same block again and again."""
    reader = Ranges(4 * BLOCK)
    draw = np.random.default_rng(1)
    for start in draw.integers(0, 99, 600).tolist():
        at = start * BLOCK + 17
        assert read(reader, [wanted(remote, at)]) == [DATA[at : at + 10]]
        assert reader._held <= 4 * BLOCK
        assert sum(size for _, size in reader._blocks.values()) == reader._held
    whole = [offset for offset, size in requests if size == BLOCK]
    assert len(whole) == len(set(whole)) <= 99
    reader.close()


def test_threads_wait_for_the_same_request(remote: str, requests: list):
    reader = Ranges(100 * BLOCK)
    found: list[bytes] = []

    def work() -> None:
        found.extend(read(reader, [wanted(remote, at) for at in range(0, 50_000, 500)]))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [DATA[at : at + 10] for at in range(0, 50_000, 500)] * 8
    assert len(requests) == 50
    reader.close()


def test_local_files_are_read_as_they_are_and_few_are_open(
    tmp_path: Path, requests: list, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ranges, "_OPEN_FILES", 3)
    reader = Ranges(0)
    for turn in range(3):
        for i in range(9):
            path = tmp_path / f"{i}.bin"
            path.write_bytes(DATA[i:])
            assert read(reader, [wanted(str(path), 20 + turn)]) == [DATA[i + 20 + turn :][:10]]
    assert requests == []
    links = [p.resolve() for p in Path("/proc/self/fd").iterdir() if p.exists()]
    assert sum(p.parent == tmp_path for p in links) <= 3
    reader.close()
    links = [p.resolve() for p in Path("/proc/self/fd").iterdir() if p.exists()]
    assert sum(p.parent == tmp_path for p in links) == 0


@pytest.mark.parametrize("scheme", ["", "local://"])
def test_files_that_are_gone_or_cut_are_named(tmp_path: Path, scheme: str):
    path = tmp_path / "a.bin"
    with pytest.raises(UserError, match=r"a\.bin does not exist any more"):
        read(Ranges(10**6), [wanted(f"{scheme}{path}", 0)])
    path.write_bytes(DATA[:500])
    with pytest.raises(UserError, match=r"a\.bin ends before byte"):
        read(Ranges(10**6), [wanted(f"{scheme}{path}", 495)])


def test_a_store_is_asked_again_before_it_is_given_up(remote: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ranges, "_WAITS", (0.0, 0.0))
    read_range, failures = storage.read_range, [ConnectionError("reset"), TimeoutError("slow")]

    def flaky(url: str, offset: int, size: int) -> bytes:
        if failures:
            raise failures.pop()
        return read_range(url, offset, size)

    monkeypatch.setattr(storage, "read_range", flaky)
    assert read(Ranges(10**6), [wanted(remote, 40)]) == [DATA[40:50]]
    failures += [ConnectionError("reset by https://user:secret@host/a")] * 3
    with pytest.raises(UserError, match="cannot be read: reset"):
        read(Ranges(10**6), [wanted(remote, 40)])


def test_a_store_that_is_back_is_asked_anew(remote: str, monkeypatch: pytest.MonkeyPatch):
    """What failed is not kept."""
    monkeypatch.setattr(ranges, "_WAITS", ())
    read_range = storage.read_range

    def away(url: str, offset: int, size: int) -> bytes:
        raise ConnectionError("away")

    reader = Ranges(4 * BLOCK)
    monkeypatch.setattr(storage, "read_range", away)
    for _ in range(2):
        with pytest.raises(UserError, match="cannot be read: away"):
            read(reader, [wanted(remote, 40), wanted(remote, 4040)])
    monkeypatch.setattr(storage, "read_range", read_range)
    assert read(reader, [wanted(remote, 40)]) == [DATA[40:50]]
    assert read(reader, [wanted(remote, 4040)]) == [DATA[4040:4050]]
    assert reader._held == sum(size for _, size in reader._blocks.values()) == 2 * BLOCK
    reader.close()
