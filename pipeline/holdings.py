"""Everything in a data folder that holds samples or speaks of them, and the shards that lie elsewhere."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from fsspec.core import url_to_fs

from pipeline import catalog, manifest, storage, tombstones
from pipeline.blanking import NO_UIDS
from pipeline.manifest import Shard

SIDECARS = ("columns", "captions", "keep")
"""Kinds of runs with a sidecar per shard, each made from shards and kinds before it or its own."""

REMADE = (
    *("samples.png", "report/*", "report/*/*", "evaluations/*/*", "evaluations/*/answers/*/*"),
    *("keep/*/funnel.json", "keep/*/uids.npy"),
)
"""What is removed whole where anything is taken down: one command makes it again without it."""

_TOLD = (
    *(
        manifest.FILE,
        tombstones.FILE,
        catalog.FILE,
        "takedown/*.json",
        "*/run.json",
        "*/*/run.json",
    ),
    *("shards/*_stats.json", "shards/*/*_stats.json", "mix/*/*_stats.json"),
    *("shards/sizes.json", "shards/*/sizes.json", "mix/*/sizes.json", "mix/*/README.md"),
    *("urls/plan.json", "urls/*/plan.json", "cache/*/*.safetensors"),
    # uids, keys and byte ranges, and nothing else
    *("plans/*.json", "plans/*.parquet", "places/*/*.parquet", "taught/train.txt"),
)
"""What tells of no sample, or is made true again."""

_KINDS = (
    *SIDECARS,
    "shards",
    "urls",
    "quarantine",
    "mix",
    "answers",
    "taught",
    "takedown",
    "cache",
    "evaluations",
)


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
    def tables(self) -> dict[str, str | None]:
        """Tables with a row per sample: path -> the shard that it lies beside; see `blanking.uids`."""
        names = {path: self._name(tar_of(path)) for path in self.raw_tables}
        taught = self.paths("taught/captions.parquet")
        ours = dict.fromkeys((*taught, *self.sidecars, *self.paths("mix/*/*.parquet")), "")
        return names | ours | dict.fromkeys(self.planned, NO_UIDS)

    @cached_property
    def raw_tables(self) -> list[str]:
        """Those beside raw shards."""
        return self.paths("shards/*.parquet", "shards/*/*.parquet")

    @cached_property
    def planned(self) -> list[str]:
        """What crawls have still to fetch, or had."""
        return self.paths("urls/*.parquet", "urls/*/*.parquet")

    def is_alone(self, path: str) -> bool:
        """Whether a raw shard's table has no tar beside it."""
        return tar_of(path) not in self.raw

    @cached_property
    def sidecars(self) -> list[str]:
        return [path for kind in SIDECARS for path in self.paths(f"{kind}/*/*.parquet")]

    @cached_property
    def journals(self) -> list[str]:
        """Answers of chat models."""
        return self.paths("answers/*/*.jsonl")

    def unfinished(self) -> list[str]:
        """Local folders of a step that was killed at work, with copies of what it works on."""
        if not storage.is_local(self.out):
            return []
        root = Path(self.out)
        found = (path for kind in SIDECARS for path in root.glob(f"{kind}/*/.work"))
        return sorted(path.relative_to(root).as_posix() for path in found)

    def others(self) -> dict[str, int]:
        """Files that are nothing we know, which may hold anything: path -> 1, folder -> how many.

        A folder of which nothing is known is one entry.
        """
        known = {
            *(*self.raw, *self.apart, *self.mixed, *self.tables, *self.journals),
            *self.paths(*_TOLD, *REMADE),
        }
        ours = {folder.rpartition("/")[0] for folder in known}
        found: Counter[str] = Counter()
        for path in self._files():
            if path not in known:
                parts = path.split("/")
                tops = ("/".join(parts[:i]) for i in range(1, len(parts)))
                found[next((f"{t}/" for t in tops if not _holds(ours, t)), path)] += 1
        return dict(sorted(found.items()))

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
                files = (path for path in root.glob(pattern) if not path.is_dir())
                found |= {path.relative_to(root).as_posix() for path in files}
            else:
                fs, root = url_to_fs(self.out)
                inside = root.rstrip("/") + "/"
                files = fs.glob(inside + pattern, detail=True).items()
                found |= {p.removeprefix(inside) for p, about in files if about["type"] == "file"}
        return sorted(p for p in found if not p.rsplit("/", 1)[-1].startswith("."))

    def is_registered(self, path: str) -> bool:
        return any(shard.url == self.url(path) for shard in self.registered)

    def shard_path(self, name: str) -> str | None:
        """The path of the registered shard of that name, where it lies in the folder."""
        for shard in self.registered:
            if shard.name == name and shard.url.startswith(self.url("")):
                return shard.url.removeprefix(self.url(""))
        return None

    def _files(self) -> list[str]:
        """Every file of the folder that is not hidden, nor in a hidden folder."""
        if storage.is_local(self.out):
            root = Path(self.out)
            found = (p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
        else:
            fs, root = url_to_fs(self.out)
            found = (path.removeprefix(root.rstrip("/") + "/") for path in fs.find(root))
        return sorted(p for p in found if not any(n.startswith(".") for n in p.split("/")))

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


def tar_of(path: str) -> str:
    """Of the raw shard that a table lies beside."""
    return path.removesuffix("parquet") + "tar"


def _holds(ours: set[str], folder: str) -> bool:
    return any(own == folder or own.startswith(f"{folder}/") for own in ours)
