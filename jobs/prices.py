"""What a job costs: hours of the cores and GPUs that it holds, times the prices of a table."""

import json
import math
from dataclasses import dataclass

from pipeline import storage
from pipeline.errors import UserError

_EXAMPLE = '{"currency": "USD", "core_hour": 0.04, "gpu_hour": 2.5}'
_FIELDS = {"currency", "core_hour", "gpu_hour"}


@dataclass(frozen=True)
class Prices:
    """A price table; what chat models charge for tokens is not in it."""

    currency: str
    core_hour: float
    gpu_hour: float

    def of(self, seconds: float, *, cores: float, gpus: float) -> float:
        """The cost of holding so many cores and GPUs for a time, at work or not."""
        return seconds / 3600 * (cores * self.core_hour + gpus * self.gpu_hour)


def load(url: str) -> Prices:
    """Reads a JSON file of `currency`, `core_hour` and `gpu_hour`; UserError that names what is wrong."""
    try:
        table = json.loads(storage.read_bytes(storage.absolute(url)))
    except (OSError, ValueError, RecursionError) as e:
        why = " ".join(storage.scrub(str(e), url).split())[:200]
        raise _wrong(url, why) from e
    if not isinstance(table, dict) or set(table) != _FIELDS:
        given = ", ".join(sorted(table)) if isinstance(table, dict) else type(table).__name__
        raise _wrong(url, f"it has {given[:80]}")
    if not isinstance(table["currency"], str) or not 0 < len(table["currency"]) <= 8:
        raise _wrong(url, "currency is no short name")
    for name in ("core_hour", "gpu_hour"):
        price = table[name]
        is_number = isinstance(price, int | float) and not isinstance(price, bool)
        if not is_number or not math.isfinite(price) or price < 0:
            raise _wrong(url, f"{name} is no price")
    return Prices(table["currency"], float(table["core_hour"]), float(table["gpu_hour"]))


def _wrong(url: str, why: str) -> UserError:
    return UserError(f"PRICES={storage.public(url)}: {why}", f"a table is {_EXAMPLE}")
