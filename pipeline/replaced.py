"""What a take-down replaced: old content to new, kept until everything that names the old is updated."""

import hashlib
import json

from pipeline import storage

FOLDER = "takedown"


class Replaced:
    """A log in the data folder, one small file per replaced file, written before it is replaced.

    A take-down that was killed finds in it what records still call by its old content.
    """

    def __init__(self, out: str) -> None:
        self._out = out
        self._folder = storage.join(out, FOLDER)
        self._new: dict[tuple[str, str], str] = {}
        for url in storage.list_files(self._folder, ".json"):
            entry = json.loads(storage.read_bytes(url))
            self._new[entry["path"], entry["old"]] = entry["new"]

    def note(self, path: str, old: str, new: str) -> None:
        """The content called `old` of a file, by its path in the data folder, becomes `new`."""
        if old == new or self._new.get((path, old)) == new:
            return
        self._new[path, old] = new
        name = hashlib.sha256(f"{path} {old}".encode()).hexdigest()[:32]
        entry = json.dumps({"path": path, "old": old, "new": new}).encode()
        storage.write_bytes(storage.join(self._folder, f"{name}.json"), entry)

    def now(self, path: str, old: str) -> str:
        """What a file's content is called now that was called `old`."""
        seen = {old}
        while (new := self._new.get((path, old), old)) not in seen:
            seen.add(new)
            old = new
        return old

    @property
    def paths(self) -> set[str]:
        """Every file that was replaced."""
        return {path for path, _ in self._new}

    def clear(self) -> None:
        """The take-down is whole: nothing is called by its old content any more."""
        for url in storage.list_files(self._folder, ".json"):
            storage.remove(url)
        self._new = {}
        storage.remove_folder(self._folder)
