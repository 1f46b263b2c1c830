"""Work ahead of a consumer: in order, within its bounds, and gone when nobody wants it."""

import threading
import time
from collections.abc import Iterator

import pytest

from pipeline import prefetch as module
from pipeline.prefetch import prefetch


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def ahead(items, prepare, *, threads: int = 3, depth: int = 5, size=lambda item: 0):
    return prefetch(items, prepare, threads=threads, depth=depth, size=size)


def test_results_come_in_the_order_of_items():
    def slow_at_first(i: int) -> int:
        time.sleep(0.02 if i % 7 == 0 else 0)
        return i * i

    for threads in (1, 4):
        assert list(ahead(range(50), slow_at_first, threads=threads)) == [i * i for i in range(50)]
    assert list(ahead([], slow_at_first)) == []
    assert list(ahead([None, None], lambda item: item)) == [None, None]


def test_preparing_overlaps():
    met = threading.Barrier(3)
    assert list(ahead(range(6), lambda i: met.wait(5) is not None, threads=3)) == [True] * 6


def test_what_prepare_raises_is_raised_at_its_place():
    def prepare(i: int) -> int:
        if i == 3:
            raise ValueError("three")
        return i

    seen = []
    with pytest.raises(ValueError, match="three"):
        for result in ahead(range(10), prepare):
            seen.append(result)
    assert seen == [0, 1, 2]


def test_what_items_raise_is_raised_after_what_came_before():
    def items() -> Iterator[int]:
        yield from range(3)
        raise OSError("torn")

    seen = []
    with pytest.raises(OSError, match="torn"):
        for result in ahead(items(), lambda i: i):
            seen.append(result)
    assert seen == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        list(ahead([1], lambda i: i, size=lambda item: item // 0))


@pytest.mark.parametrize("taken", [0, 1, 7])
def test_closing_early_ends_the_threads(taken: int):
    """Also where the reader waits for room in the queue; the fixture counts the threads."""
    read = []

    def items() -> Iterator[int]:
        for i in range(1000):
            read.append(i)
            yield i

    results = ahead(items(), lambda i: i, depth=4)
    for _ in range(taken):
        next(results)
    results.close()
    assert len(read) <= taken + 4 + 3
    assert list(results) == []


def test_closing_while_the_reader_waits_for_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BUDGET_BYTES", 10)
    release = threading.Event()
    results = ahead(range(5), lambda i: release.wait(5) and i, size=lambda item: 10)
    threading.Timer(0.1, release.set).start()
    assert next(results) == 0
    results.close()


def test_waiting_bytes_stay_within_the_budget(monkeypatch: pytest.MonkeyPatch):
    """Items count from when they are read until they are prepared; one that is too large goes alone."""
    monkeypatch.setattr(module, "BUDGET_BYTES", 100)
    sizes = [30, 40, 60, 250, 10, 90, 20, 100, 101, 5, 5, 5]
    held, most, lock = 0, {}, threading.Lock()

    def change(by: int, item: int) -> None:
        nonlocal held
        with lock:
            held += by
            most[item] = held

    def prepare(item: int) -> int:
        change(sizes[item], item)
        time.sleep(0.005)
        change(-sizes[item], -1)
        return item

    assert list(ahead(range(12), prepare, threads=6, depth=12, size=sizes.__getitem__)) == [
        *range(12)
    ]
    assert max(v for item, v in most.items() if item not in (3, 8)) <= 100
    assert (most[3], most[8]) == (250, 101)


def test_no_more_than_depth_results_wait():
    prepared = []
    results = ahead(range(100), lambda i: prepared.append(i) or i, depth=4)
    assert next(results) == 0
    time.sleep(0.2)
    assert len(prepared) <= 1 + 4 + 1
    results.close()
