"""Folders of models that strangers wrote: their JSON as data of a bounded size, and what libraries raise over it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

UNFIT = (
    *(OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(ImportError, AssertionError, SafetensorError, StrictDataclassError),
)
"""What is raised where a folder's files are not what they should be."""

CONFIG_BYTES = 1 << 20  # no configuration is longer
LARGEST, MOST_LAYERS = 1 << 20, 256  # words, widths and places; layers


def read_object(path: Path, most_bytes: int = CONFIG_BYTES) -> dict[str, Any]:
    """The object that a JSON file holds. Raises OSError, ValueError, RecursionError."""
    if path.stat().st_size > most_bytes:
        raise ValueError(f"{path.name} is longer than {most_bytes:,} bytes")
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no object")
    return found


def believed(settings: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those of the settings that are named: others name code, as kernels and quantisers are.

    ValueError for a number that no model has: building that would take all memory, or all time.
    """
    found = {name: settings[name] for name in names if name in settings}
    for name, value in found.items():
        most = MOST_LAYERS if "layers" in name else LARGEST
        if isinstance(value, int | float) and not -most <= value <= most:
            raise ValueError(f"{name} is {value}")
    return found
