"""Real inputs, from the folder that RECAPTION_TEST_DATA names; tests skip where there is none."""

import json
import os
from pathlib import Path

import pytest


def data() -> Path:
    """The folder of test data; skips the test, saying so, where it is absent."""
    folder = os.environ.get("RECAPTION_TEST_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("RECAPTION_TEST_DATA names no folder of test data")
    return Path(folder)


def odd_images() -> list[tuple[str, bytes]]:
    """(suffix, bytes) of every odd or broken image."""
    lines = (data() / "odd_images/manifest.jsonl").read_text().splitlines()
    files = [json.loads(line)["file"] for line in lines]
    return [(f.rsplit(".", 1)[-1], (data() / "odd_images" / f).read_bytes()) for f in files]
