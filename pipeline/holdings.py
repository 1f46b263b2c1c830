"""Everything in a data folder that holds samples or speaks of them, and the shards that lie elsewhere."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from fsspec.core import url_to_fs

from pipeline import manifest, storage
from pipeline.manifest import Shard

SIDECARS = ("columns", "captions", "keep")
"""Kinds of runs with a sidecar per shard, each made from shards and kinds before it or its own."""

_KINDS = (*SIDECARS, "shards", "urls", "quarantine", "mix", "answers", "taught", "takedown")


@dataclass(frozen=True)
class Holdings:
    """Looked up once: what is added later is not there."""

    out: str

    def url(self, path: str) -> str:
        return storage.join(self.out, path)

    @cached_property
    def registered(self) -> list[Shard]:
        """Every shard that the folder knows, as it is: without its tombstones."""
        return [replace(shard, tombstones="") for shard in manifest.load(self.out)]

    @cached_property
    def raw(self) -> dict[str, Shard]:
        """Shards that lie in the folder's own `shards`: path -> shard."""
        return self._tars("shards/*.tar", "shards/*/*.tar")

    @cached_property
    def apart(self) -> dict[str, Shard]:
        """What crawls put in quarantine."""
        return self._tars("quarantine/*.tar", "quarantine/*/*.tar")

    @cached_property
    def mixed(self) -> dict[str, Shard]:
        """Training shards."""
        return self._tars("mix/*/*.tar")

    @cached_property
    def elsewhere(self) -> list[Shard]:
        """Shards that are not ours to rewrite."""
        own = {self.url(path) for path in (*self.raw, *self.mixed)}
        return [shard for shard in self.registered if shard.url not in own]

    @cached_property
    def tables(self) -> dict[str, str]:
        """Tables with a row per sample: path -> name of the shard that makes uids of its keys, or ""."""
        raw = self.paths("shards/*.parquet", "shards/*/*.parquet")
        names = {path: self._name(path.removesuffix("parquet") + "tar") for path in raw}
        parts = self.paths("urls/*.parquet", "urls/*/*.parquet", "taught/captions.parquet")
        sidecars = self.sidecars + self.paths("mix/*/*.parquet")
        return names | dict.fromkeys((*parts, *sidecars), "")

    @cached_property
    def sidecars(self) -> list[str]:
        return [path for kind in SIDECARS for path in self.paths(f"{kind}/*/*.parquet")]

    @cached_property
    def journals(self) -> list[str]:
        """Answers of chat models."""
        return self.paths("answers/*/*.jsonl")

    def folders(self) -> list[str]:
        """Every local folder in which steps write such files."""
        if not storage.is_local(self.out):
            return []
        root = Path(self.out)
        found = [f for kind in _KINDS for f in (root / kind, *(root / kind).glob("*"))]
        return [str(folder) for folder in (root, *found) if folder.is_dir()]

    def paths(self, *patterns: str) -> list[str]:
        """Files of the folder that match, by their paths in it, sorted; hidden ones are none."""
        found: set[str] = set()
        for pattern in patterns:
            if storage.is_local(self.out):
                root = Path(self.out)
                found |= {path.relative_to(root).as_posix() for path in root.glob(pattern)}
            else:
                fs, root = url_to_fs(self.out)
                inside = root.rstrip("/") + "/"
                found |= {p.removeprefix(inside) for p in fs.glob(inside + pattern)}
        return sorted(p for p in found if not p.rsplit("/", 1)[-1].startswith("."))

    def is_registered(self, path: str) -> bool:
        return any(shard.url == self.url(path) for shard in self.registered)

    def shard_path(self, name: str) -> str | None:
        """The path of the registered shard of that name, where it lies in the folder."""
        for shard in self.registered:
            if shard.name == name and shard.url.startswith(self.url("")):
                return shard.url.removeprefix(self.url(""))
        return None

    def _tars(self, *patterns: str) -> dict[str, Shard]:
        return {
            path: Shard(name=self._name(path), url=self.url(path), size=0)
            for path in self.paths(*patterns)
        }

    def _name(self, path: str) -> str:
        """The name that makes uids of the keys in a tar: of a quarantine, its shard's."""
        raw = path.replace("quarantine/", "shards/", 1)
        known = {shard.url: shard.name for shard in self.registered}
        return known.get(self.url(raw), raw.rsplit("/", 1)[-1].removesuffix(".tar"))
