"""Fixtures of the pipeline's tests: folders here and in an object store, and the real data."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tests.support import real as real_data


@pytest.fixture
def out(tmp_path: Path) -> str:
    """A data folder that does not exist yet."""
    return str(tmp_path / "out")


@pytest.fixture
def store() -> Iterator[str]:
    """The URL of an empty folder in fsspec's memory, the object store that every machine has."""
    url = f"memory:///bucket-{uuid.uuid4().hex}"
    fs = fsspec.filesystem("memory")
    yield url
    if fs.exists(url):
        fs.rm(url, recursive=True)


@pytest.fixture(scope="session")
def real() -> Path:
    return real_data.data()
