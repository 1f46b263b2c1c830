"""Checkpoints in slices: each process writes its own, and index.json, written last, makes them whole.

    step-00000042/rank-0000.safetensors  rank-0001.safetensors  index.json

Slices are rows (jobs.sharding.rows), so that the index need only say how many processes there were:
any other number reads what it needs. What is not cut is in the first one's file.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from jobs.checksums import apart, crc32
from jobs.ranks import Ranks
from jobs.sharding import local, own_rows, rows
from pipeline import storage

INDEX = "index.json"


def save(folder: Path, tensors: Mapping[str, Tensor], about: dict, ranks: Ranks) -> None:
    """Writes a checkpoint, together with the other processes; a kill leaves one without an index."""

    def begin() -> None:
        remove(folder)
        folder.mkdir(parents=True)

    ranks.of_first(begin)
    shapes = {name: list(t.shape) for name, t in tensors.items() if isinstance(t, DTensor)}
    mine = {}
    for name, tensor in tensors.items():
        if name in shapes:
            start, stop = own_rows(tensor)
            if start < stop:
                mine[name] = local(tensor)
        elif ranks.is_first:
            mine[name] = tensor
    mine = apart(mine)
    crc = crc32(mine.items())
    with storage.write_atomic(str(folder / _file(ranks.rank))) as part:
        save_file(mine, part, metadata={"format": "pt"})
    index = {"about": about, "crc32": ranks.gathered(crc), "shapes": shapes}
    data = json.dumps(index, sort_keys=True).encode()
    ranks.of_first(lambda: storage.write_bytes(str(folder / INDEX), data))


def remove(folder: Path) -> None:
    """Deletes a checkpoint, whole or not; killed in between, it leaves one without an index."""
    storage.remove(str(folder / INDEX))
    for path in folder.glob("*"):
        path.unlink()
    storage.remove_folder(str(folder))


def load(folder: Path, ranks: Ranks) -> tuple["Slices", dict]:
    """What `save` wrote; the processes check its files in turns. ValueError where one is damaged."""
    try:
        index = json.loads((folder / INDEX).read_bytes())
        names = map(_file, range(len(index["crc32"])))
        if absent := [name for name in names if not (folder / name).exists()]:
            raise ValueError(f"it has no {absent[0]}")
        slices, about = Slices(folder, len(index["crc32"]), index["shapes"]), index["about"]
        for rank in range(ranks.rank, slices.world, ranks.world):
            if crc32(slices.of_file(rank)) != index["crc32"][rank]:
                raise ValueError(f"checksum of {_file(rank)} does not match")
    except FileNotFoundError as error:
        raise ValueError(f"it has no {INDEX}") from error
    except (SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error
    return slices, about


class Slices(Mapping[str, "Rows"]):
    """The tensors of a checkpoint in slices, none of which is read before it is asked for."""

    def __init__(self, folder: Path, world: int, shapes: dict[str, list[int]]) -> None:
        self.world, self._shapes = world, shapes
        self._files = [safe_open(folder / _file(rank), "pt") for rank in range(world)]

    def of_file(self, rank: int) -> Iterator[tuple[str, Tensor]]:
        """The tensors of one file in order of name, one at a time."""
        file = self._files[rank]
        for name in sorted(file.keys()):
            yield name, file.get_tensor(name)

    def names(self) -> list[str]:
        """All tensors, those that are not cut first."""
        uncut = [name for name in self._files[0].keys() if name not in self._shapes]  # noqa: SIM118
        return [*uncut, *self._shapes]

    def __getitem__(self, name: str) -> "Rows":
        shape = self._shapes.get(name)
        if shape is not None:
            return Rows(self._files, name, tuple(shape))
        if name not in self._files[0].keys():  # noqa: SIM118
            raise KeyError(name)
        return Rows(self._files[:1], name, tuple(self._files[0].get_slice(name).get_shape()))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())


class Rows:
    """One tensor, of which `[start:stop]` and `[...]` are read, by the files that hold these rows."""

    def __init__(self, files: list[Any], name: str, shape: tuple[int, ...]) -> None:
        self._files, self._name, self.shape = files, name, shape

    def __getitem__(self, wanted: slice | type(...)) -> Tensor:
        if not self.shape:
            return self._files[0].get_tensor(self._name)
        start, stop, _ = (slice(None) if wanted is ... else wanted).indices(self.shape[0])
        parts = []
        for rank, file in enumerate(self._files):
            first, last = rows(self.shape[0], rank, len(self._files))
            low, high = max(start, first), min(stop, last)
            if low < high:
                parts.append(file.get_slice(self._name)[low - first : high - first])
        if not parts:  # a process that keeps no row; the type is the file's
            return self._files[0].get_slice(self._name)[0:0]
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def _file(rank: int) -> str:
    return f"rank-{rank:04d}.safetensors"
