"""The quarantine: bytes that are not what their list promised, kept apart for people to look at."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pipeline import storage
from pipeline.runs import Run
from pipeline.writing import ShardWriter, json_bytes

KIND = "quarantine"


def folder_of(run: Run) -> str:
    """Where the quarantine of a run of shards stands."""
    return storage.join(run.out, KIND, *([run.name] if run.name else []))


def url_of(run: Run, shard: str) -> str:
    """The tar with what a shard left out."""
    return storage.join(folder_of(run), f"{shard}.tar")


class Quarantine:
    """Takes what does not belong into the shard; what people do with it later is theirs."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stack = ExitStack()
        self._writer: ShardWriter | None = None

    def add(self, key: str, data: bytes, told: dict) -> None:
        """The bytes as they were fetched (`.bin`: nobody decoded them), and why they are here."""
        if self._writer is None:
            part = self._stack.enter_context(storage.write_atomic(self._url))
            self._writer = self._stack.enter_context(ShardWriter(part))
        self._writer.add_members(key, {"bin": data, "json": json_bytes(told)})

    @contextmanager
    def committed(self) -> Iterator["Quarantine"]:
        """Commits on leaving the block, or removes what an earlier attempt left."""
        with self._stack:
            yield self
        if self._writer is None:
            storage.remove(self._url)
