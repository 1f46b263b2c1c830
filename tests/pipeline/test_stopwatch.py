"""Who waits for whom: the consumer's waiting and the threads' work are told apart."""

import time

import pytest

from pipeline.prefetch import prefetch
from pipeline.stopwatch import PREPARE, TASK, WAIT, Spent, Stopwatch

PAUSE = 0.02


def passed(prepare_sec: float, use_sec: float) -> dict[str, Spent]:
    TASK.taken()
    items = prefetch(
        range(10), lambda _: time.sleep(prepare_sec), threads=1, depth=4, size=lambda _: 0
    )
    for _ in items:
        time.sleep(use_sec)
    return TASK.taken()


def test_a_consumer_that_is_starved_waits():
    spent = passed(prepare_sec=PAUSE, use_sec=0)
    assert spent[WAIT].samples == spent[PREPARE].samples == 10
    assert spent[WAIT].seconds >= 8 * PAUSE


def test_a_consumer_that_is_slow_does_not():
    spent = passed(prepare_sec=0, use_sec=PAUSE)
    starved = passed(prepare_sec=PAUSE, use_sec=0)
    assert spent[WAIT].seconds < starved[WAIT].seconds


def test_parts_add_up_and_are_taken_once():
    watch = Stopwatch()
    watch.add("model", 1.5, 3)
    watch.add("model", 0.5, 1)
    with pytest.raises(ValueError), watch.measuring("read", samples=2):
        raise ValueError
    assert list(watch.timed("items", "ab")) == ["a", "b"]
    taken = watch.taken()
    assert taken["model"] == Spent(2.0, 4)
    assert (taken["read"].samples, taken["items"].samples) == (2, 2)
    assert watch.taken() == {}
