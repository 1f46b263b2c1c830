"""Checkpoints: safetensors, written whole or not at all, and read without pickle."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jobs import sharded_checkpoints
from jobs.checksums import apart, crc32
from jobs.job import complain
from jobs.ranks import Ranks
from pipeline import storage
from pipeline.errors import UserError

_NAME = re.compile(r"step-(\d{8,})(\.safetensors)?")
_ALONE = Ranks()


def save(path: Path, tensors: Mapping[str, Tensor], about: dict) -> None:
    """Writes tensors and JSON values to one file; a kill leaves the old file or the new one."""
    on_cpu = apart(tensors)
    header = json.dumps(about | {"crc32": crc32(on_cpu.items())}, sort_keys=True)
    with storage.write_atomic(str(path)) as part:
        save_file(on_cpu, part, metadata={"format": "pt", "recaption": header})


def load(path: Path) -> tuple[dict[str, Tensor], dict]:
    """What `save` wrote; ValueError where the file is damaged."""
    try:
        with safe_open(path, "pt") as f:
            tensors = {name: f.get_tensor(name) for name in sorted(f.keys())}
            about = json.loads((f.metadata() or {})["recaption"])
    except (SafetensorError, KeyError, ValueError) as e:
        raise ValueError(str(e)) from e
    if crc32(tensors.items()) != about.get("crc32"):
        raise ValueError("checksum does not match")
    return tensors, about


def about(path: Path) -> dict:
    """The JSON values of a file alone; {} where there is none, or it is not whole."""
    try:
        with safe_open(path, "pt") as f:
            return json.loads((f.metadata() or {})["recaption"])
    except (FileNotFoundError, SafetensorError, KeyError, ValueError):
        return {}


def holds(path: Path, tensors: dict[str, Tensor], about: dict) -> bool:
    """Whether a file is whole, and what `save` would write."""
    try:
        _, found = load(path)
    except (FileNotFoundError, ValueError):
        return False
    return found == about | {"crc32": crc32(apart(tensors).items())}


def path_of(folder: Path, step: int) -> Path:
    """Of the checkpoint of a step in one file; one in slices has a folder, without a suffix."""
    return folder / f"step-{step:08d}.safetensors"


def steps_in(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, newest first."""
    return sorted({_step(path) for path in _found(folder)}, reverse=True)


def newest(folder: Path, ranks: Ranks = _ALONE) -> tuple[Mapping[str, Tensor], dict] | None:
    """The newest whole checkpoint; damaged ones are named and passed over.

    Of several processes, all look together, and the first one speaks. Of one in slices, tensors
    are read when they are asked for, as a whole (`[...]`) or by rows.
    """
    for name in ranks.of_first(lambda: [path.name for path in _found(folder)]):
        path, found, damage = folder / name, None, None
        absence = None if path.exists() else "it is not there"
        try:
            found = load(path) if path.suffix else sharded_checkpoints.load(path, ranks)
        except ValueError as e:
            damage = str(e)
        except OSError as e:
            absence = str(e)
        damages = ranks.gathered(damage)
        if absence:
            raise UserError(
                f"process {ranks.rank} cannot read {path}: {absence}",
                "give a folder that all machines share",
            )
        if not any(damages):
            return found
        if ranks.is_first:
            what = next(filter(None, damages))
            complain(
                f"note: {path} is damaged ({what}); going on from an older checkpoint, or anew"
            )
    return None


def prune(folder: Path, keep: int, step: int) -> None:
    """Deletes all but the last `keep` checkpoints up to `step`."""
    gone = [s for s in steps_in(folder) if s <= step][keep:]
    for path in _found(folder):
        if _step(path) in gone:
            _remove(path)


def clear(folder: Path) -> None:
    """Deletes what writers that were killed left behind."""
    storage.remove_temporaries(str(folder))
    for path in _found(folder):
        if not path.suffix and not (path / sharded_checkpoints.INDEX).exists():
            _remove(path)


def _found(folder: Path) -> list[Path]:
    """Checkpoints of both kinds, newest first, whether they are whole or not."""
    paths = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(paths, key=lambda path: (-_step(path), path.name))


def _step(path: Path) -> int:
    return int(_NAME.fullmatch(path.name)[1])


def _remove(path: Path) -> None:
    if path.suffix:
        path.unlink()
    else:
        sharded_checkpoints.remove(path)
