"""What a data folder holds, for comparing two of them."""

import hashlib
import json
from pathlib import Path

CLOCKS = ("start_time", "end_time", "duration")


def digest(out: Path) -> dict[str, str]:
    """File -> hash of every output that must be the same bytes; stats less their clocks."""
    found = {}
    for path in sorted(out.glob("*/*/*")):
        if path.name.endswith("_stats.json"):
            stats = json.loads(path.read_text())
            data = json.dumps({k: v for k, v in stats.items() if k not in CLOCKS}).encode()
        elif path.suffix in (".tar", ".parquet") or path.name in ("sizes.json", "README.md"):
            data = path.read_bytes()
        else:
            continue
        found[str(path.relative_to(out))] = hashlib.sha256(data).hexdigest()
    return found


def leftovers(out: Path) -> list[str]:
    """Temporary files that a finished job should not leave."""
    return [str(path) for path in out.rglob("*.tmp")]
