"""What a data folder holds, for comparing two of them."""

import hashlib
import json
from pathlib import Path

CLOCKS = ("start_time", "end_time", "duration")
_SAME = (".tar", ".parquet", ".safetensors")
_SAME_NAMES = ("sizes.json", "README.md", "funnel.json")
_MANIFEST = "shards.parquet"  # has the times at which its shards were written


def digest(out: Path) -> dict[str, str]:
    """File -> hash of every output that must be the same bytes; stats less their clocks.

    Raises AssertionError where there is none: nothing is always equal to nothing.
    """
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if "/." in f"/{name}" or name == _MANIFEST:
            continue
        if path.name.endswith("_stats.json"):
            stats = json.loads(path.read_text())
            data = json.dumps({k: v for k, v in stats.items() if k not in CLOCKS}).encode()
        elif path.suffix in _SAME or path.name in _SAME_NAMES:
            data = path.read_bytes()
        else:
            continue
        found[name] = hashlib.sha256(data).hexdigest()
    assert found, f"no outputs in {out}"
    return found


def leftovers(out: Path) -> list[str]:
    """Temporary files that a finished job should not leave."""
    return [str(path) for path in out.rglob("*.tmp")]
