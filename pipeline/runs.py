"""A run: one folder of outputs made with one configuration, which run.json records."""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pipeline import storage
from pipeline.errors import UserError

FILE = "run.json"
NAMELESS = "shards"
"""The kind whose outputs stand in `OUT/<kind>` itself where they were given no name."""

_RECORDED_PACKAGES = (
    "recaption",
    "torch",
    "open_clip_torch",
    "numpy",
    "pyarrow",
    "duckdb",
    "pillow",
    "simplejpeg",
    "ray",
)
_LIMITED = re.compile(r".+-limit\d+")
_NAME = re.compile(r"[\w@+=,-][\w@+=,.-]*")


@dataclass(frozen=True)
class Run:
    """A run of one kind ("captions", "mix", ...) in a data folder; only NAMELESS ones lack a name."""

    out: str
    kind: str
    name: str
    config: dict  # JSON values only: everything that decides what the outputs are

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) and (self.kind, self.name) != (NAMELESS, ""):
            raise UserError(
                f"RUN={self.name!r} is no name for a folder", "use letters, digits and - _ . @"
            )

    @property
    def folder(self) -> str:
        return _folder(self.out, self.kind, self.name)

    @property
    def title(self) -> str:
        """What people call it: `captions first`."""
        return f"{self.kind} {self.name}".strip()

    @property
    def config_hash(self) -> str:
        return hashlib.sha256(canonical(self.config).encode()).hexdigest()

    def file(self, name: str) -> str:
        return storage.join(self.folder, name)


def _folder(out: str, kind: str, name: str) -> str:
    return storage.join(out, kind, *([name] if name else []))


def canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def begin(run: Run, shards: Iterable[str]) -> list[str]:
    """Opens or continues a run; returns what changed in the environment since, for the user.

    Writes run.json (config, environment, planned shards) before any output. Raises UserError
    naming the fields that differ where the name was used with another config.
    """
    now = environment()
    before = load(run.out, run.kind, run.name)
    changed = []
    planned = set(shards)
    if before:
        refuse_other_config(run, before["config"])
        changed = [
            f"{k} was {v}, is {now.get(k)}"
            for k, v in before["environment"].items()
            if now.get(k) != v
        ]
        planned |= set(before["shards"])
    record = {
        "kind": run.kind,
        "run": run.name,
        "config_hash": run.config_hash,
        "config": run.config,
        "environment": now,
        "shards": sorted(planned),
    }
    if record != before:
        data = json.dumps(record, indent=1, ensure_ascii=False).encode()
        storage.write_bytes(run.file(FILE), data)
    return changed


def load(out: str, kind: str, name: str) -> dict | None:
    """What run.json says, or None where there is no such run."""
    url = storage.join(_folder(out, kind, name), FILE)
    try:
        return json.loads(storage.read_bytes(url))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as e:
        raise UserError(f"RUN={name}: {url} is damaged: {e}", "give another RUN") from e


def names(out: str, kind: str) -> list[str]:
    """The runs of one kind that a data folder has, by name."""
    return sorted(url.rsplit("/", 2)[-2] for url in storage.glob(out, f"{kind}/*/{FILE}"))


def whole(names: Iterable[str]) -> list[str]:
    """Of the names of runs that do the same, those without a LIMIT; all where each has one."""
    names = list(names)
    return [name for name in names if not _LIMITED.fullmatch(name)] or names


def require(out: str, kind: str, name: str) -> dict:
    """The same, for a run that must exist."""
    found = load(out, kind, name)
    if found is None:
        raise UserError(f"{out} has no run {kind}/{name}", f"make it first, or see {out}/{kind}/")
    return found


def environment() -> dict[str, str]:
    """Versions and code that may change the last bits of an output."""
    versions = {}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions | {"commit": _commit()}


def _commit() -> str:
    """The git commit that the code runs from, "" where it is an installed package."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists() or not shutil.which("git"):
        return ""
    done = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def refuse_other_config(run: Run, before: dict) -> None:
    """UserError that names the settings in which a run differs from what its name was used for."""
    old, new = (
        {k: canonical(v) for k, v in flat(config).items()} for config in (before, run.config)
    )
    names = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    if names:
        differ = ", ".join(
            f"{k} (was {old.get(k, 'absent')}, is {new.get(k, 'absent')})" for k in names
        )
        flag, value = ("RUN", run.name) if run.name else ("OUT", run.out)
        path = f"{run.kind}/{run.name}".removesuffix("/")
        raise UserError(
            f"{flag}={value}: {path} was made with other settings: {differ}",
            f"give another {flag}, or the same settings",
        )


def flat(config: dict, prefix: str = "") -> dict[str, object]:
    """Nested settings as dotted names, for messages."""
    found: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
