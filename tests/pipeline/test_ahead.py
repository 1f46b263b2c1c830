"""Work ahead: each shard once, whatever was begun is over when an error comes out."""

import threading
import time

import pytest

from pipeline.ahead import Ahead
from pipeline.manifest import Shard

SHARDS = [Shard(name=f"{i:05d}", url="", size=0) for i in range(9)]


def test_every_shard_is_done_once_and_each_gets_its_own():
    begun = []

    def perform(shard: Shard) -> str:
        begun.append(shard.name)
        return f"made of {shard.name}"

    ahead = Ahead(perform, SHARDS, wanted=lambda shard: shard.name != "00003")
    asked = [shard for shard in SHARDS if shard.name != "00003"]
    assert [ahead(shard) for shard in asked] == [f"made of {shard.name}" for shard in asked]
    assert sorted(begun) == [shard.name for shard in asked]
    assert ahead(SHARDS[3]) == "made of 00003" and ahead(SHARDS[0]) == "made of 00000"
    assert len(begun) == 10  # asked for again, made again


def test_without_followers_nothing_is_begun_that_was_not_asked_for():
    begun = []
    assert Ahead(begun.append)(SHARDS[2]) is None and begun == [SHARDS[2]]


def test_an_error_comes_out_at_its_shard_when_nothing_goes_on_any_more():
    running, lock = set(), threading.Lock()

    def perform(shard: Shard) -> str:
        if shard.name == "00001":
            raise ValueError("mend me")
        with lock:
            running.add(shard.name)
        time.sleep(0.02)
        with lock:
            running.discard(shard.name)
        return shard.name

    ahead = Ahead(perform, SHARDS)
    assert ahead(SHARDS[0]) == "00000"
    with pytest.raises(ValueError, match="mend me"):
        ahead(SHARDS[1])
    assert not running
    assert [ahead(shard) for shard in SHARDS[2:]] == [shard.name for shard in SHARDS[2:]]
